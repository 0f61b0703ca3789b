//! The wheel: hears of the store and of the kernel, compares what there should be with what there is, makes the difference.
//!
//! One thread does all of that, in one order; others only listen and tell it. Nothing is written before the first whole
//! view of the cluster: from the store, or (where that cannot be reached) the last one, which is kept on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use kernel::{Protocol, Socket, events::Events, link};
use ruleset::cluster;
use rustix::event::{PollFd, PollFlags, poll};

use crate::{
    actual, apply, blocks,
    config::{Config, Mode},
    conflist,
    desired::{self, Desired, Uplinks, Way},
    file,
    probe::Probes,
    record::{Record, Tunnel},
    serve,
    status::{self, Status},
    store::{self, Store, Update},
    view::{VIEW, View, lease},
};

/// What the daemon hears.
#[derive(Debug)]
pub enum Event {
    /// From the store.
    Store(Update),
    /// Something of the host's network, or of its ruleset, has changed.
    Kernel,
    /// It is to end, and leave everything as it is.
    Stop,
}

/// Shared with those who show it.
pub(crate) type Shown = Arc<Mutex<Status>>;

/// More may come at once: it is waited for so long.
const GATHER: Duration = Duration::from_millis(10);
/// And no longer than so long: this node's record is to be kept.
const MOST_GATHER: Duration = Duration::from_millis(500);
/// Without a store for so long the last view counts.
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How soon a store that did not take this node's record is asked again.
const AGAIN: Duration = Duration::from_secs(10);
/// However quiet it is, what there is is looked at this often.
const AUDIT: Duration = Duration::from_mins(1);

/// Says why the daemon could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {why}")]
pub struct StartError {
    doing: String,
    why: String,
}

fn start_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let doing = doing.into();
    move |error| StartError { doing, why: error.to_string() }
}

/// Runs until it is told to stop, by `stop`.
///
/// # Errors
/// When it cannot start: another daemon runs on this host, a folder cannot be made, an address is taken.
pub fn run(
    config: Config,
    stop: impl FnOnce(Sender<Event>),
    log: &mut dyn FnMut(&str),
) -> Result<(), StartError> {
    let _lock = lock(&config.state_dir)?;
    let incarnation = incarnation(&config.state_dir)?;
    let (sender, receiver) = channel();
    let shown: Shown = Shown::default();
    stop(sender.clone());
    listen_to_kernel(sender.clone());
    let probes = Probes::start(config.probe_port).map_err(start_error(format!(
        "listen at UDP port {} for the probes of other nodes",
        config.probe_port
    )))?;
    serve::start(&config, &shown, &probes)?;
    let store =
        store::open(&config, sender).map_err(|error| StartError { doing: error.doing, why: error.why })?;
    let own = Record {
        name: config.node.clone(),
        addresses: Vec::new(),
        blocks: remembered_blocks(&config.state_dir),
        tunnel: (!matches!(config.mode, Mode::Routing | Mode::Bgp))
            .then_some(Tunnel { vni: config.vni, port: config.port }),
        incarnation,
    };
    let mut daemon = Daemon {
        view: View::default(),
        published: None,
        to_be_told: true,
        unpublished: None,
        resting: BTreeMap::new(),
        took: Duration::ZERO,
        last: None,
        status: Status { node: config.node.clone(), mode: config.mode.as_str().into(), ..Status::default() },
        shown,
        probes,
        own,
        store,
        config,
    };
    daemon.turn(&receiver, log);
    Ok(())
}

struct Daemon {
    config: Config,
    store: Box<dyn Store>,
    own: Record,
    view: View,
    /// When this node's record was last confirmed, and what it was.
    published: Option<(Instant, Record)>,
    /// The store may not have this node's record any more.
    to_be_told: bool,
    /// When that last failed.
    unpublished: Option<Instant>,
    /// Blocks that are empty and not needed, out of which nothing is given any more, and since when.
    resting: BTreeMap<IpNet, Instant>,
    /// How long the last comparison took.
    took: Duration,
    last: Option<Desired>,
    status: Status,
    shown: Shown,
    probes: Probes,
}

