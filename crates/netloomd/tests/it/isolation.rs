//! What pods and nodes cannot forge.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use testkit::Transport;

use crate::{
    frames::{Pod, arp, icmp, in_tunnel, link_local, mac, pour, seen, udp, watch},
    lab::{Lab, Plan},
};

const VNI: u32 = 4242;
const PORT: u16 = 4789;
const ALL_NODES: &str = "ff02::1";

/// A frame that a pod sends, and what arrives if nothing stops it.
struct Attempt {
    what: String,
    frame: Vec<u8>,
    /// The host, and the pod on it unless the host itself receives.
    at: (usize, Option<&'static str>),
    /// The port, or the type of message.
    arrives: String,
    /// What stops it: the sender's host, or also the receiver's.
    stops: Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The rules of the sender's host.
    Sender,
    /// Also those of the receiver's host, since the source is not the sender's node's.
    Both,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Returns an address of the same /24 or /64 that no pod has.
fn unused(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(ip) => IpAddr::from([ip.octets()[0], ip.octets()[1], ip.octets()[2], 99]),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0x99])
        }
    }
}

/// Lists what a pod tries: addresses of others, what only routers and DHCP servers send, and packets into tunnels.
fn attempts(lab: &Lab, own: &Pod, near: &Pod, far: &Pod, third: &Pod) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut port = 7000;
    let near_at = (near.host, Some(near.name));
    let far_at = (far.host, Some(far.name));
    for family in [0, 1] {
        let [node, peer, other, outside] = [
            ["192.0.2.1", "192.0.2.2", "192.0.2.3", "203.0.113.5"],
            ["2001:db8:a::1", "2001:db8:a::2", "2001:db8:a::3", "2001:db8:ffff::5"],
        ][family];
        let sources = [
            ("a pod of its host", near.ips[family], Stop::Sender),
            ("no pod of its host", unused(own.ips[family]), Stop::Sender),
            ("a pod of the receiver's host", far.ips[family], Stop::Both),
            ("a pod of a third host", third.ips[family], Stop::Both),
            // The kernel itself drops packets with the host's own IPv4 addresses.
            ("its host", ip(if family == 1 { node } else { outside }), Stop::Sender),
            ("another host", ip(other), Stop::Sender),
            ("an outside host", ip(outside), Stop::Sender),
        ];
        for (what, from, stops) in sources {
            for (to, at) in [(near, near_at), (far, far_at)] {
                port += 1;
                attempts.push(Attempt {
                    what: format!("{} as {what} ({from})", to.name),
                    frame: udp(own.ends, from, to.ips[family], (7777, port), b"forged"),
                    at,
                    arrives: port.to_string(),
                    stops: if to.host == own.host { Stop::Sender } else { stops },
                });
            }
        }
        // Frames of its own for tunnels: of its node's pods, and of a third's.
        for (to, inner, at) in [(ip(peer), far, far_at), (ip(node), near, near_at)] {
            for from in [near, third] {
                port += 1;
                let device = mac(&lab.hosts[inner.host], "netloom4");
                let ends = ([2, 0, 0, 0, 0, 9], device);
                let carried = udp(ends, from.ips[family], inner.ips[family], (7777, port), b"carried");
                let frame = in_tunnel(VNI, None, &carried);
                attempts.push(Attempt {
                    what: format!("{} by a frame from {}", inner.name, from.name),
                    frame: udp(own.ends, own.ips[family], to, (7777, PORT), &frame),
                    at,
                    arrives: port.to_string(),
                    // To a host's own tunnel its pods are no nodes.
                    stops: if from.host == own.host && inner.host != own.host {
                        Stop::Sender
                    } else {
                        Stop::Both
                    },
                });
            }
        }
    }
    attempts.extend(messages(own));
    attempts
}

