//! Which addresses are this node's to give: blocks are claimed before they are needed, rest when they are not, are given back;
//! and of those on the hosts' segment, whether somebody else has one of their addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use kernel::neigh;

use super::{BLOCKS, Daemon, Event};
use crate::{
    blocks::{self, Pieces},
    config::Network,
    conflist,
    desired::{Attach, Uplinks},
    file,
    record::Record,
    status,
    view::lease,
};

/// Who answers for addresses of a block.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// When that was last asked; none until it was answered once.
    at: Option<Instant>,
    /// Somebody is asking.
    asking: bool,
    /// The addresses that somebody else has.
    others: BTreeSet<IpAddr>,
}

/// How long an answer is waited for: on one segment it takes a thousandth of that.
const ANSWER: Duration = Duration::from_secs(1);
/// How long an answer counts for what no pod has.
const COUNTS: Duration = Duration::from_mins(5);
/// How long a block rests that somebody else is short of: a pod that is just starting has its address by then.
const HURRY: Duration = Duration::from_secs(3);
/// So long after somebody looked for an address others are taken to be needed.
const SOUGHT: Duration = Duration::from_secs(3);
/// So many blocks are claimed at a time.
const AT_ONCE: usize = 16;

impl Daemon {
    /// Sees to it that this node has blocks of each network and family, and another before they are full. Gives what is in
    /// the way.
    pub(super) fn own_blocks(&mut self, log: &mut dyn FnMut(&str)) -> Vec<String> {
        let mut problems = Vec::new();
        let before = self.own.blocks.clone();
        if self.view.live {
            self.view.look_for_strangers();
            self.take_what_was_mine(log);
            let mine = self.view.blocks.iter().filter(|(_, owner)| **owner == self.own.name);
            self.own.blocks.extend(mine.map(|(block, _)| *block));
            let (name, blocks) = (&self.own.name, &self.view.blocks);
            self.own.blocks.retain(|block| match blocks.get(block) {
                Some(owner) if owner != name => {
                    problems.push(format!("block {block} was this node's, and is {owner}'s now: pods that have addresses of it are not reached"));
                    false
                }
                _ => true,
            });
            match self.assigned.clone().map_or_else(|| self.store.assigned(&self.own.name), Ok) {
                Ok(assigned) => {
                    self.own.blocks.extend(&assigned);
                    self.assigned = Some(assigned);
                }
                // Nothing is claimed that may be somebody's to assign.
                Err(error) => return vec![error.to_string()],
            }
            problems.extend(self.claim_what_is_nobodys());
        }
        let networks = self.config.networks.clone();
        self.own.blocks.retain(|block| networks.iter().any(|network| network.has(block)));
        self.own.blocks.sort();
        self.own.blocks.dedup();
        self.own.short.clear();
        for network in &networks {
            for v4 in network.families() {
                if let Err(problem) = self.provide(network, v4, log) {
                    problems.push(problem);
                }
            }
        }
        self.own.blocks.sort();
        self.asked.retain(|block, _| self.own.blocks.contains(block));
        if self.own.blocks != before {
            let text = serde_json::to_vec(&self.own.blocks).unwrap_or_default();
            if let Err(error) = file::write(&self.config.state_dir.join(BLOCKS), &text, 0o600) {
                problems.push(format!("cannot remember this node's blocks: {error}"));
            }
        }
        problems
    }

    /// What this node remembers as its own and the store does not: it is claimed again, or somebody else's.
    fn claim_what_is_nobodys(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        let assigned = self.assigned.clone().unwrap_or_default();
        let is_unknown = |block: &IpNet| !self.view.blocks.contains_key(block) && !assigned.contains(block);
        let unknown: Vec<IpNet> = self.own.blocks.iter().copied().filter(is_unknown).collect();
        for block in unknown {
            match self.store.claim(block, &self.own.name) {
                Ok(true) => drop(self.view.blocks.insert(block, self.own.name.clone())),
                Ok(false) => {
                    self.own.blocks.retain(|own| *own != block);
                    problems.push(format!("block {block} was this node's, and is another's now"));
                }
                // Who has it is not known: nobody else as long as the store is not heard of.
                Err(_) => {}
            }
        }
        problems
    }

