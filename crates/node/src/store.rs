//! Where nodes learn of each other: one trait, and what implements it.
//!
//! A store is asked by the daemon for changes of its own record and blocks, and tells of everybody's by a channel: first
//! of all of them at once, then of what changes. While it cannot be reached nothing changes anywhere.

mod etcd;
mod file;
mod kubernetes;
mod remote;

use std::{collections::BTreeMap, net::IpAddr, sync::mpsc::Sender};

use ipnet::IpNet;

use crate::{
    config::{self, Config},
    daemon::Event,
    record::Record,
};

/// What a store tells.
#[derive(Debug)]
pub enum Update {
    /// Everything there is, by name and as text; what is not among it is gone.
    All(Contents),
    /// A node's record is this now; none when it is gone.
    Node(String, Option<Vec<u8>>),
    /// A block is this node's now; none when it is nobody's.
    Block(IpNet, Option<String>),
    /// It cannot be reached, for this reason. What was known stays.
    Lost(String),
}

/// Everything that a store holds of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Records as they are written, by name.
    pub nodes: BTreeMap<String, Vec<u8>>,
    /// Who has which block.
    pub blocks: BTreeMap<IpNet, String>,
}

/// Says what a store could not do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {why}")]
pub struct StoreError {
    /// What was being done.
    pub doing: String,
    /// What the store, or the way to it, said.
    pub why: String,
}

/// A connection to a store. Calls may block until the store has answered, or for some seconds.
pub trait Store: Send {
    /// Makes a node's record this one, and says that the node is there; `again` where the store may have lost what it was told.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses.
    fn publish(&mut self, node: &Record, again: bool) -> Result<(), StoreError>;

    /// Returns the blocks that somebody else assigns to this node, which then claims none of those families.
    ///
    /// # Errors
    /// When the store cannot be reached: then nobody knows.
    fn assigned(&mut self, _node: &str) -> Result<Vec<IpNet>, StoreError> {
        Ok(Vec::new())
    }

    /// Takes a block for a node, if it is nobody's; tells whether it is the node's now.
    ///
    /// # Errors
    /// When the store cannot be reached: then nobody knows.
    fn claim(&mut self, block: IpNet, node: &str) -> Result<bool, StoreError>;

    /// Takes a block of another node, if it is that one's still; tells whether it is this node's now.
    ///
    /// # Errors
    /// When the store cannot be reached: then nobody knows.
    fn take(&mut self, block: IpNet, from: &str, node: &str) -> Result<bool, StoreError>;

    /// Returns a block back. Somebody else's, or nobody's, stays as it is.
    ///
    /// # Errors
    /// When the store cannot be reached.
    fn release(&mut self, block: IpNet, node: &str) -> Result<(), StoreError>;

    /// Takes a node's record away.
    ///
    /// # Errors
    /// When the store cannot be reached.
    fn withdraw(&mut self, node: &str) -> Result<(), StoreError>;
}

/// Opens the store of a configuration. It tells of what it holds by `updates`, as soon as it can be reached.
///
/// # Errors
/// When there is no way to it at all, as with a folder that cannot be made.
pub fn open(config: &Config, updates: Sender<Event>) -> Result<Box<dyn Store>, StoreError> {
    match &config.store {
        config::Store::File(dir) => Ok(Box::new(file::Folder::open(dir, updates)?)),
        config::Store::Etcd(etcd) => Ok(Box::new(etcd::Etcd::open(etcd, config, updates)?)),
        config::Store::Kubernetes(how) => Ok(Box::new(kubernetes::Kubernetes::open(how, config, updates)?)),
    }
}

/// Writes a block as part of a file's name or a key: `10.244.1.0-24`.
pub(crate) fn block_name(block: IpNet) -> String {
    format!("{}-{}", block.network(), block.prefix_len())
}

/// Writes a block where there can be no colons: `10.244.1.0-24`, `fd44.0.0.1.0.0.0.0-64`.
pub(crate) fn plain_name(block: IpNet) -> String {
    match block.network() {
        IpAddr::V4(_) => block_name(block),
        IpAddr::V6(ip) => {
            let address = ip.segments().map(|segment| format!("{segment:x}")).join(".");
            format!("{address}-{}", block.prefix_len())
        }
    }
}

pub(crate) fn parse_block(name: &str) -> Option<IpNet> {
    let (ip, length) = name.rsplit_once('-')?;
    IpNet::new(ip.parse().ok()?, length.parse().ok()?).ok().filter(|net| net.addr() == net.network())
}
