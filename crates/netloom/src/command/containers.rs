//! Network namespaces that this program makes for commands, and how the next `gc` knows that one was left.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use kernel::{
    Netns, Protocol, Socket,
    link::{self, Change},
};

use super::{Failure, Outcome, Places};

/// Holds a network namespace for as long as this process lives.
///
/// A locked file beside the state says that it does: when the process is killed the lock is gone, and `gc`
/// removes what it left.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) netns: Netns,
    alive: PathBuf,
    _lock: File,
}

const NETNS_DIR: &str = "/run/netns";

impl Sandbox {
    /// Makes one, with its loopback up.
    pub(crate) fn create(places: &Places, name: &str) -> Outcome<Self> {
        let id = format!("netloom-{name}-{}", std::process::id());
        let dir = alive_dir(places);
        let alive = dir.join(&id);
        let context = |error: std::io::Error| {
            Failure::new(format!("cannot write {}: {error}", alive.display()))
                .hint("run it as root, or set --state-dir to a folder that is writable")
        };
        fs::create_dir_all(&dir).map_err(context)?;
        let lock = File::create(&alive).map_err(context)?;
        lock.lock().map_err(context)?;
        let netns =
            Netns::create(&Path::new(NETNS_DIR).join(&id)).inspect_err(|_| drop(fs::remove_file(&alive)))?;
        let sandbox = Self { id, netns, alive, _lock: lock };
        let socket = sandbox.netns.run(|| Socket::open(Protocol::Route))??;
        let lo = link::require(&socket, "lo")?;
        link::change(&socket, &lo, &Change { up: Some(true), ..Change::default() })?;
        Ok(sandbox)
    }

    /// Returns the namespace's path.
    pub(crate) fn path(&self) -> String {
        self.netns.path().display().to_string()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(Netns::remove(self.netns.path()));
        drop(fs::remove_file(&self.alive));
    }
}

/// Removes the namespaces of processes that were killed.
pub(crate) fn remove_dead(places: &Places) -> Outcome {
    let Ok(entries) = fs::read_dir(alive_dir(places)) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        if let Some(id) = path.file_name() {
            Netns::remove(&Path::new(NETNS_DIR).join(id))?;
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

fn alive_dir(places: &Places) -> PathBuf {
    places.state_dir.join("netloom/run")
}