/// Lists messages that only routers and DHCP servers send.
fn messages(own: &Pod) -> Vec<Attempt> {
    let (local, [v4, v6]) = (link_local(own.ends.0), own.ips);
    let all = ip(ALL_NODES);
    let message = |what: &str, arrives: &str, at, frame| Attempt {
        what: what.to_owned(),
        frame,
        at: (at, None),
        arrives: arrives.to_owned(),
        stops: Stop::Sender,
    };
    vec![
        message("a router advertisement", "nd-router-advert", 0, icmp(own.ends, local, all, 134, &[0; 8])),
        message("an IPv6 redirect", "nd-redirect", 0, icmp(own.ends, local, all, 137, &[0; 32])),
        message("an IPv4 redirect", "redirect", 0, icmp(own.ends, v4, ip("192.0.2.1"), 5, &[0; 28])),
        message("a DHCP answer", "68", 0, udp(own.ends, v4, ip("255.255.255.255"), (67, 68), &[2; 240])),
        message("a DHCP answer to a node", "68", 1, udp(own.ends, v4, ip("192.0.2.2"), (67, 68), &[2; 240])),
        message("a DHCPv6 answer", "546", 0, udp(own.ends, local, all, (547, 546), &[7; 4])),
        message(
            "a DHCPv6 answer to a node",
            "546",
            1,
            udp(own.ends, v6, ip("2001:db8:a::2"), (547, 546), &[7; 4]),
        ),
    ]
}

