//! Chains compared with the reference plugins 1.9.1 and 1.10.0. Each chain behind each interface plugin must give the same
//! result, the same state of container and host, and the same reachability. `chains-differences.json` lists the intended
//! differences.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};
use testkit::Transport;

use crate::{
    firewall::{Lab, at},
    lab::{Call, OURS, with_prev},
    parity::{Differences, Names, Seen, flatten, look, outcome, take_out_random_macs},
};

const CHAINS: &str = include_str!("chains.json");
const DIFFERENCES: &str = include_str!("chains-differences.json");

#[test]
fn the_same_chain_gives_the_same_connections() {
    if let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) {
        compare(&peers, "1.9.1");
    }
}

#[test]
fn the_same_chain_gives_the_same_as_reference_1_10() {
    if let Some(peers) = testkit::peers_of("1.10.0").filter(|_| testkit::is_root()) {
        compare(&peers, "1.10.0");
    }
}

#[expect(clippy::print_stdout, reason = "a test may print how many cases it compared")]
fn compare(peers: &Path, version: &str) {
    let all: Value = serde_json::from_str(CHAINS).unwrap();
    let mut chains = Vec::new();
    for base in all["bases"].as_array().unwrap() {
        for chain in all["chains"].as_array().unwrap() {
            chains.push(Value::from([vec![base.clone()], chain.as_array().unwrap().clone()].concat()));
        }
    }
    assert!(chains.len() >= 60);
    let wanted = std::env::var("NETLOOM_PARITY").ok();
    chains.retain(|chain| wanted.as_ref().is_none_or(|wanted| chain.to_string().contains(wanted)));
    let differences = Mutex::new(Differences::new(DIFFERENCES, version));
    let (next, attached) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(chain) = chains.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (theirs, ours) = (seen(peers, chain), seen(&OURS, chain));
                    attached.fetch_add(usize::from(ours.contains_key("/reach/self")), Ordering::Relaxed);
                    differences.lock().unwrap().compare(&chain.to_string(), &ours, &theirs);
                }
            });
        }
    });
    println!("compared {} chains, {} attached", chains.len(), attached.into_inner());
    differences.into_inner().unwrap().assert_as_meant(wanted.is_none());
}

fn seen(bin: &Path, chain: &Value) -> Seen {
    let lab = Lab::new();
    for program in ["iptables", "ip6tables"] {
        if chain.to_string().contains(&format!("\"drop\":\"{program}\"")) {
            lab.host.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP");
        }
    }
    let conf = |plugin: &Value| {
        let mut conf = plugin.clone();
        let object = conf.as_object_mut().unwrap();
        object.insert("cniVersion".into(), "1.0.0".into());
        object.insert("name".into(), "lab".into());
        conf
    };
    let confs: Vec<Value> = chain.as_array().unwrap().iter().map(conf).collect();
    let call = Call::new(&lab.host, bin, "c1");
    // A neighbour without the chain.
    let neighbour = Call::new(&lab.host, bin, "c2");
    neighbour.add(&confs[0]);
    let mut seen = Seen::new();
    let mut result = Value::Null;
    for conf in &confs {
        let added = call.call("ADD", &with_prev(conf, &result));
        if !added.ok {
            flatten("/add", &outcome(&added, &Names::of(&lab.host)), &mut seen);
            return seen;
        }
        result = added.json();
    }
    let names = Names::of(&lab.host);
    let text = names.normalise(&result.to_string());
    let mut shown: Value = serde_json::from_str(&text).unwrap();
    take_out_random_macs(&mut shown);
    flatten("/add", &shown, &mut seen);
    flatten("/inside", &look(&lab.host, Some("c1"), &names), &mut seen);
    let rules = |family: &str| lab.host.json(&format!("ip netns exec c1 ip -j {family} rule"));
    flatten("/inside/rules", &json!([rules("-4"), rules("-6")]), &mut seen);
    let mut queues = lab.host.json("tc -j qdisc");
    testkit::remove(&mut queues, &["refcnt"]);
    let queues: Value = serde_json::from_str(&names.normalise(&queues.to_string())).unwrap();
    let limited = queues.as_array().unwrap().iter().filter(|queue| queue["kind"] != "noqueue");
    flatten("/host/queues", &limited.cloned().collect::<Vec<_>>().into(), &mut seen);
    for (index, conf) in confs.iter().enumerate() {
        let checked = outcome(&call.call("CHECK", &with_prev(conf, &result)), &names);
        flatten(&format!("/check/{index}"), &checked, &mut seen);
    }
    flatten("/reach", &reach(&lab), &mut seen);
    for (index, conf) in confs.iter().enumerate().rev() {
        let deleted = outcome(&call.call("DEL", &with_prev(conf, &result)), &names);
        flatten(&format!("/del/{index}"), &deleted, &mut seen);
    }
    let left = lab.host.sh("ip -br link | cut -d' ' -f1 | cut -d@ -f1; find /run/cni /var/lib/cni -type f -name '*.json' 2>/dev/null || true");
    flatten("/after", &names.normalise(&left).into(), &mut seen);
    seen
}

/// Returns which pairs reach each other.
fn reach(lab: &Lab) -> Value {
    // On a new bridge of the reference plugin, the host forwards IPv6 only after 1 to 2 s.
    lab.host.sh("timeout 9 sh -c 'while ip -6 addr | grep -q tentative; do :; done'");
    let _servers = [
        lab.host.serve(Some("other"), Transport::Tcp, at("0.0.0.0", 80)),
        lab.host.serve(Some("other"), Transport::Tcp, at("::", 81)),
        lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80)),
        lab.host.serve(Some("c1"), Transport::Tcp, at("::", 81)),
    ];
    let own = |family: &str| {
        let addresses =
            lab.host.json(&format!("ip netns exec c1 ip -j {family} addr show eth0 scope global"));
        addresses[0]["addr_info"][0]["local"].as_str().unwrap_or_default().to_owned()
    };
    let (own4, own6) = (own("-4"), own("-6"));
    let asked = [
        ("out", Some("c1"), "192.0.2.2", 80),
        ("in", Some("other"), own4.as_str(), 80),
        ("neighbour", Some("c2"), own4.as_str(), 80),
        ("host", None, own4.as_str(), 80),
        ("published", Some("other"), "192.0.2.1", 8080),
        ("published to the host", None, "192.0.2.1", 8080),
        ("by 127.0.0.1", None, "127.0.0.1", 8080),
        ("self", Some("c1"), "192.0.2.1", 8080),
        ("out6", Some("c1"), "2001:db8::2", 81),
        ("in6", Some("other"), own6.as_str(), 81),
    ];
    let answers: Vec<(String, Value)> = std::thread::scope(|scope| {
        let asking: Vec<_> = asked
            .iter()
            .filter(|(name, ..)| !name.ends_with('6') || !own6.is_empty())
            .map(|(name, from, to, port)| {
                scope.spawn(move || ((*name).to_owned(), Value::from(lab.tcp(*from, to, *port))))
            })
            .collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    answers.into_iter().collect::<serde_json::Map<_, _>>().into()
}
