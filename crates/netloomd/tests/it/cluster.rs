//! Pods of three hosts reach each other, whatever happens to daemons, store and kernel objects.

use std::{
    collections::BTreeSet,
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::lab::{Kind, Lab, NETLOOMD, Plan, Wire, netloom, write};

/// Returns the daemon's objects in a host's kernel, for comparison.
pub(crate) fn dump(lab: &Lab, index: usize) -> String {
    lab.hosts[index].sh(
        "ip route show proto 95 | sort; ip -6 route show proto 95 | sort; ip -br link show type vxlan | sort
         for dev in netloom4 netloom6 netloom-gpe; do ip link show $dev >/dev/null 2>&1 || continue
            ip -6 neigh show dev $dev nud permanent | sort; bridge fdb show dev $dev | sort; ip -br addr show dev $dev
         done
         nft list table ip netloom-cluster; nft list table ip6 netloom-cluster; nft list table inet netloom-cluster",
    )
}

fn path(lab: &Lab, index: usize, peer: &str) -> String {
    let status = lab.status(index);
    let peers = status["peers"].as_array().unwrap();
    let peer = peers.iter().find(|it| it["name"] == peer).unwrap();
    peer["path"].as_str().unwrap_or("none").to_owned()
}

/// All pairs of pods reach each other in each mode on one segment, and behind a router in the modes that support it: in both families,
/// with packets of full size, on hosts whose firewall drops what they forward.
#[test]
fn all_pods_reach_all() {
    if !testkit::is_root() {
        return;
    }
    let both = |path| [path, path];
    let (plain, gpe): (&[&str], &[&str]) = (&[], &["--tunnel", "vxlan-gpe"]);
    let cases = [
        (Wire::OneSegment, "overlay", plain, 1500, both("tunnel")),
        (Wire::Router, "overlay", plain, 1400, both("tunnel")),
        (Wire::Router, "overlay", plain, 9000, both("tunnel")),
        (Wire::Router, "overlay", gpe, 1500, both("tunnel")),
        (Wire::OneSegment, "routing", plain, 1400, both("direct")),
        (Wire::OneSegment, "routing", plain, 1500, both("direct")),
        (Wire::OneSegment, "routing", plain, 9000, both("direct")),
        (Wire::Router, "auto", plain, 1400, ["direct", "tunnel"]),
        (Wire::Router, "auto", plain, 1500, ["direct", "tunnel"]),
        (Wire::Router, "auto", plain, 9000, ["direct", "tunnel"]),
        (Wire::Router, "auto", gpe, 1400, ["direct", "tunnel"]),
    ];
    // All at once would need more inotify instances than the kernel has for a user by default.
    for some in cases.chunks(4) {
        std::thread::scope(|scope| {
            for &(wire, mode, flags, mtu, paths) in some {
                scope.spawn(move || {
                    let lab = Lab::of(Plan { wire, mode, mtu, flags, ..Plan::default() });
                    // Dual-stack tunnels leave room for the larger outer header, and those of frames for the inner one.
                    let room = if flags.is_empty() { 70 } else { 56 };
                    let pod_mtu = if mode == "routing" { mtu } else { mtu - room };
                    assert_eq!(lab.status(0)["networks"][0]["mtu"], pod_mtu, "{mode}");
                    assert_eq!([path(&lab, 0, "host2"), path(&lab, 0, "host3")], paths, "{mode}");
                    let pods = lab.pods();
                    lab.all_reach_all(&pods);
                    // Packets of full size that must not be fragmented, to near and far pods and back.
                    full_size(&lab, &pods, mode, pod_mtu);
                    for (_, _, addresses) in pods.iter().filter(|(index, _, _)| *index == 2) {
                        for to in addresses {
                            assert!(
                                lab.hosts[0].succeeds(&format!("ping -c 1 -W 2 {to}")),
                                "{mode}: the host to {to}"
                            );
                        }
                    }
                    // Packets to addresses of no node do not leave via the default route.
                    assert!(!lab.hosts[0].succeeds("ip route get 10.244.255.1"), "{mode}");
                    // Packets that leave the cluster have the node's address.
                    assert!(lab.pings(0, "a1", "", "192.0.2.254"), "{mode}");
                });
            }
        });
    }
}

fn full_size(lab: &Lab, pods: &[(usize, String, Vec<String>)], mode: &str, mtu: u32) {
    for (from, pod, to) in [(0, "a1", "a2"), (0, "a1", "a3"), (2, "a3", "a1")] {
        let to = &pods.iter().find(|it| it.1 == to).unwrap().2;
        for (to, headers) in to.iter().zip([28, 48]) {
            let size = mtu - headers;
            let whole = lab.pings(from, pod, &format!("-M do -s {size}"), to);
            assert!(whole, "{mode}, {mtu}: {size} bytes from {pod} to {to}");
            assert!(
                !lab.pings(from, pod, &format!("-M do -s {}", size + 1), to),
                "{mode}, {mtu}: a packet that is too big passes"
            );
        }
    }
}

/// A daemon in an unprivileged container with two capabilities does everything.
#[test]
fn two_capabilities_are_enough() {
    if !testkit::is_root() {
        return;
    }
    let plan = Plan { mode: "auto", bare: true, flags: &["--plugins", "/run/plugins"], ..Plan::default() };
    let mut lab = Lab::of(Plan { wire: Wire::Router, ..plan });
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    // The container is as restricted as intended, and the settings were written all the same.
    let daemon = lab.daemon_pid(0);
    let capabilities = lab.hosts[0].sh(&format!(
        "grep CapBnd /proc/{daemon}/status; grep -c ' /proc/sys proc ro' /proc/{daemon}/mounts"
    ));
    assert_eq!(capabilities, "CapBnd:\t0000000000003000\n1\n");
    assert_eq!(lab.hosts[0].sh("cat /proc/sys/net/ipv4/conf/netloom4/rp_filter"), "2\n");
    assert!(lab.hosts[0].succeeds("test -x /run/plugins/ptp"));
    let before = dump(&lab, 0);
    lab.hosts[0].sh("ip link del netloom4; nft delete table inet netloom-cluster");
    lab.wait(0, "as before", |_| dump_or_nothing(&lab).as_deref() == Some(before.as_str()));
    lab.kill(0);
    lab.all_reach_all(&pods);
}

/// With mode routing, a node on another segment is reported with what to do, and gets no route.
#[test]
fn routing_reports_nodes_on_other_segments() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new(Wire::Router, false, "routing", 1500);
    let status = lab.status(0);
    let peers = status["peers"].as_array().unwrap();
    let far = peers.iter().find(|it| it["name"] == "host3").unwrap();
    assert!(far["path"].is_null() && far["problem"].as_str().unwrap().contains("not on this L2"), "{far}");
    assert_eq!(lab.hosts[0].sh("ip route show proto 95 | grep -c via"), "1\n");
}

