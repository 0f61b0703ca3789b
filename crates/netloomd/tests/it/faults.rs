//! Faults: stalled stores, full pools, dead nodes that own blocks, renamed and copied hosts, wrong checksums.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cluster::dump,
    lab::{ETCDCTL, Kind, Lab, Plan},
};

fn problems(status: &Value) -> String {
    status["problems"].to_string()
}

/// A store that accepts requests but does not answer changes nothing: the kernel's state stays, and daemons are ready and answer.
#[test]
fn a_stalled_store_changes_nothing() {
    if !testkit::is_root() || !testkit::has("etcd") {
        return;
    }
    let mut lab = Lab::of(Plan { store: Kind::Etcd, ..Plan::default() });
    let pods = lab.pods();
    let before = dump(&lab, 0);
    lab.freeze_store(true);
    lab.wait(0, "without a store", |status| status["store"]["connected"] == false);
    assert_eq!(lab.status(0)["ready"], true, "{}", lab.status(0));
    assert_eq!(dump(&lab, 0), before);
    // Foreign changes are repaired all the same.
    lab.hosts[0].sh("ip route flush proto 95");
    lab.until(0, "ip route show proto 95 | grep -q netloom4");
    lab.kill(1);
    lab.start(1);
    lab.wait(1, "ready with the remembered view", |status| status["ready"] == true);
    lab.all_reach_all(&pods);
    lab.freeze_store(false);
    for index in 0..3 {
        lab.wait(index, "connected again", |status| {
            status["store"]["connected"] == true
                && status["peers"].as_array().is_some_and(|peers| peers.len() == 2)
        });
    }
    assert_eq!(dump(&lab, 0), before);
    lab.all_reach_all(&pods);
}

/// Repairs do not wait for the store: while etcd stalls, every deleted route is back within a second.
#[test]
fn repairs_do_not_wait_for_a_stalled_store() {
    if !testkit::is_root() || !testkit::has("etcd") {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, store: Kind::Etcd, ..Plan::default() });
    lab.freeze_store(true);
    // Longer than the renewal interval of the lease and the deadline of a call together.
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    while started.elapsed() < Duration::from_secs(20) {
        lab.hosts[0].sh("ip route flush proto 95");
        slowest = slowest.max(lab.until(0, "ip route show proto 95 | grep -q netloom4"));
    }
    lab.freeze_store(false);
    assert!(slowest < Duration::from_secs(1), "a route was repaired after {slowest:?}");
    lab.wait(0, "connected again", |status| status["store"]["connected"] == true);
}

/// A folder that is removed and created again is watched again, and events that overflow the kernel's queue are not missed.
#[test]
fn watches_that_end_are_opened_again() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, ..Plan::default() });
    let used = |status: &Value| {
        status["blocks"].as_array().unwrap().iter().filter_map(|it| it["used"].as_u64()).sum::<u64>()
    };
    let folder = "/var/lib/cni/networks/netloom";
    lab.hosts[0].sh(&format!("mv {folder} {folder}.old; mkdir {folder}"));
    lab.wait(0, "watching again", |status| status["counters"]["reopened"] == 1);
    assert_eq!(used(&lab.status(0)), 0);
    // Without the watch, the daemon would notice at its next audit.
    lab.pod(0, "late");
    let started = Instant::now();
    lab.wait(0, "aware of the pod", |status| used(status) > 0);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // While the daemon stands still, more routes change than the kernel queues events for.
    let daemon = lab.daemon_pid(0);
    lab.hosts[0].sh(&format!(
        "kill -STOP {daemon}
         seq 1 20000 | sed 's/.*/route add 198.18.0.0\\/32 dev lo proto 95 metric &/' | ip -batch -
         ip route flush proto 95; kill -CONT {daemon}"
    ));
    let repaired = lab.until(0, "ip route show proto 95 | grep -q netloom4");
    assert!(repaired < Duration::from_secs(2), "{repaired:?}");
    lab.wait(0, "ready", |status| status["ready"] == true);
}

