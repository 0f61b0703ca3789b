//! What a store reports.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// A report of a store.
#[derive(Debug)]
pub enum Update {
    /// Everything that the store holds; whatever it does not contain is gone.
    All(Contents),
    /// A node's record, or `None` if it was removed.
    Node(String, Option<Vec<u8>>),
    /// Whether a node renews its lease.
    Alive(String, bool),
    /// A block's owner, or `None` if the block was released.
    Block(IpNet, Option<String>),
    /// The store cannot be reached, with the reason. What was known stays valid.
    Lost(String),
}

/// Everything that a store holds of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Records as written, by node name.
    pub nodes: BTreeMap<String, Vec<u8>>,
    /// The nodes that renew their leases, or `None` if the store has no leases.
    pub alive: Option<BTreeSet<String>>,
    /// The owner of each block.
    pub blocks: BTreeMap<IpNet, String>,
}

/// Receives a store's reports; returns false when no further reports are wanted.
pub type OnUpdate = Box<dyn Fn(Update) -> bool + Send + Sync>;