/// Foreign changes to devices, routes, neighbours and the ruleset are repaired.
#[test]
fn foreign_changes_are_repaired() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new(Wire::OneSegment, false, "overlay", 1500);
    let pods = lab.pods();
    let harm = [
        "ip link del netloom4",
        "ip link set netloom4 down",
        "ip link set netloom4 down; ip link set netloom4 name other",
        // As udev's MACAddressPolicy does.
        "ip link set netloom4 address 02:11:22:33:44:55",
        "nft flush ruleset; nft 'table inet own { chain f { type filter hook forward priority 0; policy drop; }; }'",
        "ip route flush proto 95",
        "ip -6 route flush proto 95",
        "ip -6 neigh flush dev netloom4 nud permanent",
        "for mac in $(bridge fdb show dev netloom4 | cut -d' ' -f1); do bridge fdb del $mac dev netloom4; done",
        "nft delete table inet netloom-cluster; nft delete table ip netloom-cluster",
        "nft flush chain inet netloom-cluster admit",
        "nft flush chain ip netloom-cluster postrouting",
        "nft insert rule inet netloom-cluster admit drop",
        "nft delete rule inet netloom-cluster tunnel handle $(nft -a list chain inet netloom-cluster tunnel | grep -o '[0-9]*$' | tail -n1)",
        "nft 'chain inet netloom-cluster tunnel { policy drop; }'",
        "nft flush set inet netloom-cluster nodes4",
        "ip route add 10.244.99.0/24 via 192.0.2.2 proto 95",
        "ip addr flush dev netloom4 scope global",
        // A foreign route in the place of one of the daemon's.
        "ip route replace $(ip route show proto 95 | grep netloom4 | head -n1 | cut -d' ' -f1) dev up0",
    ];
    harm_is_repaired(&lab, &harm);
    // The host's firewall is removed and comes back: packets are marked only while it exists.
    lab.hosts[0].sh("nft delete table inet own");
    lab.until(0, "! nft list chain inet netloom-cluster admit");
    lab.all_reach_all(&pods);
    lab.hosts[0]
        .sh("nft 'table inet own { chain f { type filter hook forward priority 0; policy drop; }; }'");
    lab.until(0, "nft list chain inet netloom-cluster admit && nft list table inet own | grep -q Netloom");
    lab.all_reach_all(&pods);
    assert!(
        lab.status(0)["counters"]["repairs"].as_u64().unwrap() >= harm.len() as u64 / 2,
        "{}",
        lab.status(0)
    );
}

