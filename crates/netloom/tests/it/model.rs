//! Random interleavings of ADD, DEL, CHECK and GC of 64 containers, by our plugins and the reference plugins on one state.
//! The state after each round must match a model.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, with_prev};

/// The operation on a container in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Nothing,
    Add,
    Del,
    Check,
}

/// Concurrent operations: one per container, whether the reference plugins run it, and the network that GC runs on.
#[derive(Debug, Clone)]
struct Round {
    operations: Vec<(Operation, bool)>,
    collected: Option<usize>,
}

const CONTAINERS: usize = 64;
/// Containers alternate between the networks. The reference plugins keep masquerading and published ports elsewhere, so only
/// our plugins work on `ours`. Both work on `shared`.
const NETWORKS: [&str; 2] = ["shared", "ours"];

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let operation = prop_oneof![
        1 => Just(Operation::Nothing),
        4 => Just(Operation::Add),
        3 => Just(Operation::Del),
        1 => Just(Operation::Check),
    ];
    let round = (vec((operation, any::<bool>()), CONTAINERS), proptest::option::of(0..NETWORKS.len()))
        .prop_map(|(operations, collected)| Round { operations, collected });
    vec(round, 1..4)
}

fn chain(network: usize, container: usize) -> Vec<Value> {
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": format!("10.{}.0.0/24", 80 + network)}]]});
    let mut bridge =
        json!({"type": "bridge", "bridge": format!("br{network}"), "isGateway": true, "ipam": ipam});
    let mut chain = if network == 0 {
        vec![bridge]
    } else {
        bridge["ipMasq"] = json!(true);
        bridge["macspoofchk"] = json!(true);
        let port = json!([{"hostPort": 9000 + container, "containerPort": 80, "protocol": "tcp"}]);
        vec![
            bridge,
            json!({"type": "portmap", "runtimeConfig": {"portMappings": port}}),
            json!({"type": "firewall"}),
        ]
    };
    for conf in &mut chain {
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!(NETWORKS[network]);
    }
    chain
}

/// The attached containers with the last result of each.
type Model = BTreeMap<usize, Value>;

/// Runs one container's operation and returns its new state in the model.
fn operate(
    host: &Host,
    bin: &Path,
    container: usize,
    operation: Operation,
    was: Option<Value>,
) -> Result<Option<Value>, String> {
    let confs = chain(container % NETWORKS.len(), container);
    let call = Call::new(host, bin, &format!("c{container}"));
    let run = |verb: &str, conf: &Value| {
        let answer = call.call(verb, conf);
        if answer.ok {
            Ok(answer.stdout)
        } else {
            Err(format!("{verb} {conf} by {}: {}", bin.display(), answer.stdout))
        }
    };
    let end = was.clone().unwrap_or(Value::Null);
    match (operation, was) {
        (Operation::Nothing, was) => Ok(was),
        (Operation::Add, None) => {
            let mut result = Value::Null;
            for conf in &confs {
                result = serde_json::from_str(&run("ADD", &with_prev(conf, &result))?)
                    .map_err(|e| e.to_string())?;
            }
            Ok(Some(result))
        }
        // The interface exists: ADD must fail and leave the attachment alone.
        (Operation::Add, Some(was)) => match run("ADD", &confs[0]) {
            Ok(answer) => Err(format!("added twice: {answer}")),
            Err(_) => Ok(Some(was)),
        },
        (Operation::Del, _) => {
            for conf in confs.iter().rev() {
                run("DEL", &with_prev(conf, &end))?;
            }
            Ok(None)
        }
        (Operation::Check, None) => Ok(None),
        (Operation::Check, Some(was)) => {
            for conf in &confs {
                match run("CHECK", &with_prev(conf, &was)) {
                    // If several ADDs create a bridge at once, the reference plugin's result may list an address
                    // that the bridge had briefly.
                    Err(error) if bin != &**OURS && error.contains("Mac doesn't match") => {}
                    other => drop(other?),
                }
            }
            Ok(Some(was))
        }
    }
}

