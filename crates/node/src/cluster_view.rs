//! What this node knows of the cluster: from the store, or remembered from before.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufWriter, Write},
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tracing::warn;

use crate::{
    config::Config,
    file,
    ownership::{Claims, Honoured},
    record::Record,
    store::{Contents, Update},
};

/// What this node knows of the cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterView {
    /// Whether the view is complete: read from the store, or remembered.
    pub(crate) whole: bool,
    /// Whether the view was read from the store since the daemon started.
    pub(crate) live: bool,
    /// The nodes' records by name.
    pub(crate) nodes: BTreeMap<String, Record>,
    /// The owner of each block.
    pub(crate) blocks: BTreeMap<IpNet, String>,
    /// The refused records by name, each with the reason.
    pub(crate) refused: BTreeMap<String, String>,
    /// Why the store cannot be reached, if it cannot.
    pub(crate) lost: Option<String>,
    /// When the store was reached again after it had been lost.
    regained: Option<Instant>,
    /// Nodes that the store no longer knows, and since when. A store that has come back may know less than before, until every
    /// node has published again: these nodes stay for the time of a lease.
    pub(crate) missing: BTreeMap<String, Instant>,
    /// Nodes that do not renew their leases, and since when. Their routes stay.
    pub(crate) silent: BTreeMap<String, Instant>,
    /// Whether the store has leases.
    has_leases: bool,
    /// The last records of nodes that are gone but still own blocks.
    pub(crate) former: BTreeMap<String, Record>,
    /// The owner of each block that was honoured last.
    pub(crate) held: BTreeMap<IpNet, String>,
    /// Why claims were not honoured last, by node.
    pub(crate) problems: BTreeMap<String, Vec<String>>,
    /// Owners of blocks that have no record, and since when.
    absent_owners: BTreeMap<String, Instant>,
    /// Counts the changes of nodes, blocks and silent nodes: what was computed from them is valid until the next one.
    pub(crate) changes: u64,
    /// The change after which the absent owners were found.
    tracked: Option<u64>,
    /// The change after which the view was remembered, when, and how long that took.
    remembered: Option<(u64, Instant, Duration)>,
}

/// The number of characters of a refused record's name that are shown.
const LONGEST_NAME: usize = 253;
/// The pause after the view was written, as a multiple of the time that this took.
const PAUSE: u32 = 50;
/// The file in the state directory that holds the last view.
pub(crate) const FILE: &str = "view.json";

impl ClusterView {
    /// Applies a report of the store.
    pub(crate) fn update(&mut self, update: Update, config: &Config) {
        match update {
            Update::All(contents) => self.replace(contents, config),
            Update::Node(name, Some(text)) => self.put(name, &text),
            Update::Node(name, None) => {
                self.refused.remove(&name);
                self.is_gone(name, config);
            }
            Update::Alive(name, true) => self.changes += u64::from(self.silent.remove(&name).is_some()),
            Update::Alive(name, false) => {
                if self.nodes.contains_key(&name) {
                    self.silent.entry(name).or_insert_with(Instant::now);
                    self.changes += 1;
                }
            }
            Update::Block(block, owner) => self.set_owner(block, owner),
            Update::Lost(why) => {
                if self.lost.as_ref() != Some(&why) {
                    warn!("the store cannot be reached; the last view stays in use: {why}");
                }
                self.lost = Some(why);
            }
        }
    }

    fn replace(&mut self, contents: Contents, config: &Config) {
        if self.whole && (!self.live || self.lost.is_some()) {
            self.regained = Some(Instant::now());
        }
        let known = self.nodes.keys().cloned().collect::<Vec<_>>();
        for gone in known.into_iter().filter(|name| !contents.nodes.contains_key(name)) {
            self.is_gone(gone, config);
        }
        self.refused.clear();
        for (name, text) in contents.nodes {
            self.put(name, &text);
        }
        self.has_leases = contents.alive.is_some();
        let alive = contents.alive;
        let is_silent = |name: &String| alive.as_ref().is_some_and(|alive| !alive.contains(name));
        self.silent.retain(|name, _| is_silent(name));
        for name in self.nodes.keys().filter(|name| is_silent(name)) {
            self.silent.entry(name.clone()).or_insert_with(Instant::now);
        }
        self.blocks = contents.blocks;
        self.changes += 1;
        self.whole = true;
        self.live = true;
        self.lost = None;
    }

    /// Changes the owner of a block.
    pub(crate) fn set_owner(&mut self, block: IpNet, owner: Option<String>) {
        self.changes += u64::from(self.blocks.get(&block) != owner.as_ref());
        match owner {
            Some(owner) => drop(self.blocks.insert(block, owner)),
            None => drop(self.blocks.remove(&block)),
        }
    }

    /// Forgets a node at once.
    pub(crate) fn forget(&mut self, name: &str) {
        self.changes += u64::from(self.nodes.remove(name).is_some());
    }