/// Foreign changes to lightweight tunnels are repaired.
#[test]
fn lightweight_tunnels_are_repaired() {
    if !testkit::is_root() {
        return;
    }
    let flags = &["--tunnel", "vxlan-gpe"];
    let lab = Lab::of(Plan { wire: Wire::Router, flags, ..Plan::default() });
    let pods = lab.pods();
    let (to, daemon) =
        ("$(ip route show proto 95 | grep 'dst 192.0.2.2' | cut -d' ' -f1)", lab.daemon_pid(0));
    let harm = [
        "ip link del netloom-gpe".to_owned(),
        "ip link set netloom-gpe down".to_owned(),
        "ip route flush proto 95; ip -6 route flush proto 95".to_owned(),
        "ip addr flush dev netloom-gpe scope global".to_owned(),
        // A wrong host, and a wrong network identifier.
        format!("ip route replace {to} encap ip id 4242 dst 192.0.2.9 dev netloom-gpe proto 95"),
        format!("ip route replace {to} encap ip id 7 dst 192.0.2.2 src 192.0.2.1 dev netloom-gpe proto 95"),
        // A foreign device in its place; the daemon, which would be faster, is stopped meanwhile.
        format!(
            "kill -STOP {daemon}; ip link del netloom-gpe && ip link add netloom-gpe type vxlan id 9 dstport 9; kill -CONT {daemon}"
        ),
    ];
    harm_is_repaired(&lab, &harm.each_ref().map(String::as_str));
    lab.all_reach_all(&pods);
    // The tunnel needs no neighbours and no forwarding entries.
    assert_eq!(
        lab.hosts[0].sh("ip neigh show dev netloom-gpe nud permanent; bridge fdb show dev netloom-gpe"),
        ""
    );
}

fn harm_is_repaired(lab: &Lab, harm: &[&str]) {
    let before = dump(lab, 0);
    for line in harm {
        lab.hosts[0].sh(line);
        let started = Instant::now();
        while dump_or_nothing(lab).as_deref() != Some(before.as_str()) {
            let took = started.elapsed();
            assert!(
                took < Duration::from_secs(5),
                "after {line}:\nbefore:\n{before}\nafter:\n{:?}",
                dump_or_nothing(lab)
            );
        }
    }
}

fn dump_or_nothing(lab: &Lab) -> Option<String> {
    lab.hosts[0]
        .succeeds("nft list table inet netloom-cluster && nft list table ip netloom-cluster")
        .then(|| dump(lab, 0))
}

/// A daemon that is killed and started again changes nothing, and traffic continues. Objects that became stale meanwhile are removed.
#[test]
fn a_restart_adopts_what_is_there() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::new(Wire::OneSegment, false, "auto", 1500);
    let pods = lab.pods();
    let before = dump(&lab, 0);
    lab.kill(0);
    lab.all_reach_all(&pods);
    // A node that left while the daemon was down.
    fs::remove_file(lab.store_dir().join("nodes/host3.json")).unwrap();
    lab.kill(2);
    lab.start(0);
    lab.until(0, "! ip route show proto 95 | grep -q 192.0.2.3");
    lab.start(2);
    lab.wait(0, "back to two peers", |status| {
        status["peers"].as_array().is_some_and(|peers| peers.len() == 2)
    });
    lab.until(0, "ip route show proto 95 | grep -q 192.0.2.3");
    assert_eq!(dump(&lab, 0), before);
    lab.all_reach_all(&pods);
    lab.kill(0);
    lab.start(0);
    lab.wait(0, "ready", |status| status["ready"] == true);
    assert_eq!(lab.status(0)["counters"]["changes"], 0, "a restart changed correct objects");
}

/// A node that joins is reached by all others within a second, and so is one that leaves removed.
#[test]
fn nodes_join_and_leave_within_a_second() {
    if !testkit::is_root() || !testkit::has("etcd") {
        return;
    }
    let mut lab = Lab::of(Plan { store: Kind::Etcd, started: 2, ..Plan::default() });
    let pods = [lab.pod(0, "a1"), lab.pod(1, "a2")];
    let second = Duration::from_secs(1);
    lab.start(2);
    lab.wait_for_peers(2, 2);
    let ready = Instant::now();
    let new = lab.pod(2, "a3");
    for index in [0, 1] {
        for to in &new {
            lab.until(index, &format!("ip netns exec a{} ping -c 1 -W 1 {to}", index + 1));
        }
    }
    assert!(ready.elapsed() < second, "reached {:?} after it was ready", ready.elapsed());
    assert!(lab.pings(2, "a3", "", &pods[0][0]) && lab.pings(2, "a3", "", &pods[1][1]));
    lab.kill(2);
    assert!(lab.daemon(2).arg("uninstall").status().unwrap().success());
    let left = Instant::now();
    for index in [0, 1] {
        lab.until(index, "! bridge fdb show dev netloom4 | grep -q 192.0.2.3");
    }
    assert!(left.elapsed() < second, "gone {:?} after it left", left.elapsed());
}

