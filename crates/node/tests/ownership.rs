//! Which claims of other nodes' records a node honours.
#![expect(clippy::unwrap_used, reason = "a test fails if this fails")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use common::{net, record};
use ipnet::IpNet;
use node::{
    ownership::Claims,
    record::{Record, mac_of},
};
use proptest::prelude::*;

/// A claim is honoured unless others have a better right to the addresses. Each claim is refused by itself.
#[test]
fn only_rightful_claims_are_honoured() {
    let own = record("own", &["192.0.2.1"], &["10.244.1.0/24"]);
    let mut same_mac = record("same-mac", &["192.0.2.8"], &["10.244.80.0/24"]);
    same_mac.mac = Some(mac_of("a").to_string());
    let nodes = [
        record("a", &["192.0.2.2"], &["10.244.2.0/24", "10.0.0.0/8", "10.244.1.7/32", "172.17.0.0/24"]),
        record("b", &["192.0.2.3"], &["10.244.2.5/32", "10.244.3.0/24"]),
        record("c", &["192.0.2.4"], &["10.244.3.0/24", "10.244.4.0/24", "10.244.96.0/20"]),
        record("held", &["192.0.2.5"], &["10.244.4.0/24"]),
        record("impostor", &["192.0.2.1"], &["10.244.50.0/24"]),
        record("new-owner", &["192.0.2.6"], &["10.244.7.0/24"]),
        record("old-owner", &["192.0.2.7"], &["10.244.6.0/24", "10.244.7.0/24"]),
        same_mac,
    ];
    let nodes: BTreeMap<String, Record> = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
    let owners = |owners: &[(&str, &str)]| {
        owners.iter().map(|(block, owner)| (net(block), (*owner).to_owned())).collect::<BTreeMap<_, _>>()
    };
    // Block 6 passes to a node that has not published its record with it; block 7 to one that has.
    let registered = owners(&[
        ("10.244.3.0/24", "c"),
        ("10.244.6.0/24", "new-owner"),
        ("10.244.7.0/24", "new-owner"),
        ("10.244.8.0/24", "old-owner"),
        ("10.244.9.0/24", "old-owner"),
        ("10.244.100.0/24", "dead"),
    ]);
    // Another program has removed block 8 from its owner's record. Block 9 was never honoured, and 10 is released in both places.
    let held =
        owners(&[("10.244.4.0/24", "held"), ("10.244.8.0/24", "old-owner"), ("10.244.10.0/24", "old-owner")]);
    let host = owners(&[("172.17.0.0/16", "docker0")]);
    let pods = [net("10.244.0.0/16"), net("172.16.0.0/12")];
    let silent = BTreeSet::new();
    let claims = Claims {
        own: &own,
        nodes: &nodes,
        registered: &registered,
        held: &held,
        silent: &silent,
        pods: &pods,
        host: &host,
    };
    let honoured = claims.decide();
    let expected = [
        ("10.244.2.0/24", "a"),
        ("10.244.3.0/24", "c"),
        ("10.244.4.0/24", "held"),
        ("10.244.6.0/24", "old-owner"),
        ("10.244.7.0/24", "new-owner"),
        ("10.244.8.0/24", "old-owner"),
    ];
    assert_eq!(honoured.owners, owners(&expected));
    for (name, says) in [
        ("a", "10.0.0.0/8, which is outside the pods' prefixes"),
        ("a", "10.244.1.7/32, which overlaps 10.244.1.0/24 of own"),
        ("a", "172.17.0.0/24, but `docker0` of this host is in 172.17.0.0/16"),
        ("b", "10.244.2.5/32, which overlaps 10.244.2.0/24 of a"),
        ("b", "10.244.3.0/24, which belongs to c"),
        ("c", "10.244.4.0/24, which belongs to held"),
        ("c", "10.244.96.0/20, which overlaps 10.244.100.0/24 of dead"),
        ("impostor", "192.0.2.1, an address of this host"),
        ("old-owner", "10.244.7.0/24, which belongs to new-owner"),
        ("same-mac", "is that of node a"),
    ] {
        assert!(honoured.problems[name].iter().any(|it| it.contains(says)), "{name}: {says}: {honoured:?}");
    }
    assert_eq!(honoured.problems.values().map(Vec::len).sum::<usize>(), 10);
    // A node that does not renew its lease keeps no block that the store has registered for another.
    let silent = BTreeSet::from(["old-owner"]);
    let honoured = Claims { silent: &silent, ..claims }.decide();
    assert_eq!(honoured.owners.get(&net("10.244.6.0/24")), None);
}

/// Whatever nodes claim, no two of them have overlapping blocks, and this node's are its own.
#[test]
fn honoured_blocks_never_overlap() {
    let block = (0_u32..4096, 20_u8..=32).prop_map(|(at, length)| {
        IpNet::new(IpAddr::from(Ipv4Addr::from(0x0af4_0000 + at)), length).unwrap().trunc()
    });
    let blocks = || prop::collection::btree_map(block.clone(), "[a-e]", 0..12);
    proptest!(|(claimed in prop::collection::vec(blocks(), 5), registered in blocks(), held in blocks(), own in blocks())| {
        let own: Vec<String> = own.keys().map(ToString::to_string).collect();
        let own = record("own", &["192.0.2.99"], &own.iter().map(String::as_str).collect::<Vec<_>>());
        let nodes: BTreeMap<String, Record> = claimed.iter().zip(["a", "b", "c", "d", "e"]).enumerate().map(|(at, (blocks, name))| {
            let blocks: Vec<String> = blocks.keys().map(ToString::to_string).collect();
            let address = format!("192.0.2.{}", at + 1);
            (name.to_owned(), record(name, &[&address], &blocks.iter().map(String::as_str).collect::<Vec<_>>()))
        }).collect();
        let pods = [net("10.244.0.0/16")];
        let (silent, host) = (BTreeSet::new(), BTreeMap::new());
        let honoured = Claims { own: &own, nodes: &nodes, registered: &registered, held: &held, silent: &silent, pods: &pods, host: &host }.decide();
        let all: Vec<(IpNet, &str)> = honoured.owners.iter().map(|(block, owner)| (*block, owner.as_str()))
            .chain(own.blocks.iter().map(|block| (*block, "own"))).collect();
        for (at, (one, owner)) in all.iter().enumerate() {
            for (other, other_owner) in &all[at + 1..] {
                prop_assert!(owner == other_owner || !(one.contains(other) || other.contains(one)), "{one} of {owner}, {other} of {other_owner}");
            }
        }
        // Each claim is either honoured or has a reason, also those that only the store and an earlier decision know.
        let refused: usize = honoured.problems.values().map(Vec::len).sum();
        let is_kept = |(block, owner): &(&IpNet, &String)| registered.get(block) == Some(owner) && !nodes[*owner].blocks.contains(block);
        let kept = held.iter().filter(is_kept).count();
        prop_assert_eq!(honoured.owners.len() + refused, kept + nodes.values().map(|node| node.blocks.len()).sum::<usize>());
    });
}
