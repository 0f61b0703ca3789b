//! Blocks of pods' addresses: how the pods' prefixes divide into them, which one a node asks for next.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// Claims another block when this part of the addresses is in use, in percent.
pub const FULL: u64 = 80;
/// As many blocks are looked at, from a place that follows from the node's name, before the pool counts as full.
const TRIED: u64 = 1 << 20;

/// Lists the blocks of a prefix in the order in which a node asks for them: from a place of its own on, so that nodes that
/// start together do not all ask for the same one.
pub fn candidates(prefix: IpNet, length: u8, node: &str) -> impl Iterator<Item = IpNet> {
    let bits = u32::from(length.saturating_sub(prefix.prefix_len()));
    let count = 1_u64.checked_shl(bits.min(63)).unwrap_or(u64::MAX);
    let start = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (0..count.min(TRIED)).filter_map(move |index| nth(prefix, length, start.wrapping_add(index) % count))
}

/// Gives the block to ask for next: the first that nobody is known to have; none when all are taken.
pub fn next(prefix: IpNet, length: u8, node: &str, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    candidates(prefix, length, node).find(|block| !taken.contains(block))
}

fn nth(prefix: IpNet, length: u8, index: u64) -> Option<IpNet> {
    match prefix.network() {
        IpAddr::V4(first) => {
            let ip = u32::from(first)
                .checked_add(u32::try_from(index).ok()? << (32 - u32::from(length)).min(31))?;
            IpNet::new(Ipv4Addr::from(ip).into(), length).ok()
        }
        IpAddr::V6(first) => {
            let ip =
                u128::from(first).checked_add(u128::from(index) << (128 - u32::from(length)).min(127))?;
            IpNet::new(Ipv6Addr::from(ip).into(), length).ok()
        }
    }
}

/// Gives the address of a block that is the node's own, as the source of what the host itself sends to pods: the one
/// that no pod gets (the network's own in IPv4, the third in IPv6).
pub fn own_address(block: IpNet) -> IpAddr {
    match block.network() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) + 2).into(),
    }
}

/// Gives the first and the last address that pods get of a block.
pub fn range(block: IpNet) -> (IpAddr, IpAddr) {
    match block {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            (Ipv4Addr::from(first + 2).into(), Ipv4Addr::from(last - 1).into())
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            // Host-local walks through it from the first on: the lower 48 bits are more than anybody uses.
            (Ipv6Addr::from(first + 16).into(), Ipv6Addr::from(last.min(first + (1 << 48))).into())
        }
    }
}

/// Gives how many pods a block has addresses for.
pub fn size(block: IpNet) -> u64 {
    match range(block) {
        (IpAddr::V4(first), IpAddr::V4(last)) => u64::from(u32::from(last) - u32::from(first)) + 1,
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            u64::try_from(u128::from(last) - u128::from(first)).unwrap_or(u64::MAX).saturating_add(1)
        }
        _ => 0,
    }
}
