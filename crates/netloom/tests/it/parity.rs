//! Side by side with the Go reference plugins 1.9.1: the same configuration, on a host each, must give the same
//! result and the same host and container. What is meant to differ stands in `parity-differences.json`.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Answer, Call, OURS, with_prev};

const CONFIGURATIONS: &str = include_str!("parity.json");
const DIFFERENCES: &str = include_str!("parity-differences.json");

/// What came of one configuration, flat: path to value.
pub(crate) type Seen = BTreeMap<String, String>;

/// R91 and the plugins' own promises: results, addresses, routes, ports, VLANs and sysctls equal the reference's.
#[test]
fn the_same_configuration_gives_the_same_host_and_container() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    let mut configurations: Vec<Value> = serde_json::from_str(CONFIGURATIONS).unwrap();
    assert!(configurations.len() >= 40);
    // For work on one of them, or on a kernel that can do only some.
    let wanted = std::env::var("NETLOOM_PARITY").ok();
    if let Some(wanted) = &wanted {
        configurations.retain(|conf| conf.to_string().contains(wanted));
    }
    let mut differences = Differences::new(DIFFERENCES);
    let mut attached = 0;
    for conf in &configurations {
        let (theirs, ours) = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| seen(&peers, conf));
            let ours = seen(&OURS, conf);
            (theirs.join().unwrap(), ours)
        });
        attached += u32::from(!ours.contains_key("/add/error"));
        differences.compare(&conf.to_string(), &ours, &theirs);
    }
    println!("compared {} configurations, {attached} attached", configurations.len());
    differences.assert_as_meant(wanted.is_none());
}

/// What differs, and what is meant to.
pub(crate) struct Differences {
    meant: Vec<Value>,
    unused: Vec<usize>,
    failures: Vec<String>,
}

impl Differences {
    /// Reads what is meant to differ.
    pub(crate) fn new(meant: &str) -> Self {
        let meant: Vec<Value> = serde_json::from_str(meant).unwrap();
        Self { unused: (0..meant.len()).collect(), meant, failures: Vec::new() }
    }

    /// Notes what differs between two sides of one case.
    pub(crate) fn compare(&mut self, case: &str, ours: &Seen, theirs: &Seen) {
        let paths: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        for path in paths {
            let (a, b) = (ours.get(path), theirs.get(path));
            if a == b {
                continue;
            }
            let excuse = self.meant.iter().position(|difference| {
                case.contains(difference["where"].as_str().unwrap())
                    && difference["without"].as_str().is_none_or(|text| !case.contains(text))
                    && matches(path, difference["path"].as_str().unwrap())
            });
            match excuse {
                Some(index) => self.unused.retain(|other| *other != index),
                None => self.failures.push(format!("{case}\n  {path}: ours {a:?}, theirs {b:?}")),
            }
        }
    }

    /// Fails with what is not meant to differ, and (if all cases were run) with what does not differ although it is
    /// meant to. What only some kernels can do is not missed on the others.
    pub(crate) fn assert_as_meant(self, all: bool) {
        let failures = self.failures;
        assert!(failures.is_empty(), "{} differences\n{}", failures.len(), failures.join("\n"));
        let unused = self.unused.into_iter().map(|index| &self.meant[index]);
        let unused: Vec<&Value> = unused.filter(|difference| difference["needs"].is_null()).collect();
        assert!(unused.is_empty() || !all, "differences that do not exist: {unused:?}");
    }
}

/// Tells whether a path begins with a pattern; `*` stands for one step.
fn matches(path: &str, pattern: &str) -> bool {
    let mut steps = path.split('/');
    pattern.split('/').all(|wanted| steps.next().is_some_and(|step| wanted == "*" || wanted == step))
}

fn seen(bin: &Path, conf: &Value) -> Seen {
    let mut conf = conf.clone();
    let object = conf.as_object_mut().unwrap();
    object.entry("cniVersion").or_insert("1.1.0".into());
    object.insert("name".into(), "parity".into());
    let host = Host::new();
    host.sh("printf '# comment\\nnameserver 1.2.3.4\\nsearch a.b c.d\\ndomain e\\noptions ndots:2 x\\n' >/run/resolv.conf");
    host.container("c1");
    let call = Call::new(&host, bin, "c1");
    let added = call.call("ADD", &conf);
    let mut seen = Seen::new();
    let names = Names::of(&host);
    flatten("/add", &outcome(&added, &names), &mut seen);
    // The reference leaves links behind when it fails; that ours does not is tested in `undo.rs`.
    if added.ok {
        flatten("/host", &look(&host, None, &names), &mut seen);
        flatten("/inside", &look(&host, Some("c1"), &names), &mut seen);
        let prev = added.json();
        if conf["cniVersion"].as_str().unwrap() >= "0.4.0" {
            flatten("/check", &outcome(&call.call("CHECK", &with_prev(&conf, &prev)), &names), &mut seen);
        }
        flatten("/del", &outcome(&call.call("DEL", &with_prev(&conf, &prev)), &names), &mut seen);
        flatten("/after/host", &look(&host, None, &names), &mut seen);
        flatten("/after/inside", &look(&host, Some("c1"), &names), &mut seen);
    }
    seen
}

