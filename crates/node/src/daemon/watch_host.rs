//! Threads that watch the host and send events.
//!
//! A watch that ends is opened again, and the daemon compares everything then: no end is silent.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SendError, Sender},
    },
    time::Duration,
};

use kernel::events::{Concern, Events, Links};
use ruleset::cluster;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify::WatchFlags,
};

use super::event::{Event, Watched};
use crate::{actual, config::Config, folder_watch::FolderWatch};

/// The daemon's own devices and the uplinks.
pub(super) type Devices = Arc<Mutex<Links>>;

/// The pause before a watch is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Watches the host's network and ruleset, except for foreign neighbours and routes.
pub(super) fn watch_kernel(sender: Sender<Event>, devices: Devices) {
    keep_watching(sender, Watched::Kernel, move |sender| {
        let network = Events::of_network()?;
        // A kernel without nftables has no ruleset to watch.
        let rules = Events::of_ruleset().ok();
        sender.send(Event::Watching(Watched::Kernel, Ok(())))?;
        loop {
            let mut fds = vec![PollFd::new(&network, PollFlags::IN)];
            fds.extend(rules.iter().map(|rules| PollFd::new(rules, PollFlags::IN)));
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(std::io::Error::from)?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut concern = Concern::None;
            if ready[0] {
                let links = devices.lock().unwrap_or_else(PoisonError::into_inner).clone();
                concern = network.concern(actual::PROTOCOL, &links)?;
            }
            if let Some(rules) = rules.as_ref().filter(|_| ready[1..].contains(&true)) {
                concern = concern.max(rules.concern_of_tables(cluster::NAME)?);
            }
            match concern {
                Concern::None => {}
                Concern::Surroundings => sender.send(Event::Surroundings)?,
                Concern::Own => sender.send(Event::Kernel)?,
            }
        }
    });
}

/// Watches each network's reservations: a plugin that reserves or releases an address opens and closes their lock file.
pub(super) fn watch_reservations(config: &Config, sender: &Sender<Event>) {
    for network in &config.networks {
        let (folder, network) = (config.data_dir.join(&network.name), network.name.clone());
        let watched = Watched::Reservations(network.clone());
        keep_watching(sender.clone(), watched.clone(), move |sender| {
            std::fs::create_dir_all(&folder)?;
            // Reading the directory, as this daemon does, causes events too.
            let is_lock = |name: &Path| name.as_os_str() == "lock";
            watch_folder(sender, &watched, &folder, WatchFlags::CLOSE, is_lock, || {
                Event::Pods(network.clone())
            })
        });
    }
}

/// Watches the folder of the container runtime's network configurations, in which the daemon keeps its own.
pub(super) fn watch_network_files(config: &Config, sender: Sender<Event>) {
    let folder = config.conf_dir.clone();
    let changes =
        WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
    keep_watching(sender, Watched::NetworkFiles, move |sender| {
        // The daemon creates it with its first file.
        FolderWatch::wait_until_exists(&folder)?;
        watch_folder(sender, &Watched::NetworkFiles, &folder, changes, |_| true, || Event::Files)
    });
}

/// Sends an event whenever a file changes in a folder, if `matters` holds for the file.
fn watch_folder(
    sender: &Sender<Event>,
    watched: &Watched,
    folder: &PathBuf,
    changes: WatchFlags,
    matters: impl Fn(&Path) -> bool,
    event: impl Fn() -> Event,
) -> Result<Infallible, Ended> {
    let watch = FolderWatch::open(std::slice::from_ref(folder), changes)?;
    sender.send(Event::Watching(watched.clone(), Ok(())))?;
    loop {
        if watch.wait(None, &matters)? {
            sender.send(event())?;
        }
    }
}

/// The reason a watch ended.
enum Ended {
    /// The daemon ends.
    Unwanted,
    Broken(String),
}

impl From<SendError<Event>> for Ended {
    fn from(_: SendError<Event>) -> Self {
        Self::Unwanted
    }
}

impl From<kernel::Error> for Ended {
    fn from(error: kernel::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Starts a thread that watches, and watches again whenever that ends.
fn keep_watching(
    sender: Sender<Event>,
    watched: Watched,
    watch: impl Fn(&Sender<Event>) -> Result<Infallible, Ended> + Send + 'static,
) {
    std::thread::spawn(move || {
        loop {
            let Err(Ended::Broken(why)) = watch(&sender) else { return };
            if sender.send(Event::Watching(watched.clone(), Err(why))).is_err() {
                return;
            }
            std::thread::sleep(REOPEN);
        }
    });
}