fn collect(host: &Host, network: usize, model: &Model) -> Result<(), String> {
    let of_network = model.keys().filter(|container| *container % NETWORKS.len() == network);
    let valid: Vec<Value> = of_network
        .map(|container| json!({"containerID": format!("c{container}"), "ifname": "eth0"}))
        .collect();
    for mut conf in chain(network, 0) {
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = json!(valid);
        let answer = Call::new(host, &OURS, "gc").call("GC", &conf);
        if !answer.ok {
            return Err(format!("GC {conf}: {}", answer.stdout));
        }
    }
    Ok(())
}

/// Checks the state. The reservations are the attached containers' addresses, without duplicates. Each container has one
/// veth pair, and there are no others. The ruleset contains exactly the attached containers of the network with rules.
fn holds(host: &Host, model: &Model) -> Result<(), String> {
    let address = |result: &Value| {
        result["ips"][0]["address"]
            .as_str()
            .unwrap_or_default()
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let given: BTreeSet<String> = model.values().map(address).collect();
    let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    let reserved =
        lines(host.sh("cd /var/lib/cni/networks 2>/dev/null && ls */10.* 2>/dev/null | cut -d/ -f2 || true"));
    if given.len() != model.len() || given != reserved {
        return Err(format!("{} are attached, with {given:?}; reserved are {reserved:?}", model.len()));
    }
    let links = host.sh("ip -br link show type veth | wc -l");
    if links.trim() != model.len().to_string() {
        return Err(format!("{} are attached, and there are {links} veth links", model.len()));
    }
    let rules = host.sh("nft list ruleset | grep -o 'eth0 c[0-9]* ours' | sort -u || true");
    let with_rules = lines(rules);
    let ours = model.keys().filter(|container| *container % 2 == 1);
    let expected: BTreeSet<String> = ours.map(|container| format!("eth0 c{container} ours")).collect();
    if with_rules != expected {
        return Err(format!("rules are there of {with_rules:?}, attached are {expected:?}"));
    }
    Ok(())
}

#[test]
fn any_interleaving_leaves_what_the_model_says() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    let cases = std::env::var("NETLOOM_MODEL").ok().and_then(|cases| cases.parse().ok()).unwrap_or(6);
    let config = Config { cases, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&rounds(), |rounds| {
        let host = Host::new();
        for container in 0..CONTAINERS {
            host.container(&format!("c{container}"));
        }
        let mut model = Model::new();
        // After the last round nothing is left behind.
        let last = Round { operations: vec![(Operation::Del, false); CONTAINERS], collected: None };
        for round in rounds.iter().chain([&last]) {
            let (host, peers, before) = (&host, &peers, &model);
            let outcomes: Vec<(usize, Result<Option<Value>, String>)> = std::thread::scope(|scope| {
                let collector =
                    round.collected.map(|network| scope.spawn(move || collect(host, network, before)));
                let running: Vec<_> = round
                    .operations
                    .iter()
                    .enumerate()
                    // A runtime runs no other operation on a network during GC.
                    .filter(|(container, _)| round.collected != Some(container % NETWORKS.len()))
                    .map(|(container, (operation, by_reference))| {
                        let bin: &Path = if *by_reference && container % 2 == 0 { peers } else { &OURS };
                        let was = before.get(&container).cloned();
                        (container, scope.spawn(move || operate(host, bin, container, *operation, was)))
                    })
                    .collect();
                let mut outcomes: Vec<_> = running
                    .into_iter()
                    .map(|(container, thread)| (container, thread.join().unwrap()))
                    .collect();
                if let Some(Err(error)) = collector.map(|thread| thread.join().unwrap()) {
                    outcomes.push((usize::MAX, Err(error)));
                }
                outcomes
            });
            for (container, outcome) in outcomes {
                match outcome.map_err(TestCaseError::fail)? {
                    Some(result) => drop(model.insert(container, result)),
                    None => drop(model.remove(&container)),
                }
            }
            holds(host, &model).map_err(TestCaseError::fail)?;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