/// With etcd, nodes learn of each other, and lose nothing while it is down; one that is down is shown as silent when its lease ends.
#[test]
fn etcd_may_be_down() {
    if !testkit::is_root() || !testkit::has("etcd") || !testkit::has("etcdctl") {
        return;
    }
    let mut lab = Lab::new(Wire::OneSegment, true, "overlay", 1500);
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    let before = dump(&lab, 0);
    lab.stop_store();
    lab.wait(0, "without a store", |status| status["store"]["connected"] == false);
    assert_eq!(lab.status(0)["ready"], true, "{}", lab.status(0));
    // A daemon that starts meanwhile uses the remembered view.
    lab.kill(1);
    lab.start(1);
    lab.wait_for_peers(1, 2);
    lab.all_reach_all(&pods);
    lab.start_store();
    for index in 0..3 {
        lab.wait(index, "connected again", |status| status["store"]["connected"] == true);
    }
    lab.all_reach_all(&pods);
    assert_eq!(dump(&lab, 0), before);
    // A node that is down: its lease ends, which its peers show; the routes stay.
    let is_silent = |status: &Value| {
        let peers = status["peers"].as_array().unwrap();
        peers.iter().any(|it| it["name"] == "host3" && it["silentSeconds"].is_u64())
    };
    lab.kill(2);
    let took = lab.wait(0, "aware that host3 is silent", is_silent);
    println!("a node that died was shown as silent after {took:?}, with a lease of 10 s");
    assert_eq!(dump(&lab, 0), before);
    lab.start(2);
    let took = lab.wait(0, "aware that host3 is back", |status| !is_silent(status));
    println!("it was back after {took:?}");
    lab.all_reach_all(&pods);
    // Leases that were revoked, or that ended while a host was stopped, are replaced.
    let nodes =
        "etcdctl --endpoints http://192.0.2.254:2379 get --prefix /netloom/alive --keys-only | grep -c host";
    lab.wire.sh("export ETCDCTL_API=3; for lease in $(etcdctl --endpoints http://192.0.2.254:2379 lease list | tail -n +2); do
                     etcdctl --endpoints http://192.0.2.254:2379 lease revoke $lease; done");
    let started = Instant::now();
    while !lab.wire.succeeds(&format!("test $(ETCDCTL_API=3 {nodes}) = 3")) {
        assert!(
            started.elapsed() < Duration::from_secs(15),
            "{}",
            lab.wire.sh(&format!("ETCDCTL_API=3 {nodes} || true"))
        );
    }
    lab.all_reach_all_again(&pods);
}

/// Damaged records are refused, and claims of addresses that others have. Neither changes anything for other nodes.
#[test]
fn wrong_records_are_refused() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::new(Wire::OneSegment, false, "overlay", 1500);
    let before = dump(&lab, 0);
    let nodes = lab.store_dir().join("nodes");
    let own: Value = serde_json::from_str(&fs::read_to_string(nodes.join("host2.json")).unwrap()).unwrap();
    let block = own["blocks"][0].clone();
    let records = [
        ("garbage", "no JSON at all".to_owned(), "not a node record"),
        ("other-name", json!({"name": "x", "addresses": [], "blocks": []}).to_string(), "names another node"),
        (
            "multicast",
            json!({"name": "multicast", "addresses": ["192.0.2.9"], "blocks": [], "mac": "01:00:5e:00:00:01"})
                .to_string(),
            "not a hardware address of a device",
        ),
        ("long", json!({"name": "long", "addresses": ["1".repeat(200_000)], "blocks": []}).to_string(), "bytes"),
        (
            "nobody",
            json!({"name": "nobody", "addresses": ["127.0.0.1"], "blocks": []}).to_string(),
            "not a host address",
        ),
    ];
    for (name, text, says) in &records {
        write(&nodes.join(format!("{name}.json")), text);
        lab.wait(0, says, |status| {
            let refused = status["store"]["refused"].as_array().unwrap();
            refused
                .iter()
                .any(|it| it.as_str().unwrap().starts_with(name) && it.as_str().unwrap().contains(says))
        });
    }
    assert_eq!(dump(&lab, 0), before);
    // A damaged record of a known node changes nothing. Its daemon, which would repair the record at once, is stopped.
    lab.kill(2);
    write(&nodes.join("host3.json"), "{");
    lab.wait(0, "refused", |status| {
        status["store"]["refused"].as_array().unwrap().len() == records.len() + 1
    });
    assert_eq!(dump(&lab, 0), before);
    lab.start(2);
    lab.wait(0, "repaired", |status| status["store"]["refused"].as_array().unwrap().len() == records.len());
    // Records with claims of addresses that others have: each claim is refused alone, and nothing changes for others.
    lab.hosts[0].sh(
        "ip route add 10.244.200.0/24 via 192.0.2.2; ip link add docker0 type bridge; ip addr add 10.244.201.1/24 dev docker0",
    );
    let before = dump(&lab, 0);
    let pod = block.as_str().unwrap().replace(".0/24", ".7/32");
    let own_mac = lab.hosts[0].json("ip -j link show netloom4")[0]["address"].clone();
    let thieves = [
        ("block-thief", json!([block]), Value::Null, "belongs to host2"),
        ("pod-thief", json!([pod]), Value::Null, "of host2"),
        ("outsider", json!(["10.1.0.0/24"]), Value::Null, "outside the pods' prefixes"),
        ("bridge-thief", json!(["10.244.201.0/24"]), Value::Null, "`docker0` of this host"),
        ("route-thief", json!(["10.244.200.0/24"]), Value::Null, "ip route del 10.244.200.0/24"),
        ("mac-thief", json!(["10.244.202.0/24"]), own_mac, "is that of node host1"),
    ];
    for (index, (name, blocks, mac, says)) in thieves.iter().enumerate() {
        let mut thief = json!({"name": name, "addresses": [format!("192.0.2.{}", 90 + index)], "blocks": blocks,
                               "tunnel": {"vni": 4242, "port": 4789}});
        if !mac.is_null() {
            thief["mac"] = mac.clone();
        }
        write(&nodes.join(format!("{name}.json")), &thief.to_string());
        lab.wait(0, says, |status| {
            let peers = status["peers"].as_array().unwrap();
            peers
                .iter()
                .any(|it| it["name"] == *name && it["problem"].as_str().unwrap_or_default().contains(says))
        });
    }
    let status = lab.status(0);
    assert_eq!((&status["ready"], &status["store"]["refusedClaims"]), (&json!(true), &json!(5)), "{status}");
    assert_eq!(status["counters"]["refusals"], 1, "a refused change is not tried again: {status}");
    let routes = lab.hosts[0].sh("ip route show proto 95 | sort");
    assert!(before.starts_with(&routes), "{routes}");
    assert!(lab.hosts[0].sh("ip route show 10.244.200.0/24").contains("via 192.0.2.2"));
}

