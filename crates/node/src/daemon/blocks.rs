//! This node's blocks: claimed before they are needed, rested when they are not, then released.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tracing::warn;

use super::{memory, state::Daemon};
use crate::{
    blocks::{self, Owners, Pieces},
    config::Network,
    conflist, status,
    store::Command,
    takeover,
};

/// How long a block rests if another node needs it: by then, a pod that is starting has its address.
const SHORT_REST: Duration = Duration::from_secs(3);
/// How long after a plugin reserved or released an address more are expected to be needed.
const SOUGHT: Duration = Duration::from_secs(3);
/// The number of blocks of one network and family that are claimed at the same time.
const AT_ONCE: usize = 16;
/// How long the loss of a block keeps the node from being ready. After that it is a note, as long as pods use the block.
const LOSS: Duration = Duration::from_secs(5);

/// A block with its number of used addresses and of all addresses that pods can use.
type Filled = (IpNet, u64, u64);

impl Daemon {
    /// Keeps enough blocks for each network and family. Returns what keeps the networks from being ready.
    pub(super) fn manage_blocks(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.view.live {
            self.view.track_absent_owners();
            self.adopt_former_name();
            self.follow_store();
            if let Err(problem) = self.follow_assignment() {
                return vec![problem];
            }
            self.reclaim_unknown();
        }
        let networks = self.config.networks.clone();
        self.own.blocks.retain(|block| networks.iter().any(|network| network.has(block)));
        self.own.blocks.sort();
        self.own.blocks.dedup();
        self.own.short.clear();
        for network in &networks {
            for v4 in network.families() {
                if let Err(problem) = self.provide(network, v4) {
                    problems.push(problem);
                }
            }
        }
        self.own.blocks.sort();
        self.probed.retain(|block, _| self.own.blocks.contains(block));
        problems.extend(self.lost.iter().filter(|(_, (_, at))| at.elapsed() < LOSS).map(lost_problem));
        if self.own.blocks != self.remembered {
            match memory::set_blocks(&self.config.state_dir, &self.own.blocks) {
                Ok(()) => self.remembered.clone_from(&self.own.blocks),
                Err(error) => problems.push(format!("cannot write this node's blocks: {error}")),
            }
        }
        problems
    }

    /// Adopts the blocks that the store has for this node, and gives up those that it has for others.
    fn follow_store(&mut self) {
        let name = &self.own.name;
        let mine = self.view.blocks.iter().filter(|(block, owner)| {
            **owner == *name && !self.own.blocks.contains(block) && !self.requests.is_pending(**block)
        });
        let mine: Vec<IpNet> = mine.map(|(block, _)| *block).collect();
        self.own.blocks.extend(mine);
        let theirs = self.own.blocks.iter().filter_map(|block| {
            let owner = self.view.blocks.get(block).filter(|owner| *owner != name)?;
            Some((*block, owner.clone()))
        });
        for (block, owner) in theirs.collect::<Vec<_>>() {
            self.lose(block, &owner);
        }
        let own = &self.own.blocks;
        self.lost.retain(|block, _| !own.contains(block));
    }

    /// Adopts the blocks that a foreign controller assigns. Until those are known, nothing is claimed.
    fn follow_assignment(&mut self) -> Result<(), String> {
        if let Some(assigned) = &self.assigned {
            self.own.blocks.extend(assigned);
            return Ok(());
        }
        self.requests.send(Command::Assigned).map_err(|error| error.to_string())?;
        Err("waiting for the store to return the blocks that are assigned to this node".into())
    }

    /// Claims blocks that this node remembers as its own, but for which the store has no owner.
    fn reclaim_unknown(&mut self) {
        let assigned = self.assigned.clone().unwrap_or_default();
        let is_unknown = |block: &IpNet| {
            !self.view.blocks.contains_key(block)
                && !assigned.contains(block)
                && !self.requests.is_pending(*block)
        };
        let unknown: Vec<IpNet> = self.own.blocks.iter().copied().filter(is_unknown).collect();
        for block in unknown {
            // While the store does not answer, no other node can claim the block either.
            drop(self.requests.send(Command::Claim(block)));
        }
    }

