//! What every store can do.

use ipnet::IpNet;

use crate::record::Record;

/// What a store could not do, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {doing}: {why}")]
pub struct StoreError {
    /// What was being done.
    pub doing: String,
    /// What the store or the connection to it reported.
    pub why: String,
    /// Whether the store did not answer at all.
    pub unanswered: bool,
}

impl StoreError {
    pub(super) fn new(doing: impl Into<String>, why: impl ToString) -> Self {
        Self { doing: doing.into(), why: why.to_string(), unanswered: false }
    }
}

/// A connection to a store. Calls block until the store has answered, for some seconds at most.
pub trait Store: Send {
    /// Publishes a node's record and renews its lease. With `rewrite`, the store may have lost the record.
    ///
    /// # Errors
    /// If the store cannot be reached or refuses.
    fn publish(&mut self, node: &Record, rewrite: bool) -> Result<(), StoreError>;

    /// Returns the blocks that a foreign controller assigns to a node. The node claims no other blocks of their families.
    ///
    /// # Errors
    /// If the store cannot be reached: then the blocks are unknown.
    fn assigned(&mut self, _node: &str) -> Result<Vec<IpNet>, StoreError> {
        Ok(Vec::new())
    }

    /// Claims a free block for a node. Returns whether the node owns the block now.
    ///
    /// # Errors
    /// If the store cannot be reached: then the owner is unknown.
    fn claim(&mut self, block: IpNet, node: &str) -> Result<bool, StoreError>;

    /// Transfers a block from one node to another, if the first still owns it. Returns whether it was transferred.
    ///
    /// # Errors
    /// If the store cannot be reached: then the owner is unknown.
    fn take(&mut self, block: IpNet, from: &str, node: &str) -> Result<bool, StoreError>;

    /// Releases a node's block. A block of another owner, or of none, stays as it is.
    ///
    /// # Errors
    /// If the store cannot be reached.
    fn release(&mut self, block: IpNet, node: &str) -> Result<(), StoreError>;

    /// Removes a node's record.
    ///
    /// # Errors
    /// If the store cannot be reached.
    fn withdraw(&mut self, node: &str) -> Result<(), StoreError>;
}