/// Thousands of nodes that join at once are one transaction of the ruleset, and all of them get their routes.
#[test]
fn thousands_of_nodes_join_at_once() {
    const COUNT: usize = 4500;
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, pods: "10.128.0.0/9,fd44::/32", ..Plan::default() });
    let nodes = lab.store_dir().join("nodes");
    for number in 0..COUNT {
        let (high, low) = (number / 250, number % 250 + 1);
        let record = json!({"name": format!("n{number}"), "addresses": [format!("10.64.{high}.{low}"), format!("2001:db8:64::{number:x}")],
            "blocks": [format!("10.{}.{}.0/24", 200 + number / 256, number % 256)], "tunnel": {"vni": 4242, "port": 4789}});
        fs::write(nodes.join(format!("n{number}.json")), record.to_string()).unwrap();
    }
    lab.wait_for_peers(0, COUNT + 1);
    for set in ["nodes4", "nodes6"] {
        let elements = lab.hosts[0].sh(&format!(
            "nft -j list set inet netloom-cluster {set} | tr , '\\n' | grep -c '\"[0-9a-f.:]*\"'"
        ));
        assert!(elements.trim().parse::<usize>().unwrap() >= COUNT, "{set}: {elements}");
    }
    assert_eq!(lab.hosts[0].sh("ip route show proto 95 | grep -c netloom4").trim(), (COUNT + 1).to_string());
}

/// A second daemon on a host, and a node with another node's name, report that and change nothing.
#[test]
fn there_is_one_daemon_and_one_of_each_name() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new(Wire::OneSegment, false, "overlay", 1500);
    let output = lab.daemon(0).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("another netloomd runs on this host"), "{text}");
    let second = testkit::Host::new();
    lab.wire.sh(&format!(
        "ip link add n9 type veth peer name up0 netns {}; ip link set n9 master sega up",
        second.pid()
    ));
    second.sh("ip link set up0 up; ip addr add 192.0.2.9/24 dev up0; ip route add default via 192.0.2.254");
    let mut command = second.command(NETLOOMD);
    command.args(["--node", "host2", "--pods", "10.244.0.0/16,fd44::/48", "--conf-dir", "/run/net.d"]);
    command.args(["--config", "/nowhere", "--store-dir", lab.store_dir().to_str().unwrap()]);
    let log = second.path("/run/log");
    let mut daemon = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let started = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("another node is called `host2`") {
        assert!(started.elapsed() < Duration::from_secs(10), "{}", fs::read_to_string(&log).unwrap());
    }
    assert!(!second.path("/run/net.d").exists() && second.sh("ip route show proto 95").is_empty());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