/// Names that are random, and what stands for them here.
pub(crate) struct Names(Vec<(String, String)>);

impl Names {
    /// Numbers the veth ends of the host by what they are for: a VLAN gateway's before a container's.
    pub(crate) fn of(host: &Host) -> Self {
        let links = host.json("ip -j link");
        let mut names = Vec::new();
        for link in links.as_array().unwrap() {
            let name = link["ifname"].as_str().unwrap();
            if name.starts_with("veth") && name.len() == 12 {
                let role = if link["link_netnsid"].is_null() { "vethGATEWAY" } else { "vethCONTAINER" };
                names.push((name.to_owned(), role.to_owned()));
            }
        }
        Self(names)
    }

    pub(crate) fn normalise(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, role) in &self.0 {
            text = text.replace(name, role);
        }
        text
    }
}

/// A result with random names and hardware addresses taken out; of an error, that it is one.
pub(crate) fn outcome(answer: &Answer, names: &Names) -> Value {
    if !answer.ok {
        return json!({"error": true});
    }
    if answer.stdout.trim().is_empty() {
        return json!({"ok": true});
    }
    let mut value: Value = serde_json::from_str(&names.normalise(&answer.stdout)).unwrap();
    for interface in value["interfaces"].as_array_mut().into_iter().flatten() {
        // One that was asked for is compared, a random one is not.
        if interface["mac"].as_str().is_some_and(|mac| !mac.starts_with("c2:11") && !mac.starts_with("00:00"))
        {
            interface["mac"] = "RANDOM".into();
        }
    }
    value
}

pub(crate) fn look(host: &Host, container: Option<&str>, names: &Names) -> Value {
    let sh = |line: &str| match container {
        None => host.sh(line),
        Some(name) => host.sh(&format!("ip netns exec {name} sh -c '{line}'")),
    };
    let parse = |text: String| -> Value {
        let text = names.normalise(&text);
        if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    };
    let mut links = parse(sh("ip -j -d link"));
    let volatile = [
        "ifindex",
        "link_index",
        "link_netnsid",
        "address",
        "permaddr",
        "broadcast",
        "operstate",
        "flags",
        "link_netns",
        "promiscuity",
        "allmulti",
        "bridge_id",
        "root_id",
        "designated_bridge",
        "designated_root",
        "timer",
        "hello_timer",
        "gc_timer",
        "tcn_timer",
        "topology_change_timer",
        "no",
        "port",
        "hold_timer",
        "message_age_timer",
        "forward_delay_timer",
        "group_addr",
        "inet6_addr_gen_mode",
        "state",
        "id",
        "designated_port",
        "designated_cost",
        "topology_change_ack",
        "config_pending",
        "proxy_arp",
    ];
    testkit::remove(&mut links, &volatile);
    let mut addresses = parse(sh("ip -j addr"));
    testkit::remove(
        &mut addresses,
        &[&volatile[..], &["valid_life_time", "preferred_life_time", "tentative", "link"]].concat(),
    );
    testkit::drop_what_the_kernel_makes(&mut addresses);
    let mut routes = parse(sh("ip -j -4 route show table all"));
    let mut routes6 = parse(sh("ip -j -6 route show table all"));
    for list in [&mut routes, &mut routes6] {
        testkit::drop_what_the_kernel_makes(list);
        if let Some(list) = list.as_array_mut() {
            for route in list {
                let name = format!("{} {} {} {}", route["dst"], route["dev"], route["table"], route["type"]);
                route["route"] = name.replace(['"', '/'], "").into();
            }
        }
    }
    let sysctls = sh(
        "cd /proc/sys/net; grep -rs . ipv4/conf ipv6/conf ipv4/ip_forward | grep -v -e stable_secret -e mc_forwarding | sort",
    );
    let sysctls: serde_json::Map<String, Value> = names
        .normalise(&sysctls)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.replace('/', "."), value.into()))
        .collect();
    let mut value = json!({
        "links": by_name(links, "ifname"),
        "addresses": by_name(addresses, "ifname"),
        "routes": by_name(routes, "route"),
        "routes6": by_name(routes6, "route"),
        "vlans": parse(sh("bridge -j vlan show")),
        "sysctls": sysctls,
    });
    if container.is_none() {
        let reservations = host.sh("cd /var/lib/cni/networks 2>/dev/null && grep -rs . . | sort || true");
        let reservations: Vec<&str> = reservations.lines().map(str::trim_end).collect();
        value["reservations"] = reservations.into();
        value["nft"] = host.sh("nft list ruleset").into();
    }
    value
}

fn by_name(list: Value, key: &str) -> Value {
    let items = list.as_array().cloned().unwrap_or_default();
    items
        .into_iter()
        .filter_map(|item| Some((item[key].as_str()?.to_owned(), item)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

pub(crate) fn flatten(path: &str, value: &Value, into: &mut Seen) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                flatten(&format!("{path}/{key}"), value, into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                flatten(&format!("{path}/{index}"), value, into);
            }
        }
        other => {
            into.insert(path.to_owned(), other.to_string());
        }
    }
}
