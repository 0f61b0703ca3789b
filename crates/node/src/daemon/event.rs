//! The events of the reconcile loop.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::store::{Answer, Update};

/// An event of the reconcile loop.
#[derive(Debug)]
pub enum Event {
    /// The store reports a change.
    Store(Update),
    /// The store has answered a call.
    Answer(Answer),
    /// The host's network or ruleset has changed.
    Kernel,
    /// A plugin has reserved or released an address of this network.
    Pods(String),
    /// The addresses of a block on the hosts' segment that other hosts answered for.
    Probed(IpNet, kernel::Result<BTreeSet<IpAddr>>),
    /// Checksums of packets that are tunnelled to this node are wrong.
    Checksums(String),
    /// The daemon is to end and leave everything as it is.
    Stop,
}