/// Uninstalling removes all of a daemon's objects, and its peers' routes to it.
#[test]
fn uninstall_leaves_the_host_as_it_was() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::new(Wire::OneSegment, false, "auto", 1500);
    let own = "ip link show type vxlan; ip route show proto 95; ip -6 route show proto 95; nft list ruleset | grep -i netloom; ls /run/net.d
        ls -d /run/netloom /var/lib/netloom/node 2>&1 | grep -v 'cannot access'; true";
    assert!(!lab.hosts[0].sh(own).is_empty());
    lab.kill(0);
    let mut command = lab.daemon(0);
    let output = command.arg("uninstall").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lab.hosts[0].sh(own), "");
    lab.until(1, "! ip route show proto 95 | grep -q 192.0.2.1");
    let blocks: Vec<_> = fs::read_dir(lab.store_dir().join("blocks")).unwrap().collect();
    assert_eq!(blocks.len(), 4, "of two nodes, one of each family");
}

/// Another program's tunnel with the same identifier and port is in the way: the node names it and the remedy, and leaves it alone.
#[test]
fn a_foreign_tunnel_of_the_same_identifier_is_named() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::new(Wire::OneSegment, false, "overlay", 1500);
    lab.kill(0);
    let foreign =
        "ip link del netloom4; ip link add other0 type vxlan id 4242 dstport 4789 local 192.0.2.1 nolearning";
    lab.hosts[0].sh(&format!("{foreign}; ip link set other0 up"));
    lab.start(0);
    lab.wait(0, "naming the other tunnel", |status| {
        status["problems"].as_array().unwrap().iter().any(|problem| {
            let text = problem.as_str().unwrap();
            text.contains("`other0` of another program") && text.contains("ip link del other0")
        })
    });
    lab.hosts[0].sh("ip link del other0");
    lab.wait(0, "being ready", |status| status["ready"] == true);
}

/// Tunnelled packets are accepted from nodes only.
#[test]
fn a_foreign_host_cannot_send_into_the_tunnel() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new(Wire::OneSegment, false, "overlay", 1500);
    let pods = lab.pods();
    let to = &pods[0].2[0];
    // A host on the segment that is not a node creates the same tunnel by hand.
    let (mac, stranger) = (lab.hosts[0].sh("cat /sys/class/net/netloom4/address"), testkit::Host::new());
    lab.wire.sh(&format!(
        "ip link add n9 type veth peer name up0 netns {}; ip link set n9 master sega up",
        stranger.pid()
    ));
    stranger.sh(&format!(
        "ip link set up0 up; ip addr add 192.0.2.9/24 dev up0
         ip link add name tun type vxlan id 4242 dstport 4789 local 192.0.2.9 nolearning; ip link set tun up; ip addr add 10.244.250.1/32 dev tun
         ip route add {to}/32 dev tun; ip neigh add {to} lladdr {mac} dev tun; bridge fdb append {mac} dev tun dst 192.0.2.1",
        mac = mac.trim()
    ));
    // The foreign host's packets are counted apart: daemons probe each other over the tunnel too.
    lab.hosts[0].sh(
        "nft 'table ip seen { counter strange {}; counter carried {}; chain seen { type filter hook prerouting priority raw;
              iifname netloom4 counter name carried; iifname netloom4 ip saddr 10.244.250.1 counter name strange; }; }'",
    );
    let seen =
        |name: &str| lab.hosts[0].sh(&format!("nft list counter ip seen {name} | grep -o 'packets [0-9]*'"));
    assert!(!stranger.succeeds(&format!("ping -c 3 -i 0.2 -W 1 {to}")));
    assert_eq!(seen("strange"), "packets 0\n");
    // A node's are.
    assert!(lab.pings(1, "a2", "", to));
    assert_ne!(seen("carried"), "packets 0\n");
}

