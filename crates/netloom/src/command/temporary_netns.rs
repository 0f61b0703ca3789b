//! Network namespaces that `run` and `demo` create, and the lock files that show `gc` which ones a killed process left.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use kernel::{
    Netns, Protocol, Socket,
    link::{self, Change},
};
use netloom_invoke::FileId;

use super::{Failure, Outcome, Places};

/// A network namespace that exists as long as this process.
///
/// The process holds a lock on a file in the state folder. If the process is killed, the kernel releases the lock and
/// `gc` removes the namespace.
#[derive(Debug)]
pub(crate) struct TemporaryNetns {
    pub(crate) id: String,
    pub(crate) netns: Netns,
    lock_file: PathBuf,
    _lock: File,
}

impl TemporaryNetns {
    /// Creates a namespace with its loopback interface up.
    pub(crate) fn create(places: &Places, name: &str) -> Outcome<Self> {
        let id = format!("netloom-{name}-{}", std::process::id());
        let dir = lock_dir(places);
        let lock_file = dir.join(&id);
        let context = |error: std::io::Error| {
            Failure::new(format!("cannot write {}: {error}", lock_file.display()))
                .hint("run as root, or set --state-dir to a writable folder")
        };
        fs::create_dir_all(&dir).map_err(context)?;
        let lock = loop {
            let lock = File::create(&lock_file).map_err(context)?;
            lock.lock().map_err(context)?;
            // A `gc` may have locked and removed the file before this process could: then it protects nothing.
            if FileId::of(&lock_file) == Some(FileId::of_file(&lock).map_err(context)?) {
                break lock;
            }
        };
        let netns = Netns::create(&places.netns_dir().join(&id)).map_err(|error| {
            drop(fs::remove_file(&lock_file));
            places.explain(error)
        })?;
        let temporary = Self { id, netns, lock_file, _lock: lock };
        let socket = temporary.netns.run(|| Socket::open(Protocol::Route))??;
        let lo = link::require(&socket, "lo")?;
        link::change(&socket, &lo, &Change { up: Some(true), ..Change::default() })?;
        Ok(temporary)
    }

    /// Returns the namespace's path.
    pub(crate) fn path(&self) -> String {
        self.netns.path().display().to_string()
    }
}

impl Drop for TemporaryNetns {
    fn drop(&mut self) {
        drop(Netns::remove(self.netns.path()));
        drop(fs::remove_file(&self.lock_file));
    }
}

/// A namespace that a killed process left. Its lock is held, so that no new process uses the name meanwhile.
#[derive(Debug)]
pub(crate) struct Dead {
    pub(crate) netns: PathBuf,
    lock_file: PathBuf,
    _lock: File,
}

impl Dead {
    /// Removes the namespace. Succeeds if it is gone.
    pub(crate) fn remove(self) -> Outcome {
        Netns::remove(&self.netns)?;
        Ok(fs::remove_file(&self.lock_file)?)
    }
}

/// Lists the namespaces that killed processes left.
pub(crate) fn dead(places: &Places) -> Vec<Dead> {
    let Ok(entries) = fs::read_dir(lock_dir(places)) else { return Vec::new() };
    let mut dead: Vec<Dead> = entries
        .flatten()
        .filter_map(|entry| {
            let lock_file = entry.path();
            let lock = File::open(&lock_file).ok()?;
            lock.try_lock().ok()?;
            Some(Dead { netns: places.netns_dir().join(entry.file_name()), lock_file, _lock: lock })
        })
        .collect();
    dead.sort_by(|a, b| a.netns.cmp(&b.netns));
    dead
}

/// Returns the folder of the lock files.
pub(crate) fn lock_dir(places: &Places) -> PathBuf {
    places.state_dir.join("netloom/run")
}