impl Daemon {
    fn turn(&mut self, events: &Receiver<Event>, log: &mut dyn FnMut(&str)) {
        let started = Instant::now();
        let mut next = started + PATIENCE;
        loop {
            let first = match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut by_kernel_alone = first.is_some();
            // Where a comparison takes long it does not take all of the time.
            let until = Instant::now() + GATHER.max(4 * self.took).min(MOST_GATHER);
            let mut gathered = first;
            while let Some(event) = gathered {
                match event {
                    Event::Stop => return,
                    Event::Kernel => {}
                    Event::Store(update) => {
                        by_kernel_alone = false;
                        if matches!(update, Update::All(_)) {
                            // It is there again: it is told at once that this node is too.
                            self.to_be_told = true;
                            self.unpublished = None;
                        }
                        self.view.take(update, &self.config, log);
                    }
                }
                gathered = events.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
            }
            if !self.view.whole && started.elapsed() >= PATIENCE {
                self.view.recall(&self.config.state_dir, log);
            }
            self.view.forget(&self.config);
            let problems = if self.view.whole { self.work(by_kernel_alone, log) } else { self.wait() };
            next = Instant::now() + self.pause(&problems);
            self.show(problems, log);
        }
    }

    fn pause(&self, problems: &[String]) -> Duration {
        if !self.view.whole || !problems.is_empty() {
            return RETRY;
        }
        let usual = AUDIT.min(lease(&self.config) / 3);
        if self.view.missing.is_empty() { usual } else { usual.min(RETRY) }
    }

    fn wait(&self) -> Vec<String> {
        let why = self.view.lost.clone().unwrap_or_else(|| "it has not answered yet".into());
        vec![format!("the store is not heard of, and no view of the cluster is remembered: {why}")]
    }

    /// Compares and changes; gives what is in the way of being ready.
    fn work(&mut self, by_kernel_alone: bool, log: &mut dyn FnMut(&str)) -> Vec<String> {
        let mut problems = Vec::new();
        let socket = match Socket::open(Protocol::Route) {
            Ok(socket) => socket,
            Err(error) => return vec![error.to_string()],
        };
        let uplinks = match actual::uplinks(&socket, &self.config) {
            Ok(uplinks) => uplinks,
            Err(error) => return vec![error.to_string()],
        };
        self.own.addresses = [&uplinks.v4, &uplinks.v6].into_iter().flatten().map(|it| it.address).collect();
        if self.own.addresses.is_empty() {
            return vec![
                "this host has no address that others could reach: no default route, and no `addresses`"
                    .into(),
            ];
        }
        if let Some(other) = self.namesake() {
            return vec![other];
        }
        problems.extend(self.own_blocks(log));
        problems.extend(self.publish());
        let mut nodes = self.view.nodes.clone();
        nodes.insert(self.own.name.clone(), self.own.clone());
        let wanted = desired::desired(&self.config, &self.own, &nodes, &uplinks);
        let began = Instant::now();
        problems.extend(self.change(&socket, &wanted, &uplinks, by_kernel_alone, log));
        self.took = began.elapsed();
        let has_all =
            self.config.pods.iter().all(|net| self.own.blocks.iter().any(|block| net.contains(block)));
        if problems.is_empty() && has_all {
            let awake: Vec<IpNet> =
                self.own.blocks.iter().copied().filter(|block| !self.resting.contains_key(block)).collect();
            match conflist::write(&self.config, &awake, wanted.mtu) {
                Ok(true) => log(&format!("wrote {}", conflist::path(&self.config).display())),
                Ok(false) => {}
                Err(error) => {
                    problems
                        .push(format!("cannot write {}: {error}", conflist::path(&self.config).display()));
                }
            }
        }
        if self.view.live {
            self.view.remember(&self.config.state_dir);
        }
        self.probes.set(nodes.values().filter(|node| node.name != self.own.name));
        self.last = Some(wanted);
        problems
    }

    /// Finds another node of the same name.
    fn namesake(&self) -> Option<String> {
        let other = self.view.nodes.get(&self.own.name)?;
        let is_other = other.incarnation != self.own.incarnation && other.addresses != self.own.addresses;
        is_other.then(|| {
            let addresses: Vec<String> = other.addresses.iter().map(ToString::to_string).collect();
            format!(
                "another node is called {:?}, at {}: give one of them another name (`node`), or wait until it is gone",
                self.own.name,
                addresses.join(", ")
            )
        })
    }

