//! The first containers of a fresh node, started at once: shared objects are created once, and every ADD succeeds.

use std::{collections::BTreeMap, sync::Barrier};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, with_prev};

const ROUNDS: usize = 20;
const AT_ONCE: usize = 16;

fn chain(port: usize) -> Vec<Value> {
    let ports = json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]);
    let mut chain = vec![
        json!({"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
            "macspoofchk": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]]}}),
        json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "dataDir": "/run/tuning"}),
        json!({"type": "portmap", "runtimeConfig": {"portMappings": ports}}),
        json!({"type": "firewall"}),
        json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000}),
    ];
    for conf in &mut chain {
        conf["cniVersion"] = json!("1.1.0");
        conf["name"] = json!("lab");
    }
    chain
}

/// Returns the rules with their number of occurrences in a chain, without the rules of the containers' own chains.
fn rules(host: &Host) -> BTreeMap<String, u32> {
    let listed = host.json("nft -j list ruleset");
    let mut rules = BTreeMap::new();
    for rule in listed["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("rule")) {
        let place = [&rule["family"], &rule["table"], &rule["chain"], &rule["expr"]];
        *rules.entry(place.map(Value::to_string).join(" ")).or_default() += 1;
    }
    rules
}

#[test]
fn sixteen_at_once_on_a_fresh_node() {
    if !testkit::is_root() {
        return;
    }
    for round in 0..ROUNDS {
        let host = Host::new();
        // A foreign table at the forward hook that drops: its exception is created once too.
        host.sh("nft 'table inet own { chain f { type filter hook forward priority 0; policy drop; }; }'");
        for index in 0..AT_ONCE {
            host.container(&format!("c{index}"));
        }
        let barrier = Barrier::new(AT_ONCE);
        let attach = |index: usize| {
            let call = Call::new(&host, &OURS, &format!("c{index}"));
            barrier.wait();
            chain(8000 + index).iter().fold(Value::Null, |prev, conf| call.add(&with_prev(conf, &prev)))
        };
        let attach = &attach;
        let results: Vec<Value> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..AT_ONCE).map(|index| scope.spawn(move || attach(index))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let twice: Vec<_> = rules(&host).into_iter().filter(|(_, times)| *times > 1).collect();
        assert!(twice.is_empty(), "round {round}: {twice:#?}");
        for (index, result) in results.iter().enumerate() {
            let call = Call::new(&host, &OURS, &format!("c{index}"));
            for conf in chain(8000 + index).iter().rev() {
                call.del(conf, result);
            }
        }
        assert!(!host.sh("nft list ruleset").contains("elements ="), "round {round}");
    }
}