/// The page, metrics, health, and `netloom cluster` over the socket, which only root can open.
#[test]
fn the_status_is_served() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::new(Wire::Router, false, "auto", 1500);
    lab.wait(0, "receiving answers of its peers", |status| {
        status["peers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|peer| peer["answers"] == true && peer["rttUs"].is_u64())
    });
    let get = |lab: &Lab, path: &str| {
        lab.hosts[0].sh(&format!(
            "bash -c 'exec 3<>/dev/tcp/127.0.0.1/9470 && printf \"GET {path} HTTP/1.0\\r\\n\\r\\n\" >&3 && cat <&3'"
        ))
    };
    for (path, says) in [
        ("/livez", "200 OK"),
        ("/readyz", "200 OK"),
        ("/", "Netloom cluster"),
        ("/metrics", "netloomd_peers{path=\"tunnel\"} 1"),
        ("/metrics", "netloomd_peers_probed{answer=\"yes\"} 2"),
        ("/metrics", "netloomd_ready 1"),
        ("/nothing", "404"),
    ] {
        let answer = get(&lab, path);
        assert!(answer.contains(says), "{path}: {answer}");
    }
    // What the dashboard and the alerts name exists.
    let metrics = get(&lab, "/metrics");
    for file in ["prometheus/netloomd.rules.yaml", "grafana/netloomd.json"] {
        let text = fs::read_to_string(format!("{}/../../deploy/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let names: BTreeSet<&str> =
            text.split(|it| !is_name(it)).filter(|word| word.starts_with("netloomd_")).collect();
        assert!(names.len() > 8, "{file}: {names:?}");
        for name in names {
            assert!(metrics.contains(&format!("\n{name}")), "{file}: {name} is not in {metrics}");
        }
    }
    let shown =
        lab.hosts[0].sh(&format!("{} cluster; stat -c %a /run/netloom/netloomd.sock", netloom().display()));
    assert!(
        shown.contains("host3  tunnel") && shown.contains("host1: ready") && shown.ends_with("600\n"),
        "{shown}"
    );
    let lines = lab.hosts[1].command(netloom()).args(["cluster", "--socket", "/nowhere"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&lines.stderr).contains("cannot query netloomd at /nowhere"),
        "{lines:?}"
    );
    // A configuration that a runtime would take instead of this network's is a note; the node is ready all the same.
    lab.hosts[0].sh("touch /run/net.d/05-other.conflist /run/net.d/04-none.txt /run/net.d/30-later.conf; ip link add x type veth; ip link del x");
    lab.wait(0, "aware of another network", |status| {
        status["notes"].as_array().is_some_and(|notes| notes.len() == 1) && status["ready"] == true
    });
    let shown = lab.hosts[0].sh(&format!("{} cluster 2>&1", netloom().display()));
    assert!(shown.contains("/run/net.d/05-other.conflist sorts before"), "{shown}");
    lab.hosts[0].sh("rm /run/net.d/05-other.conflist");
    // Without an address that others can reach, the node is not ready.
    lab.hosts[0].sh("ip route del default; ip -6 route del default");
    lab.wait(0, "not ready", |status| status["ready"] == false);
    let answer = get(&lab, "/readyz");
    assert!(answer.contains("503") && answer.contains("no default route"), "{answer}");
    // STATUS reports it to the runtime; after a reboot, the network is not ready until the daemon says so.
    let said = lab.network_status(0).unwrap_err();
    assert!(said.contains("no default route"), "{said}");
    assert_eq!(lab.network_status(1), Ok(()));
    lab.kill(1);
    lab.hosts[1].sh("rm /run/netloom/netloom.ready");
    let said = lab.network_status(1).unwrap_err();
    assert!(said.contains("the network is not ready") && said.contains("netloom.ready"), "{said}");
}

/// Thousands of connections that send nothing keep neither the health port nor the metrics from answering.
#[test]
fn silent_connections_harm_nobody() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan { hosts: 1, ..Plan::default() });
    let answers = lab.hosts[0].sh("bash -c 'ulimit -n 6000 || ulimit -n $(ulimit -H -n)
         for _ in $(seq 5000); do exec {fd}<>/dev/tcp/127.0.0.1/9470 || break; done
         curl -s --max-time 2 http://127.0.0.1:9470/readyz; echo
         curl -s --max-time 2 http://127.0.0.1:9470/metrics | grep -c netloomd_ready'");
    assert!(answers.starts_with("ready\n") && !answers.ends_with("0\n"), "{answers}");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", lab.daemon_pid(0))).unwrap().count();
    assert!(descriptors < 300, "{descriptors} descriptors are open");
}

/// Three hosts on two segments, each with a BGP speaker and an AS of its own. BIRD reads the blocks from their table and announces them,
/// and pods reach each other via the routes it learns. The routes of a node that is uninstalled are withdrawn.
#[test]
fn bird_announces_the_blocks() {
    if !testkit::is_root() || !testkit::has("bird") {
        return;
    }
    let mut lab = Lab::new(Wire::Router, false, "bgp", 1500);
    let addresses =
        [("192.0.2.1", "2001:db8:a::1"), ("192.0.2.2", "2001:db8:a::2"), ("198.51.100.3", "2001:db8:b::3")];
    let mut speakers = Vec::new();
    for (index, host) in lab.hosts.iter().enumerate() {
        let mut conf = format!(
            "router id {}; protocol device {{ scan time 1; }} protocol direct {{ ipv4; ipv6; }}\nipv4 table blocks4; ipv6 table blocks6;\n",
            addresses[index].0
        );
        for (family, n) in [("ipv4", 4), ("ipv6", 6)] {
            conf += &format!(
                "protocol kernel b{n} {{ kernel table 4242; learn; scan time 1; {family} {{ table blocks{n}; import all; export none; }}; }}
                 protocol kernel k{n} {{ learn; scan time 1; {family} {{ import where krt_source != 95; export where source = RTS_BGP; }}; }}
                 protocol pipe p{n} {{ table blocks{n}; peer table master{n}; import none; export all; }}\n"
            );
        }
        for (peer, (v4, v6)) in addresses.iter().enumerate().filter(|(peer, _)| *peer != index) {
            let asn = |index: usize| 64_512 + index;
            for (family, own, to, blocks) in [
                ("ipv4", addresses[index].0, *v4, "10.244.0.0/16{24,24}"),
                ("ipv6", addresses[index].1, *v6, "fd44::/48{64,64}"),
            ] {
                conf += &format!(
                    "protocol bgp {family}to{peer} {{ local {own} as {}; neighbor {to} as {}; multihop; connect retry time 1;
                     connect delay time 1; error wait time 1, 2; {family} {{ import all; export where source = RTS_INHERIT && net ~ [{blocks}]; next hop self; }}; }}\n",
                    asn(index),
                    asn(peer)
                );
            }
        }
        fs::write(host.path("/run/bird.conf"), conf).unwrap();
        let mut bird = host.command("bird");
        bird.args(["-f", "-c", "/run/bird.conf", "-s", "/run/bird.ctl"]).stderr(Stdio::null());
        speakers.push(bird.spawn().unwrap());
    }
    for index in 0..3 {
        assert_eq!(path(&lab, index, &format!("host{}", (index + 1) % 3 + 1)), "learnt");
        let learnt = "test $(ip route show proto bird | grep -c 10.244) = 2 && test $(ip -6 route show proto bird | grep -c fd44) = 2";
        lab.until(index, learnt);
    }
    // The router between the segments has the routes too, as a BGP speaker would.
    for (index, (v4, v6)) in addresses.iter().enumerate() {
        for block in lab.status(index)["blocks"].as_array().unwrap() {
            let block = block["prefix"].as_str().unwrap();
            let via = if block.contains(':') { v6 } else { v4 };
            lab.wire.sh(&format!("ip route add {block} via {via}"));
        }
    }
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    lab.kill(2);
    let output = lab.daemon(2).arg("uninstall").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lab.until(0, "test $(ip route show proto bird | grep -c 10.244) = 1");
    for mut speaker in speakers {
        speaker.kill().unwrap();
        speaker.wait().unwrap();
    }
}

