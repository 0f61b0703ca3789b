//! Chained plugins: with and after foreign plugins, on several networks, and the rates that bandwidth enforces.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{Host, Transport};

use crate::{
    firewall::{Lab, add_all, at, del_all},
    lab::{Call, OURS, dual_stack, with_prev},
};

fn plugin(name: &str, kind: &str, more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": name, "type": kind});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

/// A typical chain.
fn chain(name: &str, bridge: &str, subnet: &str, port: u16) -> Vec<Value> {
    let ipam = json!({"type": "host-local", "subnet": subnet});
    vec![
        plugin(
            name,
            "bridge",
            &json!({"bridge": bridge, "isDefaultGateway": true, "ipMasq": true, "ipam": ipam}),
        ),
        plugin(name, "tuning", &json!({"mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}})),
        plugin(
            name,
            "portmap",
            &json!({"runtimeConfig": {"portMappings": [
            {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": port, "containerPort": 53, "protocol": "udp"}]}}),
        ),
        plugin(name, "firewall", &json!({})),
        plugin(
            name,
            "bandwidth",
            &json!({"ingressRate": 800_000_000, "ingressBurst": 80_000_000,
            "egressRate": 800_000_000, "egressBurst": 80_000_000}),
        ),
    ]
}

/// Lists a container's remains on a host: links, files, and every rule that names the container or its address.
fn left(host: &Host, address: &str) -> String {
    host.sh(&format!(
        "ip -br link | grep -e veth -e bwp || true; find /run/cni /var/lib/cni -type f -name '*json' 2>/dev/null || true
         (nft list ruleset; iptables-legacy-save 2>/dev/null) | grep -e '{address}' -e c1 -e 'CNI-DN' -e 'CNI-[0-9a-f]' || true"
    ))
}

/// Our DEL removes what the reference plugins created, with each of their backends. Our GC removes what a name or comment
/// identifies.
#[test]
fn what_the_reference_left_goes() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    let backends =
        [("iptables-nft", "iptables"), ("iptables-legacy", "iptables"), ("iptables-nft", "nftables")];
    std::thread::scope(|scope| {
        for (program, backend) in backends {
            let peers = &peers;
            scope.spawn(move || {
                let lab = Lab::new();
                let what = format!("{program}, backend {backend}");
                // The name of the binary selects the iptables backend.
                lab.host.sh(&format!(
                    "mount --bind /usr/sbin/{program} /usr/sbin/iptables; mount --bind /usr/sbin/ip6{} /usr/sbin/ip6tables",
                    &program[2..]
                ));
                let mut confs = chain("lab", "br0", "10.88.0.0/16", 8080);
                confs[0]["ipMasqBackend"] = json!(backend);
                confs[2]["backend"] = json!(backend);
                let (theirs, ours) = (Call::new(&lab.host, peers, "c1"), Call::new(&lab.host, &OURS, "c1"));
                let _server = lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80));
                let add = |confs: &[Value]| {
                    confs.iter().fold(Value::Null, |prev, conf| theirs.add(&with_prev(conf, &prev)))
                };
                let result = add(&confs);
                assert!(lab.tcp(Some("other"), "192.0.2.1", 8080), "{what}");
                del_all(&ours, &confs, &result);
                assert_eq!(left(&lab.host, "10.88.0.2"), "", "{what}: after DEL");
                // A second container, for GC without DEL.
                let result = add(&confs[..3]);
                lab.host.sh("ip netns exec c1 ip link del eth0");
                for conf in &confs[..3] {
                    let mut conf = conf.clone();
                    conf["cniVersion"] = json!("1.1.0");
                    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
                    ours.call("GC", &conf).result("GC");
                }
                let rules = |address: &str| left(&lab.host, address).lines().filter(|line| !line.contains("/run/cni")).count();
                let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
                assert!(rules(address) >= 3, "{what}: of a valid attachment");
                for conf in &confs[..3] {
                    let mut conf = conf.clone();
                    conf["cniVersion"] = json!("1.1.0");
                    conf["cni.dev/valid-attachments"] = json!([]);
                    ours.call("GC", &conf).result("GC");
                }
                let after = left(&lab.host, address);
                // Two kinds of reference state name no network: tuning's saved values, and ports of the nftables backend.
                let unknown = |line: &&str| line.contains("/run/cni/tuning") || backend == "nftables" && line.contains("comment \"c1\"");
                assert_eq!(after.lines().find(|line| !unknown(line)), None, "{what}: after GC");
            });
        }
    });
}

/// Two networks with the same addresses: DEL of one container leaves the other's state alone.
#[test]
fn overlapping_addresses_of_two_networks() {
    if !testkit::is_root() {
        return;
    }
    for first_goes_first in [true, false] {
        let lab = Lab::new();
        let before = lab.host.snapshot();
        let (a, b) = (chain("lab", "br0", "10.88.0.0/16", 8080), chain("far", "br1", "10.88.0.0/16", 8081));
        let (one, two) = (Call::new(&lab.host, &OURS, "c1"), Call::new(&lab.host, &OURS, "c2"));
        let of_one = add_all(&one, &a);
        let of_two = add_all(&two, &b);
        assert_eq!(of_one["ips"][0]["address"], of_two["ips"][0]["address"]);
        let (gone, stays) = ((&one, &a, &of_one), (&two, &b, &of_two));
        let (gone, stays) = if first_goes_first { (gone, stays) } else { (stays, gone) };
        // DEL of the attachment that owns the elements, or of the one that they were taken over from.
        del_all(gone.0, gone.1, gone.2);
        for conf in stays.1 {
            stays.0.check(conf, stays.2);
        }
        let sets = lab.host.sh("nft list map ip netloom masqueraded; nft list set inet netloom admitted4");
        assert_eq!(sets.matches(&format!("eth0 {}", stays.0.id)).count(), 2, "{sets}");
        del_all(stays.0, stays.1, stays.2);
        let mut conf = a[3].clone();
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = json!([]);
        one.call("GC", &conf).result("GC");
        lab.host.sh("ip link del br0; ip link del br1");
        before.assert_same(&lab.host.snapshot(), "after both");
    }
}

/// A container on three networks, twice on one of them, each with the whole chain.
#[test]
fn a_container_on_three_networks() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let before = lab.host.snapshot();
    let attachments = [
        ("eth0", chain("lab", "br0", "10.88.0.0/16", 8080)),
        ("eth1", chain("far", "br1", "10.99.0.0/16", 8081)),
        ("eth2", chain("lab", "br0", "10.88.0.0/16", 8082)),
        ("eth3", chain("third", "br3", "10.77.0.0/16", 8083)),
    ];
    let mut added = Vec::new();
    for (ifname, mut confs) in attachments {
        let mut call = Call::new(&lab.host, &OURS, "c1");
        call.ifname = ifname.into();
        if ifname != "eth0" {
            // Only one network sets the default route.
            confs[0]["isDefaultGateway"] = json!(false);
            confs[0]["isGateway"] = json!(true);
        }
        added.push((call.clone(), confs.clone(), add_all(&call, &confs)));
    }
    let _server = lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80));
    for port in [8080, 8082] {
        assert!(lab.tcp(None, "192.0.2.1", port), "{port}");
    }
    // DEL also works out of order, while the container's other interfaces exist.
    for index in [2, 0, 0, 0] {
        let (call, confs, result) = added.remove(index);
        del_all(&call, &confs, &result);
        for (call, confs, result) in &added {
            for conf in confs {
                call.check(conf, result);
            }
        }
    }
    for name in ["lab", "far", "third"] {
        let conf = plugin(name, "firewall", &json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}));
        Call::new(&lab.host, &OURS, "c1").call("GC", &conf).result("GC");
    }
    lab.host.sh("ip link del br0; ip link del br1; ip link del br3");
    before.assert_same(&lab.host.snapshot(), "after all");
}

/// A chain behind a foreign plugin whose result contains less than ours.
#[test]
fn behind_a_stranger() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.sh(
        "ip link add strange type veth peer name eth0 netns c1; ip addr add 10.5.0.1/24 dev strange; ip link set strange up
         ip -n c1 addr add 10.5.0.2/24 dev eth0; ip -n c1 link set eth0 up; ip -n c1 route add default via 10.5.0.1
         echo 1 >/proc/sys/net/ipv4/ip_forward; iptables-nft -P FORWARD DROP",
    );
    let results = [
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.2/24"}]}),
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
               "ips": [{"address": "10.5.0.2/24", "interface": 0}], "extra": {"of": "a stranger"}}),
        json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.5.0.2/24", "interface": -1}]}),
    ];
    let _server = lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80));
    let _other = lab.host.serve(Some("other"), Transport::Tcp, at("0.0.0.0", 80));
    for mut prev in results {
        let call = Call::new(&lab.host, &OURS, "c1");
        let confs: Vec<Value> = chain("strange", "none", "10.5.0.0/24", 8080)
            .into_iter()
            .skip(1)
            .map(|mut conf| {
                conf["cniVersion"] = prev["cniVersion"].clone();
                conf
            })
            .collect();
        for conf in &confs {
            prev = call.add(&with_prev(conf, &prev));
            call.check(conf, &prev);
        }
        assert!(lab.tcp(Some("c1"), "192.0.2.2", 80) && lab.tcp(Some("other"), "192.0.2.1", 8080), "{prev}");
        del_all(&call, &confs, &prev);
        assert!(!lab.tcp(Some("c1"), "192.0.2.2", 80), "after DEL");
        lab.host.sh("tc qdisc del dev strange root; tc qdisc del dev strange ingress");
    }
}