/// Settings, files and the uplink: what other programs change or remove is back within a second. A setting that another program keeps
/// changing is left to it, and named.
#[test]
fn settings_files_and_the_uplink_are_repaired_within_a_second() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, ..Plan::default() });
    let pods = [(0, "a1".to_owned(), lab.pod(0, "a1")), (1, "a2".to_owned(), lab.pod(1, "a2"))];
    let value = |path: &str, value: &str| format!("test $(cat /proc/sys/net/{path}) = {value}");
    let harm = [
        ("echo 0 >/proc/sys/net/ipv4/ip_forward", value("ipv4/ip_forward", "1")),
        ("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding", value("ipv6/conf/all/forwarding", "1")),
        ("echo 1 >/proc/sys/net/ipv4/conf/netloom4/rp_filter", value("ipv4/conf/netloom4/rp_filter", "2")),
        (
            "echo 1 >/proc/sys/net/ipv6/conf/netloom4/disable_ipv6",
            "ip -6 neigh show dev netloom4 nud permanent | grep -q lladdr && ip -6 route show proto 95 | grep -q 'via fe80'"
                .to_owned(),
        ),
        ("rm /run/net.d/10-netloom.conflist", "test -s /run/net.d/10-netloom.conflist".to_owned()),
        ("echo {} >/run/net.d/10-netloom.conflist", "grep -q ptp /run/net.d/10-netloom.conflist".to_owned()),
    ];
    for (harm, is_repaired) in &harm {
        lab.hosts[0].sh(harm);
        let took = lab.until(0, is_repaired);
        println!("{harm}: {took:?}");
        assert!(took < Duration::from_secs(1), "{harm}: {took:?}");
    }
    lab.all_reach_all(&pods);
    let save = "ip -4 route save default >/run/default4; ip -6 route save default >/run/default6";
    lab.hosts[0].sh(&format!("{save}; ip route del default; ip -6 route del default"));
    lab.wait(0, "without a way out", |status| {
        problems(status).contains("there is no default route any more")
    });
    // What it has stays, and is repaired.
    lab.all_reach_all(&pods);
    lab.hosts[0].sh("ip link del netloom4");
    let took = lab.until(0, "ip route show proto 95 | grep -q netloom4");
    assert!(took < Duration::from_secs(1), "a tunnel while there is no default route: {took:?}");
    lab.all_reach_all(&pods);
    lab.hosts[0].sh("ip -4 route restore </run/default4; ip -6 route restore </run/default6");
    let took = lab.wait(0, "ready again", |status| status["ready"] == true);
    assert!(took < Duration::from_secs(1), "the default route is back: {took:?}");
    lab.all_reach_all(&pods);
    // A second and a third time, then it is a fight.
    for _ in 0..2 {
        lab.hosts[0].sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
        lab.until(0, &value("ipv4/ip_forward", "1"));
    }
    lab.hosts[0].sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
    lab.wait(0, "naming the setting", |status| {
        problems(status).contains("another program keeps setting /proc/sys/net/ipv4/ip_forward to 0")
    });
    assert!(lab.hosts[0].succeeds(&value("ipv4/ip_forward", "0")));
}

/// A daemon that cannot read the reservations does not know how full its blocks are: it says so and claims nothing.
#[test]
fn unreadable_reservations_claim_no_block() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, ..Plan::default() });
    let blocks = || fs::read_dir(lab.store_dir().join("blocks")).unwrap().count();
    let before = blocks();
    let folder = "/var/lib/cni/networks/netloom";
    lab.hosts[0].sh(&format!("mv {folder} /run/aside; touch {folder}"));
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        lab.hosts[0].sh("ip link add x type veth; ip link del x");
    }
    assert_eq!(blocks(), before);
    lab.wait(0, "unable to tell how full its blocks are", |status| {
        problems(status).contains("cannot tell how full")
    });
    lab.hosts[0].sh(&format!("rm {folder}; mv /run/aside {folder}"));
    lab.wait(0, "ready again", |status| status["ready"] == true);
    assert_eq!(blocks(), before);
}

