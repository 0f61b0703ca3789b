//! The wheel: hears of the store and of the kernel, compares what there should be with what there is, makes the difference.
//!
//! One thread does all of that, in one order; others only listen and tell it. Nothing is written before the first whole
//! view of the cluster: from the store, or (where that cannot be reached) the last one, which is kept on disk.

mod addresses;
mod show;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    mem::MaybeUninit,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use kernel::{
    Protocol, Socket,
    events::Events,
    link,
    sysctl::{self, Setting},
};
use ruleset::cluster;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
};

use crate::{
    actual, apply, blocks,
    config::Config,
    conflist,
    desired::{self, Desired, Uplinks, Way},
    file,
    flannel::subnet_file,
    probe::Probes,
    record::{Record, Tunnel},
    serve,
    status::Status,
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
    /// Somebody looked for an address of this network for a pod, or gave one back.
    Pods(String),
    /// Who answered for addresses of a block of the hosts' segment.
    Asked(IpNet, kernel::Result<BTreeSet<IpAddr>>),
    /// Checksums of what is tunnelled to this node come out wrong.
    Checksums(String),
    /// It is to end, and leave everything as it is.
    Stop,
}

/// Shared with those who show it.
pub(crate) type Shown = Arc<Mutex<Status>>;

/// More may come at once: it is waited for so long.
const GATHER: Duration = Duration::from_millis(5);
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
    sysctl::found_at(&config.sysctl_dir);
    if let Some(dir) = &config.plugins {
        install_plugins(dir).map_err(start_error(format!("put the plugins into {}", dir.display())))?;
    }
    let (sender, receiver) = channel();
    let shown: Shown = Shown::default();
    stop(sender.clone());
    let devices = Devices::default();
    listen_to_kernel(sender.clone(), Arc::clone(&devices));
    listen_to_pods(&config, &sender).map_err(start_error("watch the reservations of pods' addresses"))?;
    let teller = sender.clone();
    // It ends with the daemon.
    let tell = move |node| drop(teller.send(Event::Checksums(node)));
    let probes = Probes::start(config.probe_port, tell).map_err(start_error(format!(
        "listen at UDP port {} for the probes of other nodes",
        config.probe_port
    )))?;
    serve::start(&config, &shown, &probes)?;
    let store = store::open(&config, sender.clone())
        .map_err(|error| StartError { doing: error.doing, why: error.why })?;
    let own = Record {
        name: config.node.clone(),
        addresses: Vec::new(),
        blocks: remembered_blocks(&config.state_dir),
        tunnel: config.tunnels().then_some(Tunnel::of(&config)),
        mac: None,
        mac6: None,
        flannel: false,
        short: BTreeSet::new(),
        incarnation,
    };
    let mut daemon = Daemon {
        view: View::default(),
        published: None,
        to_be_told: true,
        unpublished: None,
        assigned: None,
        wrong_checksums: None,
        resting: BTreeMap::new(),
        sought: BTreeMap::new(),
        asked: BTreeMap::new(),
        sender,
        took: Duration::ZERO,
        last: None,
        status: Status { node: config.node.clone(), ..Status::default() },
        shown,
        devices,
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
    /// Blocks that somebody else assigns to this node; none until that is known.
    assigned: Option<Vec<IpNet>>,
    /// The node to which checksums of tunnelled packets come out wrong, if the card makes them.
    wrong_checksums: Option<String>,
    /// Blocks that are empty and not needed, out of which nothing is given any more, and since when.
    resting: BTreeMap<IpNet, Instant>,
    /// When an address was last looked for, by network.
    sought: BTreeMap<String, Instant>,
    /// Blocks of the hosts' segment, which somebody may have addresses of without asking.
    asked: BTreeMap<IpNet, addresses::Asked>,
    /// By which those who were sent to find something out tell.
    sender: Sender<Event>,
    /// How long the last comparison took.
    took: Duration,
    last: Option<Desired>,
    status: Status,
    shown: Shown,
    devices: Devices,
    probes: Probes,
}

