//! A container on a network: its reachability, and the cleanup after it.

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, dual_stack, with_prev};

fn pings(host: &Host, from: &str, to: &str) -> bool {
    host.succeeds(&format!("ip netns exec {from} ping -c 1 -W 2 {to}"))
}

/// R29, R32, R41, R42, R44, R45, R46, R89: ADD creates the interface with addresses and routes. CHECK right after it also
/// calls the IPAM plugin and reports what is missing or cut off. DEL leaves nothing behind. R52, R55: STATUS calls the IPAM
/// plugin too.
#[test]
fn a_container_reaches_host_and_neighbour_and_leaves_nothing() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let conf = dual_stack();
    // The bridge, the empty tables and the lock belong to the network and stay. The first container creates them.
    host.container("first");
    let first = Call::new(&host, &OURS, "first");
    let result = first.add(&conf);
    first.del(&conf, &result);
    for name in ["c1", "c2"] {
        host.container(name);
    }
    let before = host.snapshot();
    let (one, two) = (Call::new(&host, &OURS, "c1"), Call::new(&host, &OURS, "c2"));
    let (of_one, of_two) = (one.add(&conf), two.add(&conf));
    one.call("STATUS", &conf).result("STATUS");
    for index in 0..2 {
        let gateway = of_one["ips"][index]["gateway"].as_str().unwrap();
        let other = of_two["ips"][index]["address"].as_str().unwrap().split('/').next().unwrap();
        assert!(pings(&host, "c1", gateway), "{gateway}");
        assert!(pings(&host, "c1", other), "{other}");
    }
    one.check(&conf, &of_one);
    let again = one.call("ADD", &conf).error();
    assert!(again.0 == 4 && again.1.contains("eth0") && again.1.contains("already exists"), "{again:?}");
    one.check(&conf, &of_one);

    // CHECK reports each damage.
    for (damage, expected) in [
        ("ip netns exec c1 ip route del default", "route 0.0.0.0/0"),
        ("ip netns exec c1 ip addr del 10.88.0.3/16 dev eth0", "10.88.0.3/16 is missing"),
        ("nft flush map ip netloom masqueraded", "not masqueraded"),
        ("ip link set $(ip -br link show master br0 | head -1 | cut -d@ -f1) nomaster", "no port of bridge"),
        (
            "rm /var/lib/cni/networks/lab/10.88.0.3 /var/lib/cni/networks/lab/fd88::3",
            "Failed to find address",
        ),
    ] {
        host.sh(damage);
        let (code, text) = one.call("CHECK", &with_prev(&conf, &of_one)).error();
        assert!(code == 999 && text.contains(expected), "{damage}: {text}");
    }
    one.del(&conf, &of_one);
    two.del(&conf, &of_two);
    before.assert_same(&host.snapshot(), "after DEL");
}

/// When ADD returns, the host and the other containers on the bridge have dropped their entries for previous owners of the
/// addresses.
#[test]
fn neighbours_learn_of_a_new_container_at_once() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let conf = dual_stack();
    host.container("c1");
    host.container("c2");
    Call::new(&host, &OURS, "c1").add(&conf);
    let remember = |place: &str, link: &str| {
        for address in ["10.88.0.3", "fd88::3"] {
            let entry = format!("{address} lladdr 02:00:00:00:00:66 dev {link} nud reachable");
            host.sh(&format!("ip {place} neigh replace {entry}"));
        }
    };
    remember("", "br0");
    remember("-n c1", "eth0");
    Call::new(&host, &OURS, "c2").add(&conf);
    for address in ["10.88.0.3", "fd88::3"] {
        assert!(host.succeeds(&format!("ping -c 1 -W 2 {address}")), "the host to {address}");
        assert!(pings(&host, "c1", address), "the other container to {address}");
    }
}

/// R35, R37: DEL succeeds and frees the address without an ADD, twice, without a namespace, without prevResult, and with a
/// configuration that ADD would reject.
#[test]
fn del_always_succeeds() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let conf = dual_stack();
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    call.del(&conf, &Value::Null);
    let result = call.add(&conf);
    // The namespace ends before DEL, and its links with it.
    host.sh("ip netns del c1");
    call.del(&conf, &result);
    call.del(&conf, &result);
    assert_eq!(host.sh("ls /var/lib/cni/networks/lab | grep -c ^10 || true").trim(), "0");
    assert_eq!(host.sh("nft list map ip netloom masqueraded | grep -c elements || true").trim(), "0");

    host.container("c2");
    let mut call = Call::new(&host, &OURS, "c2");
    let before = host.snapshot();
    call.add(&conf);
    call.netns = String::new();
    let mut strange = conf.clone();
    strange["vlan"] = json!(9999);
    strange["ipam"]["ranges"] = json!([]);
    call.del(&strange, &Value::Null);
    before.assert_same(&host.snapshot(), "after DEL without namespace");
}