/// Sends from one side to the other for a while and returns the received rate in bits per second.
fn rate(lab: &Lab, from: Option<&str>, to: Option<&str>, address: &str, time: Duration) -> f64 {
    // A new port for each call: a program that another test starts holds the last listener until it is executed.
    let listener = lab.host.inside(to, || TcpListener::bind(at("0.0.0.0", 0))).unwrap();
    let port = listener.local_addr().unwrap().port();
    let sender = lab.host.inside(from, || TcpStream::connect(at(address, port))).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut sender = sender;
            // The loop ends when the receiver closes the connection.
            while sender.write_all(&[0; 16384]).is_ok() {}
        });
        let mut buffer = vec![0; 65536];
        let mut hear = |time: Duration| {
            let (started, mut bytes) = (Instant::now(), 0);
            while started.elapsed() < time {
                bytes += receiver.read(&mut buffer).unwrap();
            }
            f64::from(u32::try_from(bytes * 8 / 1000).unwrap()) * 1000.0 / started.elapsed().as_secs_f64()
        };
        // Lets the initial burst pass before the measurement.
        hear(Duration::from_millis(500));
        let rate = hear(time);
        drop(receiver);
        rate
    })
}

/// Rates are within 10 % of the configured ones, in both directions, for all traffic or for a part of it.
#[test]
fn rates_are_as_configured() {
    const RATE: u32 = 20_000_000;
    if !testkit::is_root() {
        return;
    }
    let all =
        json!({"ingressRate": RATE, "ingressBurst": 400_000, "egressRate": RATE, "egressBurst": 400_000});
    let with = |key: &str, subnet: &str| {
        let mut conf = all.clone();
        conf[key] = json!([subnet, "fd00::/8"]);
        conf
    };
    let cases = [
        (all.clone(), true),
        (json!({"runtimeConfig": {"bandwidth": all}}), true),
        (with("unshapedSubnets", "192.0.2.0/24"), false),
        (with("unshapedSubnets", "198.51.100.0/24"), true),
        (with("shapedSubnets", "192.0.2.0/24"), true),
        (with("shapedSubnets", "198.51.100.0/24"), false),
    ];
    let measure = |more: &Value, limited: bool| {
        let lab = Lab::new();
        let call = Call::new(&lab.host, &OURS, "c1");
        let mut bridge = dual_stack();
        bridge["ipMasq"] = json!(false);
        let confs = [bridge, plugin("lab", "bandwidth", more)];
        let result = add_all(&call, &confs);
        for (way, from, to, address) in [
            ("received", Some("other"), Some("c1"), "10.88.0.2"),
            ("sent", Some("c1"), Some("other"), "192.0.2.2"),
        ] {
            let share = |seconds| {
                let found = rate(&lab, from, to, address, Duration::from_secs(seconds)) / f64::from(RATE);
                println!("{more}: {way} {found:.3} of the configured rate");
                found
            };
            if limited {
                // Other tests on this machine can only lower the rate, so one undisturbed measurement is enough. A rate above
                // the limit always fails.
                let mut found = share(5);
                for _ in 0..5 {
                    if found >= 0.9 {
                        break;
                    }
                    found = share(5);
                }
                assert!((0.9..=1.1).contains(&found), "{more}: {way} {found}");
            } else {
                assert!(share(1) > 2.0, "{more}: {way}");
            }
        }
        del_all(&call, &confs, &result);
    };
    std::thread::scope(|scope| {
        for (more, _) in cases.iter().filter(|(_, limited)| *limited) {
            scope.spawn(|| measure(more, true));
        }
    });
    // These are not limited.
    for (more, _) in cases.iter().filter(|(_, limited)| !limited) {
        measure(more, false);
    }
}

