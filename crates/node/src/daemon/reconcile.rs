//! The loop itself: gathers events, and compares and applies once for all of them.

use std::{
    net::IpAddr,
    rc::Rc,
    sync::{
        PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use kernel::{
    Protocol, Socket,
    events::Links,
    heap,
    link::{self, Link},
};
use ruleset::cluster;
use tracing::{info, warn};

use super::{
    event::Event,
    history, memory,
    state::{Basis, Daemon},
};
use crate::{
    actual, apply, blocks,
    desired::{self, Desired, Inputs, PeerPath, Uplinks},
    pod_links,
    record::Record,
    refusals::Object,
    status::Changes,
    store::Update,
};

/// How long to wait for further events after the first.
const GATHER: Duration = Duration::from_millis(5);
/// The longest pause between passes, however long they take: this node's lease must be renewed.
const MAX_GATHER: Duration = Duration::from_millis(500);
/// How long to wait for the store at the start before the remembered view is used.
const PATIENCE: Duration = Duration::from_secs(3);
/// The pause before a failed pass is repeated.
const RETRY: Duration = Duration::from_secs(1);
/// The number of refused changes that are reported.
const SHOWN: usize = 3;
/// The interval of passes without any event.
const AUDIT: Duration = Duration::from_mins(1);

impl Daemon {
    /// Runs until [`Event::Stop`].
    pub(super) fn run(&mut self, events: &Receiver<Event>) {
        let mut next = self.started + PATIENCE;
        let mut ended = self.started;
        loop {
            let first = match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut by_kernel_alone = first.is_some();
            if first.is_none() && std::mem::take(&mut self.untidy) {
                heap::trim();
            }
            // Long passes must not take all the time, so each is followed by a pause in proportion. A single change is not delayed.
            let until = (ended + (4 * self.took).min(MAX_GATHER)).max(Instant::now() + GATHER);
            let mut gathered = first;
            while let Some(event) = gathered {
                if matches!(event, Event::Stop) {
                    self.view.remember(&self.config.state_dir);
                    return;
                }
                by_kernel_alone &= matches!(event, Event::Kernel | Event::Surroundings);
                self.handle(event);
                gathered = events.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
            }
            if !self.view.whole && self.started.elapsed() >= PATIENCE {
                self.view.recall(&self.config.state_dir);
            }
            self.view.expire_missing(&self.config);
            let problems =
                if self.view.whole { self.pass(by_kernel_alone) } else { vec![self.waits_for_store()] };
            next = Instant::now() + self.pause(&problems);
            self.show(problems);
            ended = Instant::now();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Stop | Event::Files | Event::Surroundings => {}
            Event::Kernel => self.compared = None,
            Event::Pods(network) => drop(self.sought.insert(network, Instant::now())),
            Event::Watching(watched, Ok(())) => {
                self.compared = None;
                if self.deaf.remove(&watched).is_some() {
                    info!("{watched}: watched again");
                }
            }
            Event::Watching(watched, Err(why)) => {
                self.status.counters.reopened += 1;
                warn!("{watched}: the watch ended and is opened again: {why}");
                let stays = self.deaf.contains_key(&watched);
                self.deaf.insert(watched, (why, stays));
            }
            Event::Asked(name, answered) => self.asked(&name, answered),
            Event::Probed(block, answer) => self.probed(block, answer),
            Event::Answer(answer) => self.answered(answer),
            Event::Checksums(node) => {
                // If the operator or this daemon has switched the offload off already, the network card is not the cause.
                if self.config.checksum_offload != Some(false) {
                    self.wrong_checksums.get_or_insert(node);
                }
            }
            Event::Store(update) => {
                let own_is_gone = matches!(&update, Update::Node(name, None) | Update::Alive(name, false) if *name == self.own.name);
                let is_all = matches!(update, Update::All(_));
                let is_own = matches!(&update, Update::Node(name, Some(_)) if *name == self.own.name);
                self.view.update(update, &self.config);
                if is_all && !self.is_as_published() || own_is_gone || is_own && self.is_falsified() {
                    // The store is back with another record, or has lost this node's, or another program has changed it: the record is
                    // published again at once.
                    self.rewrite = true;
                    self.unpublished = None;
                }
            }
        }
    }

    fn pause(&self, problems: &[String]) -> Duration {
        if !self.view.whole || !problems.is_empty() {
            return RETRY;
        }
        let usual = AUDIT.min(self.config.lease / 3);
        let waits = self.untidy || self.view.is_unwritten();
        let is_done = self.view.missing.is_empty() && self.vanished.is_empty() && !waits;
        if is_done { usual } else { usual.min(RETRY) }
    }

    fn waits_for_store(&self) -> String {
        let why = self.view.lost.as_deref().unwrap_or("it has not answered yet");
        format!("the store cannot be reached, and no view of the cluster is remembered: {why}")
    }

    /// Returns whether the network card computes the checksums of tunnelled packets: as configured, or else until it was found to
    /// get them wrong.
    pub(super) fn checksum_offload(&self) -> bool {
        self.config.checksum_offload.unwrap_or(self.wrong_checksums.is_none())
    }

    /// Compares and applies once; returns the reasons why the node is not ready.
    fn pass(&mut self, by_kernel_alone: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let socket = match Socket::open(Protocol::Route) {
            Ok(socket) => socket,
            Err(error) => return vec![error.to_string()],
        };
        let found = link::list(&socket).and_then(|links| {
            Ok((actual::uplinks(&socket, &links, &self.config, &self.last_uplinks)?, links))
        });
        let (uplinks, links) = match found {
            Ok(found) => found,
            Err(error) => return vec![error.to_string()],
        };
        self.follow_uplinks(&uplinks);
        self.watch_links(|links| links.uplinks = uplinks.all().map(|uplink| uplink.link).collect());
        if uplinks.all().next().is_none() {
            return vec![
                "this host has no address that other hosts can reach: there is no default route, and `addresses` is not set"
                    .into(),
            ];
        }
        self.follow_addresses();
        if uplinks.all().all(|uplink| !uplink.leads_out) {
            problems.extend(self.lost_default_route());
        }
        let conflict = self.identity_conflict();
        // A node that was never published has changed nothing yet, and does not start to.
        if let Some(problem) = conflict.as_ref().filter(|_| self.published.is_none()) {
            return vec![problem.clone()];
        }
        // With another daemon of this identity, the store is not changed, but repairs go on.
        let is_unique = conflict.is_none();
        problems.extend(conflict);
        if is_unique {
            self.inquire(&uplinks);
        }
        let mut of_networks = if is_unique { self.manage_blocks() } else { Vec::new() };
        // Before the assigned blocks are known, this host's own blocks may look like a peer's, whose routes would replace its own.
        if self.view.live && self.assigned.is_none() && self.requests.is_assigning() {
            return of_networks;
        }
        // The first block of each family has the source of every route.
        if self.last.is_none() && self.requests.is_gaining() {
            return of_networks;
        }
        self.probe_segment(&uplinks);
        let (began, is_first) = (Instant::now(), self.last.is_none());
        let (wanted, is_new) = match self.want(&socket, &uplinks) {
            Ok(wanted) => wanted,
            Err(error) => return vec![error.to_string()],
        };
        if is_first {
            // The text of all records, for example. The first comparison needs the most memory.
            heap::trim();
        }
        if is_unique && self.announces_first() {
            if let Ok(current) = actual::read(&socket) {
                apply::prepare(&socket, &wanted, &current);
            }
            self.compared = None;
            drop(self.publish());
            of_networks
                .push("the other nodes do not know of this node's change of mode or tunnel yet".into());
            return of_networks;
        }
        let is_due = self.compared.is_none_or(|at| at.elapsed() >= AUDIT)
            || !self.known.refusals.is_empty()
            || !self.deaf.is_empty();
        if is_new || is_due || !self.keep_settings(&wanted, &uplinks, by_kernel_alone) {
            self.untidy = true;
            self.compared = Some(Instant::now());
            let found = self.apply(&socket, &wanted, &uplinks, by_kernel_alone && !is_new);
            self.compared = self.compared.filter(|_| found.is_empty());
            problems.extend(found);
            let longest = &mut self.status.counters.longest_micros;
            *longest = (*longest).max(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        // The links of other programs are not compared, but those of pods are told by their routes.
        problems.extend(self.group_pods(&socket, &wanted, &links, by_kernel_alone));
        self.took = began.elapsed();
        problems.extend(self.blame_peers());
        // The record is published after this host accepts the packets that peers then send.
        if is_unique {
            problems.extend(self.publish());
        }
        if problems.is_empty() {
            of_networks.extend(self.write_network_files(&wanted));
            of_networks.extend(self.replace_flannel(&socket, &wanted));
        }
        problems.extend(of_networks);
        let stay = self.deaf.iter().filter(|(_, (_, stays))| *stays);
        problems.extend(stay.map(|(watched, (why, _))| {
            format!("cannot watch {watched}: {why}; changes are noticed only once a second")
        }));
        self.view.remember(&self.config.state_dir);
        problems
    }

    /// Sets the group of pods' links that lack it.
    fn group_pods(
        &mut self,
        socket: &Socket,
        wanted: &Desired,
        links: &[Link],
        by_kernel_alone: bool,
    ) -> Option<String> {
        wanted.ruleset.as_ref()?;
        match pod_links::group(socket, links, &self.own.blocks) {
            Ok(grouped) => {
                self.count(Changes { devices: grouped, ..Changes::default() }, by_kernel_alone);
                None
            }
            Err(error) => Some(format!("cannot set the group of pods' links: {error}")),
        }
    }

    /// Counts changes, as repairs if nothing but the kernel's events was their reason.
    fn count(&mut self, by_kind: Changes, by_kernel_alone: bool) {
        let changes = by_kind.sum();
        self.status.counters.changes += changes as u64;
        if by_kernel_alone && changes > 0 {
            self.status.counters.repairs += changes as u64;
            history::note_repair(&mut self.status.repairs, by_kind);
            info!(changes, "repaired foreign changes");
        }
    }

    /// Keeps the settings, not all of which announce that they were changed. Returns whether that was possible: a device may be gone.
    fn keep_settings(&mut self, wanted: &Desired, uplinks: &Uplinks, by_kernel_alone: bool) -> bool {
        let (settings, problems) = self.known.settings.keep(wanted, |_| true, uplinks);
        self.count(Changes { settings, ..Changes::default() }, by_kernel_alone);
        problems.is_empty()
    }

    /// Changes the links whose events concern this daemon. Before that, events of new ones may have been ignored.
    fn watch_links(&mut self, change: impl FnOnce(&mut Links)) {
        let mut links = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let before = links.clone();
        change(&mut links);
        if *links != before {
            self.compared = None;
        }
    }

    /// Returns the desired state, and whether it differs from the last one. It is computed only if something has changed that it
    /// depends on: with thousands of nodes, most passes are about something else.
    fn want(&mut self, socket: &Socket, uplinks: &Uplinks) -> kernel::Result<(Rc<Desired>, bool)> {
        let routed: Vec<IpNet> = self.config.routed_pods().collect();
        let basis = Basis {
            changes: self.view.changes,
            own: self.own.clone(),
            known: self.known_families(),
            uplinks: uplinks.clone(),
            host: actual::networks_among(socket, &routed, &self.own.blocks)?,
            checksum_offload: self.checksum_offload(),
        };
        if let Some(last) = self.last.as_ref().filter(|_| self.basis.as_ref() == Some(&basis)) {
            return Ok((Rc::clone(last), false));
        }
        let mut nodes = self.view.honour(&self.own, &self.config.pods(), &basis.host);
        nodes.insert(self.own.name.clone(), self.own.clone());
        let wanted = desired::desired(&Inputs {
            config: &self.config,
            own: &self.own,
            known: basis.known,
            nodes: &nodes,
            uplinks,
            checksum_offload: basis.checksum_offload,
        });
        // Nodes that are gone are probed too: they may only be cut off from the store.
        let others = nodes.values().filter(|node| node.name != self.own.name);
        let others = others.map(|node| (node, self.tunnel_address(&wanted, node)));
        self.probes.set(others.chain(self.view.former.values().map(|node| (node, None))));
        self.basis = Some(basis);
        self.peers_changed = true;
        let is_new = self.last.as_deref() != Some(&wanted);
        let wanted = Rc::new(wanted);
        self.last = Some(Rc::clone(&wanted));
        Ok((wanted, is_new))
    }

    /// Collects the changes for peers that the kernel refused, by node. Returns the refusals that concern no peer.
    fn blame_peers(&mut self) -> Vec<String> {
        let before = std::mem::take(&mut self.refused_changes);
        let mut others = Vec::new();
        for (object, text) in self.known.refusals.iter() {
            let has_mac = |node: &&Record, mac| [node.mac(true), node.mac(false)].contains(&mac);
            let peer = match object {
                Object::Route(block) => self.view.held.get(&block),
                Object::Remote(_, mac) => {
                    self.view.nodes.values().find(|node| has_mac(node, mac)).map(|node| &node.name)
                }
            };
            match peer {
                Some(peer) => self.refused_changes.entry(peer.clone()).or_default().push(text.to_owned()),
                None => others.push(text.to_owned()),
            }
        }
        self.peers_changed |= before != self.refused_changes;
        others.truncate(SHOWN);
        others
    }

    /// Returns a node's own address at the other end of a tunnel: that of its first block that is reached over one.
    fn tunnel_address(&self, wanted: &Desired, node: &Record) -> Option<IpAddr> {
        let paths = &wanted.peers.get(&node.name).filter(|_| !node.flannel)?.paths;
        let is_tunnelled = |block: &&IpNet| {
            let network = self.config.network_of(block);
            network.is_some_and(|it| matches!(paths.get(&it.name), Some(PeerPath::Tunnel { .. })))
        };
        node.blocks.iter().find(is_tunnelled).map(|block| blocks::own_address(*block))
    }

    fn apply(
        &mut self,
        socket: &Socket,
        wanted: &Desired,
        uplinks: &Uplinks,
        by_kernel_alone: bool,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let current = match actual::read(socket) {
            Ok(current) => current,
            Err(error) => return vec![error.to_string()],
        };
        let known_chains = self.known.rules.chains;
        // The ruleset comes first: it accepts a new node's packets before any are sent to the node.
        let rules =
            Socket::open(Protocol::Netfilter).map_err(ruleset::RulesetError::from).and_then(|netfilter| {
                match &wanted.ruleset {
                    Some(ruleset) => cluster::ensure(&netfilter, ruleset, &mut self.known.rules),
                    None => cluster::remove(&netfilter).map(|()| false),
                }
            });
        // The next daemon adopts the ruleset. If the file cannot be written, it creates the tables again.
        if self.known.rules.chains != known_chains
            && let Err(error) = memory::set_rules(&self.config.state_dir, self.known.rules.chains)
        {
            warn!("cannot write the state of the ruleset: {error}");
        }
        // Without its settings, a device refuses neighbours and routes. What it refused for that reason is tried again at once.
        let (set, refused) =
            self.known.settings.keep(wanted, |name| current.devices.contains_key(name), uplinks);
        problems.extend(refused);
        if set > 0 {
            self.known.refusals.clear();
        }
        let done = apply::apply(socket, wanted, &current, &mut self.known);
        self.watch_links(|links| links.own.clone_from(&done.devices));
        let mut by_kind = Changes { settings: set, ..done.changes };
        match rules {
            Ok(changed) => by_kind.rulesets += usize::from(changed),
            Err(error) => problems.push(format!("cannot change the ruleset: {error}")),
        }
        self.status.counters.comparisons += 1;
        self.status.counters.refusals += done.refused_count as u64;
        self.count(by_kind, by_kernel_alone);
        for refusal in done.refused.iter().take(SHOWN) {
            warn!("{refusal}");
        }
        problems.extend(done.refused.into_iter().take(SHOWN));
        problems
    }
}