/// R59, R62, R86: GC removes everything of attachments that are not valid, and nothing else.
#[test]
fn gc_removes_what_is_stale_and_nothing_else() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut conf = dual_stack();
    conf["macspoofchk"] = json!(true);
    for name in ["warm", "stays", "goes", "too"] {
        host.container(name);
    }
    // GC removes links together by a group. A foreign link may be in the first group that it considers.
    host.sh("ip link add theirs type veth peer name other; ip link set theirs group 2130706432");
    let warm = Call::new(&host, &OURS, "warm");
    let result = warm.add(&conf);
    warm.del(&conf, &result);
    let (stays, goes) = (Call::new(&host, &OURS, "stays"), Call::new(&host, &OURS, "goes"));
    let kept = stays.add(&conf);
    let mut other_network = conf.clone();
    other_network["name"] = json!("other");
    other_network["bridge"] = json!("br1");
    other_network["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/16"}]]);
    let mut of_other = stays.clone();
    of_other.ifname = "eth1".into();
    let other = of_other.add(&other_network);
    let before = host.snapshot();
    goes.add(&conf);
    Call::new(&host, &OURS, "too").add(&conf);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "stays", "ifname": "eth0"}]);
    stays.call("GC", &gc).result("GC");
    before.assert_same(&host.snapshot(), "after GC");
    stays.check(&conf, &kept);
    of_other.check(&other_network, &other);
    gc["cni.dev/valid-attachments"] = json!([]);
    stays.call("GC", &gc).result("GC");
    assert!(!host.succeeds("ls /var/lib/cni/networks/lab/10.*"));
    of_other.check(&other_network, &other);
}