impl Daemon {
    fn turn(&mut self, events: &Receiver<Event>, log: &mut dyn FnMut(&str)) {
        let started = Instant::now();
        let mut next = started + PATIENCE;
        let mut ended = started;
        loop {
            let first = match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut by_kernel_alone = first.is_some();
            // Where a comparison takes long it does not take all of the time: after one there is a pause, with which a change that
            // comes alone has nothing to do.
            let until = (ended + (4 * self.took).min(MOST_GATHER)).max(Instant::now() + GATHER);
            let mut gathered = first;
            while let Some(event) = gathered {
                match event {
                    Event::Stop => return,
                    Event::Kernel => {}
                    Event::Pods(network) => {
                        by_kernel_alone = false;
                        self.sought.insert(network, Instant::now());
                    }
                    Event::Asked(block, answer) => {
                        by_kernel_alone = false;
                        self.answered(block, answer, log);
                    }
                    Event::Checksums(node) => {
                        by_kernel_alone = false;
                        // What the operator says counts; and where they are not left to the card it is not the card.
                        if self.config.checksum_offload != Some(false) {
                            self.wrong_checksums.get_or_insert(node);
                            self.config.checksum_offload.get_or_insert(false);
                        }
                    }
                    Event::Store(update) => {
                        by_kernel_alone = false;
                        let of_own = matches!(&update, Update::Node(name, None) if *name == self.own.name);
                        if matches!(update, Update::All(_)) || of_own {
                            // It is there again, or has lost this node: it is told at once that it is there.
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
            ended = Instant::now();
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
        let mut of_networks = self.own_blocks(log);
        self.ask_for_others(&uplinks);
        let mut nodes = self.view.nodes.clone();
        nodes.insert(self.own.name.clone(), self.own.clone());
        let wanted = desired::desired(&self.config, &self.own, &nodes, &uplinks);
        let began = Instant::now();
        problems.extend(self.change(&socket, &wanted, &uplinks, by_kernel_alone, log));
        self.took = began.elapsed();
        let longest = &mut self.status.counters.longest_micros;
        *longest = (*longest).max(u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX));
        // Others are told when what they may then send is heard.
        problems.extend(self.publish(log));
        if problems.is_empty() {
            of_networks.extend(self.tell_runtime(&wanted, log));
            of_networks.extend(self.stand_in_for_flannel(&socket, &wanted));
        }
        problems.extend(of_networks);
        if self.view.live {
            self.view.remember(&self.config.state_dir);
        }
        // Of those that are gone it is found out whether they are only cut off from the store.
        let others = nodes.values().filter(|node| node.name != self.own.name);
        let others = others.map(|node| (node, self.through(&wanted, node)));
        self.probes.set(others.chain(self.view.former.values().map(|node| (node, None))));
        self.last = Some(wanted);
        problems
    }

    /// Returns a node's own address behind its tunnel: that of its first block there, by which it answers.
    fn through(&self, wanted: &Desired, node: &Record) -> Option<IpAddr> {
        let ways = &wanted.peers.get(&node.name).filter(|_| !node.flannel)?.ways;
        let is_tunnelled = |block: &&IpNet| {
            let network = self.config.network_of(block);
            network.is_some_and(|it| matches!(ways.get(&it.name), Some(Way::Tunnel { .. })))
        };
        node.blocks.iter().find(is_tunnelled).map(|block| blocks::own_address(*block))
    }

    /// Writes the file of each network whose pods can be given addresses; gives what is in the way of others.
    fn tell_runtime(&self, wanted: &Desired, log: &mut dyn FnMut(&str)) -> Vec<String> {
        let mut problems = Vec::new();
        for (network, attach) in self.config.networks.iter().zip(&wanted.attach) {
            let attach = match attach {
                Ok(attach) => attach,
                Err(why) => {
                    problems.push(why.clone());
                    continue;
                }
            };
            let offered = self.offered(network, attach);
            if network.families().any(|v4| !offered.keys().any(|block| block.addr().is_ipv4() == v4)) {
                // Without a block it has been said why.
                if network.families().all(|v4| {
                    self.own.blocks.iter().any(|own| network.has(own) && own.addr().is_ipv4() == v4)
                }) {
                    problems.push(format!(
                        "network {}: its addresses are given when it is known that nobody else has them",
                        network.name
                    ));
                }
                continue;
            }
            let path = conflist::path(&self.config, &network.name);
            match conflist::write(&self.config, attach, &offered) {
                Ok(true) => log(&format!("wrote {}", path.display())),
                Ok(false) => {}
                Err(error) => problems.push(format!("cannot write {}: {error}", path.display())),
            }
        }
        problems
    }

    /// Has what flannel's plugin made on this host before go on working; gives what is in the way.
    fn stand_in_for_flannel(&self, socket: &Socket, wanted: &Desired) -> Option<String> {
        /// The bridge that flannel's own configuration has pods on.
        const BRIDGE: &str = "cni0";
        let flannel = self.config.flannel.as_ref()?;
        let mtu = wanted.attach.first()?.as_ref().ok()?.mtu;
        if let Err(error) = subnet_file::write(flannel, &self.config, &self.own.blocks, mtu) {
            return Some(format!("cannot write {}: {error}", flannel.subnet_file.display()));
        }
        // Its pods look for all of the subnet on their bridge: for those that came since, the host answers.
        let there = match link::find(socket, BRIDGE) {
            Ok(link) => link.is_some_and(|link| link.kind.as_deref() == Some("bridge")),
            Err(error) => return Some(error.to_string()),
        };
        let answers = || sysctl::ensure(Setting::Ipv4(BRIDGE, "proxy_arp"), "1");
        if there { answers().err().map(|error| error.to_string()) } else { None }
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

    fn publish(&mut self, log: &mut dyn FnMut(&str)) -> Option<String> {
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
        let outcome = self.store.publish(&self.own, self.to_be_told);
        self.unpublished = outcome.is_err().then(Instant::now);
        match outcome {
            Ok(()) => {
                self.published = Some((Instant::now(), self.own.clone()));
                self.to_be_told = false;
                None
            }
            // Who was there once stays ready, also over a restart: nothing that works depends on the store.
            Err(error) if self.published.is_some() || !self.view.live => {
                // That the store is not heard of has been said.
                if self.view.lost.is_none() {
                    log(&error.to_string());
                }
                None
            }
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
        // A new node is heard before it is spoken to.
        let rules =
            Socket::open(Protocol::Netfilter).map_err(ruleset::RulesetError::from).and_then(|netfilter| {
                match &wanted.ruleset {
                    Some(ruleset) => cluster::ensure(&netfilter, ruleset),
                    None => cluster::remove(&netfilter).map(|()| false),
                }
            });
        let done = apply::apply(socket, wanted, &there);
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&done.devices);
        for set in [apply::forward, apply::hear_ipvlans] {
            if let Err(error) = set(wanted, uplinks) {
                problems.push(error.to_string());
            }
        }
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
}

const BLOCKS: &str = "blocks.json";
const INCARNATION: &str = "incarnation";

fn remembered_blocks(dir: &Path) -> Vec<IpNet> {
    let text = std::fs::read(dir.join(BLOCKS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Has the binary beside this one put itself and its plugins where the runtime looks for them, each whole or not at all.
fn install_plugins(dir: &Path) -> io::Result<()> {
    let binary = std::env::current_exe()?.with_file_name("netloom");
    let output =
        std::process::Command::new(&binary).args(["install", "--force", "--bin-dir"]).arg(dir).output();
    let output = output.map_err(|error| io::Error::other(format!("{}: {error}", binary.display())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
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

/// The indices of the daemon's own devices.
type Devices = Arc<Mutex<BTreeSet<u32>>>;

/// Tells of everything that happens to the host's network and ruleset, but for what others' neighbours and routes do.
fn listen_to_kernel(sender: Sender<Event>, devices: Devices) {
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
            let mut matters = false;
            if ready[0] {
                let own = devices.lock().unwrap_or_else(PoisonError::into_inner).clone();
                matters |= network.matters(actual::PROTOCOL, &own).unwrap_or(true);
            }
            if let Some(rules) = rules.as_ref().filter(|_| ready[1..].contains(&true)) {
                drop(rules.drain());
                matters = true;
            }
            if !matters {
                continue;
            }
            if sender.send(Event::Kernel).is_err() {
                return;
            }
        }
    });
}

/// Tells of everybody who looks for an address for a pod, or gives one back: they take the lock of the network's reservations.
fn listen_to_pods(config: &Config, sender: &Sender<Event>) -> io::Result<()> {
    for network in &config.networks {
        let dir = config.data_dir.join(&network.name);
        std::fs::create_dir_all(&dir)?;
        let listener = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&listener, &dir, inotify::WatchFlags::CLOSE)?;
        let (sender, network) = (sender.clone(), network.name.clone());
        std::thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(listener, &mut buffer);
            while let Ok(event) = events.next() {
                // That somebody looked at the folder is announced too.
                let is_lock = event.file_name().is_some_and(|name| name == c"lock");
                if is_lock && sender.send(Event::Pods(network.clone())).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
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
    if let Some(flannel) = &config.flannel {
        subnet_file::remove(flannel).map_err(start_error("remove the file for flannel's plugin"))?;
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