/// DEL restores the interface from its file, and removes a file whose interface no longer exists.
#[test]
fn tuning_is_taken_back() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let call = Call::new(&lab.host, &OURS, "c1");
    let base = add_all(&call, &[dual_stack()]);
    let look = || {
        let mut link = lab.host.json("ip netns exec c1 ip -j -d link show eth0");
        testkit::remove(&mut link, &["stats64"]);
        link
    };
    let before = look();
    let wishes =
        json!({"mac": "c2:11:22:33:44:55", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 7});
    let conf = plugin("lab", "tuning", &wishes);
    call.add(&with_prev(&conf, &base));
    let tuned = look();
    let expected = [
        ("address", json!("c2:11:22:33:44:55")),
        ("mtu", json!(1300)),
        ("txqlen", json!(7)),
        ("promiscuity", json!(1)),
        ("allmulti", json!(1)),
    ];
    for (key, value) in expected {
        assert_eq!(tuned[0][key], value, "{key}");
    }
    let mode = lab.host.sh("stat -c '%a %n' /run/cni/tuning /run/cni/tuning/c1_eth0.json");
    assert_eq!(mode, "700 /run/cni/tuning\n600 /run/cni/tuning/c1_eth0.json\n");
    call.del(&conf, &base);
    assert_eq!(look(), before);
    assert_eq!(lab.host.sh("ls /run/cni/tuning"), "");
    // The interface ends before its file.
    call.add(&with_prev(&conf, &base));
    lab.host.sh("ip netns exec c1 ip link del eth0");
    call.del(&conf, &base);
    assert_eq!(lab.host.sh("ls /run/cni/tuning"), "");

    // Settings that the node's allowlist does not contain are refused.
    lab.host.sh("mkdir -p /etc/cni/tuning; printf '^net.ipv4.conf.[a-zA-Z0-9]+.arp_filter$\\n\\nnet.core.somaxconn\\n' >/etc/cni/tuning/allowlist.conf");
    let again = Call::new(&lab.host, &OURS, "c2");
    let base = add_all(&again, &[dual_stack()]);
    let allowed = plugin(
        "lab",
        "tuning",
        &json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "77"}}),
    );
    again.add(&with_prev(&allowed, &base));
    assert_eq!(lab.host.sh("ip netns exec c2 cat /proc/sys/net/core/somaxconn").trim(), "77");
    let refused = plugin("lab", "tuning", &json!({"sysctl": {"net.ipv4.tcp_syncookies": "1"}}));
    let (_, text) = again.call("ADD", &with_prev(&refused, &base)).error();
    assert!(
        text.contains("Sysctl net.ipv4.tcp_syncookies is not allowed") && text.contains("somaxconn"),
        "{text}"
    );
}
