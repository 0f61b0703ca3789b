//! Comparison with the reference plugins 1.9.1 and 1.10.0: the same configuration, each on a host of its own, must give the
//! same result and the same state of host and container. `parity-differences.json` lists the intended differences; those
//! with a `version` apply to that version only.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Answer, Call, OURS, with_prev};

const CONFIGURATIONS: &str = include_str!("parity.json");
const DIFFERENCES: &str = include_str!("parity-differences.json");

/// The flattened outcome of one configuration: path to value.
pub(crate) type Seen = BTreeMap<String, String>;

/// R91 and the plugins' documentation: results, addresses, routes, ports, VLANs and sysctls equal the reference plugins'.
#[test]
fn the_same_configuration_gives_the_same_host_and_container() {
    if let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) {
        compare(&peers, "1.9.1");
    }
}

/// The same comparison with a later version of the reference plugins.
#[test]
fn the_same_configuration_gives_the_same_as_reference_1_10() {
    if let Some(peers) = testkit::peers_of("1.10.0").filter(|_| testkit::is_root()) {
        compare(&peers, "1.10.0");
    }
}

#[expect(clippy::print_stdout, reason = "a test may print how many cases it compared")]
fn compare(peers: &Path, version: &str) {
    let mut configurations: Vec<Value> = serde_json::from_str(CONFIGURATIONS).unwrap();
    assert!(configurations.len() >= 150);
    // Selects configurations for development, or for a kernel that supports only some.
    let wanted = std::env::var("NETLOOM_PARITY").ok();
    if let Some(wanted) = &wanted {
        configurations.retain(|conf| wanted.split(' ').any(|part| conf.to_string().contains(part)));
    }
    let mut differences = Differences::new(DIFFERENCES, version);
    let mut attached = 0;
    for conf in &configurations {
        let (theirs, ours) = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| seen(peers, conf));
            let ours = seen(&OURS, conf);
            (theirs.join().unwrap(), ours)
        });
        attached += u32::from(!ours.contains_key("/add/error"));
        differences.compare(&conf.to_string(), &ours, &theirs);
    }
    println!("compared {} configurations, {attached} attached", configurations.len());
    differences.assert_as_meant(wanted.is_none());
}

/// The found and the intended differences.
pub(crate) struct Differences {
    meant: Vec<Value>,
    unused: Vec<usize>,
    failures: Vec<String>,
}

impl Differences {
    /// Parses the intended differences from one version of the reference plugins.
    pub(crate) fn new(meant: &str, version: &str) -> Self {
        let mut meant: Vec<Value> = serde_json::from_str(meant).unwrap();
        meant.retain(|difference| difference["version"].as_str().is_none_or(|only| only == version));
        Self { unused: (0..meant.len()).collect(), meant, failures: Vec::new() }
    }

    /// Records the differences between the two sides of one case.
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

    /// Fails if there are unintended differences or, after a run of all cases, if an intended difference did not occur. Does not
    /// require the differences that only some kernels show.
    pub(crate) fn assert_as_meant(self, all: bool) {
        let failures = self.failures;
        assert!(failures.is_empty(), "{} differences\n{}", failures.len(), failures.join("\n"));
        let unused = self.unused.into_iter().map(|index| &self.meant[index]);
        let unused: Vec<&Value> = unused.filter(|difference| difference["needs"].is_null()).collect();
        assert!(unused.is_empty() || !all, "differences that do not exist: {unused:?}");
    }
}

/// Returns whether a path begins with a pattern; `*` matches one step.
fn matches(path: &str, pattern: &str) -> bool {
    let mut steps = path.split('/');
    pattern.split('/').all(|wanted| steps.next().is_some_and(|step| wanted == "*" || wanted == step))
}