/// Makes the second host a copy of the first one: with its identity, and what it knows of its blocks.
fn copy_identity(lab: &Lab, state: &str) {
    for file in ["incarnation", "blocks.json"] {
        let text = lab.hosts[0].sh(&format!("cat {state}/{file}"));
        lab.hosts[1].sh(&format!("mkdir -p {state}; printf %s '{}' >{state}/{file}", text.trim()));
    }
}

/// A copy of a host, with its identity under another name, takes nothing from the original: it names both and how to reset it.
#[test]
fn a_cloned_host_takes_no_block() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::of(Plan { hosts: 2, started: 1, ..Plan::default() });
    let owners = |lab: &Lab| lab.wire.sh(&format!("cd {}/blocks; grep . *", lab.store_dir().display()));
    let before = owners(&lab);
    let state = "/var/lib/netloom/node";
    copy_identity(&lab, state);
    // While the original's record is lost, and its daemon has not published it again, the copy waits.
    let original = lab.daemon_pid(0);
    lab.wire.sh(&format!("kill -STOP {original}; rm {}/nodes/host1.json", lab.store_dir().display()));
    lab.start(1);
    lab.wait(1, "waiting for the owner of its blocks", |status| {
        problems(status).contains("belongs to `host1`")
    });
    assert_eq!(owners(&lab), before);
    lab.wire.sh(&format!("kill -CONT {original}"));
    lab.wait(1, "aware that it is a copy", |status| {
        let said = problems(status);
        said.contains("`host1` at 192.0.2.1") && said.contains("`host2`") && said.contains(state)
    });
    assert_eq!(owners(&lab), before);
    lab.wait(0, "ready", |status| status["ready"] == true);
    lab.kill(1);
    lab.hosts[1].sh(&format!("rm -r {state}"));
    lab.start(1);
    lab.wait_for_peers(1, 1);
    let after = owners(&lab);
    assert!(before.lines().all(|line| after.contains(line)), "{after}");
}

/// A copy of a host with its identity and its name takes nothing either, in any store. The original keeps running.
#[test]
fn a_copy_with_the_same_name_takes_no_block() {
    if !testkit::is_root() || !testkit::has("etcd") {
        return;
    }
    for store in [Kind::File, Kind::Etcd] {
        let mut lab = Lab::of(Plan { hosts: 2, started: 1, store, ..Plan::default() });
        let pod = lab.pod(0, "a1");
        let before = dump(&lab, 0);
        let state = "/var/lib/netloom/node";
        copy_identity(&lab, state);
        lab.start_with(1, &["--node", "host1"]);
        lab.wait(1, "aware that it is a copy", |status| {
            let said = problems(status);
            said.contains("192.0.2.1") && said.contains("`host1`") && said.contains(state)
        });
        // Neither network configuration, nor anything else that a pod could start with.
        assert!(lab.hosts[1].succeeds("! test -e /run/net.d/10-netloom.conflist"), "{store:?}");
        assert_eq!(lab.status(0)["ready"], true, "{store:?}");
        assert_eq!(dump(&lab, 0), before, "{store:?}");
        assert!(lab.hosts[0].succeeds(&format!("ping -c 1 -W 2 {}", pod[0])));
        // Once the original is gone, the copy is the node: the host has got another address.
        lab.kill(0);
        lab.hosts[0].sh("ip link set up0 down");
        lab.wait(1, "the node", |status| status["ready"] == true);
    }
}