/// Makes all attempts, and asserts that exactly those arrive that are expected to.
fn only(lab: &Lab, own: &Pod, attempts: &[Attempt], reached: &[&Pod], expected: impl Fn(&Attempt) -> bool) {
    for attempt in attempts {
        own.send(lab, &attempt.frame);
    }
    // What the pod sends as itself arrives, after all that it has forged.
    let mut places: Vec<(usize, Option<&'static str>)> =
        reached.iter().map(|pod| (pod.host, Some(pod.name))).collect();
    places.extend([(0, None), (1, None)]);
    for (host, pod) in places {
        let inside = pod.map(|name| format!("ip netns exec {name} ")).unwrap_or_default();
        let targets = match reached.iter().find(|it| Some(it.name) == pod) {
            Some(pod) => pod.ips,
            None => [ip(["192.0.2.1", "192.0.2.2"][host]), ip(["2001:db8:a::1", "2001:db8:a::2"][host])],
        };
        for (from, (to, port)) in own.ips.iter().zip(targets.into_iter().zip([7998, 7999])) {
            own.send(lab, &udp(own.ends, *from, to, (7777, port), b"own"));
            lab.until(host, &format!("{inside}nft list set inet seen ports | grep -q {port}"));
        }
        let mut arrived = seen(&lab.hosts[host], pod);
        for port in ["7998", "7999"] {
            arrived.remove(port);
        }
        let here = |it: &&Attempt| it.at == (host, pod);
        let wanted: BTreeSet<String> =
            attempts.iter().filter(here).filter(|it| expected(it)).map(|it| it.arrives.clone()).collect();
        let wrong: Vec<&str> = attempts
            .iter()
            .filter(here)
            .filter(|it| arrived.contains(&it.arrives) != wanted.contains(&it.arrives))
            .map(|it| it.what.as_str())
            .collect();
        assert_eq!(arrived, wanted, "host{} {pod:?}: {wrong:#?}", host + 1);
    }
}

/// A pod sends with its own addresses alone, is no router and no DHCP server, and puts nothing into tunnels.
#[test]
fn pods_forge_nothing() {
    if !testkit::is_root() || !testkit::has("socat") {
        return;
    }
    let lab = Lab::of(Plan::default());
    let [own, near] = ["a1", "b1"].map(|name| Pod::start(&lab, 0, name));
    let (far, third) = (Pod::start(&lab, 1, "a2"), Pod::start(&lab, 2, "a3"));
    // No firewall and no reverse-path filter of the hosts' own does the work.
    for host in &lab.hosts {
        host.sh("nft delete table inet own; for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$file; done");
    }
    for index in 0..2 {
        lab.until(index, "! nft list chain inet netloom-cluster admit");
        watch(&lab.hosts[index], None);
    }
    watch(&lab.hosts[0], Some("b1"));
    watch(&lab.hosts[1], Some("a2"));
    // What nft lists it can load: firewalls are saved that way.
    lab.hosts[0]
        .sh("nft list ruleset >/run/listed && nft -c -f /run/listed && nft -j list ruleset >/run/listed");
    let attempts = attempts(&lab, &own, &near, &far, &third);
    let reached = [&near, &far];
    only(&lab, &own, &attempts, &reached, |_| false);

    // Without the sender's rules, what a node may not send for others does not arrive either.
    let signal = |name: &str| {
        for index in 0..2 {
            lab.hosts[index].sh(&format!("kill -{name} {}", lab.daemon_pid(index)));
        }
    };
    signal("STOP");
    lab.hosts[0].sh("for chain in guard leave; do nft flush chain inet netloom-cluster $chain; done");
    only(&lab, &own, &attempts, &reached, |it| it.stops == Stop::Sender);
    // Without both, all arrives: it is these rules that stop it.
    for index in 0..2 {
        lab.hosts[index].sh("nft flush chain inet netloom-cluster heard");
    }
    only(&lab, &own, &attempts, &reached, |_| true);
    signal("CONT");
    for index in 0..2 {
        lab.until(index, "nft list chain inet netloom-cluster heard | grep -q drop");
    }
    only(&lab, &own, &attempts, &reached, |_| false);

    // Another program flushes all rules, or takes the link out of its group.
    lab.hosts[0].sh("nft flush ruleset");
    let closed = lab.until(0, "nft list chain inet netloom-cluster guard | grep -q drop");
    assert!(closed < Duration::from_secs(1), "{closed:?}");
    lab.hosts[0].sh(&format!("ip link set {} group 0", own.link));
    let grouped = lab.until(0, &format!("ip link show {} | grep -q 'group [1-9]'", own.link));
    assert!(grouped < Duration::from_secs(1), "{grouped:?}");
    watch(&lab.hosts[0], None);
    only(&lab, &own, &attempts, &reached, |_| false);
    lab.all_reach_all(
        &[&own, &near, &far, &third]
            .map(|pod| (pod.host, pod.name.to_owned(), pod.ips.map(|ip| ip.to_string()).to_vec())),
    );
}

/// A node sends packets of its own pods through its tunnels, and forwards those of hosts outside, but none of another node's pods.
#[test]
fn nodes_speak_for_their_own_pods_alone() {
    if !testkit::is_root() || !testkit::has("socat") {
        return;
    }
    for (flags, gpe) in [(&[][..], false), (&["--tunnel", "vxlan-gpe"][..], true)] {
        let lab = Lab::of(Plan { flags, ..Plan::default() });
        let pods =
            [(0, "a1"), (0, "b1"), (1, "a2"), (2, "a3")].map(|(host, name)| Pod::start(&lab, host, name));
        let [to, near, sender, third] = &pods;
        // Its own firewall would not forward for hosts outside.
        lab.hosts[0].sh("nft delete table inet own");
        watch(&lab.hosts[0], Some("a1"));
        let tunnel = if gpe { 4790 } else { PORT };
        let device = if gpe { [0; 6] } else { mac(&lab.hosts[0], "netloom4") };
        let mut port = 7000;
        let mut expected = BTreeSet::new();
        for (outer, over6) in [("UDP4-SENDTO:192.0.2.1", false), ("UDP6-SENDTO:[2001:db8:a::1]", true)] {
            // The kernel's own filter drops IPv4 on a device without IPv4 address to which no route leads back.
            for family in [0, 1].into_iter().filter(|family| *family == 1 || !over6 || gpe) {
                let outside = ip(["203.0.113.5", "2001:db8:ffff::5"][family]);
                let sources = [
                    (sender.ips[family], true),
                    (unused(sender.ips[family]), true),
                    (outside, true),
                    (third.ips[family], false),
                    (near.ips[family], false),
                ];
                for (from, accepted) in sources {
                    port += 1;
                    let frame =
                        udp(([2, 0, 0, 0, 0, 9], device), from, to.ips[family], (7777, port), b"carried");
                    let packet = if gpe {
                        in_tunnel(VNI, Some(1 + u8::from(family == 1)), &frame[14..])
                    } else {
                        in_tunnel(VNI, None, &frame)
                    };
                    pour(&lab.hosts[1], None, &format!("{outer}:{tunnel}"), &packet);
                    if accepted {
                        expected.insert(port.to_string());
                    }
                }
            }
        }
        lab.until(0, &format!("ip netns exec a1 nft list set inet seen ports | grep -q {}", port - 2));
        assert_eq!(seen(&lab.hosts[0], Some("a1")), expected, "{flags:?}");
    }
}

/// Claims of others' addresses (ARP, neighbour advertisements) concern a pod's own link alone.
#[test]
fn claims_of_addresses_change_nothing() {
    if !testkit::is_root() || !testkit::has("socat") {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, ..Plan::default() });
    let [own, near] = ["a1", "b1"].map(|name| Pod::start(&lab, 0, name));
    let far = Pod::start(&lab, 1, "a2");
    for claimed in [near.ips, far.ips, [ip("192.0.2.2"), ip("2001:db8:a::2")]] {
        own.send(&lab, &arp(own.ends, claimed[0]));
        let IpAddr::V6(target) = claimed[1] else { unreachable!() };
        // With the option of the sender's hardware address.
        let claim = [&target.octets()[..], &[2, 1], &own.ends.0].concat();
        own.send(&lab, &icmp(own.ends, link_local(own.ends.0), ip(ALL_NODES), 136, &claim));
        // It arrives, after the claims.
        assert!(lab.pings(0, "a1", "", &near.ips[0].to_string()));
        let known = lab.hosts[0].sh(&format!("ip neigh show dev {}", own.link));
        for ip in claimed {
            assert!(!known.contains(&ip.to_string()), "{known}");
            let to = ip.to_string();
            assert!(lab.hosts[0].succeeds(&format!("ping -c 1 -W 2 {to}")), "{to}");
            assert!(ip == near.ips[0] || ip == near.ips[1] || lab.pings(0, "b1", "", &to), "{to}");
        }
        assert!(lab.pings(1, "a2", "", &near.ips[0].to_string()));
        assert!(lab.pings(1, "a2", "", &near.ips[1].to_string()));
    }
}

