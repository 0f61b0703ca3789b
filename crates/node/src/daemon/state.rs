//! The state of the reconcile loop.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    event::{Event, Watched},
    requests::Requests,
    watch_host::Devices,
};
use crate::{
    apply::Known,
    cluster_view::ClusterView,
    config::Config,
    desired::{Desired, Uplinks},
    probe::Probes,
    record::Record,
    status::{self, Status},
    takeover::Inquiry,
};

/// The state of the reconcile loop. Other files of this folder implement its parts.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) requests: Requests,
    /// This node's record, as it should be published.
    pub(super) own: Record,
    pub(super) started: Instant,
    /// How this host is connected.
    pub(super) uplinks: Uplinks,
    /// How this host was connected last, for each family in which it is not any more too.
    pub(super) last_uplinks: Uplinks,
    /// Addresses that this host has lost and that are in its record still, and since when.
    pub(super) vanished: BTreeMap<IpAddr, Instant>,
    /// This node's blocks as last written to the state directory.
    pub(super) remembered: Vec<IpNet>,
    pub(super) view: ClusterView,
    /// When this node's record was last published, and its content then.
    pub(super) published: Option<(Instant, Record)>,
    /// Whether the store has reported the record of this daemon's run.
    pub(super) echoed: bool,
    /// Whether the store may have lost this node's record.
    pub(super) rewrite: bool,
    /// When publishing last failed, and why.
    pub(super) unpublished: Option<(Instant, String)>,
    /// The blocks that a foreign controller assigns to this node, or `None` until the store has answered.
    pub(super) assigned: Option<Vec<IpNet>>,
    /// The node to which checksums of tunnelled packets are wrong if the network card computes them.
    pub(super) wrong_checksums: Option<String>,
    /// Blocks that are empty and not needed, and since when. No address is given out from them any more.
    pub(super) resting: BTreeMap<IpNet, Instant>,
    /// Blocks that this node has lost to another, and when.
    pub(super) lost: BTreeMap<IpNet, (String, Instant)>,
    /// When a plugin last reserved or released an address, by network.
    pub(super) sought: BTreeMap<String, Instant>,
    /// What is known of blocks on the hosts' segment, where other hosts may use addresses without the store's knowledge.
    pub(super) probed: BTreeMap<IpNet, Probed>,
    /// Sends events from the threads that probe a segment.
    pub(super) sender: Sender<Event>,
    /// The duration of the last pass.
    pub(super) took: Duration,
    /// The watches that ended and are not open again yet, with the reason, and whether opening them has failed.
    pub(super) deaf: BTreeMap<Watched, (String, bool)>,
    /// What is known of owners of blocks that may be dead, by name.
    pub(super) inquiries: BTreeMap<String, Inquiry>,
    /// What earlier passes found out about the kernel's objects.
    pub(super) known: Known,
    /// The changes for peers that the kernel refused, by node.
    pub(super) refused_changes: BTreeMap<String, Vec<String>>,
    /// The desired state of the last pass, and what it was computed from.
    pub(super) last: Option<Rc<Desired>>,
    pub(super) basis: Option<Basis>,
    /// When the kernel was last compared with the desired state and nothing was left to do, unless something may have changed since.
    pub(super) compared: Option<Instant>,
    /// Whether what the status says of peers may have changed.
    pub(super) peers_changed: bool,
    /// Whether a comparison has left free memory behind.
    pub(super) untidy: bool,
    pub(super) status: Status,
    /// The status as others see it.
    pub(super) shared: status::Shared,
    pub(super) devices: Devices,
    pub(super) probes: Probes,
}

/// What the desired state is computed from, apart from the configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Basis {
    /// The number of changes of the view.
    pub(super) changes: u64,
    pub(super) own: Record,
    /// The families in which the others know an address of this node.
    pub(super) known: (bool, bool),
    pub(super) uplinks: Uplinks,
    /// This host's networks among the pods' prefixes.
    pub(super) host: BTreeMap<IpNet, String>,
    pub(super) checksum_offload: bool,
}

/// What is known of a block on the hosts' segment.
#[derive(Debug, Default)]
pub(super) struct Probed {
    /// When the addresses were last probed, or `None` until there was an answer.
    pub(super) at: Option<Instant>,
    /// Whether a probe is under way.
    pub(super) probing: bool,
    /// The addresses that other hosts use.
    pub(super) others: BTreeSet<IpAddr>,
}