fn seen(bin: &Path, conf: &Value) -> Seen {
    let mut conf = conf.clone();
    let object = conf.as_object_mut().unwrap();
    object.entry("cniVersion").or_insert("1.1.0".into());
    object.insert("name".into(), "parity".into());
    // These keys control the test and are not part of the configuration.
    let [on_host, in_container, args] = ["@host", "@container", "@args"]
        .map(|key| object.remove(key).and_then(|it| Some(it.as_str()?.to_owned())));
    let host = Host::new();
    let resolver = "# comment\nnameserver 1.2.3.4\nsearch a.b c.d\ndomain e\noptions ndots:2 x\n";
    std::fs::write(host.path("/run/resolv.conf"), resolver).unwrap();
    host.container("c1");
    if let Some(lines) = on_host {
        host.sh(&lines);
    }
    if let Some(lines) = in_container {
        host.sh(&format!("ip netns exec c1 sh -c '{lines}'"));
    }
    let call = Call { args: args.unwrap_or_default(), ..Call::new(&host, bin, "c1") };
    let added = call.call("ADD", &conf);
    let mut seen = Seen::new();
    let names = Names::of(&host);
    flatten("/add", &outcome(&added, &names), &mut seen);
    // The reference plugins leave links behind after a failure. `undo.rs` tests that ours do not.
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

/// Random names, and their replacements.
pub(crate) struct Names(Vec<(String, String)>);

impl Names {
    /// Numbers the host ends of veth pairs by purpose: a VLAN gateway's before a container's.
    pub(crate) fn of(host: &Host) -> Self {
        let links = host.ip(None, &["link"]).swap_remove(0);
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

/// Returns a result without random names and hardware addresses. For an error, returns only that it is one.
pub(crate) fn outcome(answer: &Answer, names: &Names) -> Value {
    if !answer.ok {
        return json!({"error": true});
    }
    if answer.stdout.trim().is_empty() {
        return json!({"ok": true});
    }
    let mut value: Value = serde_json::from_str(&names.normalise(&answer.stdout)).unwrap();
    take_out_random_macs(&mut value);
    value
}

/// Removes random hardware addresses. Configured ones are recognized by their first five bytes, since of thousands of random
/// ones some share the first two.
pub(crate) fn take_out_random_macs(result: &mut Value) {
    const ASKED: [&str; 3] = ["c2:11:00:00:00:", "c2:11:22:33:44:", "00:00:00:00:00:"];
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        if interface["mac"].as_str().is_some_and(|mac| !ASKED.iter().any(|asked| mac.starts_with(asked))) {
            interface["mac"] = "RANDOM".into();
        }
    }
}

pub(crate) fn look(host: &Host, container: Option<&str>, names: &Names) -> Value {
    let parse = |text: &str| -> Value { serde_json::from_str(&names.normalise(text)).unwrap() };
    let asked = ["link", "addr", "route show table all root 0/0", "route show table all root ::/0"];
    let (seen, vlans, sysctls, nft) = host.inside(container, || {
        let seen = testkit::ip(&[], &asked);
        // Only bridges that filter VLANs have any.
        let filters = seen[0].to_string().contains("vlan_filtering");
        let vlans = if filters { testkit::run("bridge", &["-j", "vlan", "show"]) } else { "[]".to_owned() };
        let sysctls = testkit::sysctls(&["ipv4/conf", "ipv6/conf", "ipv4/ip_forward"]);
        let nft = container.is_none().then(|| testkit::run("nft", &["list", "ruleset"]));
        (seen, vlans, sysctls, nft)
    });
    let [mut links, mut addresses, mut routes, mut routes6]: [Value; 4] =
        seen.iter().map(|it| parse(&it.to_string())).collect::<Vec<_>>().try_into().unwrap();
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
    for link in addresses.as_array_mut().unwrap() {
        // The list of links contains the rest.
        link.as_object_mut().unwrap().retain(|key, _| ["ifname", "addr_info"].contains(&key.as_str()));
    }
    testkit::remove(&mut addresses, &["valid_life_time", "preferred_life_time", "tentative"]);
    testkit::drop_what_the_kernel_makes(&mut addresses);
    for list in [&mut routes, &mut routes6] {
        testkit::drop_what_the_kernel_makes(list);
        if let Some(list) = list.as_array_mut() {
            for route in list {
                let name = format!("{} {} {} {}", route["dst"], route["dev"], route["table"], route["type"]);
                route["route"] = name.replace(['"', '/'], "").into();
            }
        }
    }
    let mut sysctls = sysctls;
    sysctls.retain(|line| !line.contains("stable_secret") && !line.contains("mc_forwarding"));
    let sysctls: serde_json::Map<String, Value> = names
        .normalise(&sysctls.join("\n"))
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.replace('/', "."), value.into()))
        .collect();
    let mut value = json!({
        "links": by_name(links, "ifname"),
        "addresses": by_name(addresses, "ifname"),
        "routes": by_name(routes, "route"),
        "routes6": by_name(routes6, "route"),
        "vlans": parse(&vlans),
        "sysctls": sysctls,
    });
    if let Some(nft) = nft {
        value["nft"] = nft.into();
        value["reservations"] = reservations(host).into();
    }
    value
}

/// Lists the lines of host-local's files, without Netloom's hidden index.
fn reservations(host: &Host) -> Vec<String> {
    let networks = host.path("/var/lib/cni/networks");
    let mut lines = Vec::new();
    for network in std::fs::read_dir(networks).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(network.path()).into_iter().flatten().flatten() {
            let name = format!("{}/{}", network.file_name().display(), file.file_name().display());
            if name.contains("/.") {
                continue;
            }
            let text = std::fs::read(file.path()).unwrap_or_default();
            lines.extend(String::from_utf8_lossy(&text).lines().map(|line| format!("{name}:{line}")));
        }
    }
    lines.sort();
    lines
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