/// R27, R85, R87, R88, R90: a foreign IPAM plugin is run as a process and receives the variables and the configuration.
#[test]
fn foreign_ipam_plugins_are_run() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let bin = host.path("/opt/bin");
    std::fs::create_dir_all(&bin).unwrap();
    host.sh(&format!("ln -s {}/bridge /opt/bin/bridge", OURS.display()));
    let script = "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_PATH $(cat)\" >>/run/ipam.log\necho working >&2\n[ -e /run/fail ] && { echo '{\"code\": 77, \"msg\": \"no more\"}'; exit 1; }\n[ $CNI_COMMAND = ADD ] && cat /run/answer\nexit 0\n";
    std::fs::write(bin.join("myipam"), script).unwrap();
    host.sh("chmod +x /opt/bin/myipam");
    let conf = json!({"cniVersion": "1.0.0", "name": "lab", "type": "bridge", "bridge": "br0", "isGateway": true,
                      "custom": [1, 2], "ipam": {"type": "myipam", "x": "y"}});
    let call = Call::new(&host, std::path::Path::new("/opt/bin"), "c1");
    let answer = |text: &str| std::fs::write(host.path("/run/answer"), text).unwrap();
    answer(r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24","routes":[{"dst":"0.0.0.0/0"}]}}"#);
    let result = call.add(&conf);
    assert_eq!(result["ips"], json!([{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 2}]));
    call.check(&conf, &result);
    call.del(&conf, &result);
    let log = host.sh("cat /run/ipam.log; rm /run/ipam.log");
    for (line, verb) in log.lines().zip(["ADD", "CHECK", "DEL"]) {
        assert!(line.starts_with(&format!("{verb} c1 eth0 /run/netns/c1 /opt/bin {{")), "{line}");
        assert!(line.contains(r#""custom":[1,2]"#) && line.contains(r#""x":"y""#), "{line}");
    }
    // If the answer is not a result, ADD calls the IPAM plugin's DEL and leaves nothing behind.
    let before = host.snapshot();
    for (text, expected) in [
        ("nonsense", "did not answer with a result"),
        ("", "did not answer with a result"),
        (r#"{"cniVersion":"1.0.0"}"#, "returned missing IP config"),
        (r#"{"ips":[{"address":"10.1.2.3"}]}"#, "invalid CIDR address"),
    ] {
        answer(text);
        let error = call.call("ADD", &conf).error();
        assert!(error.1.contains(expected), "{text}: {error:?}");
        let log = host.sh("cat /run/ipam.log; rm /run/ipam.log");
        assert_eq!(log.lines().map(|line| &line[..3]).collect::<Vec<_>>(), ["ADD", "DEL"]);
        before.assert_same(&host.snapshot(), text);
    }
    host.sh("touch /run/fail");
    assert_eq!(call.call("ADD", &conf).error().0, 77);
    let failed = call.call(
        "STATUS",
        &json!({"cniVersion": "1.1.0", "name": "lab", "type": "bridge", "ipam": {"type": "myipam"}}),
    );
    assert_eq!(failed.error().0, 77);
    assert!(failed.stderr.contains("working"));
}

/// V67, V70: errors for unusable IPAM types and for results that the oldest versions cannot express.
#[test]
fn ipam_types_and_old_versions() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    for (kind, expected) in [("nope", "failed to find plugin"), ("../x", "invalid plugin name: ../x")] {
        let conf = json!({"cniVersion": "1.1.0", "name": "n", "type": "bridge", "ipam": {"type": kind}});
        let error = call.call("STATUS", &conf).error();
        assert!(error.0 == 999 && error.1.contains(expected), "{error:?}");
    }
    for version in ["0.1.0", "0.2.0"] {
        let conf = json!({"cniVersion": version, "name": "n", "type": "static",
            "ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}, {"address": "10.0.0.3/24"}]}});
        let error = call.call("ADD", &conf).error();
        assert!(error.1.contains("does not support more than 1 address per family"), "{error:?}");
    }
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut conf = dual_stack();
        conf["cniVersion"] = json!(version);
        let result = call.add(&conf);
        assert_eq!(result["cniVersion"], json!(version));
        assert!(result.to_string().contains("10.88.0."), "{result}");
        call.del(&conf, &Value::Null);
    }
}

/// `macspoofchk` drops frames from another hardware address. R43: CHECK reports that its rules are missing.
#[test]
fn mac_spoof_check_drops_other_senders() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut conf = dual_stack();
    conf["macspoofchk"] = json!(true);
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    let result = call.add(&conf);
    assert!(pings(&host, "c1", "10.88.0.1"));
    host.sh("ip netns exec c1 ip link set eth0 address 02:00:00:00:00:99");
    assert!(!host.succeeds("ip netns exec c1 ping -c 1 -W 1 10.88.0.1"));
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    host.sh(&format!("ip netns exec c1 ip link set eth0 address {mac}; ip netns exec c1 ip route replace default via 10.88.0.1"));
    assert!(pings(&host, "c1", "10.88.0.1"));
    host.sh("nft flush set bridge netloom spoof_allowed; nft flush set bridge netloom spoof_guarded");
    let error = call.call("CHECK", &with_prev(&conf, &result)).error();
    assert!(error.1.contains("MAC spoof check") || error.1.contains("route"), "{error:?}");
    call.del(&conf, &result);
    assert!(!host.sh("nft list table bridge netloom").contains("elements ="));
}

/// The spoof checks use the hardware address that tuning sets.
#[test]
fn spoof_checks_follow_tuning() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut conf = dual_stack();
    conf["macspoofchk"] = json!(true);
    conf["ipspoofchk"] = json!(true);
    let mut tuning =
        json!({"cniVersion": "1.1.0", "name": "lab", "type": "tuning", "mac": "c2:11:22:33:44:55"});
    tuning["dataDir"] = json!("/run/tuning");
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    let prev = call.add(&conf);
    let result = call.add(&with_prev(&tuning, &prev));
    assert!(pings(&host, "c1", "10.88.0.1") && pings(&host, "c1", "fd88::1"));
    call.check(&conf, &result);
    host.sh("ip netns exec c1 ip link set eth0 address 02:00:00:00:00:99");
    assert!(!host.succeeds("ip netns exec c1 ping -c 1 -W 1 10.88.0.1"));
    call.del(&tuning, &result);
    call.del(&conf, &result);
    assert!(!host.sh("nft list table bridge netloom").contains("elements ="));
}

/// `ipspoofchk` drops packets, ARP answers and neighbour advertisements from another address. The container's own addresses
/// pass, even before duplicate address detection ends. The elements are removed with the container.
#[test]
fn address_spoof_check_drops_other_senders() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut conf = dual_stack();
    conf["ipspoofchk"] = json!(true);
    conf["macspoofchk"] = json!(true);
    host.container("c1");
    host.container("c2");
    let (one, two) = (Call::new(&host, &OURS, "c1"), Call::new(&host, &OURS, "c2"));
    let (result, other) = (one.add(&conf), two.add(&conf));
    one.check(&conf, &result);
    let ping = |from: &str, args: &str| host.succeeds(&format!("ip netns exec {from} ping -c 1 -W 1 {args}"));
    for to in ["10.88.0.1", "10.88.0.3", "fd88::1", "fd88::3"] {
        assert!(ping("c1", to), "{to}");
    }
    host.sh("ip -n c1 addr add 10.88.0.77/16 dev eth0; ip -n c1 -6 addr add fd88::77/64 dev eth0 nodad");
    for to in
        ["-I 10.88.0.77 10.88.0.1", "-I 10.88.0.77 10.88.0.3", "-I fd88::77 fd88::1", "-I fd88::77 fd88::3"]
    {
        assert!(!ping("c1", to), "{to} from an address that is not its own");
    }
    // ARP and neighbour discovery answers for the foreign address are dropped, so other containers do not find it there.
    for to in ["10.88.0.77", "fd88::77"] {
        assert!(!ping("c2", to), "{to} is believed");
    }
    let neighbours = host.json("ip -n c2 -j neigh");
    let believed = neighbours.as_array().unwrap().iter().any(|it| {
        it["dst"].as_str().is_some_and(|dst| dst.ends_with(".77") || dst.ends_with(":77"))
            && it["lladdr"].is_string()
    });
    assert!(!believed, "{neighbours}");
    assert!(ping("c1", "10.88.0.3") && ping("c2", "fd88::2"), "its own addresses still pass");
    host.sh("nft flush set bridge netloom sender4");
    host.sh("ip -n c1 addr del 10.88.0.77/16 dev eth0; ip -n c1 -6 addr del fd88::77/64 dev eth0");
    let error = one.call("CHECK", &with_prev(&conf, &result)).error();
    assert!(error.1.contains("spoof check"), "{error:?}");
    one.del(&conf, &result);
    two.del(&conf, &other);
    assert!(!host.sh("nft list table bridge netloom").contains("elements ="));
}

/// Routed pairs: the container reaches its gateway, another container and, with masquerading, another host.
#[test]
fn routed_containers_reach_each_other_and_other_hosts() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("other");
    host.sh(
        "ip link add up0 type veth peer name up0 netns other; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up",
    );
    host.sh("ip -n other addr add 192.0.2.2/24 dev up0; ip -n other link set up0 up");
    let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": "ptp", "ipMasq": true, "group": 4321, "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}});
    let calls = ["c1", "c2"].map(|name| {
        host.container(name);
        let call = Call::new(&host, &OURS, name);
        (call.add(&conf), call)
    });
    for (result, call) in &calls {
        call.check(&conf, result);
        call.call("STATUS", &conf).result("STATUS");
    }
    for to in ["10.88.0.1", "fd88::1", "192.0.2.2", "10.88.0.3", "fd88::3"] {
        assert!(pings(&host, "c1", to), "{to}");
    }
    // The host ends are in the group.
    let grouped = host.sh("ip -br link show group 4321 | cut -d@ -f1");
    assert_eq!(grouped.lines().count(), 2, "{grouped}");
    let link = calls[0].0["interfaces"][0]["name"].as_str().unwrap();
    host.sh(&format!("ip link set {link} group 0"));
    let (_, text) = calls[0].1.call("CHECK", &with_prev(&conf, &calls[0].0)).error();
    assert!(text.contains("is in group 0, not in 4321"), "{text}");
    host.sh(&format!("ip link set {link} group 4321; ip route del 10.88.0.2"));
    let (_, text) = calls[0].1.call("CHECK", &with_prev(&conf, &calls[0].0)).error();
    assert!(text.contains("no route to 10.88.0.2"), "{text}");
    for (result, call) in &calls {
        call.del(&conf, result);
    }
    assert_eq!(
        host.sh("ip -br link | grep -c veth || true; nft list ruleset | grep -c 'elements =' || true"),
        "0\n0\n"
    );
}