    /// Sees to it that this node has a block of each family, and another before they are full.
    fn own_blocks(&mut self, log: &mut dyn FnMut(&str)) -> Vec<String> {
        let mut problems = Vec::new();
        let before = self.own.blocks.clone();
        if self.view.live {
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
        }
        if self.view.live {
            problems.extend(self.claim_what_is_nobodys());
        }
        let pods = self.config.pods.clone();
        self.own.blocks.retain(|block| pods.iter().any(|net| net.contains(block)));
        self.own.blocks.sort();
        self.own.blocks.dedup();
        for prefix in pods {
            let used = self.rest(prefix, log);
            let full = |(used, size): (u64, u64)| {
                u128::from(used) * 100 >= u128::from(size) * u128::from(blocks::FULL)
            };
            // What rested is needed again before another is claimed.
            if full(used) && self.resting.keys().any(|block| prefix.contains(block)) {
                self.resting.retain(|block, _| !prefix.contains(block));
                continue;
            }
            let (needed, size) = (full(used), used.1);
            if needed && let Err(problem) = self.claim(prefix, log) {
                // With addresses left it is no reason not to be ready.
                if size == 0 {
                    problems.push(problem);
                } else {
                    log(&problem);
                }
            }
        }
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
        let unknown: Vec<IpNet> =
            self.own.blocks.iter().copied().filter(|block| !self.view.blocks.contains_key(block)).collect();
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

    /// Has blocks rest that are empty while the others are not half full, and gives back those that have rested for the time of
    /// a lease. Gives how many addresses of the others are in use, and how many there are.
    fn rest(&mut self, prefix: IpNet, log: &mut dyn FnMut(&str)) -> (u64, u64) {
        let used = conflist::used(&self.config, &self.own.blocks).unwrap_or_default();
        let of_prefix: Vec<(IpNet, u64)> =
            self.own.blocks.iter().copied().zip(used).filter(|(block, _)| prefix.contains(block)).collect();
        let sum = |blocks: &mut dyn Iterator<Item = &(IpNet, u64)>| {
            blocks
                .fold((0, 0_u64), |(u, s), (block, used)| (u + used, s.saturating_add(blocks::size(*block))))
        };
        // A pod that was being started when its block began to rest keeps it awake.
        self.resting.retain(|block, _| of_prefix.iter().all(|(other, used)| other != block || *used == 0));
        let awake = |resting: &BTreeMap<IpNet, Instant>, without: Option<IpNet>| {
            let blocks =
                of_prefix.iter().filter(|(block, _)| !resting.contains_key(block) && Some(*block) != without);
            sum(&mut blocks.into_iter())
        };
        for (block, _) in of_prefix.iter().filter(|(_, used)| *used == 0) {
            let (used, size) = awake(&self.resting, Some(*block));
            if size > 0 && used.saturating_mul(2) < size {
                self.resting.entry(*block).or_insert_with(Instant::now);
            }
        }
        let lease = lease(&self.config);
        let rested: Vec<IpNet> = self
            .resting
            .iter()
            .filter(|(block, since)| prefix.contains(*block) && since.elapsed() >= lease)
            .map(|(block, _)| *block)
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
        awake(&self.resting, None)
    }

    /// Claims another block of a prefix.
    fn claim(&mut self, prefix: IpNet, log: &mut dyn FnMut(&str)) -> Result<(), String> {
        if !self.view.live {
            return Err(format!("a block of {prefix} is needed, and the store is not heard of"));
        }
        let length = if prefix.addr().is_ipv4() { self.config.block.0 } else { self.config.block.1 };
        let mut taken: BTreeSet<IpNet> = self.view.blocks.keys().copied().collect();
        taken.extend(self.view.nodes.values().flat_map(|node| node.blocks.iter().copied()));
        while let Some(block) = blocks::next(prefix, length, &self.own.name, &taken) {
            match self.store.claim(block, &self.own.name) {
                Ok(true) => {
                    log(&format!("block {block} is this node's"));
                    self.own.blocks.push(block);
                    self.view.blocks.insert(block, self.own.name.clone());
                    return Ok(());
                }
                // Another was faster.
                Ok(false) => drop(taken.insert(block)),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(format!("no block of {prefix} is free: all of length {length} belong to other nodes"))
    }

    fn publish(&mut self) -> Option<String> {
        let due = lease(&self.config) / 3;
        if let Some((at, record)) = &self.published
            && *record == self.own
            && at.elapsed() < due
            && !self.to_be_told
        {
            return None;
        }
        // A store that does not answer is waited for some seconds each time: not at every event.
        if self.published.is_some() && self.unpublished.is_some_and(|at| at.elapsed() < AGAIN.min(due)) {
            return None;
        }
        let outcome = self.store.publish(&self.own);
        self.unpublished = outcome.is_err().then(Instant::now);
        match outcome {
            Ok(()) => {
                self.published = Some((Instant::now(), self.own.clone()));
                self.to_be_told = false;
                None
            }
            // Who was there once stays ready, also over a restart: nothing that works depends on the store.
            Err(_) if self.published.is_some() || !self.view.live => None,
            Err(error) => Some(error.to_string()),
        }
    }

    fn change(
        &mut self,
        socket: &Socket,
        wanted: &Desired,
        uplinks: &Uplinks,
        by_kernel_alone: bool,
        log: &mut dyn FnMut(&str),
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let there = match actual::read(socket) {
            Ok(there) => there,
            Err(error) => return vec![error.to_string()],
        };
        let done = apply::apply(socket, wanted, &there);
        let uplink6 =
            uplinks.v6.as_ref().and_then(|uplink| link::find_index(socket, uplink.link).ok().flatten());
        if let Err(error) = apply::forward(wanted, uplink6.as_ref().map(|link| link.name.as_str())) {
            problems.push(error.to_string());
        }
        let rules = Socket::open(Protocol::Netfilter)
            .map_err(ruleset::RulesetError::from)
            .and_then(|netfilter| cluster::ensure(&netfilter, &wanted.ruleset));
        let mut changes = done.changes;
        match rules {
            Ok(changed) => changes += usize::from(changed),
            Err(error) => problems.push(format!("the ruleset: {error:?}")),
        }
        let counters = &mut self.status.counters;
        counters.comparisons += 1;
        counters.changes += changes as u64;
        counters.refusals += done.refused.len() as u64;
        if by_kernel_alone && changes > 0 && self.last.as_ref() == Some(wanted) {
            counters.repairs += changes as u64;
            log(&format!("{changes} objects were not as they should be, and are again"));
        }
        for refusal in done.refused.iter().take(3) {
            log(refusal);
        }
        problems.extend(done.refused.into_iter().take(3));
        problems
    }

    fn show(&mut self, problems: Vec<String>, log: &mut dyn FnMut(&str)) {
        let ready = self.view.whole && problems.is_empty();
        if ready != self.status.ready || problems != self.status.problems {
            if ready {
                log("ready");
            }
            problems.iter().filter(|it| !self.status.problems.contains(it)).for_each(|problem| log(problem));
        }
        let used = conflist::used(&self.config, &self.own.blocks).unwrap_or_default();
        let status = &mut self.status;
        status.ready = ready;
        status.problems = problems;
        status.addresses.clone_from(&self.own.addresses);
        status.blocks = self
            .own
            .blocks
            .iter()
            .enumerate()
            .map(|(index, block)| status::Block {
                prefix: *block,
                used: used.get(index).copied().unwrap_or_default(),
                size: blocks::size(*block),
            })
            .collect();
        status.store = status::Store {
            kind: self.config.store.kind().into(),
            connected: self.view.live && self.view.lost.is_none(),
            problem: self.view.lost.clone(),
            refused: self.view.refused.iter().map(|(name, why)| format!("{name}: {why}")).collect(),
        };
        if let Some(desired) = &self.last {
            status.mtu = desired.mtu;
            let peers = desired.peers.iter().filter_map(|(name, peer)| {
                let node = self.view.nodes.get(name)?;
                Some(status::Peer {
                    name: name.clone(),
                    addresses: node.addresses.clone(),
                    blocks: node.blocks.clone(),
                    way: peer.way.map(|way| match way {
                        Way::Direct => "direct".to_owned(),
                        Way::Tunnel { .. } => "tunnel".to_owned(),
                        Way::Learnt => "learnt".to_owned(),
                    }),
                    problem: peer.problem.clone(),
                    // Filled in when it is looked at.
                    answers: None,
                    rtt_us: None,
                })
            });
            status.peers = peers.collect();
        }
        if let Ok(mut shown) = self.shown.lock() {
            shown.clone_from(status);
        }
    }
}

const BLOCKS: &str = "blocks.json";
const INCARNATION: &str = "incarnation";

fn remembered_blocks(dir: &Path) -> Vec<IpNet> {
    let text = std::fs::read(dir.join(BLOCKS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Takes the lock of this host: there is one daemon.
fn lock(dir: &Path) -> Result<File, StartError> {
    std::fs::create_dir_all(dir).map_err(start_error(format!("make folder {}", dir.display())))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(start_error(format!("open {}", path.display())))?;
    file.try_lock().map_err(|_| StartError {
        doing: format!("lock {}", path.display()),
        why: "another netloomd runs on this host".into(),
    })?;
    Ok(file)
}

fn incarnation(dir: &Path) -> Result<String, StartError> {
    let path = dir.join(INCARNATION);
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(text.trim().to_owned());
    }
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_err(start_error("make a name for this daemon"))?;
    file::write(&path, uuid.trim().as_bytes(), 0o600)
        .map_err(start_error(format!("write {}", path.display())))?;
    Ok(uuid.trim().to_owned())
}

/// Tells of everything that happens to the host's network and ruleset.
fn listen_to_kernel(sender: Sender<Event>) {
    std::thread::spawn(move || {
        let Ok(network) = Events::of_network() else { return };
        // A kernel without nftables has no ruleset to change.
        let rules = Events::of_ruleset().ok();
        loop {
            let mut fds = vec![PollFd::new(&network, PollFlags::IN)];
            fds.extend(rules.iter().map(|rules| PollFd::new(rules, PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let heard = [Some(&network), rules.as_ref()];
            for events in heard.into_iter().zip(ready).filter_map(|(events, ready)| events.filter(|_| ready))
            {
                drop(events.drain());
            }
            if sender.send(Event::Kernel).is_err() {
                return;
            }
        }
    });
}

/// Takes everything away that the daemon made on this host, and this node out of the store if `config` says how that is
/// reached. Pods that are there keep their links, and lose the way to other nodes.
///
/// # Errors
/// When the kernel or the file system refuses; the rest is taken away all the same.
pub fn uninstall(config: &Config) -> Result<usize, StartError> {
    let _lock = lock(&config.state_dir)?;
    let refused = |why: String| StartError { doing: "take everything away".into(), why };
    let socket = Socket::open(Protocol::Route).map_err(|error| refused(error.to_string()))?;
    conflist::remove(config).map_err(start_error("remove the network's file"))?;
    let there = actual::read(&socket).map_err(|error| refused(error.to_string()))?;
    let done = apply::remove(&socket, &there);
    let netfilter = Socket::open(Protocol::Netfilter).map_err(|error| refused(error.to_string()))?;
    cluster::remove(&netfilter).map_err(|error| refused(format!("{error:?}")))?;
    let (sender, _receiver) = channel();
    if let Ok(mut store) = store::open(config, sender) {
        for block in remembered_blocks(&config.state_dir) {
            drop(store.release(block, &config.node));
        }
        drop(store.withdraw(&config.node));
    }
    for name in [VIEW, BLOCKS, INCARNATION] {
        file::remove(&config.state_dir.join(name)).map_err(start_error("remove the daemon's memory"))?;
    }
    if done.refused.is_empty() { Ok(done.changes) } else { Err(refused(done.refused.join("; "))) }
}

impl StartError {
    pub(crate) fn new(doing: impl Into<String>, why: impl ToString) -> Self {
        Self { doing: doing.into(), why: why.to_string() }
    }
}
