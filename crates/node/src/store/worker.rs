//! A thread that runs a store's calls, so that the reconcile loop never waits for one.

use std::sync::mpsc::{Receiver, Sender, channel};

use ipnet::IpNet;

use super::api::{Store, StoreError};
use crate::record::Record;

/// A call to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// [`Store::publish`].
    Publish {
        /// The node's record.
        record: Box<Record>,
        /// Whether the store may have lost it.
        rewrite: bool,
    },
    /// [`Store::assigned`].
    Assigned,
    /// [`Store::claim`].
    Claim(IpNet),
    /// [`Store::take`].
    Take {
        /// The block.
        block: IpNet,
        /// The block's owner.
        from: String,
    },
    /// [`Store::release`].
    Release(IpNet),
    /// [`Store::withdraw`] of the node with this name.
    Withdraw(String),
}

impl Command {
    /// Returns the block that the call is about.
    pub fn block(&self) -> Option<IpNet> {
        match self {
            Self::Claim(block) | Self::Take { block, .. } | Self::Release(block) => Some(*block),
            Self::Publish { .. } | Self::Assigned | Self::Withdraw(_) => None,
        }
    }
}

/// The result of a call that the store has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The call has succeeded.
    Done,
    /// Whether this node owns the block now.
    Owned(bool),
    /// The assigned blocks.
    Assigned(Vec<IpNet>),
}

/// A call and its result.
#[derive(Debug)]
pub struct Answer {
    /// The call.
    pub command: Command,
    /// The result.
    pub outcome: Result<Outcome, StoreError>,
}

/// The thread that owns a store. It ends with the value, after the call that it is in.
#[derive(Debug)]
pub struct Worker {
    commands: Sender<Command>,
}

impl Worker {
    /// Starts the thread. It calls `on_answer` once for each command, in order, until that returns false.
    pub fn start(
        mut store: Box<dyn Store>,
        node: String,
        on_answer: impl Fn(Answer) -> bool + Send + 'static,
    ) -> Self {
        let (commands, receiver) = channel();
        std::thread::spawn(move || run(store.as_mut(), &node, &receiver, &on_answer));
        Self { commands }
    }

    /// Queues a call. Returns at once.
    pub fn send(&self, command: Command) {
        // The thread ends only with the daemon.
        drop(self.commands.send(command));
    }
}

fn run(store: &mut dyn Store, node: &str, commands: &Receiver<Command>, on_answer: &impl Fn(Answer) -> bool) {
    while let Ok(command) = commands.recv() {
        let outcome = call(store, node, &command);
        let unanswered = outcome.as_ref().err().filter(|error| error.unanswered).cloned();
        if !on_answer(Answer { command, outcome }) {
            return;
        }
        // A stalled store would let each queued call time out in turn: they fail at once instead, and the caller sends them again.
        if let Some(error) = unanswered {
            for command in commands.try_iter() {
                if !on_answer(Answer { command, outcome: Err(error.clone()) }) {
                    return;
                }
            }
        }
    }
}

fn call(store: &mut dyn Store, node: &str, command: &Command) -> Result<Outcome, StoreError> {
    match command {
        Command::Publish { record, rewrite } => store.publish(record, *rewrite).map(|()| Outcome::Done),
        Command::Assigned => store.assigned(node).map(Outcome::Assigned),
        Command::Claim(block) => store.claim(*block, node).map(Outcome::Owned),
        Command::Take { block, from } => store.take(*block, from, node).map(Outcome::Owned),
        Command::Release(block) => store.release(*block, node).map(|()| Outcome::Done),
        Command::Withdraw(name) => store.withdraw(name).map(|()| Outcome::Done),
    }
}