/// A node whose daemon is dead keeps its pods' traffic after its lease has ended; its peers show that it is silent.
#[test]
fn peers_keep_the_routes_of_a_silent_node() {
    if !testkit::is_root() || !testkit::has("etcd") {
        return;
    }
    let mut lab = Lab::of(Plan { store: Kind::Etcd, ..Plan::default() });
    let pods = lab.pods();
    let before = dump(&lab, 0);
    lab.kill(2);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(25) {
        lab.all_reach_all(&pods);
    }
    assert_eq!(dump(&lab, 0), before);
    lab.wait(0, "aware of the silent node", |status| {
        let peers = status["peers"].as_array().unwrap();
        peers.iter().any(|it| it["name"] == "host3" && it["silentSeconds"].is_u64())
    });
    // A daemon that starts now learns of it as well.
    lab.kill(0);
    lab.start(0);
    lab.wait_for_peers(0, 2);
    lab.all_reach_all(&pods);
    // The operator removes the node.
    assert!(lab.daemon(2).arg("uninstall").status().unwrap().success());
    lab.until(0, "test $(ip route show proto 95 | grep -c netloom4) = 1");
}

/// A pool with one block less than nodes. The node without a block reports that and writes no network configuration. When a node is dead,
/// its block is taken. Other nodes' pods are not affected.
#[test]
fn a_full_pool_is_reported_and_a_dead_nodes_block_is_taken() {
    if !testkit::is_root() {
        return;
    }
    let mut lab =
        Lab::of(Plan { pods: "10.244.0.0/27", started: 2, flags: &["--block4", "28"], ..Plan::default() });
    let pods = [(0, "a1".to_owned(), lab.pod(0, "a1")), (1, "a2".to_owned(), lab.pod(1, "a2"))];
    lab.all_reach_all(&pods);
    lab.start(2);
    lab.wait(2, "aware that the pool is full", |status| {
        problems(status).contains("no block of 10.244.0.0/27 is free")
    });
    assert!(!lab.hosts[2].path("/run/net.d/10-netloom.conflist").exists());
    // A node whose record is lost but whose daemon runs keeps its block: it answers probes, and publishes its record again.
    let record = lab.store_dir().join("nodes/host2.json");
    fs::remove_file(&record).unwrap();
    let started = Instant::now();
    while !record.exists() {
        assert!(started.elapsed().as_secs() < 10);
    }
    lab.all_reach_all_again(&pods);
    // A node whose daemon is dead and whose record is lost keeps its block while its host answers.
    let theirs = lab.status(1)["blocks"][0]["prefix"].clone();
    lab.kill(1);
    fs::remove_file(&record).unwrap();
    lab.logged(2, "the host of `host2`, whose lease ended long ago, answers");
    // The host is asked again while it answers, and so is the other living node.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) {
        assert_eq!(lab.status(2)["blocks"], serde_json::json!([]));
    }
    // A dead host loses its block.
    lab.hosts[1]
        .sh("nft 'table inet cut { chain i { type filter hook prerouting priority -400; policy drop; }; }'");
    lab.wait(2, "with the dead node's block", |status| {
        status["ready"] == true && status["blocks"][0]["prefix"] == theirs
    });
    lab.pod(2, "a3");
    lab.hosts[1].sh("nft delete table inet cut");
    // Its daemon comes back and reports that the block belongs to another node.
    lab.start(1);
    lab.wait(1, "aware that its block belongs to another node", |status| {
        problems(status).contains("host3's now")
    });
}

/// A host that gets another name keeps its blocks, and its pods their addresses. The old name is removed.
#[test]
fn a_node_is_renamed() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::of(Plan { mode: "auto", ..Plan::default() });
    let pods = lab.pods();
    lab.kill(0);
    lab.start_with(0, &["--node", "renamed"]);
    lab.wait(0, "ready with its new name", |status| status["ready"] == true && status["node"] == "renamed");
    for index in [1, 2] {
        lab.wait(index, "aware of the new name only", |status| {
            let names: Vec<_> =
                status["peers"].as_array().unwrap().iter().map(|peer| peer["name"].clone()).collect();
            names.contains(&"renamed".into()) && !names.contains(&"host1".into())
        });
    }
    lab.until(1, "ip route show proto 95 | grep -q 192.0.2.1");
    lab.all_reach_all(&pods);
    let owners = lab.wire.sh(&format!("cat {}/blocks/*", lab.store_dir().display()));
    assert!(owners.contains("renamed") && !owners.contains("host1"), "{owners}");
}

