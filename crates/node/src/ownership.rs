//! Which claims of other nodes' records this node honours.
//!
//! Every process that can write to the store can publish a record. A claim is refused if one of these has the addresses: this node, the
//! owner that the store has registered, the node that had them first, or a network of this host.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use kernel::link::Mac;

use crate::{blocks::Owners, record::Record};

/// What the decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a> {
    /// This node's record.
    pub own: &'a Record,
    /// The other nodes' records by name.
    pub nodes: &'a BTreeMap<String, Record>,
    /// The owner of each block in the store.
    pub registered: &'a BTreeMap<IpNet, String>,
    /// The owner of each block that was honoured before.
    pub held: &'a BTreeMap<IpNet, String>,
    /// The nodes that do not renew their leases.
    pub silent: &'a BTreeSet<&'a str>,
    /// The prefixes of all pods.
    pub pods: &'a [IpNet],
    /// The prefixes of this host's links, apart from its pods', with the links' names.
    pub host: &'a BTreeMap<IpNet, String>,
}

/// The decision.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Honoured {
    /// The other nodes' records, with the honoured blocks only.
    pub nodes: BTreeMap<String, Record>,
    /// The owner of each honoured block.
    pub owners: BTreeMap<IpNet, String>,
    /// Why claims are not honoured, by node.
    pub problems: BTreeMap<String, Vec<String>>,
}

impl Claims<'_> {
    /// Decides about all claims.
    pub fn decide(&self) -> Honoured {
        let mut honoured = Honoured::default();
        let own = self.own.blocks.iter().map(|block| (*block, self.own.name.as_str()));
        let mut owners: Owners<'_> = own.collect();
        let registered = named(self.registered);
        let host = named(self.host);
        let (impostors, problems) = self.impostors();
        honoured.problems = problems;
        let mut claims = Vec::new();
        for (name, node) in self.nodes.iter().filter(|(name, _)| **name != self.own.name) {
            honoured.nodes.insert(name.clone(), Record { blocks: Vec::new(), ..node.clone() });
            if !impostors.contains(name.as_str()) {
                claims
                    .extend(node.blocks.iter().map(|block| (self.rank(name, block), name.as_str(), *block)));
            }
        }
        claims.extend(self.kept(&impostors));
        claims.sort_unstable();
        for (_, name, block) in claims {
            match self.refusal(name, block, &owners, &registered, &host) {
                None => {
                    owners.insert(block, name);
                    honoured.owners.insert(block, name.to_owned());
                    if let Some(node) = honoured.nodes.get_mut(name) {
                        node.blocks.push(block);
                    }
                }
                Some(problem) => honoured.problems.entry(name.to_owned()).or_default().push(problem),
            }
        }
        honoured.nodes.values_mut().for_each(|node| node.blocks.sort_unstable());
        honoured
    }

    /// Returns the blocks that records do not claim any more, and whose owners the store has registered still: a node releases a block in
    /// both places. Another program may have changed the record, and its correction may be late.
    fn kept(&self, impostors: &BTreeSet<&str>) -> Vec<(u8, &str, IpNet)> {
        let is_kept = |(block, owner): &(&IpNet, &String)| {
            self.registered.get(block) == Some(owner)
                && !impostors.contains(owner.as_str())
                && self.nodes.get(*owner).is_some_and(|node| !node.blocks.contains(block))
        };
        let kept = self.held.iter().filter(is_kept);
        kept.map(|(block, owner)| (0, owner.as_str(), *block)).collect()
    }

    /// Returns the order of a claim: registered owners come first, then those honoured before.
    fn rank(&self, name: &str, block: &IpNet) -> u8 {
        match (self.registered.get(block), self.held.get(block)) {
            (Some(owner), _) if owner == name => 0,
            (_, Some(owner)) if owner == name => 1,
            _ => 2,
        }
    }

    /// Returns the nodes none of whose blocks are honoured: with an address of this host, or the hardware address of another tunnel.
    fn impostors(&self) -> (BTreeSet<&str>, BTreeMap<String, Vec<String>>) {
        let mut of_macs: BTreeMap<(bool, Mac), &str> = BTreeMap::new();
        let (mut impostors, mut problems) = (BTreeSet::new(), BTreeMap::new());
        let mut nodes: Vec<(u8, &str, &Record)> = self
            .nodes
            .iter()
            .filter(|(name, _)| **name != self.own.name)
            .map(|(name, node)| {
                let rank = node.blocks.iter().map(|block| self.rank(name, block)).min().unwrap_or(u8::MAX);
                (rank, name.as_str(), node)
            })
            .collect();
        nodes.sort_unstable_by_key(|(rank, name, _)| (*rank, *name));
        for (name, node) in [(self.own.name.as_str(), self.own)]
            .into_iter()
            .chain(nodes.into_iter().map(|(_, name, node)| (name, node)))
        {
            let mut refuse = |why: String| {
                impostors.insert(name);
                problems.entry(name.to_owned()).or_insert_with(Vec::new).push(why);
            };
            if name != self.own.name
                && let Some(ip) = node.addresses.iter().find(|ip| self.own.addresses.contains(ip))
            {
                refuse(format!("the node publishes {ip}, an address of this host"));
                continue;
            }
            let macs = [true, false].into_iter().filter(|v4| node.address(*v4).is_some());
            let macs: Vec<_> = macs.map(|v4| (v4, node.mac(v4))).collect();
            match macs.iter().find_map(|mac| Some((mac.1, *of_macs.get(mac)?))) {
                Some((mac, other)) => {
                    refuse(format!("the hardware address of its tunnel, {mac}, is that of node {other}"));
                }
                None => of_macs.extend(macs.into_iter().map(|mac| (mac, name))),
            }
        }
        (impostors, problems)
    }

    /// Returns why a claim is not honoured.
    fn refusal(
        &self,
        name: &str,
        block: IpNet,
        owners: &Owners<'_>,
        registered: &Owners<'_>,
        host: &Owners<'_>,
    ) -> Option<String> {
        if !self.pods.iter().any(|pods| pods.contains(&block)) {
            return Some(format!("the node claims block {block}, which is outside the pods' prefixes"));
        }
        if let Some((taken, link)) = host.overlapping(block, |_, _| true) {
            return Some(format!("the node claims block {block}, but `{link}` of this host is in {taken}"));
        }
        let belongs = |(taken, owner): (IpNet, &str)| {
            if taken == block {
                format!("the node claims block {block}, which belongs to {owner}")
            } else {
                format!("the node claims block {block}, which overlaps {taken} of {owner}")
            }
        };
        if let Some(other) = owners.overlapping(block, |_, owner| owner != name) {
            return Some(belongs(other));
        }
        // While a block passes to another node, the new owner is registered first and publishes its record afterwards. Until then the
        // former owner's route stays.
        let is_better = |taken: IpNet, owner: &str| {
            owner != name
                && (taken != block
                    || self.silent.contains(name)
                    || self.nodes.get(owner).is_some_and(|node| node.blocks.contains(&block)))
        };
        registered.overlapping(block, is_better).map(belongs)
    }
}

fn named(blocks: &BTreeMap<IpNet, String>) -> Owners<'_> {
    blocks.iter().map(|(block, name)| (*block, name.as_str())).collect()
}