    /// Keeps enough blocks for one family of a network.
    fn provide(&mut self, network: &Network, v4: bool) -> Result<(), String> {
        let of = |block: &IpNet| network.has(block) && block.addr().is_ipv4() == v4;
        if self.assigned.iter().flatten().any(of) {
            return Ok(());
        }
        let others_are_short = self.view.nodes.values().any(|node| {
            node.name != self.own.name
                && node.short.contains(&network.name)
                && !self.view.silent.contains_key(&node.name)
                && self.view.live
        });
        let (used, size) = self.rest(network, v4, others_are_short)?;
        let sought = self.sought.get(&network.name).is_some_and(|at| at.elapsed() < SOUGHT);
        // Blocks that are being claimed count as this node's, so that they are claimed once.
        let claiming: Vec<IpNet> =
            self.requests.gains().filter(|block| of(block) && !self.own.blocks.contains(block)).collect();
        let mut expected = claiming
            .iter()
            .fold(size, |sum, block| sum.saturating_add(blocks::count(&self.pieces(network, *block))));
        for _ in claiming.len()..AT_ONCE {
            let full = u128::from(used) * 100 >= u128::from(expected) * u128::from(blocks::FULL);
            let little = !network.mode.routes() && expected.saturating_sub(used) < blocks::SPARE;
            // While other nodes have no address left, no node takes any in advance, except for its first block.
            let needed =
                if others_are_short && expected > 0 { used >= expected && sought } else { full || little };
            if !needed {
                break;
            }
            // A resting block is used again before another is claimed.
            let rested =
                self.resting.keys().copied().find(|block| of(block) && !self.requests.is_pending(*block));
            if let Some(block) = rested {
                self.resting.remove(&block);
                expected = expected.saturating_add(blocks::count(&self.pieces(network, block)));
                continue;
            }
            match self.claim(network, v4) {
                Ok(block) => {
                    expected = expected.saturating_add(blocks::count(&self.pieces(network, block)));
                }
                // A node with addresses left is ready all the same.
                Err(problem) if used < size => {
                    warn!("{problem}");
                    break;
                }
                Err(problem) => {
                    if sought || size == 0 {
                        self.own.short.insert(network.name.clone());
                    }
                    return if size == 0 { Err(problem) } else { Ok(()) };
                }
            }
        }
        let has_block = self.own.blocks.iter().any(of);
        if has_block || expected == 0 {
            return Ok(());
        }
        Err(format!("network {}: waiting for the store to confirm this node's first block", network.name))
    }

    /// Rests blocks that are empty while the others are less than half full, or that other nodes need, and releases those that
    /// have rested long enough. Returns the number of used addresses in the other blocks, and of all their addresses.
    fn rest(&mut self, network: &Network, v4: bool, others_are_short: bool) -> Result<(u64, u64), String> {
        let own = self.own.blocks.iter().copied();
        let own: Vec<IpNet> =
            own.filter(|block| network.has(block) && block.addr().is_ipv4() == v4).collect();
        let used = conflist::used(&self.config, network, &own).map_err(|error| {
            format!(
                "cannot tell how full the blocks of network {} are, so none is claimed or released: cannot read {}: {error}",
                network.name,
                self.config.data_dir.join(&network.name).display()
            )
        })?;
        let filled: Vec<Filled> = own
            .into_iter()
            .zip(used)
            .map(|(block, used)| (block, used, blocks::count(&self.pieces(network, block))))
            .collect();
        // A pod that was starting when its block began to rest keeps the block.
        let requests = &self.requests;
        self.resting.retain(|block, _| {
            requests.is_pending(*block) || filled.iter().all(|(other, used, _)| other != block || *used == 0)
        });
        for (block, ..) in filled.iter().filter(|(_, used, _)| *used == 0) {
            let (used, size) = without_resting(&filled, &self.resting, Some(*block));
            // On a shared segment, some addresses are kept in advance.
            let enough = network.mode.routes() || size - used.min(size) >= blocks::SPARE;
            if size > 0 && (others_are_short || (enough && used.saturating_mul(2) < size)) {
                self.resting.entry(*block).or_insert_with(Instant::now);
            }
        }
        let long = if others_are_short { SHORT_REST } else { self.config.lease };
        for (block, ..) in &filled {
            if self.resting.get(block).is_some_and(|since| since.elapsed() >= long)
                && let Err(error) = self.requests.send(Command::Release(*block))
            {
                warn!("{error}");
            }
        }
        Ok(without_resting(&filled, &self.resting, None))
    }

    /// Starts to claim another block, and returns it.
    fn claim(&mut self, network: &Network, v4: bool) -> Result<IpNet, String> {
        let name = &network.name;
        if !self.view.live {
            return Err(format!("network {name} needs a block, but the store cannot be reached"));
        }
        let length = network.block_length(v4);
        let of_records = self.view.nodes.values();
        let of_records =
            of_records.flat_map(|node| node.blocks.iter().map(|block| (*block, node.name.as_str())));
        let registered = self.view.blocks.iter().map(|(block, owner)| (*block, owner.as_str()));
        let refused: Vec<IpNet> = self.requests.refused().collect();
        let own = self.own.blocks.iter().copied().chain(self.requests.gains()).chain(refused);
        let own = own.map(|block| (block, self.own.name.as_str()));
        let owners: Owners<'_> = registered.chain(of_records).chain(own).collect();
        for prefix in network.prefixes(v4) {
            if let Some(block) = blocks::next(prefix, length, &self.own.name, &owners) {
                return self.request(Command::Claim(block), block);
            }
        }
        if let Some((block, from)) = self.abandoned(network, v4) {
            return self.request(Command::Take { block, from }, block);
        }
        let prefixes: Vec<String> = network.prefixes(v4).map(|prefix| prefix.to_string()).collect();
        Err(format!(
            "no block of {} is free: all of length {length} belong to other nodes",
            prefixes.join(", ")
        ))
    }