/// A host gets other addresses: its tunnels and its peers' routes follow.
#[test]
fn a_host_changes_its_addresses() {
    if !testkit::is_root() {
        return;
    }
    for mode in ["overlay", "routing"] {
        let lab = Lab::of(Plan { mode, ..Plan::default() });
        let pods = lab.pods();
        lab.all_reach_all(&pods);
        lab.hosts[0].sh(
            "ip addr del 192.0.2.1/24 dev up0; ip addr add 192.0.2.11/24 dev up0; ip route replace default via 192.0.2.254
             ip -6 addr add 2001:db8:a::11/64 dev up0 nodad; ip -6 addr del 2001:db8:a::1/64 dev up0; ip -6 route replace default via 2001:db8:a::fe",
        );
        for index in [1, 2] {
            lab.wait(index, "aware of the new addresses", |status| {
                let peers = status["peers"].as_array().unwrap();
                let first = peers.iter().find(|peer| peer["name"] == "host1").unwrap();
                first["addresses"] == serde_json::json!(["192.0.2.11", "2001:db8:a::11"])
            });
            let follows = if mode == "routing" {
                "ip route | grep -q 192.0.2.11"
            } else {
                "bridge fdb show dev netloom4 | grep -q 192.0.2.11"
            };
            lab.until(index, follows);
        }
        if mode == "overlay" {
            lab.until(0, "ip -d link show netloom4 | grep -q 'local 192.0.2.11'");
            lab.until(0, "test $(ip route show proto 95 | grep -c netloom4) = 2");
        }
        lab.all_reach_all(&pods);
    }
}

/// With `checksum-offload = false` the host computes the checksums of tunnelled packets, also after a foreign change.
#[test]
fn checksum_offload_is_switched_off() {
    if !testkit::is_root() || !testkit::has("ethtool") {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, flags: &["--checksum-offload", "false"], ..Plan::default() });
    let off = "ethtool --show-features netloom4 | grep -q 'tx-checksumming: off'";
    lab.until(0, off);
    lab.hosts[0].sh("ethtool --features netloom4 tx on");
    lab.until(0, off);
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    // By default it stays on: this kernel computes them correctly.
    let usual = Lab::of(Plan { hosts: 2, ..Plan::default() });
    assert!(usual.hosts[0].succeeds("ethtool --show-features netloom4 | grep -q 'tx-checksumming: on'"));
}

/// A network card that computes wrong checksums of tunnelled packets is detected, with pods of both families and both tunnel formats. The
/// host then computes them, and streams arrive. A correct card keeps the offload, and so does one that is configured to.
#[test]
fn wrong_checksums_are_detected() {
    if !testkit::is_root() || !testkit::has("ethtool") || !testkit::has("socat") || !testkit::has("nc") {
        return;
    }
    let right = Lab::of(Plan { hosts: 2, ..Plan::default() });
    std::thread::scope(|scope| {
        for (pods, flags) in [
            ("10.244.0.0/16", &[][..]),
            ("fd44::/48", &[]),
            ("10.244.0.0/16", &["--tunnel", "vxlan-gpe"]),
            ("10.244.0.0/16", &["--checksum-offload", "true"]),
        ] {
            scope.spawn(move || wrong_checksums(pods, flags));
        }
    });
    assert!(right.hosts[0].succeeds("ethtool --show-features netloom4 | grep -q 'tx-checksumming: on'"));
    assert_eq!(right.status(0)["notes"], serde_json::json!([]));
}

