//! Values for tests.

use std::collections::BTreeSet;

use ipnet::IpNet;
use node::record::{Record, Tunnel};

/// Parses a prefix.
pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Returns a node's record with addresses and blocks.
pub(crate) fn record(name: &str, addresses: &[&str], blocks: &[&str]) -> Record {
    Record {
        name: name.into(),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        blocks: blocks.iter().map(|it| net(it)).collect(),
        tunnel: Some(Tunnel { vni: 4242, port: 4789, gpe: false }),
        mac: None,
        mac6: None,
        flannel: false,
        overlay: BTreeSet::new(),
        short: BTreeSet::new(),
        unreachable: BTreeSet::new(),
        incarnation: String::new(),
        instance: String::new(),
    }
}