    fn is_gone(&mut self, name: String, config: &Config) {
        if self.regained.is_some_and(|at| at.elapsed() < config.lease) {
            self.missing.entry(name).or_insert_with(Instant::now);
        } else {
            self.remove(&name);
        }
    }

    fn remove(&mut self, name: &str) {
        self.missing.remove(name);
        self.silent.remove(name);
        self.former.extend(self.nodes.remove_entry(name));
        self.changes += 1;
    }

    /// Records since when there are blocks whose owner has no record.
    pub(crate) fn track_absent_owners(&mut self) {
        if self.tracked.replace(self.changes) == Some(self.changes) {
            return;
        }
        let (nodes, blocks) = (&self.nodes, &self.blocks);
        let absent: BTreeSet<&String> = blocks.values().filter(|owner| !nodes.contains_key(*owner)).collect();
        self.absent_owners.retain(|name, _| absent.contains(name));
        self.former.retain(|name, _| absent.contains(name));
        for name in absent {
            self.absent_owners.entry(name.clone()).or_insert_with(Instant::now);
        }
    }

    /// Returns whether a node is known to renew its lease.
    pub(crate) fn is_alive(&self, name: &str) -> bool {
        self.has_leases && self.nodes.contains_key(name) && !self.silent.contains_key(name)
    }

    /// Decides which claims of the other nodes' records this node honours, and returns the records with those alone.
    pub(crate) fn honour(
        &mut self,
        own: &Record,
        pods: &[IpNet],
        host: &BTreeMap<IpNet, String>,
    ) -> BTreeMap<String, Record> {
        let silent = self.silent.keys().map(String::as_str).collect();
        let (nodes, registered, held) = (&self.nodes, &self.blocks, &self.held);
        let claims = Claims { own, nodes, registered, held, silent: &silent, pods, host };
        let Honoured { nodes, owners, problems } = claims.decide();
        for (name, problems) in problems.iter().filter(|(name, new)| self.problems.get(*name) != Some(*new)) {
            warn!("node `{name}`: {}", problems.join("; "));
        }
        self.held = owners;
        self.problems = problems;
        nodes
    }

    /// Returns the number of claims that are not honoured.
    pub(crate) fn refused_claims(&self) -> usize {
        self.problems.values().map(Vec::len).sum()
    }

    /// Returns for how long an owner of blocks has been absent or silent, if it is.
    pub(crate) fn silent_for(&self, name: &str) -> Option<Duration> {
        let since = [&self.absent_owners, &self.silent].into_iter().filter_map(|since| since.get(name));
        since.map(Instant::elapsed).max()
    }

    /// Removes nodes that have been missing for longer than a lease.
    pub(crate) fn expire_missing(&mut self, config: &Config) {
        let is_over = |(_, since): &(&String, &Instant)| since.elapsed() >= config.lease;
        let over: Vec<String> = self.missing.iter().filter(is_over).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.remove(&name);
        }
    }

    /// Stores a node's record. If the record is refused, the node's last valid one stays in use.
    fn put(&mut self, name: String, text: &[u8]) {
        match Record::parse(&name, text) {
            Ok(record) => {
                self.refused.remove(&name);
                self.missing.remove(&name);
                if self.nodes.get(&name) != Some(&record) {
                    self.changes += 1;
                    self.nodes.insert(name, record);
                }
            }
            Err(error) => {
                // A name can be as long as the store permits.
                let shown: String = name.chars().take(LONGEST_NAME).collect();
                warn!("the record of node `{shown}` is refused: {error}");
                self.refused.insert(shown, error.to_string());
            }
        }
    }

    /// Returns whether the state directory holds an older view.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.live && self.remembered.is_none_or(|(change, ..)| change != self.changes)
    }

    /// Writes the nodes' records to the state directory, unless that would take too much of the time.
    pub(crate) fn remember(&mut self, dir: &Path) {
        let rests = self.remembered.is_some_and(|(_, at, took)| at.elapsed() < PAUSE * took);
        if rests || !self.is_unwritten() {
            return;
        }
        let began = Instant::now();
        // Without the file, a host that boots without its store does not know the other nodes. That is all, so errors are ignored.
        drop(file::replace(&dir.join(FILE), 0o600, |file| {
            let mut buffered = BufWriter::new(file);
            serde_json::to_writer(&mut buffered, &self.nodes.values().collect::<Vec<_>>())?;
            buffered.flush()
        }));
        self.remembered = Some((self.changes, Instant::now(), began.elapsed()));
    }

    /// Reads the nodes' records from the state directory.
    pub(crate) fn recall(&mut self, dir: &Path) {
        let Ok(text) = std::fs::read(dir.join(FILE)) else { return };
        let Ok(nodes) = serde_json::from_slice::<Vec<Record>>(&text) else { return };
        warn!("the store cannot be reached: starting with the remembered records of {} nodes", nodes.len());
        self.nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        self.changes += 1;
        self.whole = true;
    }
}