/// Isolated ports reach the gateway but not each other.
#[test]
fn isolated_ports_do_not_reach_each_other() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut conf = dual_stack();
    conf["portIsolation"] = json!(true);
    let calls = ["c1", "c2"].map(|name| {
        host.container(name);
        let call = Call::new(&host, &OURS, name);
        (call.add(&conf), call)
    });
    let other = calls[1].0["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
    assert!(pings(&host, "c1", "10.88.0.1"));
    assert!(!host.succeeds(&format!("ip netns exec c1 ping -c 1 -W 1 {other}")));
}

/// With `ipMasq` another host sees this host's address as the source.
#[test]
fn masquerade_hides_the_container_from_other_hosts() {
    if !testkit::is_root() || !testkit::has("nc") {
        return;
    }
    let host = Host::new();
    host.container("other");
    host.sh("ip link add up0 type veth peer name up0 netns other; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up");
    host.sh(
        "ip -n other addr add 192.0.2.2/24 dev up0; ip -n other link set up0 up; ip -n other link set lo up",
    );
    host.container("c1");
    let conf = dual_stack();
    let call = Call::new(&host, &OURS, "c1");
    call.add(&conf);
    // Without masquerading the other host has no route back.
    assert!(pings(&host, "c1", "192.0.2.2"));
    let mut plain = conf.clone();
    plain["ipMasq"] = json!(false);
    call.del(&conf, &Value::Null);
    call.add(&plain);
    assert!(!host.succeeds("ip netns exec c1 ping -c 1 -W 1 192.0.2.2"));
}

