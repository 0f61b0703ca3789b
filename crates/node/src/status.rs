//! What the daemon says of itself and of the cluster: the one document that `netloom cluster`, the page and programs read.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The state of a node as its daemon sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// This node's name.
    pub node: String,
    /// Pods can be started and reach the others.
    pub ready: bool,
    /// Why not.
    pub problems: Vec<String>,
    /// What an operator should know all the same.
    pub notes: Vec<String>,
    /// The networks.
    pub networks: Vec<Network>,
    /// This node's addresses.
    pub addresses: Vec<IpAddr>,
    /// This node's blocks.
    pub blocks: Vec<Block>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// What the store says.
    pub store: Store,
    /// What was done since the daemon started.
    pub counters: Counters,
}

/// A network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// `overlay`, `routing`, `auto`, `bgp` or `underlay`.
    pub mode: String,
    /// MTU of pods' links in bytes.
    pub mtu: u32,
}

/// A block of this node's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Block {
    /// Its prefix.
    pub prefix: IpNet,
    /// Addresses that pods have of it.
    pub used: u64,
    /// Addresses that pods can have of it.
    pub size: u64,
}

/// Another node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its blocks.
    pub blocks: Vec<IpNet>,
    /// `direct`, `tunnel`, `learnt`, `segment`, several of them where networks differ, or none.
    pub way: Option<String>,
    /// What is the matter.
    pub problem: Option<String>,
    /// Its daemon answered the last probe, after so many microseconds; absent until one was sent.
    pub answers: Option<bool>,
    /// How long the last answer took, in microseconds.
    pub rtt_us: Option<u64>,
}

/// The store.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// `file` or `etcd`.
    pub kind: String,
    /// It is heard of.
    pub connected: bool,
    /// Why not.
    pub problem: Option<String>,
    /// Records that are refused, and why.
    pub refused: Vec<String>,
}

/// Counts since the start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// How often what there should be was compared with what there is.
    pub comparisons: u64,
    /// Objects that were put there, changed or taken away.
    pub changes: u64,
    /// Of these, such as somebody else had changed.
    pub repairs: u64,
    /// What the kernel refused.
    pub refusals: u64,
    /// How long the comparison took that took longest, with what it changed, in microseconds.
    pub longest_micros: u64,
}
