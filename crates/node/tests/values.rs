//! What needs no kernel: how prefixes divide into blocks, who gets which, and what there should be for whom.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

use std::{collections::BTreeMap, collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use node::{
    blocks,
    config::Written,
    desired::{By, Uplink, Uplinks, Way, desired},
    record::{Record, Tunnel, hop_of, mac_of},
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A hundred nodes that ask one after the other divide a prefix among them, each from a place of its own, and none twice.
#[test]
fn blocks_are_divided() {
    for (prefix, length, all) in
        [("10.0.0.0/16", 24, 256), ("fd00::/56", 64, 256), ("10.0.0.0/24", 28, 16), ("10.0.0.0/24", 24, 1)]
    {
        let mut taken = BTreeSet::new();
        let mut first = BTreeSet::new();
        for index in 0.. {
            let node = format!("node{index}");
            let Some(block) = blocks::next(net(prefix), length, &node, &taken) else { break };
            assert!(net(prefix).contains(&block) && block.prefix_len() == length && block == block.trunc());
            assert!(taken.insert(block));
            first.extend(blocks::candidates(net(prefix), length, &node).next());
        }
        assert_eq!(taken.len(), all, "{prefix}");
        assert!(first.len() > all / 3, "{prefix}: nodes begin at {} places", first.len());
    }
}

#[test]
fn a_block_keeps_what_no_pod_gets() {
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
fn a_nodes_hardware_address_follows_from_its_name() {
    let (a, b) = (mac_of("host1"), mac_of("host2"));
    assert_ne!(a, b);
    assert_eq!(a, mac_of("host1"));
    assert_eq!(a.0[0], 2, "locally administered, of one host");
    assert_eq!(hop_of(a).octets()[..2], [0xfe, 0x80]);
}

fn record(name: &str, addresses: &[&str], blocks: &[&str]) -> Record {
    Record {
        name: name.into(),
        addresses: addresses.iter().map(|it| ip(it)).collect(),
        blocks: blocks.iter().map(|it| net(it)).collect(),
        tunnel: Some(Tunnel { vni: 4242, port: 4789, gpe: false }),
        mac: None,
        mac6: None,
        flannel: false,
        short: BTreeSet::new(),
        incarnation: String::new(),
    }
}

fn uplinks() -> Uplinks {
    let uplink = |address: &str, on_link: &str| Uplink {
        link: 7,
        name: "up0".into(),
        bridge: false,
        mtu: 1500,
        gateway: None,
        address: ip(address),
        on_link: vec![net(on_link)],
    };
    Uplinks {
        v4: Some(uplink("192.0.2.1", "192.0.2.0/24")),
        v6: Some(uplink("2001:db8::1", "2001:db8::/64")),
    }
}

/// The ways: by mode, by what is on the segment, and by what two nodes have in common; and what is said where there is none.
#[test]
fn ways() {
    let near = record("near", &["192.0.2.2", "2001:db8::2"], &["10.244.2.0/24", "fd44:0:0:2::/64"]);
    let far = record("far", &["198.51.100.2", "2001:db8:9::2"], &["10.244.3.0/24"]);
    // On the segment in one family alone: packets of the other would go astray.
    let half = record("half", &["192.0.2.4", "2001:db8:9::4"], &["10.244.4.0/24"]);
    let only6 = record("only6", &["2001:db8:9::5"], &["10.244.5.0/24"]);
    let mut mute = record("mute", &["198.51.100.6"], &["10.244.6.0/24"]);
    mute.tunnel = None;
    let mut other = record("other", &["198.51.100.7"], &["10.244.7.0/24"]);
    other.tunnel = Some(Tunnel { vni: 1, port: 8472, gpe: false });
    let nowhere = record("nowhere", &[], &["10.244.8.0/24"]);
    // flannel looks at packets of a tunnel's family alone, and may drop what comes by another way than the one back.
    let mut flannels =
        record("flannels", &["192.0.2.9", "2001:db8::9"], &["10.244.9.0/24", "fd44:0:0:9::/64"]);
    flannels.flannel = true;
    let mut host_gateway = record("gateway", &["192.0.2.10", "2001:db8::a"], &["10.244.10.0/24"]);
    (host_gateway.flannel, host_gateway.tunnel) = (true, None);
    let tunnel = |v4| Some(Way::Tunnel { v4 });
    let direct = Some(Way::Direct);
    let learnt = Some(Way::Learnt);
    let cases = [
        (&near, [tunnel(true), direct, direct, learnt], ""),
        (&far, [tunnel(true), None, tunnel(true), learnt], "not on this L2"),
        (&half, [tunnel(true), None, tunnel(true), learnt], "not on this L2"),
        (&only6, [tunnel(false), None, tunnel(false), learnt], "not on this L2"),
        (&mute, [None, None, None, learnt], "it makes no tunnel"),
        (&other, [None, None, None, learnt], "VXLAN network 1 at port 8472"),
        (&flannels, [tunnel(true), None, tunnel(true), learnt], "flannel's node"),
        (&host_gateway, [direct, direct, direct, learnt], ""),
        (&nowhere, [None, None, None, None], "no address of one family"),
    ];
    for (at, mode) in ["overlay", "routing", "auto", "bgp"].into_iter().enumerate() {
        let written = format!("node = \"own\"\nmode = \"{mode}\"\npods = [\"10.244.0.0/16\", \"fd44::/48\"]");
        let config = Written::parse(&written).unwrap().meant().unwrap();
        let own = record("own", &["192.0.2.1", "2001:db8::1"], &["10.244.1.0/24", "fd44:0:0:1::/64"]);
        for (node, ways, says) in &cases {
            let nodes =
                BTreeMap::from([("own".to_owned(), own.clone()), (node.name.clone(), (*node).clone())]);
            let desired = desired(&config, &own, &nodes, &uplinks());
            let peer = &desired.peers[&node.name];
            assert_eq!(peer.ways.get("netloom").copied(), ways[at], "{mode} {}", node.name);
            if ways[at].is_none()
                && !(mode == "routing" && says.contains("tunnel"))
                && !(mode == "routing" && says.contains("VXLAN"))
            {
                assert!(peer.problem.as_ref().unwrap().contains(says), "{mode} {}: {peer:?}", node.name);
            }
            // No route where there is no way, one for each block where there is.
            let by = |block: &IpNet| desired.routes.get(block).map(|route| route.by);
            for block in &node.blocks {
                match ways[at] {
                    None | Some(Way::Learnt | Way::Segment) => assert_eq!(by(block), None),
                    Some(Way::Direct) => assert_eq!(by(block), Some(By::Link(7))),
                    Some(Way::Tunnel { v4 }) => {
                        let v4 = if node.flannel { block.addr().is_ipv4() } else { v4 };
                        assert_eq!(by(block), Some(By::Device(if v4 { "netloom4" } else { "netloom6" })));
                    }
                }
            }
            assert_eq!(
                by(&net("10.244.0.0/16")),
                Some(By::Nothing),
                "what no node has leaves by no default route"
            );
        }
    }
}

/// Records that are not used, and why.
#[test]
fn records_are_checked_whole() {
    let pods = [net("10.244.0.0/16")];
    let good = r#"{"name":"n1","addresses":["192.0.2.1"],"blocks":["10.244.1.0/24"],"unknown":1}"#;
    assert_eq!(Record::parse("n1", good.as_bytes(), &pods).unwrap().blocks, [net("10.244.1.0/24")]);
    for (name, text, says) in [
        ("n2", good, "calls itself"),
        ("../x", good, "no name"),
        ("n1", "{", "no record"),
        ("n1", r#"{"name":"n1","addresses":["192.0.2.1"],"blocks":["10.0.0.0/8"]}"#, "outside"),
        ("n1", r#"{"name":"n1","addresses":["224.0.0.1"],"blocks":[]}"#, "no address of a host"),
        ("n1", r#"{"name":"n1","addresses":["fe80::1"],"blocks":[]}"#, "no address of a host"),
        ("n1", r#"{"name":"n1","addresses":["x"],"blocks":[]}"#, "no record"),
    ] {
        let error = Record::parse(name, text.as_bytes(), &pods).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

/// What pods get of a block on the hosts' segment: all but what is reserved, in pieces.
#[test]
fn a_block_of_the_segment_is_given_whole_but_for_what_is_reserved() {
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

/// A block is not asked for where a larger or a smaller one is somebody's: prefix lengths may have been others once.
#[test]
fn blocks_of_other_lengths_are_respected() {
    let next =
        |taken: &[&str]| blocks::next(net("10.0.0.0/24"), 25, "n", &taken.iter().map(|it| net(it)).collect());
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