/// What pods may do: all protocols, fragments, published ports from within, and addresses that an operator routes to them.
#[test]
fn pods_do_what_they_may() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, ..Plan::default() });
    let own = Pod::start(&lab, 0, "a1");
    lab.hosts[0].container("p1");
    let ports = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
    let published = lab.attach_with(0, "p1", "netloom", ports).unwrap();
    let far = Pod::start(&lab, 1, "a2");
    for (family, ip) in published.iter().map(|text| ip(text)).enumerate() {
        for (transport, port) in [(Transport::Tcp, 80), (Transport::Udp, 53), (Transport::Sctp, 5000)] {
            let at = SocketAddr::new(ip, port);
            let _server = lab.hosts[0].serve(Some("p1"), transport, at);
            assert!(
                lab.hosts[0].reaches(Some("a1"), transport, at),
                "{transport:?} from a pod of the host to {at}"
            );
            assert!(
                lab.hosts[1].reaches(Some("a2"), transport, at),
                "{transport:?} from a pod of another host to {at}"
            );
            assert!(lab.hosts[0].reaches(None, transport, at), "{transport:?} from its host to {at}");
            if transport == Transport::Tcp {
                let node = SocketAddr::new(["192.0.2.1", "2001:db8:a::1"][family].parse().unwrap(), 8080);
                for (host, pod) in [(0, "a1"), (0, "p1"), (1, "a2")] {
                    assert!(
                        lab.hosts[host].reaches(Some(pod), transport, node),
                        "{pod} to the published port {node}"
                    );
                }
            }
        }
        for (host, pod) in [(0, "a1"), (1, "a2")] {
            assert!(lab.pings(host, pod, "-s 4000", &ip.to_string()), "fragments from {pod} to {ip}");
        }
        let outside = ["192.0.2.254", "2001:db8:a::fe"][family];
        assert!(lab.pings(0, "a1", "", outside), "out of the cluster to {outside}");
    }

    // An address that is added to a running pod is usable once the host routes it there.
    for (added, node) in [("198.18.0.1/32", "192.0.2.1"), ("2001:db8:add::1/128", "2001:db8:a::1")] {
        let (ip, _) = added.split_once('/').unwrap();
        // With duplicate address detection, which sends without a source.
        lab.hosts[0].sh(&format!("ip -n a1 addr add {added} dev eth0"));
        lab.until(0, &format!("! ip -n a1 addr show dev eth0 | grep {ip} | grep tentative"));
        assert!(!lab.pings(0, "a1", &format!("-I {ip}"), node), "{ip} without a route");
        lab.hosts[0].sh(&format!("ip route add {added} dev {}", own.link));
        assert!(lab.pings(0, "a1", &format!("-I {ip}"), node), "{ip}");
    }
    // A link in a group of the operator's stays there, and is not guarded.
    lab.hosts[1].sh(&format!("ip link set {} group 7", far.link));
    lab.hosts[1].sh("ip route del 10.244.0.0/16");
    lab.until(1, "ip route show 10.244.0.0/16 | grep blackhole");
    assert!(lab.hosts[1].succeeds(&format!("ip link show {} | grep 'group 7'", far.link)));
}