    fn request(&mut self, command: Command, block: IpNet) -> Result<IpNet, String> {
        if !self.requests.may_claim(block) {
            return Err("this node has claimed too many blocks within a minute; it continues later".into());
        }
        self.requests.send(command).map_err(|error| error.to_string())?;
        Ok(block)
    }

    /// Finds a block that may be taken over ([`takeover::may_take`]).
    fn abandoned(&self, network: &Network, v4: bool) -> Option<(IpNet, String)> {
        let mut abandoned = self.view.blocks.iter().filter(|(block, owner)| {
            network.has(block)
                && block.addr().is_ipv4() == v4
                && **owner != self.own.name
                && !self.requests.is_pending(**block)
                && self.view.silent_for(owner).is_some()
                && takeover::may_take(&self.facts(owner))
        });
        abandoned.next().map(|(block, owner)| (*block, owner.clone()))
    }

    /// Takes over the blocks of this node's former name, then removes that name from the cluster.
    fn adopt_former_name(&mut self) {
        let Some(former) = self.same_identity().map(|node| node.name.clone()) else { return };
        let blocks = self.view.blocks.iter().filter(|(_, owner)| **owner == former);
        let blocks: Vec<IpNet> = blocks.map(|(block, _)| *block).collect();
        let commands = if blocks.is_empty() {
            vec![Command::Withdraw(former)]
        } else {
            blocks.into_iter().map(|block| Command::Take { block, from: former.clone() }).collect()
        };
        for command in commands {
            if let Err(error) = self.requests.send(command) {
                return warn!("{error}");
            }
        }
    }

    /// Returns the addresses of a block that pods can use.
    pub(super) fn pieces(&self, network: &Network, block: IpNet) -> Pieces {
        if network.mode.routes() {
            return blocks::pieces(block, None);
        }
        let attach = self.last.iter().flat_map(|last| last.attach.iter().flatten());
        let segment =
            attach.filter(|attach| attach.network == network.name).find_map(|it| it.segment.as_ref());
        let mut reserved = segment.map(|segment| segment.reserved.clone()).unwrap_or_default();
        reserved.extend(self.probed.get(&block).into_iter().flat_map(|probed| &probed.others));
        blocks::pieces(block, Some(&reserved))
    }

    /// Returns this node's blocks of a network for the status.
    pub(super) fn filled(&self, network: &Network) -> Vec<status::Block> {
        let own: Vec<IpNet> = self.own.blocks.iter().copied().filter(|block| network.has(block)).collect();
        let used = conflist::used(&self.config, network, &own).ok();
        let block = |(index, block): (usize, &IpNet)| status::Block {
            prefix: *block,
            used: used.as_ref().map(|used| used[index]),
            size: blocks::count(&self.pieces(network, *block)),
        };
        own.iter().enumerate().map(block).collect()
    }

    /// Returns notes about lost blocks that pods of this host still use, and forgets the others.
    pub(super) fn lost_blocks(&mut self) -> Vec<String> {
        let reserved: Vec<IpAddr> = self
            .config
            .networks
            .iter()
            .flat_map(|network| conflist::reserved(&self.config, &network.name).unwrap_or_default())
            .collect();
        let in_use = |block: &IpNet| reserved.iter().filter(|ip| block.contains(*ip)).count();
        self.lost.retain(|block, (_, at)| at.elapsed() < LOSS || in_use(block) > 0);
        let lost = self.lost.iter().filter(|(_, (_, at))| at.elapsed() >= LOSS);
        lost.map(|entry| format!("{} ({} addresses)", lost_problem(entry), in_use(entry.0))).collect()
    }
}

fn lost_problem((block, (owner, _)): (&IpNet, &(String, Instant))) -> String {
    format!(
        "block {block} was this node's and is {owner}'s now: pods with its addresses cannot be reached, restart them"
    )
}

/// Sums the used addresses, and all addresses, of blocks that do not rest.
fn without_resting(
    filled: &[Filled],
    resting: &BTreeMap<IpNet, Instant>,
    except: Option<IpNet>,
) -> (u64, u64) {
    filled
        .iter()
        .filter(|(block, ..)| !resting.contains_key(block) && Some(*block) != except)
        .fold((0, 0_u64), |(used, size), (_, more, larger)| (used + more, size.saturating_add(*larger)))
}