fn wrong_checksums(pods: &'static str, flags: &'static [&'static str]) {
    let mut lab = Lab::of(Plan { hosts: 2, started: 0, pods, flags, ..Plan::default() });
    // A packet socket reads packets as they are in memory, without the checksums that the card would compute. Cards compute those of
    // the outer packets correctly; here these have none.
    lab.wire.sh(
        "ip link set n1 nomaster; ip link add x1 type veth peer name y1; ip link set y1 master sega up; ip link set x1 up
         nft 'table netdev card { chain c { type filter hook egress devices = { n1, x1 } priority 0;
                                            udp dport { 4789, 4790 } @th,48,16 set 0; }; }'",
    );
    let mut card = lab.wire.command("socat").args(["INTERFACE:n1", "INTERFACE:x1"]).spawn().unwrap();
    for index in [0, 1] {
        lab.start(index);
    }
    for index in [0, 1] {
        lab.wait_for_peers(index, 1);
    }
    lab.pod(0, "a1");
    let to = lab.pod(1, "a2");
    let device = if flags.contains(&"vxlan-gpe") { "netloom-gpe" } else { "netloom4" };
    let off = format!("ethtool --show-features {device} | grep -q 'tx-checksumming: off'");
    let is_configured = flags.contains(&"--checksum-offload");
    let expected =
        if is_configured { "set `checksum-offload` to false" } else { "this host computes them itself" };
    for index in [0, 1] {
        lab.wait(index, "aware of wrong checksums", |status| {
            status["notes"][0].to_string().contains(expected)
        });
        assert_eq!(lab.hosts[index].succeeds(&off), !is_configured);
    }
    // With the offload streams fail; without, they arrive.
    if is_configured {
        let line = format!("ip netns exec a2 timeout 30 nc -l {} 9 </dev/null >/dev/null 2>&1 &", to[0]);
        lab.hosts[1].sh(&format!("{line} until ip netns exec a2 ss -ltnH | grep -q :9; do :; done"));
        assert!(!lab.hosts[0].succeeds(&format!("ip netns exec a1 timeout 3 nc -N {} 9 </dev/null", to[0])));
    } else {
        stream(&lab, "a1", &to);
    }
    card.kill().unwrap();
    card.wait().unwrap();
}

/// Sends 300 kB from a pod of the first host to a pod of the second, to each of its addresses.
fn stream(lab: &Lab, from: &str, to: &[String]) {
    for ip in to {
        let file = format!("/run/{from}-{ip}");
        lab.hosts[1].sh(&format!(
            "ip netns exec a2 timeout 30 nc -l {ip} 9 </dev/null >{file} 2>/dev/null &
             until ip netns exec a2 ss -ltnH | grep -q :9; do :; done"
        ));
        lab.hosts[0].sh(&format!("head -c 300000 /dev/zero | ip netns exec {from} timeout 20 nc -N {ip} 9"));
        lab.until(1, &format!("test $(stat -c %s {file}) = 300000"));
    }
}

/// The uplink's MTU becomes smaller: tunnels follow, existing pods adapt by path MTU discovery, and new pods get a smaller MTU.
#[test]
fn an_uplinks_mtu_changes() {
    if !testkit::is_root() || !testkit::has("nc") {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, ..Plan::default() });
    lab.pod(0, "a1");
    let to = lab.pod(1, "a2");
    stream(&lab, "a1", &to);
    let smaller = "for link in $(ls /sys/class/net | grep -E '^(n[0-9]|seg[ab]|up0)$'); do ip link set $link mtu 1400; done";
    for host in [&lab.wire, &lab.hosts[0], &lab.hosts[1]] {
        host.sh(smaller);
    }
    for index in [0, 1] {
        lab.until(index, "test $(cat /sys/class/net/netloom4/mtu) = 1350 && grep -q '\"mtu\": 1330' /run/net.d/10-netloom.conflist");
    }
    // Packets that are too big for the tunnel, from a pod with the former MTU.
    assert_eq!(lab.hosts[0].sh("ip netns exec a1 cat /sys/class/net/eth0/mtu"), "1430\n");
    stream(&lab, "a1", &to);
    lab.pod(0, "b1");
    assert_eq!(lab.hosts[0].sh("ip netns exec b1 cat /sys/class/net/eth0/mtu"), "1330\n");
    stream(&lab, "b1", &to);
}

