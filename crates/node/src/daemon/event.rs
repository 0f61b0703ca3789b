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
    /// One of the daemon's objects in the kernel may have changed.
    Kernel,
    /// Something else of the host's network has changed, on which the daemon's objects may depend.
    Surroundings,
    /// A network configuration of the container runtime has changed.
    Files,
    /// A plugin has reserved or released an address of this network.
    Pods(String),
    /// The addresses of a block on the hosts' segment that other hosts answered for.
    Probed(IpNet, kernel::Result<BTreeSet<IpAddr>>),
    /// Whether anything answered on the host of this node, whose lease ended long ago.
    Asked(String, bool),
    /// A watch was opened, or ended with this reason and will be opened again. Either way changes may have been missed.
    Watching(Watched, Result<(), String>),
    /// Checksums of packets that are tunnelled to this node are wrong.
    Checksums(String),
    /// The daemon is to end and leave everything as it is.
    Stop,
}

/// What a thread of the daemon watches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watched {
    /// The host's network and ruleset.
    Kernel,
    /// The folder of the container runtime's network configurations.
    NetworkFiles,
    /// The reservations of a network's addresses.
    Reservations(String),
}

impl std::fmt::Display for Watched {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kernel => write!(out, "the host's network"),
            Self::NetworkFiles => write!(out, "the container runtime's network configurations"),
            Self::Reservations(network) => write!(out, "the reservations of network {network}"),
        }
    }
}