    /// Sees to one family of a network.
    fn provide(&mut self, network: &Network, v4: bool, log: &mut dyn FnMut(&str)) -> Result<(), String> {
        let of = |block: &IpNet| network.has(block) && block.addr().is_ipv4() == v4;
        if self.assigned.iter().flatten().any(of) {
            return Ok(());
        }
        let others_are_short =
            self.view.nodes.values().any(|node| {
                node.name != self.own.name && node.short.contains(&network.name) && self.view.live
            });
        let (used, mut size) = self.rest(network, v4, others_are_short, log);
        let sought = self.sought.get(&network.name).is_some_and(|at| at.elapsed() < SOUGHT);
        for _ in 0..AT_ONCE {
            let full = u128::from(used) * 100 >= u128::from(size) * u128::from(blocks::FULL);
            let little = !network.mode.routes() && size.saturating_sub(used) < blocks::SPARE;
            // While others have none left nobody takes any in advance, but for the first.
            let needed = if others_are_short && size > 0 { used >= size && sought } else { full || little };
            if !needed {
                return Ok(());
            }
            // What rested is needed again before another is claimed.
            let rested = self.resting.keys().copied().find(of);
            if let Some(block) = rested {
                self.resting.remove(&block);
                size += blocks::count(&self.pieces(network, block));
                continue;
            }
            match self.claim(network, v4, log) {
                Ok(block) => size += blocks::count(&self.pieces(network, block)),
                // With addresses left it is no reason not to be ready.
                Err(problem) if used < size => {
                    log(&problem);
                    return Ok(());
                }
                Err(problem) => {
                    if sought || size == 0 {
                        self.own.short.insert(network.name.clone());
                    }
                    return if size == 0 { Err(problem) } else { Ok(()) };
                }
            }
        }
        Ok(())
    }

    /// Has blocks rest that are empty while the others are not half full, or that others are short of, and gives back those that
    /// have rested for long enough. Gives how many addresses of the others are in use, and how many there are.
    fn rest(
        &mut self,
        network: &Network,
        v4: bool,
        others_are_short: bool,
        log: &mut dyn FnMut(&str),
    ) -> (u64, u64) {
        let own: Vec<IpNet> = self
            .own
            .blocks
            .iter()
            .copied()
            .filter(|block| network.has(block) && block.addr().is_ipv4() == v4)
            .collect();
        let used = conflist::used(&self.config, network, &own).unwrap_or_default();
        let mut filled: Vec<(IpNet, u64, u64)> = own
            .into_iter()
            .zip(used)
            .map(|(block, used)| (block, used, blocks::count(&self.pieces(network, block))))
            .collect();
        // A pod that was being started when its block began to rest keeps it awake.
        self.resting.retain(|block, _| filled.iter().all(|(other, used, _)| other != block || *used == 0));
        for (block, ..) in filled.iter().filter(|(_, used, _)| *used == 0) {
            let (used, size) = awake(&filled, &self.resting, Some(*block));
            // On a shared segment some are held in advance.
            let enough = network.mode.routes() || size - used.min(size) >= blocks::SPARE;
            if size > 0 && (others_are_short || (enough && used.saturating_mul(2) < size)) {
                self.resting.entry(*block).or_insert_with(Instant::now);
            }
        }
        let long = if others_are_short { HURRY } else { lease(&self.config) };
        let rested: Vec<IpNet> = filled
            .iter()
            .map(|(block, ..)| *block)
            .filter(|block| self.resting.get(block).is_some_and(|since| since.elapsed() >= long))
            .collect();
        for block in rested {
            match self.store.release(block, &self.own.name) {
                Ok(()) => {
                    log(&format!("block {block} is given back"));
                    self.resting.remove(&block);
                    self.own.blocks.retain(|own| *own != block);
                    self.view.blocks.remove(&block);
                }
                Err(error) => log(&error.to_string()),
            }
        }
        filled.retain(|(block, ..)| self.own.blocks.contains(block));
        awake(&filled, &self.resting, None)
    }

