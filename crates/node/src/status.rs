//! The daemon's status: the document that `netloom cluster`, the web page and programs read.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The status, shared between the reconcile loop and those that show it.
pub(crate) type Shared = Arc<Mutex<Status>>;

/// The state of a node as its daemon sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// This node's name.
    pub node: String,
    /// Whether pods can start and reach other nodes' pods.
    pub ready: bool,
    /// The reasons the node is not ready.
    pub problems: Vec<String>,
    /// Conditions that an operator should know although the node is ready.
    pub notes: Vec<String>,
    /// The networks.
    pub networks: Vec<Network>,
    /// This node's addresses.
    pub addresses: Vec<IpAddr>,
    /// This node's blocks.
    pub blocks: Vec<Block>,
    /// The peers.
    pub peers: Vec<Peer>,
    /// The state of the store.
    pub store: Store,
    /// The last repairs, the oldest first.
    pub repairs: Vec<Repair>,
    /// The last problems and notes of this node, and when they ended; the oldest first.
    pub faults: Vec<Fault>,
    /// Counters since the daemon started.
    pub counters: Counters,
}

/// A network of the cluster.
#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub struct Network {
    /// The network's name.
    pub name: String,
    /// `overlay`, `routing`, `auto`, `bgp` or `underlay`.
    pub mode: String,
    /// The MTU of pods' links in bytes.
    pub mtu: u32,
}

/// A block that this node owns.
#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub struct Block {
    /// The prefix.
    pub prefix: IpNet,
    /// The number of addresses in use, or `None` if the reservations cannot be read.
    pub used: Option<u64>,
    /// The number of addresses that pods can use.
    pub size: u64,
}

/// A peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// The peer's name.
    pub name: String,
    /// The peer's addresses.
    pub addresses: Vec<IpAddr>,
    /// The peer's blocks.
    pub blocks: Vec<IpNet>,
    /// `direct`, `tunnel`, `learnt` or `segment`; several of them if networks differ; `None` if there is no path.
    pub path: Option<String>,
    /// What is wrong.
    pub problem: Option<String>,
    /// Seconds since the peer's lease has ended; `None` if the peer renews it, or the store has no leases.
    pub silent_seconds: Option<u64>,
    /// Whether the peer's daemon answered the last probe; `None` until one was sent.
    pub answers: Option<bool>,
    /// The round-trip time of the last probe in microseconds.
    pub rtt_us: Option<u64>,
}

/// The state of the store.
#[derive(Debug, Clone, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// `file`, `etcd` or `kubernetes`.
    pub kind: String,
    /// Whether the store can be reached.
    pub connected: bool,
    /// Why it cannot be reached.
    pub problem: Option<String>,
    /// The number of claims in records that this node does not honour; the peers' problems name them.
    pub refused_claims: usize,
    /// The refused records, each with the reason.
    pub refused: Vec<String>,
}

/// A pass that restored objects after foreign changes.
#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub struct Repair {
    /// When, in seconds since 1970.
    pub at: u64,
    /// The number of changes by kind.
    pub changes: Changes,
}

/// Numbers of changes by the kind of object. Kinds without changes are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Changes {
    /// Routes.
    #[serde(skip_serializing_if = "is_zero")]
    pub routes: usize,
    /// Neighbours of tunnels.
    #[serde(skip_serializing_if = "is_zero")]
    pub neighbours: usize,
    /// Forwarding entries of tunnels.
    #[serde(skip_serializing_if = "is_zero")]
    pub forwarding_entries: usize,
    /// Devices with their addresses and properties, and the groups of pods' links.
    #[serde(skip_serializing_if = "is_zero")]
    pub devices: usize,
    /// Rulesets: one if tables, chains, sets or rules were changed.
    #[serde(skip_serializing_if = "is_zero")]
    pub rulesets: usize,
    /// Settings in `/proc/sys/net`.
    #[serde(skip_serializing_if = "is_zero")]
    pub settings: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Changes {
    /// Returns the number of all changes.
    pub fn sum(&self) -> usize {
        self.routes + self.neighbours + self.forwarding_entries + self.devices + self.rulesets + self.settings
    }
}

/// A problem or note of this node.
#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// The problem or note.
    pub problem: String,
    /// When it was first seen, in seconds since 1970.
    pub since: u64,
    /// When it was gone, in seconds since 1970; `None` if it continues.
    pub until: Option<u64>,
}

/// An address of a pod on this host: one of `/pods`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pod {
    /// The network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// The container's ID, or an empty text if the reservation cannot be read.
    pub container: String,
    /// The interface in the container, or an empty text if the reservation does not name it.
    pub interface: String,
}

/// Counters since the daemon started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Comparisons of desired and actual state.
    pub comparisons: u64,
    /// Objects created, changed or removed.
    pub changes: u64,
    /// Changes that restored objects after foreign changes.
    pub repairs: u64,
    /// Changes that the kernel refused.
    pub refusals: u64,
    /// Watches of the host that ended and were opened again.
    pub reopened: u64,
    /// The longest pass, its changes included, in microseconds.
    pub longest_micros: u64,
}