/// A host loses its address of one family for a moment: peers keep its routes, and the other family works all the time. The address of a
/// pod's gateway is not taken for the host's.
#[test]
fn a_lost_address_that_comes_back_costs_no_route() {
    if !testkit::is_root() {
        return;
    }
    for mode in ["routing", "overlay"] {
        let lab = Lab::of(Plan { hosts: 2, mode, ..Plan::default() });
        let pods = [(0, "a1".to_owned(), lab.pod(0, "a1")), (1, "a2".to_owned(), lab.pod(1, "a2"))];
        lab.all_reach_all(&pods);
        let before = [0, 1].map(|index| dump(&lab, index));
        for (family, lost, back) in [
            (
                1,
                "ip -6 addr del 2001:db8:a::1/64 dev up0",
                "ip -6 addr add 2001:db8:a::1/64 dev up0 nodad; ip -6 route replace default via 2001:db8:a::fe",
            ),
            (
                0,
                "ip addr del 192.0.2.1/24 dev up0",
                "ip addr add 192.0.2.1/24 dev up0; ip route replace default via 192.0.2.254",
            ),
        ] {
            let comparisons = lab.status(0)["counters"]["comparisons"].as_u64();
            lab.hosts[0].sh(lost);
            lab.wait(0, "aware of the lost address", |status| {
                status["counters"]["comparisons"].as_u64() > comparisons
            });
            if mode == "routing" {
                assert!(lab.pings(0, "a1", "", &pods[1].2[1 - family]), "{mode}: {lost}");
            } else {
                lab.all_reach_all_again(&pods);
            }
            // Over a tunnel, peers use the other family until the address is back.
            assert!(mode == "overlay" || dump(&lab, 1) == before[1], "{mode}: {lost}: {}", dump(&lab, 1));
            lab.hosts[0].sh(back);
            let took = lab.until_as(0, &before[0]);
            assert!(took < Duration::from_secs(1), "{mode}: {back}: {took:?}");
            lab.until_as(1, &before[1]);
            lab.all_reach_all_again(&pods);
        }
    }
}

/// A node is cut off from the store while another program deletes or damages its record: when it is back, it publishes the record again.
#[test]
fn a_record_that_is_lost_meanwhile_is_published_again() {
    if !testkit::is_root() || !testkit::has("etcd") || !testkit::has("etcdctl") {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, store: Kind::Etcd, ..Plan::default() });
    let pods = [(0, "a1".to_owned(), lab.pod(0, "a1")), (1, "a2".to_owned(), lab.pod(1, "a2"))];
    for harm in ["del /netloom/nodes/host1", "put /netloom/nodes/host1 '{'"] {
        lab.wire.sh("nft 'table inet cut { chain i { type filter hook input priority 0;
                 ip saddr 192.0.2.1 tcp dport 2379 reject with tcp reset; }; }'");
        lab.wait(0, "cut off", |status| status["store"]["connected"] == false);
        lab.wire.sh(&format!("{ETCDCTL} {harm}; nft delete table inet cut"));
        lab.wait(0, "connected again", |status| status["store"]["connected"] == true);
        let is_there = format!("{ETCDCTL} get --print-value-only /netloom/nodes/host1 | grep -q 192.0.2.1");
        let started = Instant::now();
        while !lab.wire.succeeds(&is_there) {
            assert!(started.elapsed() < Duration::from_secs(10), "{harm}: the record is not published again");
        }
        lab.wait_for_peers(1, 1);
        lab.all_reach_all_again(&pods);
    }
}
