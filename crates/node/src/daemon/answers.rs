//! Publishes this node's record, and applies the store's answers.

use std::{
    collections::btree_map::Entry,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tracing::{info, warn};

use super::state::Daemon;
use crate::{
    record::Record,
    store::{Answer, Command, Outcome},
};

/// How long a daemon that starts waits for the store to report its record.
const ANNOUNCE: Duration = Duration::from_secs(3);
/// The pause before a record that the store did not accept is published again.
const REPUBLISH: Duration = Duration::from_secs(10);

impl Daemon {
    /// Returns a problem if another host has this node's name or its identity.
    pub(super) fn identity_conflict(&mut self) -> Option<String> {
        let state = self.config.state_dir.display();
        let reset =
            format!("if one host is a copy of the other, remove {state} on it and restart its daemon");
        if let Some(clone) = self.same_identity().filter(|node| !self.shares_address(node)) {
            return Some(format!(
                "node `{}` at {} has the identity of this node, `{}`: {reset}",
                clone.name,
                addresses(clone),
                self.own.name
            ));
        }
        if let Some(problem) = self.orphaned_block() {
            return Some(problem);
        }
        let other = self.view.nodes.get(&self.own.name)?;
        if other.instance == self.own.instance {
            self.echoed = true;
            return None;
        }
        if other.addresses == self.own.addresses {
            return None;
        }
        let place = addresses(other);
        if other.incarnation != self.own.incarnation {
            return Some(format!(
                "another node is called `{}`, at {place}: set `node` to another name on one of them, or wait until the other is gone",
                self.own.name,
            ));
        }
        // Before this daemon's first record, the store holds that of its previous run, or of a living copy: that renews its lease, or
        // answers at addresses which are not this host's.
        let name = &self.own.name;
        if !self.echoed && self.shares_address(other) {
            return None;
        }
        if !self.echoed && !self.view.is_alive(name) {
            let unknown =
                format!("this node, `{name}`, had other addresses: asking whether a host answers at {place}");
            let former = other.addresses.clone();
            match self.answers_elsewhere(&former) {
                Some(true) => {}
                Some(false) => return None,
                None => return Some(unknown),
            }
        }
        Some(format!(
            "another host at {place} has the name and the identity of this node, `{}`: {reset}; if this host has moved and another one \
             has its former address now, delete the node's record",
            self.own.name
        ))
    }

    /// Returns a problem if a daemon that starts remembers a block that belongs to a node without a record. This host may be a copy of that
    /// node, whose record another program has deleted: a living node publishes it again within a lease.
    fn orphaned_block(&self) -> Option<String> {
        let is_starting = self.published.is_none() && self.started.elapsed() < self.config.lease;
        let owner = |block: &IpNet| Some((*block, self.view.blocks.get(block)?));
        let is_orphan =
            |(_, owner): &(_, &String)| **owner != self.own.name && !self.view.nodes.contains_key(*owner);
        let (block, owner) =
            self.remembered.iter().filter_map(owner).find(|it| is_starting && is_orphan(it))?;
        Some(format!(
            "block {block}, which this node had, belongs to `{owner}`, which has no record: this host may be a copy of it; waiting for {} s",
            self.config.lease.as_secs()
        ))
    }

    /// Returns the record with this node's identity and another name: its former one, or that of a copy of this host.
    pub(super) fn same_identity(&self) -> Option<&Record> {
        let is_same = |node: &&Record| node.name != self.own.name && node.incarnation == self.own.incarnation;
        self.view.nodes.values().find(is_same)
    }

    fn shares_address(&self, node: &Record) -> bool {
        node.addresses.iter().any(|ip| self.own.addresses.contains(ip))
    }

    /// Returns whether the record in the store was this node's, and another program has changed it.
    pub(super) fn is_falsified(&self) -> bool {
        let is_changed = |record: &Record| record.instance == self.own.instance && *record != self.own;
        self.published.is_some()
            && (self.view.refused.contains_key(&self.own.name)
                || self.view.nodes.get(&self.own.name).is_some_and(is_changed))
    }

    /// Returns whether the other nodes must hear of a change of this node's paths before it is made. A node and its peers then change
    /// their paths to each other at the same time, when the store reports the record: under a strict reverse-path filter, a packet
    /// that arrives over another path than its reply would take is lost.
    pub(super) fn announces_first(&self) -> bool {
        let changes = |known: &Record| {
            known.incarnation == self.own.incarnation
                && (known.tunnel, &known.overlay) != (self.own.tunnel, &self.own.overlay)
        };
        self.view.live
            && self.view.lost.is_none()
            && self.started.elapsed() < ANNOUNCE
            && self.view.nodes.get(&self.own.name).is_some_and(changes)
    }

    /// Returns whether the store has this node's record as it was published, and its lease, and no more is published for flannel. Every
    /// record that is published again is sent to all nodes.
    pub(super) fn is_as_published(&self) -> bool {
        let name = &self.own.name;
        // A record that the store has lost, or that was damaged there, stays in the view.
        let is_there = !self.view.missing.contains_key(name) && !self.view.refused.contains_key(name);
        let own = self.view.nodes.get(name).filter(|_| is_there);
        self.published.as_ref().is_some_and(|(_, record)| own == Some(record))
            && self.view.is_alive(&self.own.name)
            && self.config.flannel.is_none()
    }

    /// Publishes this node's record if it has changed or its lease is due; returns a problem if it never was published.
    pub(super) fn publish(&mut self) -> Option<String> {
        let due = self.config.lease / 3;
        if let Some((at, record)) = &self.published
            && *record == self.own
            && at.elapsed() < due
            && !self.rewrite
        {
            return None;
        }
        // A node that was published once stays ready, also over a restart: no working path depends on the store.
        let optional = self.published.is_some() || !self.view.live;
        let problem = |why: &str| Some(why.to_owned()).filter(|_| !optional);
        if self.requests.is_publishing() {
            return problem("waiting for the store to accept this node's record");
        }
        if let Some((at, why)) = &self.unpublished
            && at.elapsed() < REPUBLISH.min(due)
        {
            return problem(why);
        }
        // The first record is published with the node's blocks, so that peers learn of both at once.
        if self.published.is_none()
            && self.view.live
            && (self.assigned.is_none() || self.requests.is_gaining())
        {
            return problem("waiting for the store to give this node its blocks");
        }
        let rewrite = std::mem::take(&mut self.rewrite);
        self.requests.publish(Command::Publish { record: Box::new(self.own.clone()), rewrite });
        problem("waiting for the store to accept this node's record")
    }

    /// Applies the store's answer to a call.
    pub(super) fn answered(&mut self, answer: Answer) {
        self.requests.answered(&answer);
        let Answer { command, outcome } = answer;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                if let Command::Publish { rewrite, .. } = command {
                    self.rewrite |= rewrite;
                    self.unpublished = Some((Instant::now(), error.to_string()));
                }
                // That the store cannot be reached has been logged.
                if self.view.lost.is_none() {
                    warn!("{error}");
                }
                return;
            }
        };
        match (command, outcome) {
            (Command::Publish { record, .. }, _) => {
                self.published = Some((Instant::now(), *record));
                self.unpublished = None;
            }
            (_, Outcome::Assigned(blocks)) => self.assigned = Some(blocks),
            (Command::Claim(block), Outcome::Owned(true)) => {
                info!("block {block} is this node's");
                self.gain(block);
            }
            (Command::Take { block, from }, Outcome::Owned(true)) => {
                info!("block {block} is this node's; it belonged to {from}");
                self.gain(block);
            }
            (Command::Claim(block) | Command::Take { block, .. }, _) => {
                self.requests.refuse(block);
                if self.own.blocks.contains(&block) {
                    self.lose(block, "another node");
                }
            }
            (Command::Release(block), _) => {
                info!("block {block} is released");
                self.resting.remove(&block);
                self.own.blocks.retain(|own| *own != block);
                self.view.set_owner(block, None);
            }
            (Command::Withdraw(name), _) => {
                info!("this node was called `{name}`; its blocks now belong to its new name");
                self.view.forget(&name);
            }
            (Command::Assigned, _) => {}
        }
    }

    fn gain(&mut self, block: IpNet) {
        if !self.own.blocks.contains(&block) {
            self.own.blocks.push(block);
        }
        self.view.set_owner(block, Some(self.own.name.clone()));
    }

    /// Gives up a block that belongs to another node.
    pub(super) fn lose(&mut self, block: IpNet, owner: &str) {
        self.own.blocks.retain(|own| *own != block);
        match self.lost.entry(block) {
            Entry::Vacant(entry) => drop(entry.insert((owner.to_owned(), Instant::now()))),
            Entry::Occupied(mut entry) => owner.clone_into(&mut entry.get_mut().0),
        }
    }
}

fn addresses(node: &Record) -> String {
    node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