    /// Claims another block.
    fn claim(&mut self, network: &Network, v4: bool, log: &mut dyn FnMut(&str)) -> Result<IpNet, String> {
        let name = &network.name;
        if !self.view.live {
            return Err(format!("a block of network {name} is needed, and the store is not heard of"));
        }
        let length = network.block_length(v4);
        let mut taken: BTreeSet<IpNet> = self.view.blocks.keys().copied().collect();
        taken.extend(self.view.nodes.values().flat_map(|node| node.blocks.iter().copied()));
        taken.extend(&self.own.blocks);
        for prefix in network.prefixes(v4) {
            while let Some(block) = blocks::next(prefix, length, &self.own.name, &taken) {
                match self.store.claim(block, &self.own.name) {
                    Ok(true) => {
                        log(&format!("block {block} is this node's"));
                        self.own.blocks.push(block);
                        self.view.blocks.insert(block, self.own.name.clone());
                        return Ok(block);
                    }
                    // Another was faster.
                    Ok(false) => drop(taken.insert(block)),
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        if let Some(block) = self.take_what_is_left(network, v4, log)? {
            return Ok(block);
        }
        let prefixes: Vec<String> = network.prefixes(v4).map(|prefix| prefix.to_string()).collect();
        Err(format!(
            "no block of {} is free: all of length {length} belong to other nodes",
            prefixes.join(", ")
        ))
    }

    /// Takes a block of a node that is gone for good: its lease has ended long ago, and its daemon, which may only be cut off from
    /// the store, does not answer where it was.
    fn take_what_is_left(
        &mut self,
        network: &Network,
        v4: bool,
        log: &mut dyn FnMut(&str),
    ) -> Result<Option<IpNet>, String> {
        let answers = |name: &str| self.probes.seen(name).is_some_and(|seen| seen.answered);
        let left: Vec<(IpNet, String)> = self
            .view
            .blocks
            .iter()
            .filter(|(block, owner)| {
                network.has(block)
                    && block.addr().is_ipv4() == v4
                    && self.view.is_gone_for_good(owner, &self.config)
                    && !answers(owner)
            })
            .map(|(block, owner)| (*block, owner.clone()))
            .collect();
        for (block, owner) in left {
            let taken = self.store.take(block, &owner, &self.own.name);
            if taken.map_err(|error| error.to_string())? {
                log(&format!("block {block} is this node's: node {owner}, whose it was, is gone"));
                self.own.blocks.push(block);
                self.view.blocks.insert(block, self.own.name.clone());
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Takes the blocks that are this node's by the name that it had before, and takes that name out of the cluster.
    fn take_what_was_mine(&mut self, log: &mut dyn FnMut(&str)) {
        let is_own = |node: &&Record| node.name != self.own.name && node.incarnation == self.own.incarnation;
        let Some(former) = self.view.nodes.values().find(is_own).map(|node| node.name.clone()) else {
            return;
        };
        let blocks: Vec<IpNet> =
            self.view.blocks.iter().filter(|(_, owner)| **owner == former).map(|(block, _)| *block).collect();
        for block in blocks {
            match self.store.take(block, &former, &self.own.name) {
                Ok(true) => drop(self.view.blocks.insert(block, self.own.name.clone())),
                Ok(false) => {}
                Err(error) => return log(&error.to_string()),
            }
        }
        match self.store.withdraw(&former) {
            Ok(()) => {
                self.view.nodes.remove(&former);
                log(&format!("this node was called {former:?}; its blocks are its own by its new name"));
            }
            Err(error) => log(&error.to_string()),
        }
    }

    /// Returns what pods can have of a block.
    fn pieces(&self, network: &Network, block: IpNet) -> Pieces {
        if network.mode.routes() {
            return blocks::pieces(block, None);
        }
        let attach = self.last.iter().flat_map(|last| last.attach.iter().flatten());
        let segment =
            attach.filter(|attach| attach.network == network.name).find_map(|it| it.segment.as_ref());
        let mut reserved = segment.map(|segment| segment.reserved.clone()).unwrap_or_default();
        reserved.extend(self.asked.get(&block).into_iter().flat_map(|asked| &asked.others));
        blocks::pieces(block, Some(&reserved))
    }

    /// Returns the blocks that a network's pods are given addresses of now: those that do not rest, and of the hosts' segment
    /// those that nobody else answers for.
    pub(super) fn offered(&self, network: &Network, attach: &Attach) -> BTreeMap<IpNet, Pieces> {
        let is_known = |block: &IpNet| self.asked.get(block).is_some_and(|asked| asked.at.is_some());
        self.own
            .blocks
            .iter()
            .copied()
            .filter(|block| network.has(block) && !self.resting.contains_key(block))
            .filter(|block| attach.segment.is_none() || is_known(block))
            .map(|block| (block, self.pieces(network, block)))
            .filter(|(_, pieces)| !pieces.is_empty())
            .collect()
    }

    /// Tells how full this node's blocks of a network are.
    pub(super) fn filled(&self, network: &Network) -> Vec<status::Block> {
        let own: Vec<IpNet> = self.own.blocks.iter().copied().filter(|block| network.has(block)).collect();
        let used = conflist::used(&self.config, network, &own).unwrap_or_default();
        let size = |block: IpNet| blocks::count(&self.pieces(network, block));
        own.iter()
            .zip(used)
            .map(|(block, used)| status::Block { prefix: *block, used, size: size(*block) })
            .collect()
    }

    /// Has it found out whether somebody else has addresses of this node's blocks of the hosts' segment, where that is not
    /// known or was long ago.
    pub(super) fn ask_for_others(&mut self, uplinks: &Uplinks) {
        for network in self.config.networks.iter().filter(|network| !network.mode.routes()) {
            let in_use = conflist::reserved(&self.config, &network.name).unwrap_or_default();
            for block in self.own.blocks.iter().copied().filter(|block| network.has(block)) {
                let asked = self.asked.entry(block).or_default();
                if asked.asking || asked.at.is_some_and(|at| at.elapsed() < COUNTS) {
                    continue;
                }
                let Some(uplink) = uplinks.of(block.addr().is_ipv4()) else { continue };
                asked.asking = true;
                let mut ips: BTreeSet<IpAddr> = blocks::addresses(block).collect();
                // What pods have is theirs, and what the host or its router has is not given anyway.
                in_use.iter().chain([&uplink.address]).chain(&uplink.gateway).for_each(|ip| {
                    ips.remove(ip);
                });
                let (link, sender) = (uplink.link, self.sender.clone());
                std::thread::spawn(move || {
                    drop(sender.send(Event::Asked(block, neigh::who_has(link, &ips, ANSWER))));
                });
            }
        }
    }

    /// Takes to heart who answered.
    pub(super) fn answered(
        &mut self,
        block: IpNet,
        answer: kernel::Result<BTreeSet<IpAddr>>,
        log: &mut dyn FnMut(&str),
    ) {
        let Some(asked) = self.asked.get_mut(&block) else { return };
        asked.asking = false;
        match answer {
            Ok(others) => {
                for ip in others.difference(&asked.others) {
                    log(&format!("{ip} of block {block} is somebody's already: no pod gets it"));
                }
                asked.others = others;
                asked.at = Some(Instant::now());
            }
            Err(error) => log(&error.to_string()),
        }
    }
}

/// Sums up how many addresses are in use and how many there are of blocks that do not rest.
fn awake(
    filled: &[(IpNet, u64, u64)],
    resting: &BTreeMap<IpNet, Instant>,
    without: Option<IpNet>,
) -> (u64, u64) {
    filled
        .iter()
        .filter(|(block, ..)| !resting.contains_key(block) && Some(*block) != without)
        .fold((0, 0_u64), |(used, size), (_, more, larger)| (used + more, size.saturating_add(*larger)))
}
