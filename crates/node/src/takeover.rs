//! When a block of another node may be taken over: the rule, as a pure function, and the inquiry that asks the node's host.
//!
//! A lease that ended says that a daemon does not reach the store, not that its host and its pods are gone. A block is taken only if
//! nothing on that host answers two nodes. See `docs/cluster.md`, "Taking over blocks".

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use kernel::{echo, neigh};

use crate::blocks;

/// How long the result of an inquiry is valid.
pub(crate) const VALID: Duration = Duration::from_secs(30);
/// Time limit for each answer.
const ANSWER: Duration = Duration::from_secs(1);
/// The number of addresses of a block that are asked for, on a network where the host routes: pods get the first ones first.
const ASKED: usize = 16;

/// What a node knows about the owner of a block that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// This node reads the store now.
    pub connected: bool,
    /// The time since the owner's lease ended, or since its record is gone.
    pub silent: Option<Duration>,
    /// The duration of a lease.
    pub lease: Duration,
    /// The owner's host or one of its pods answered this node's last inquiry; `None` without a valid one.
    pub answered: Option<bool>,
    /// The number of other nodes that renew their leases.
    pub living: usize,
    /// How many of those publish that nothing on the owner's host answers them either.
    pub witnesses: usize,
}

/// Returns whether the owner is silent for long enough that its host is asked: for two leases after its own ended.
pub fn is_suspect(facts: &Facts) -> bool {
    facts.connected && facts.silent.is_some_and(|silent| silent >= 2 * facts.lease)
}

/// Returns whether the block may be taken.
pub fn may_take(facts: &Facts) -> bool {
    is_suspect(facts) && facts.answered == Some(false) && facts.witnesses >= facts.living.min(1)
}

/// What is known of a suspect.
#[derive(Debug, Default)]
pub(crate) struct Inquiry {
    /// Whether an inquiry is under way.
    pub(crate) running: bool,
    /// When the last one ended, and whether anything answered.
    pub(crate) last: Option<(Instant, bool)>,
}

impl Inquiry {
    /// Returns whether anything answered, if that is known.
    pub(crate) fn answered(&self) -> Option<bool> {
        self.last.filter(|(at, _)| at.elapsed() < VALID).map(|(_, answered)| answered)
    }
}

/// Asks a host's addresses, its own addresses in its blocks and those of its first pods for an echo, and on a shared segment (the
/// link's index) all addresses of its blocks for their hardware address. Returns whether anything answered.
///
/// What cannot be asked counts as an answer, and so does a host whose addresses are not known.
pub(crate) fn ask(addresses: &[IpAddr], blocks: &[IpNet], segment: Option<u32>) -> bool {
    if addresses.is_empty() {
        return true;
    }
    let of_blocks = blocks.iter().flat_map(|block| {
        let pods = successors(blocks::range(*block).0, ASKED);
        [blocks::own_address(*block)].into_iter().chain(pods).filter(|ip| block.contains(ip))
    });
    let of_blocks: BTreeSet<IpAddr> = of_blocks.collect();
    let answered = std::thread::scope(|scope| {
        let hosts = addresses
            .iter()
            .map(|ip| scope.spawn(|| echo::ping(*ip, ANSWER).map_or_else(|it| !is_silence(&it), |()| true)));
        // There may be no route to a block any more.
        let pods = of_blocks.iter().map(|ip| scope.spawn(|| echo::ping(*ip, ANSWER).is_ok()));
        let asked: Vec<_> = hosts.chain(pods).collect();
        asked.into_iter().any(|asked| asked.join().unwrap_or(true))
    });
    answered
        || segment.is_some_and(|link| {
            blocks.iter().any(|block| {
                let ips: BTreeSet<IpAddr> = blocks::addresses(*block).collect();
                neigh::who_has(link, &ips, ANSWER).map_or(true, |answered| !answered.is_empty())
            })
        })
}

/// Returns whether an error means that no answer came, and not that the question could not be sent.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable)
}

fn successors(first: IpAddr, count: usize) -> impl Iterator<Item = IpAddr> {
    (0..u32::try_from(count).unwrap_or(u32::MAX)).filter_map(move |index| match first {
        IpAddr::V4(ip) => u32::from(ip).checked_add(index).map(|ip| IpAddr::V4(ip.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(index.into()).map(|ip| IpAddr::V6(ip.into())),
    })
}
