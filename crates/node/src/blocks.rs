//! Blocks of pods' addresses: how the pods' prefixes divide into blocks, and which one a node claims next.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// The share of used addresses, in percent, at which a node claims another block.
pub const FULL: u64 = 80;
/// The number of free addresses that a node keeps on a shared segment.
pub const SPARE: u64 = 8;
/// The number of blocks that a node examines before it considers the pool full.
const TRIED: u64 = 1 << 20;

/// Lists the blocks of a prefix in the order in which a node claims them. The order starts at a place derived from the node's
/// name, so that nodes that start together do not all claim the same block.
pub fn candidates(prefix: IpNet, length: u8, node: &str) -> impl Iterator<Item = IpNet> {
    let bits = u32::from(length.saturating_sub(prefix.prefix_len()));
    let count = 1_u64.checked_shl(bits.min(63)).unwrap_or(u64::MAX);
    let start = kernel::hash::fnv1a(node.bytes());
    (0..count.min(TRIED)).filter_map(move |index| nth(prefix, length, start.wrapping_add(index) % count))
}

/// Returns the block to claim next: the first that overlaps no owned block, or `None` if all are owned.
pub fn next(prefix: IpNet, length: u8, node: &str, owners: &Owners<'_>) -> Option<IpNet> {
    candidates(prefix, length, node).find(|block| owners.overlapping(*block, |_, _| true).is_none())
}

/// The owners of blocks, to find those that overlap another. Owned blocks may be larger or smaller: the configured length can change.
#[derive(Debug, Default)]
pub struct Owners<'a> {
    by_block: BTreeMap<IpNet, &'a str>,
    lengths: BTreeSet<u8>,
}

impl<'a> Owners<'a> {
    /// Adds a block, or gives it to another owner.
    pub fn insert(&mut self, block: IpNet, owner: &'a str) {
        self.lengths.insert(block.prefix_len());
        self.by_block.insert(block, owner);
    }

    /// Returns a block that overlaps another and that `fits` accepts, with its owner. Prefixes overlap only if one contains the other.
    pub fn overlapping(&self, block: IpNet, fits: impl Fn(IpNet, &str) -> bool) -> Option<(IpNet, &'a str)> {
        let wider = self.lengths.range(..=block.prefix_len()).filter_map(|length| {
            let wider = IpNet::new(block.addr(), *length).ok()?.trunc();
            self.by_block.get_key_value(&wider)
        });
        let narrower = self.by_block.range(block..).take_while(|(other, _)| block.contains(*other));
        wider
            .chain(narrower)
            .map(|(other, owner)| (*other, *owner))
            .find(|(other, owner)| fits(*other, owner))
    }
}

impl<'a> FromIterator<(IpNet, &'a str)> for Owners<'a> {
    fn from_iter<T: IntoIterator<Item = (IpNet, &'a str)>>(blocks: T) -> Self {
        let mut owners = Self::default();
        for (block, owner) in blocks {
            owners.insert(block, owner);
        }
        owners
    }
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

/// Returns the node's own address in a block, the source of packets that the host itself sends to pods. No pod gets it, not even
/// one of flannel's. In IPv4 it is the network address; in IPv6 the address after the last that pods get, or else the third.
pub fn own_address(block: IpNet) -> IpAddr {
    match (block.network(), range(block).1) {
        (IpAddr::V6(_), IpAddr::V6(last)) if IpAddr::V6(last) != block.broadcast() => {
            Ipv6Addr::from(u128::from(last) + 1).into()
        }
        (IpAddr::V6(ip), _) => Ipv6Addr::from(u128::from(ip) + 2).into(),
        (ip, _) => ip,
    }
}

/// Returns the first and the last address of a block that pods get.
pub fn range(block: IpNet) -> (IpAddr, IpAddr) {
    match block {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            (Ipv4Addr::from(first + 2).into(), Ipv4Addr::from(last - 1).into())
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            // host-local walks through the range from its start: 48 bits are more than enough.
            (Ipv6Addr::from(first + 16).into(), Ipv6Addr::from(last.min(first + (1 << 48))).into())
        }
    }
}

/// First and last address of each range of a block that pods get addresses from.
pub type Pieces = Vec<(IpAddr, IpAddr)>;

/// Returns the addresses of a block that pods get. With `reserved`, the block is on the hosts' segment and pods get all other
/// addresses; without, the host routes and keeps some for itself.
pub fn pieces(block: IpNet, reserved: Option<&BTreeSet<IpAddr>>) -> Pieces {
    let Some(reserved) = reserved else { return vec![range(block)] };
    let ip = |number: u128| match block {
        IpNet::V4(_) => u32::try_from(number).ok().map(|number| Ipv4Addr::from(number).into()),
        IpNet::V6(_) => Some(IpAddr::from(Ipv6Addr::from(number))),
    };
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let (mut first, last) = (number(block.network()), number(block.broadcast()));
    let mut pieces = Vec::new();
    let mut push = |from: u128, to: u128| pieces.extend(ip(from).zip(ip(to)).filter(|_| from <= to));
    for gap in reserved.iter().filter(|ip| block.contains(*ip)).map(|ip| number(*ip)) {
        if gap > first {
            push(first, gap - 1);
        }
        first = gap + 1;
    }
    push(first, last);
    pieces
}

/// Counts the addresses in ranges.
pub fn count(pieces: &[(IpAddr, IpAddr)]) -> u64 {
    let of = |piece: &(IpAddr, IpAddr)| match *piece {
        (IpAddr::V4(first), IpAddr::V4(last)) => u64::from(u32::from(last) - u32::from(first)) + 1,
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            u64::try_from(u128::from(last) - u128::from(first)).unwrap_or(u64::MAX).saturating_add(1)
        }
        _ => 0,
    };
    pieces.iter().map(of).fold(0, u64::saturating_add)
}

/// Lists the addresses of a block of the hosts' segment.
pub fn addresses(block: IpNet) -> impl Iterator<Item = IpAddr> {
    // Within a larger prefix, the block's first and last address are usable.
    let first = block.network();
    let count = 1_u32 << u32::from(block.max_prefix_len() - block.prefix_len()).min(16);
    (0..count).filter_map(move |index| match first {
        IpAddr::V4(ip) => u32::from(ip).checked_add(index).map(|ip| Ipv4Addr::from(ip).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_add(index.into()).map(|ip| Ipv6Addr::from(ip).into()),
    })
}