/// A node claims another block before its own is full, so that no pod waits, and releases it when it is empty.
#[test]
fn blocks_are_claimed_and_released() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan { mode: "routing", flags: &["--block4", "29"], ..Plan::default() });
    let blocks = || fs::read_dir(lab.store_dir().join("blocks")).unwrap().count();
    assert_eq!(blocks(), 6, "one of each family for each node");
    let mut pods = Vec::new();
    for number in 0..9 {
        let name = format!("p{number}");
        let addresses = lab.pod(0, &name);
        pods.push((0, name, addresses));
        // The next pod starts as soon as there is room, at most one pod above four fifths.
        let (used, size) = (pods.len(), 5);
        lab.wait(0, "with room for another", |status| {
            let of_v4 = status["blocks"].as_array().unwrap().iter().filter(|it| it["size"] == size);
            of_v4.count() * size * 4 > used * 5 - 5
        });
    }
    let other = lab.pod(1, "q");
    pods.push((1, "q".into(), other));
    lab.all_reach_all(&pods);
    let claimed = blocks();
    assert!(claimed >= 7, "{claimed}");
    for (_, name, _) in pods.iter().filter(|(index, _, _)| *index == 0) {
        lab.end(0, name);
    }
    lab.wait(0, "with one block again", |status| status["blocks"].as_array().unwrap().len() == 2);
    assert_eq!(blocks(), 6);
    let conf = fs::read_to_string(lab.hosts[0].path("/run/net.d/10-netloom.conflist")).unwrap();
    assert_eq!(conf.matches("subnet").count(), 2, "{conf}");
    // New pods start as before.
    lab.pod(0, "again");
}
