//! The calls to the store that are under way.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::store::{Answer, Command, StoreError, Worker};

/// How long no further calls are made after one has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a block counts as taken that the store has refused, until the store reports its owner.
const REFUSED: Duration = Duration::from_secs(10);
/// The period of the limits on claims.
const PERIOD: Duration = Duration::from_mins(1);
/// The number of blocks that may be claimed in a period, whatever their size.
const MAX_BLOCKS: usize = 32;
/// The number of addresses that may be claimed in a period in any number of blocks.
const MAX_ADDRESSES: u64 = 1024;

/// The calls to the store that are under way, and the limits on further ones.
#[derive(Debug)]
pub(super) struct Requests {
    worker: Worker,
    pending: Vec<Command>,
    failed: Option<(Instant, StoreError)>,
    refused: BTreeMap<IpNet, Instant>,
    claimed: VecDeque<(Instant, IpNet)>,
}

impl Requests {
    pub(super) fn new(worker: Worker) -> Self {
        Self { worker, pending: Vec::new(), failed: None, refused: BTreeMap::new(), claimed: VecDeque::new() }
    }

    /// Makes a call unless it is in progress, or another one has just failed.
    pub(super) fn send(&mut self, command: Command) -> Result<(), StoreError> {
        if let Some((at, error)) = &self.failed
            && at.elapsed() < PAUSE
        {
            return Err(error.clone());
        }
        if !self.pending.contains(&command) {
            self.pending.push(command.clone());
            self.worker.send(command);
        }
        Ok(())
    }

    /// Publishes a record: unlike other calls, not delayed by the failure of another.
    pub(super) fn publish(&mut self, command: Command) {
        self.pending.push(command.clone());
        self.worker.send(command);
    }

    /// Removes an answered call from those under way.
    pub(super) fn answered(&mut self, answer: &Answer) {
        self.pending.retain(|pending| *pending != answer.command);
        if let Err(error) = &answer.outcome
            && !matches!(answer.command, Command::Publish { .. })
        {
            self.failed = Some((Instant::now(), error.clone()));
        }
    }

    /// Returns whether a record is being published.
    pub(super) fn is_publishing(&self) -> bool {
        self.pending.iter().any(|command| matches!(command, Command::Publish { .. }))
    }

    /// Returns whether the store has been asked for the assigned blocks, and has not failed before.
    pub(super) fn is_assigning(&self) -> bool {
        self.failed.is_none() && self.pending.contains(&Command::Assigned)
    }

    /// Returns whether a call about a block is under way.
    pub(super) fn is_pending(&self, block: IpNet) -> bool {
        self.pending.iter().any(|command| command.block() == Some(block))
    }

    /// Returns whether a call that may give this node a block is under way.
    pub(super) fn is_gaining(&self) -> bool {
        self.gains().next().is_some()
    }

    /// Returns the blocks that this node may gain by calls under way.
    pub(super) fn gains(&self) -> impl Iterator<Item = IpNet> {
        self.pending.iter().filter_map(|command| match command {
            Command::Claim(block) | Command::Take { block, .. } => Some(*block),
            _ => None,
        })
    }

    /// Remembers that the store has refused a block.
    pub(super) fn refuse(&mut self, block: IpNet) {
        self.refused.insert(block, Instant::now());
    }

    /// Returns the blocks that the store has refused a short time ago.
    pub(super) fn refused(&mut self) -> impl Iterator<Item = IpNet> {
        self.refused.retain(|_, at| at.elapsed() < REFUSED);
        self.refused.keys().copied()
    }

    /// Returns whether the limits allow to claim another block, and counts it if they do.
    pub(super) fn may_claim(&mut self, block: IpNet) -> bool {
        while self.claimed.front().is_some_and(|(at, _)| at.elapsed() >= PERIOD) {
            self.claimed.pop_front();
        }
        let size = |block: IpNet| 1_u64 << (block.max_prefix_len() - block.prefix_len()).min(32);
        let addresses = self.claimed.iter().map(|(_, block)| size(*block)).fold(0, u64::saturating_add);
        if self.claimed.len() >= MAX_BLOCKS && addresses >= MAX_ADDRESSES {
            return false;
        }
        self.claimed.push_back((Instant::now(), block));
        true
    }
}
