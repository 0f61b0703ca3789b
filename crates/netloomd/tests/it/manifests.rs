//! The Kubernetes manifests: every field exists in the published API with its type, and they match what daemons do.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Namespace, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::configuration::check;

fn manifests() -> Vec<Value> {
    let text = include_str!("../../../../deploy/kubernetes/netloom.yaml");
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// Parses an object as its kind, and serializes it again: fields that the API does not have are lost.
fn same<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    assert_eq!(floats(serde_json::to_value(typed).unwrap()), floats(object.clone()));
}

/// Normalizes numbers: some of the API's are floating-point, and serialize whole numbers differently.
fn floats(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().unwrap().into(),
        Value::Array(all) => all.into_iter().map(floats).collect(),
        Value::Object(all) => all.into_iter().map(|(name, value)| (name, floats(value))).collect(),
        other => other,
    }
}

#[test]
fn every_field_is_kubernetes_own() {
    let mut kinds = BTreeMap::<String, usize>::new();
    for object in manifests() {
        let kind = object["kind"].as_str().unwrap();
        *kinds.entry(kind.to_owned()).or_default() += 1;
        match kind {
            "Namespace" => same::<Namespace>(&object),
            "CustomResourceDefinition" => same::<CustomResourceDefinition>(&object),
            "ServiceAccount" => same::<ServiceAccount>(&object),
            "ClusterRole" => same::<ClusterRole>(&object),
            "ClusterRoleBinding" => same::<ClusterRoleBinding>(&object),
            "ConfigMap" => same::<ConfigMap>(&object),
            "DaemonSet" => same::<DaemonSet>(&object),
            other => panic!("{other} is not looked at"),
        }
    }
    assert_eq!(kinds.values().sum::<usize>(), 8, "{kinds:?}");
    // An unknown field is detected.
    let mut wrong = manifests().into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    wrong["spec"]["template"]["spec"]["hostNetworks"] = true.into();
    assert!(std::panic::catch_unwind(|| same::<DaemonSet>(&wrong)).is_err());
}

#[test]
fn the_configuration_in_it_is_valid() {
    let object = manifests().into_iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    let (ok, says) = check(object["data"]["netloomd.toml"].as_str().unwrap(), &["--node", "n1"]);
    assert!(ok && says.contains("store kubernetes"), "{says}");
}

/// The init container's command installs the plugins with the rights and directories that the manifest gives it.
#[test]
fn the_init_container_puts_the_plugins_there() {
    if !testkit::is_root() {
        return;
    }
    let object = manifests().into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let container = &object["spec"]["template"]["spec"]["initContainers"][0];
    let rights = &container["securityContext"];
    assert_eq!(rights["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    assert!(rights["readOnlyRootFilesystem"] == true && rights["allowPrivilegeEscalation"] == false);
    let places = container["volumeMounts"].as_array().unwrap().iter();
    let places: Vec<&str> = places.map(|mount| mount["mountPath"].as_str().unwrap()).collect();
    let command = container["command"].as_array().unwrap().iter();
    let command: Vec<&str> = command.map(|word| word.as_str().unwrap()).collect();
    assert_eq!(command[0], "/usr/local/bin/netloom");
    let host = testkit::Host::new();
    // A foreign plugin is kept.
    host.sh(
        "mkdir -p /opt/cni/bin /var/lib/cni; echo other >/opt/cni/bin/bridge; chmod +x /opt/cni/bin/bridge",
    );
    host.sh(&format!(
        "for place in {}; do mount --bind $place $place; done; for place in / /opt /var/lib; do mount -o remount,ro,bind $place; done
         ! touch /opt/forbidden 2>/dev/null || exit 1
         exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all {} {}",
        places.join(" "),
        crate::lab::netloom().display(),
        command[1..].join(" ")
    ));
    let version = host.sh("echo {} | CNI_COMMAND=VERSION /opt/cni/bin/bridge");
    assert!(version.contains("1.1.0"), "{version}");
    assert_eq!(host.sh("/opt/cni/bin/netloom uninstall >&2; cat /opt/cni/bin/bridge"), "other\n");
}

/// Objects that daemons write match the definitions of their kinds, and garbage does not.
pub(crate) fn objects_fit<'a>(objects: impl Iterator<Item = &'a Value>) {
    let schemas: BTreeMap<String, Value> = manifests()
        .into_iter()
        .filter(|object| object["kind"] == "CustomResourceDefinition")
        .map(|object| {
            let kind = object["spec"]["names"]["kind"].as_str().unwrap().to_owned();
            (kind, object["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
        })
        .collect();
    let mut count = 0;
    for object in objects {
        let schema = &schemas[object["kind"].as_str().unwrap()];
        jsonschema::validate(schema, object).unwrap();
        // The server would drop a field that the schema does not have.
        let known = schema["properties"]["spec"]["properties"].as_object().unwrap();
        for field in object["spec"].as_object().unwrap().keys() {
            assert!(known.contains_key(field), "{field} of {object}");
        }
        count += 1;
    }
    assert!(count > 0);
    assert!(
        jsonschema::validate(&schemas["NetloomNode"], &serde_json::json!({"spec": {"addresses": 7}}))
            .is_err()
    );
}
