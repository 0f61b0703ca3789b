//! Threads that watch the host and send events.

use std::{
    collections::BTreeSet,
    io,
    mem::MaybeUninit,
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
};

use kernel::events::Events;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
};
use tracing::warn;

use super::event::Event;
use crate::{actual, config::Config};

/// The indices of the daemon's own devices.
pub(super) type Devices = Arc<Mutex<BTreeSet<u32>>>;

/// Watches the host's network and ruleset, except for foreign neighbours and routes.
pub(super) fn watch_kernel(sender: Sender<Event>, devices: Devices) {
    std::thread::spawn(move || {
        let network = match Events::of_network() {
            Ok(network) => network,
            Err(error) => {
                return warn!("foreign changes are repaired only once a minute: {error}");
            }
        };
        // A kernel without nftables has no ruleset to watch.
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
            if matters && sender.send(Event::Kernel).is_err() {
                return;
            }
        }
    });
}

/// Watches each network's reservations: a plugin that reserves or releases an address opens and closes their lock file.
pub(super) fn watch_reservations(config: &Config, sender: &Sender<Event>) -> io::Result<()> {
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
                // Reading the directory, as this daemon does, causes events too.
                let is_lock = event.file_name().is_some_and(|name| name == c"lock");
                if is_lock && sender.send(Event::Pods(network.clone())).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