/// R33, R66: a container is attached to several networks, each with an interface of its own.
#[test]
fn one_container_on_three_networks() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let before = host.snapshot();
    let networks: Vec<(Value, Call<'_>)> = (0..3)
        .map(|index| {
            let conf = json!({"cniVersion": "1.1.0", "name": format!("net{index}"), "type": "bridge",
                "bridge": format!("br{index}"), "isGateway": true,
                "ipam": {"type": "host-local", "subnet": format!("10.{index}.0.0/24")}});
            let mut call = Call::new(&host, &OURS, "c1");
            call.ifname = format!("net{index}");
            (conf, call)
        })
        .collect();
    let results: Vec<Value> = networks.iter().map(|(conf, call)| call.add(conf)).collect();
    for ((conf, call), result) in networks.iter().zip(&results) {
        call.check(conf, result);
    }
    for index in 0..3 {
        assert!(pings(&host, "c1", &format!("10.{index}.0.1")));
    }
    for ((conf, call), result) in networks.iter().zip(&results) {
        call.del(conf, result);
        host.sh(&format!("ip link del {}", conf["bridge"].as_str().unwrap()));
        host.sh(&format!("rm -r /var/lib/cni/networks/{}", conf["name"].as_str().unwrap()));
    }
    before.assert_same(&host.snapshot(), "after DEL of all three");
}

/// `/proc/sys` is read-only, as in many containers: networks whose settings are in place work, and one that needs a setting says
/// which.
#[test]
fn read_only_settings() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys");
    let ipam = json!({"type": "host-local", "subnet": "10.88.0.0/16"});
    let bridge = json!({"cniVersion": "1.1.0", "name": "lab", "type": "bridge", "bridge": "br0", "isGateway": true,
                        "ipMasq": true, "ipam": ipam});
    let ptp = json!({"cniVersion": "1.1.0", "name": "lab", "type": "ptp", "ipam": ipam});
    for (name, conf) in [("c1", &bridge), ("c2", &ptp)] {
        host.container(name);
        let call = Call::new(&host, &OURS, name);
        let result = call.add(conf);
        let gateway = result["ips"][0]["gateway"].as_str().unwrap();
        assert!(pings(&host, name, gateway), "{name}: {gateway}");
        call.check(conf, &result);
        call.del(conf, &result);
    }
    // IPv6 is not forwarded, and that cannot be changed.
    let mut dual = bridge.clone();
    dual["ipam"] = json!({"type": "host-local", "ranges": [[{"subnet": "fd88::/64"}]]});
    let before = host.snapshot();
    let (_, text) = Call::new(&host, &OURS, "c1").call("ADD", &dual).error();
    assert!(
        text.contains("net/ipv6/conf/all/forwarding") && text.contains("make the setting on the host"),
        "{text}"
    );
    before.assert_same(&host.snapshot(), "after the refused ADD");
}
