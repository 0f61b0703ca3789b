//! The schemas that `netloom schema` prints match what the plugins accept, the examples in the documentation, and their own.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, NETLOOM, OURS, PLUGINS};

fn schema(of: &[&str]) -> Value {
    let output = Command::new(NETLOOM).arg("schema").args(of).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn wrong(schema: &Value, instance: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).unwrap();
    validator.iter_errors(instance).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// The schema accepts the configurations of the parity tests, except those that are refused because of their text.
#[test]
fn configurations_that_work_fit() {
    // These are refused because of their text.
    const REFUSED: [&str; 4] = [
        r#""vlan":4095"#,
        r#""vlanId":4095"#,
        r#""macvlan","master":"up0","mode":"l2""#,
        r#""ipvlan","master":"up0","mode":"bridge""#,
    ];
    let list = schema(&[]);
    let parity: Vec<Value> = serde_json::from_str(include_str!("parity.json")).unwrap();
    let chains: Value = serde_json::from_str(include_str!("chains.json")).unwrap();
    let chains =
        chains["chains"].as_array().unwrap().iter().flat_map(|chain| chain.as_array().unwrap()).cloned();
    let mut seen = 0;
    for mut conf in parity.into_iter().chain(chains) {
        conf.as_object_mut().unwrap().retain(|key, _| !key.starts_with('@'));
        let list_of_one = json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [conf]});
        let wrong = wrong(&list, &list_of_one);
        let text = conf.to_string();
        let refused = REFUSED.iter().any(|part| text.contains(part));
        assert_eq!(wrong.is_empty(), !refused, "{text}\n{wrong:#?}");
        seen += 1;
    }
    assert!(seen >= 180, "{seen}");
}

/// Every list in the documentation is valid, and every plugin's page has one.
#[test]
fn the_pages_examples_fit() {
    let list = schema(&[]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let folder = fs::read_dir(root.join("docs/plugins")).unwrap().map(|entry| entry.unwrap().path());
    let mut lists = 0;
    for page in folder.chain([root.join("README.md"), root.join("docs/writing-a-plugin.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            let value: Value =
                serde_json::from_str(block).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            if value.get("plugins").is_some() {
                let wrong = wrong(&list, &value);
                assert!(wrong.is_empty(), "{}: {wrong:#?}", page.display());
                lists += 1;
            }
        }
    }
    assert!(lists > PLUGINS.len(), "{lists}");
    for plugin in PLUGINS {
        assert!(root.join(format!("docs/plugins/{plugin}.md")).exists(), "{plugin} has no page");
    }
}

/// The example of every key is valid for that key.
#[test]
fn examples_fit_their_own_keys() {
    for plugin in PLUGINS {
        let schema = schema(&[plugin]);
        assert!(jsonschema::meta::is_valid(&schema), "{plugin}");
        let mut keys = vec![(String::new(), schema["properties"].clone())];
        while let Some((path, properties)) = keys.pop() {
            for (key, value) in properties.as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                for example in value["examples"].as_array().into_iter().flatten() {
                    let mut alone = value.clone();
                    // The key may refer to a definition in the whole schema.
                    alone.as_object_mut().unwrap().remove("allOf");
                    assert!(wrong(&alone, example).is_empty(), "{plugin}{path}: {example}");
                }
                keys.push((path, value["properties"].clone()));
            }
        }
    }
}

/// The values that a schema lists are those that the plugin accepts.
#[test]
fn listed_values_are_those_that_are_taken() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("ip link add up0 type veth peer name up1");
    let mut tried = 0;
    for plugin in PLUGINS {
        let schema = schema(&[plugin]);
        for (key, of_key) in schema["properties"].as_object().unwrap() {
            let Some(values) = of_key["enum"].as_array().filter(|_| key != "cniVersion") else { continue };
            for value in values.iter().chain([&json!("no such")]) {
                let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": plugin, key: value, "master": "up0",
                    "ipam": {"type": "host-local", "subnet": "10.88.0.0/16"}});
                let answer = Call::new(&host, &OURS, "none").call("STATUS", &conf);
                // firewalld is not running, which is a different error.
                let refused = !answer.ok && [2, 7].contains(&answer.error().0);
                assert_eq!(refused, value == "no such", "{conf}: {answer:?}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 25, "{tried}");
}
