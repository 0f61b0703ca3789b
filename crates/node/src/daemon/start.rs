//! Starts the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use kernel::{heap, sysctl};

use super::{event::Event, memory, requests::Requests, state::Daemon, watch_host};
use crate::{
    apply::Known,
    cluster_view::ClusterView,
    config::{Config, Mode},
    desired::Uplinks,
    probe::Probes,
    record::{Record, Tunnel},
    serve,
    start_error::StartError,
    status::{self, Status},
    store::{self, Worker},
};

/// Runs the daemon until it receives [`Event::Stop`]. `stop` is called with a sender for that event.
///
/// # Errors
/// If the daemon cannot start: another one runs on this host, a directory cannot be created, or an address is in use.
pub fn run(config: Config, stop: impl FnOnce(Sender<Event>)) -> Result<(), StartError> {
    heap::share();
    let _lock = memory::lock(&config.state_dir)?;
    let incarnation = memory::incarnation(&config.state_dir)?;
    sysctl::found_at(&config.sysctl_dir);
    if let Some(dir) = &config.plugins {
        install_plugins(dir).map_err(StartError::io(format!("install the plugins in {}", dir.display())))?;
    }
    let (sender, events) = channel();
    stop(sender.clone());
    let devices = watch_host::Devices::default();
    watch_host::watch_kernel(sender.clone(), Arc::clone(&devices));
    watch_host::watch_reservations(&config, &sender);
    watch_host::watch_network_files(&config, sender.clone());
    let probes = start_probes(&config, sender.clone())?;
    let shared = status::Shared::default();
    serve::start(&config, &shared, &probes)?;
    let own = Record {
        name: config.node.clone(),
        addresses: Vec::new(),
        blocks: memory::blocks(&config.state_dir),
        tunnel: config.tunnels().then_some(Tunnel::of(&config)),
        mac: None,
        mac6: None,
        flannel: false,
        overlay: of_mode_overlay(&config),
        short: BTreeSet::new(),
        unreachable: BTreeSet::new(),
        incarnation,
        instance: memory::random_id()?,
    };
    let mut daemon = Daemon {
        requests: Requests::new(start_store(&config, sender.clone())?),
        started: Instant::now(),
        uplinks: Uplinks::default(),
        last_uplinks: Uplinks::default(),
        vanished: BTreeMap::new(),
        remembered: own.blocks.clone(),
        view: ClusterView::default(),
        published: None,
        echoed: false,
        rewrite: true,
        unpublished: None,
        assigned: None,
        wrong_checksums: None,
        known: Known::new(memory::rules(&config.state_dir)),
        inquiries: BTreeMap::new(),
        deaf: BTreeMap::new(),
        refused_changes: BTreeMap::new(),
        resting: BTreeMap::new(),
        lost: BTreeMap::new(),
        sought: BTreeMap::new(),
        probed: BTreeMap::new(),
        sender,
        took: Duration::ZERO,
        last: None,
        basis: None,
        compared: None,
        peers_changed: true,
        untidy: false,
        status: Status { node: config.node.clone(), ..Status::default() },
        shared,
        devices,
        probes,
        own,
        config,
    };
    daemon.run(&events);
    Ok(())
}

fn start_probes(config: &Config, sender: Sender<Event>) -> Result<Probes, StartError> {
    // Sending fails only when the daemon ends, and the thread with it.
    let on_wrong_checksums = move |node| drop(sender.send(Event::Checksums(node)));
    Probes::start(config.probe_port, config.node.clone(), on_wrong_checksums)
        .map_err(StartError::io(format!("listen on UDP port {} for probes", config.probe_port)))
}

fn start_store(config: &Config, sender: Sender<Event>) -> Result<Worker, StartError> {
    let updates = sender.clone();
    let store = store::open(config, Box::new(move |update| updates.send(Event::Store(update)).is_ok()))
        .map_err(|error| StartError::new(error.doing, error.why))?;
    Ok(Worker::start(store, config.node.clone(), move |answer| sender.send(Event::Answer(answer)).is_ok()))
}

/// Returns the names of the networks in mode overlay.
fn of_mode_overlay(config: &Config) -> BTreeSet<String> {
    let networks = config.networks.iter().filter(|network| network.mode == Mode::Overlay);
    networks.map(|network| network.name.clone()).collect()
}

/// Installs the `netloom` binary beside this one, and its plugins, in the runtime's directory.
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
