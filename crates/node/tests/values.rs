//! Tests without a kernel: how prefixes divide into blocks, which node gets which, and the desired state.
#![expect(clippy::unwrap_used, reason = "a test fails if this fails")]

mod common;

use std::{collections::BTreeMap, collections::BTreeSet, net::IpAddr};

use common::{net, record};
use ipnet::IpNet;
use node::{
    blocks::{self, Owners},
    config::Written,
    desired::{Inputs, PeerPath, Target, Uplink, Uplinks, desired},
    record::{Record, Tunnel, hop_of, mac_of},
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Nodes that claim blocks one after the other divide a prefix among them. Each starts at a place of its own, and no block is
/// claimed twice.
#[test]
fn blocks_are_divided() {
    for (prefix, length, all) in
        [("10.0.0.0/16", 24, 256), ("fd00::/56", 64, 256), ("10.0.0.0/24", 28, 16), ("10.0.0.0/24", 24, 1)]
    {
        let (mut taken, mut owners) = (BTreeSet::new(), Owners::default());
        let mut first = BTreeSet::new();
        for index in 0.. {
            let node = format!("node{index}");
            let Some(block) = blocks::next(net(prefix), length, &node, &owners) else { break };
            assert!(net(prefix).contains(&block) && block.prefix_len() == length && block == block.trunc());
            assert!(taken.insert(block));
            owners.insert(block, "other");
            first.extend(blocks::candidates(net(prefix), length, &node).next());
        }
        assert_eq!(taken.len(), all, "{prefix}");
        assert!(first.len() > all / 3, "{prefix}: nodes start at {} places", first.len());
    }
}

#[test]
fn a_block_reserves_addresses_for_its_node() {
    for (block, own, first, last, size) in [
        ("10.244.3.0/24", "10.244.3.0", "10.244.3.2", "10.244.3.254", 253),
        ("10.244.3.16/28", "10.244.3.16", "10.244.3.18", "10.244.3.30", 13),
        ("fd44:0:0:1::/64", "fd44:0:0:1:1::1", "fd44:0:0:1::10", "fd44:0:0:1:1::", (1 << 48) - 15),
        ("fd44:0:0:1::/120", "fd44:0:0:1::2", "fd44:0:0:1::10", "fd44:0:0:1::ff", 240),
    ] {
        assert_eq!(blocks::own_address(net(block)), ip(own));
        assert_eq!(blocks::range(net(block)), (ip(first), ip(last)));
        assert_eq!(blocks::count(&blocks::pieces(net(block), None)), size);
    }
}

#[test]
fn a_nodes_hardware_address_is_derived_from_its_name() {
    let (a, b) = (mac_of("host1"), mac_of("host2"));
    assert_ne!(a, b);
    assert_eq!(a, mac_of("host1"));
    assert_eq!(a.0[0], 2, "locally administered, unicast");
    assert_eq!(hop_of(a).octets()[..2], [0xfe, 0x80]);
}

fn uplinks() -> Uplinks {
    let uplink = |address: &str, on_link: &str| Uplink {
        link: 7,
        name: "up0".into(),
        bridge: false,
        mtu: 1500,
        gateway: None,
        leads_out: true,
        address: ip(address),
        on_link: vec![net(on_link)],
    };
    Uplinks {
        v4: Some(uplink("192.0.2.1", "192.0.2.0/24")),
        v6: Some(uplink("2001:db8::1", "2001:db8::/64")),
    }
}

/// The path to a peer depends on the mode, on the segment, and on what two nodes have in common. Without a path there is a problem.
#[test]
fn paths() {
    let near = record("near", &["192.0.2.2", "2001:db8::2"], &["10.244.2.0/24", "fd44:0:0:2::/64"]);
    let far = record("far", &["198.51.100.2", "2001:db8:9::2"], &["10.244.3.0/24"]);
    // On the segment in one family only: packets of the other family would be lost.
    let half = record("half", &["192.0.2.4", "2001:db8:9::4"], &["10.244.4.0/24"]);
    let only6 = record("only6", &["2001:db8:9::5"], &["10.244.5.0/24"]);
    let mut mute = record("mute", &["198.51.100.6"], &["10.244.6.0/24"]);
    mute.tunnel = None;
    let mut other = record("other", &["198.51.100.7"], &["10.244.7.0/24"]);
    other.tunnel = Some(Tunnel { vni: 1, port: 8472, gpe: false });
    let nowhere = record("nowhere", &[], &["10.244.8.0/24"]);
    // flannel's tunnels carry only packets of their own family, and its hosts may drop packets that arrive over another path than the
    // reply would take.
    let mut flannels =
        record("flannels", &["192.0.2.9", "2001:db8::9"], &["10.244.9.0/24", "fd44:0:0:9::/64"]);
    flannels.flannel = true;
    let mut host_gateway = record("gateway", &["192.0.2.10", "2001:db8::a"], &["10.244.10.0/24"]);
    (host_gateway.flannel, host_gateway.tunnel) = (true, None);
    // The cluster changes between overlay and auto: until both nodes are changed, both use the tunnel.
    let mut overlay = record("overlay", &["192.0.2.11", "2001:db8::b"], &["10.244.11.0/24"]);
    overlay.overlay.insert("netloom".into());
    let mut unlike = overlay.clone();
    unlike.tunnel = other.tunnel;
    let tunnel = |v4| Some(PeerPath::Tunnel { v4 });
    let direct = Some(PeerPath::Direct);
    let learnt = Some(PeerPath::Learnt);
    let cases = [
        (&near, [tunnel(true), direct, direct, learnt], ""),
        (&far, [tunnel(true), None, tunnel(true), learnt], "not on this L2"),
        (&half, [tunnel(true), None, tunnel(true), learnt], "not on this L2"),
        (&only6, [tunnel(false), None, tunnel(false), learnt], "not on this L2"),
        (&mute, [None, None, None, learnt], "has no tunnel"),
        (&other, [None, None, None, learnt], "VXLAN network 1 on port 8472"),
        (&flannels, [tunnel(true), None, tunnel(true), learnt], "flannel's node"),
        (&host_gateway, [direct, direct, direct, learnt], ""),
        (&overlay, [tunnel(true), direct, tunnel(true), learnt], ""),
        (&unlike, [direct, direct, direct, learnt], ""),
        (&nowhere, [None, None, None, None], "no address family in common"),
    ];
    for (at, mode) in ["overlay", "routing", "auto", "bgp"].into_iter().enumerate() {
        let written = format!("node = \"own\"\nmode = \"{mode}\"\npods = [\"10.244.0.0/16\", \"fd44::/48\"]");
        let config = Written::parse(&written).unwrap().meant().unwrap();
        let own = record("own", &["192.0.2.1", "2001:db8::1"], &["10.244.1.0/24", "fd44:0:0:1::/64"]);
        for (node, paths, says) in &cases {
            let nodes =
                BTreeMap::from([("own".to_owned(), own.clone()), (node.name.clone(), (*node).clone())]);
            let uplinks = uplinks();
            let inputs = Inputs {
                config: &config,
                own: &own,
                known: (true, true),
                nodes: &nodes,
                uplinks: &uplinks,
                checksum_offload: true,
            };
            let desired = desired(&inputs);
            let peer = &desired.peers[&node.name];
            assert_eq!(peer.paths.get("netloom").copied(), paths[at], "{mode} {}", node.name);
            if paths[at].is_none()
                && !(mode == "routing" && says.contains("tunnel"))
                && !(mode == "routing" && says.contains("VXLAN"))
            {
                assert!(peer.problem.as_ref().unwrap().contains(says), "{mode} {}: {peer:?}", node.name);
            }
            // One route for each block if there is a path, otherwise none.
            let to = |block: &IpNet| desired.routes.get(block).map(|route| route.to);
            for block in &node.blocks {
                match paths[at] {
                    None | Some(PeerPath::Learnt | PeerPath::Segment) => assert_eq!(to(block), None),
                    Some(PeerPath::Direct) => assert_eq!(to(block), Some(Target::Link(7))),
                    Some(PeerPath::Tunnel { v4 }) => {
                        let v4 = if node.flannel { block.addr().is_ipv4() } else { v4 };
                        assert_eq!(to(block), Some(Target::Device(if v4 { "netloom4" } else { "netloom6" })));
                    }
                }
            }
            assert_eq!(
                to(&net("10.244.0.0/16")),
                Some(Target::Blackhole),
                "packets to addresses of no node are dropped"
            );
        }
    }
}

/// A record with any invalid field is refused as a whole, with the reason.
#[test]
fn records_are_checked_whole() {
    let good = r#"{"name":"n1","addresses":["192.0.2.1"],"blocks":["10.244.1.0/24"],"unknown":1}"#;
    assert_eq!(Record::parse("n1", good.as_bytes()).unwrap().blocks, [net("10.244.1.0/24")]);
    for (name, text, says) in [
        ("n2", good, "names another node"),
        ("../x", good, "not a node name"),
        ("n1", "{", "not a node record"),
        (
            "n1",
            r#"{"name":"n1","addresses":["192.0.2.1"],"blocks":[],"mac":"01:00:5e:00:00:01"}"#,
            "hardware address",
        ),
        (
            "n1",
            r#"{"name":"n1","addresses":["192.0.2.1"],"blocks":[],"mac6":"00:00:00:00:00:00"}"#,
            "hardware address",
        ),
        ("n1", &format!(r#"{{"name":"n1","x":"{}"}}"#, "y".repeat(1 << 17)), "more than 131072 bytes"),
        ("n1", r#"{"name":"n1","addresses":["224.0.0.1"],"blocks":[]}"#, "not a host address"),
        ("n1", r#"{"name":"n1","addresses":["255.255.255.255"],"blocks":[]}"#, "not a host address"),
        ("n1", r#"{"name":"n1","addresses":["0.0.0.0"],"blocks":[]}"#, "not a host address"),
        ("n1", r#"{"name":"n1","addresses":["fe80::1"],"blocks":[]}"#, "not a host address"),
        ("n1", r#"{"name":"n1","addresses":["x"],"blocks":[]}"#, "not a node record"),
    ] {
        let error = Record::parse(name, text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

/// Pods get all addresses of a block on the hosts' segment except the reserved ones.
#[test]
fn a_block_on_the_segment_is_used_except_for_reserved_addresses() {
    for (block, reserved, pieces) in [
        ("10.0.0.8/29", vec![], vec![("10.0.0.8", "10.0.0.15")]),
        ("10.0.0.0/30", vec!["10.0.0.0"], vec![("10.0.0.1", "10.0.0.3")]),
        (
            "10.0.0.0/30",
            vec!["10.0.0.3", "10.0.0.1"],
            vec![("10.0.0.0", "10.0.0.0"), ("10.0.0.2", "10.0.0.2")],
        ),
        ("10.0.0.4/32", vec!["10.0.0.4"], vec![]),
        ("fd00::8/125", vec!["fd00::9", "10.0.0.1"], vec![("fd00::8", "fd00::8"), ("fd00::a", "fd00::f")]),
    ] {
        let reserved: BTreeSet<IpAddr> = reserved.into_iter().map(ip).collect();
        let pieces: Vec<_> = pieces.into_iter().map(|(first, last)| (ip(first), ip(last))).collect();
        assert_eq!(blocks::pieces(net(block), Some(&reserved)), pieces, "{block}");
        let all = blocks::addresses(net(block)).filter(|ip| !reserved.contains(ip)).count();
        assert_eq!(blocks::count(&pieces), all as u64, "{block}");
    }
}

/// A node claims no block that overlaps a larger or smaller one: the configured length can change.
#[test]
fn blocks_of_other_lengths_are_respected() {
    let next = |taken: &[&str]| {
        let owners = taken.iter().map(|it| (net(it), "other")).collect();
        blocks::next(net("10.0.0.0/24"), 25, "n", &owners)
    };
    for (taken, free) in [
        (&["10.0.0.0/24"][..], None),
        (&["10.0.0.0/26"], Some("10.0.0.128/25")),
        (&["10.0.0.192/26"], Some("10.0.0.0/25")),
        (&["10.0.0.32/28", "10.0.0.255/32"], None),
        (
            &["10.0.1.0/24", "9.0.0.0/8"],
            next(&[]).map(|it| if it == net("10.0.0.0/25") { "10.0.0.0/25" } else { "10.0.0.128/25" }),
        ),
    ] {
        assert_eq!(next(taken), free.map(net), "{taken:?}");
    }
}
