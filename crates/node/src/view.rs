//! What is known of the cluster: from the store, or remembered from before.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::{config::Config, file, record::Record, store::Update};

/// Holds what is known of the cluster.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// It is whole: from the store, or remembered.
    pub(crate) whole: bool,
    /// From the store, and not remembered.
    pub(crate) live: bool,
    pub(crate) nodes: BTreeMap<String, Record>,
    pub(crate) blocks: BTreeMap<IpNet, String>,
    pub(crate) refused: BTreeMap<String, String>,
    pub(crate) lost: Option<String>,
    /// When the store was heard of again after it had been lost.
    regained: Option<Instant>,
    /// Nodes that the store does not know any more, since when. One that has just come back may know less than it did: leases
    /// end while their keepers find the way back, so these stay for the time of a lease.
    pub(crate) missing: BTreeMap<String, Instant>,
    /// Nodes that are gone and have blocks, as they were last known.
    pub(crate) former: BTreeMap<String, Record>,
    /// Who has blocks and is no node that is known of, since when.
    strangers: BTreeMap<String, Instant>,
}

/// The file that the last view is kept in.
pub(crate) const VIEW: &str = "view.json";
impl View {
    pub(crate) fn take(&mut self, update: Update, config: &Config, log: &mut dyn FnMut(&str)) {
        match update {
            Update::All(contents) => {
                if self.whole && (!self.live || self.lost.is_some()) {
                    self.regained = Some(Instant::now());
                }
                let known = self.nodes.keys().cloned().collect::<Vec<_>>();
                for gone in known.into_iter().filter(|name| !contents.nodes.contains_key(name)) {
                    self.is_gone(gone, config);
                }
                self.refused.clear();
                for (name, text) in contents.nodes {
                    self.put(name, &text, config, log);
                }
                self.blocks = contents.blocks;
                self.whole = true;
                self.live = true;
                self.lost = None;
            }
            Update::Node(name, Some(text)) => self.put(name, &text, config, log),
            Update::Node(name, None) => {
                self.refused.remove(&name);
                self.is_gone(name, config);
            }
            Update::Block(block, Some(owner)) => drop(self.blocks.insert(block, owner)),
            Update::Block(block, None) => drop(self.blocks.remove(&block)),
            Update::Lost(why) => {
                if self.lost.as_ref() != Some(&why) {
                    log(&format!("the store is not heard of; what is known stays: {why}"));
                }
                self.lost = Some(why);
            }
        }
    }

    fn is_gone(&mut self, name: String, config: &Config) {
        if self.regained.is_some_and(|at| at.elapsed() < lease(config)) {
            self.missing.entry(name).or_insert_with(Instant::now);
        } else {
            self.remove(&name);
        }
    }

    fn remove(&mut self, name: &str) {
        self.missing.remove(name);
        self.former.extend(self.nodes.remove_entry(name));
    }

    /// Remembers since when there are blocks of nodes that are not there.
    pub(crate) fn look_for_strangers(&mut self) {
        let (nodes, blocks) = (&self.nodes, &self.blocks);
        let absent: BTreeSet<&String> = blocks.values().filter(|owner| !nodes.contains_key(*owner)).collect();
        self.strangers.retain(|name, _| absent.contains(name));
        self.former.retain(|name, _| absent.contains(name));
        for name in absent {
            self.strangers.entry(name.clone()).or_insert_with(Instant::now);
        }
    }

    /// Returns whether a node that has blocks has not been heard of for so long that it will not come back: it had a lease, and
    /// twice that since.
    pub(crate) fn is_gone_for_good(&self, name: &str, config: &Config) -> bool {
        self.live
            && self.lost.is_none()
            && self.strangers.get(name).is_some_and(|since| since.elapsed() >= 2 * lease(config))
    }

    /// Forgets those that have been missing for too long.
    pub(crate) fn forget(&mut self, config: &Config) {
        let is_over = |(_, since): &(&String, &Instant)| since.elapsed() >= lease(config);
        let over: Vec<String> = self.missing.iter().filter(is_over).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.remove(&name);
        }
    }

    /// A record that is refused changes nothing: what was known of the node stays.
    fn put(&mut self, name: String, text: &[u8], config: &Config, log: &mut dyn FnMut(&str)) {
        match Record::parse(&name, text, &config.pods()) {
            Ok(record) => {
                self.refused.remove(&name);
                self.missing.remove(&name);
                self.nodes.insert(name, record);
            }
            Err(error) => {
                log(&format!("the record of node {name:?} is refused: {error}"));
                self.refused.insert(name, error.to_string());
            }
        }
    }

    pub(crate) fn remember(&self, dir: &Path) {
        // Without it a host that boots while the store is away is alone until that is back; no more.
        let text = serde_json::to_vec(&self.nodes.values().collect::<Vec<_>>()).unwrap_or_default();
        drop(file::write(&dir.join(VIEW), &text, 0o600));
    }

    pub(crate) fn recall(&mut self, dir: &Path, log: &mut dyn FnMut(&str)) {
        let Ok(text) = std::fs::read(dir.join(VIEW)) else { return };
        let Ok(nodes) = serde_json::from_slice::<Vec<Record>>(&text) else { return };
        log(&format!("the store is not heard of: going on with what was known of {} nodes", nodes.len()));
        self.nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        self.whole = true;
    }
}

/// Returns how long a node that is not heard of stays.
pub(crate) fn lease(config: &Config) -> Duration {
    Duration::from_secs(config.lease.into())
}
