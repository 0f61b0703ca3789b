//! Locks that allow one operation at a time for a container, and no other operation on a network during its GC (SPEC, "Lifecycle
//! & Ordering").
//!
//! Locks are files in `STATE/netloom/locks`, so they also order the calls of different processes.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::Error;

/// Which other locks of a file a lock allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Other shared ones.
    Shared,
    /// None.
    Exclusive,
}

/// A function that takes the lock (flock(2)) of the open file at a path and waits for it.
pub type LockFile = fn(&File, &Path, LockKind) -> io::Result<()>;

/// Takes a lock and waits for it silently.
pub(crate) fn lock_file(file: &File, _path: &Path, kind: LockKind) -> io::Result<()> {
    match kind {
        LockKind::Shared => file.lock_shared(),
        LockKind::Exclusive => file.lock(),
    }
}

/// The folder of the locks, and how one is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Locks<'a> {
    pub(crate) state: &'a Path,
    pub(crate) lock_file: LockFile,
}

/// A lock that is released on drop.
#[derive(Debug)]
pub(crate) struct Guard {
    file: File,
    path: PathBuf,
    remove: bool,
}

impl Locks<'_> {
    /// Waits for other operations of a container and excludes new ones.
    pub(crate) fn container(&self, id: &str) -> Result<Guard, Error> {
        let mut guard = self.take(&format!("container-{id}"), LockKind::Exclusive)?;
        guard.remove = true;
        Ok(guard)
    }

    /// Waits until no GC of a network runs or waits, and excludes GC. Other operations may run at the same time.
    pub(crate) fn network(&self, name: &str) -> Result<Guard, Error> {
        drop(self.take(&turn(name), LockKind::Shared)?);
        self.take(&format!("network-{name}"), LockKind::Shared)
    }

    /// Waits until no operation runs on a network, and excludes all others.
    ///
    /// File locks are not fair: on a busy host there is always an operation that shares the network's lock. GC therefore acquires
    /// the turn lock first, which new operations must pass.
    pub(crate) fn whole_network(&self, name: &str) -> Result<Guard, Error> {
        let _turn = self.take(&turn(name), LockKind::Exclusive)?;
        self.take(&format!("network-{name}"), LockKind::Exclusive)
    }

    /// Does as [`Self::whole_network`], but creates no file: returns `None` if no operation on the network ever took its lock.
    pub(crate) fn whole_network_if_used(&self, name: &str) -> Result<Option<Guard>, Error> {
        let files = [turn(name), format!("network-{name}")];
        for file in files {
            let path = self.folder().join(file);
            let error = |source| Error::Io { doing: "look for", path: path.clone(), source };
            if !path.try_exists().map_err(error)? {
                return Ok(None);
            }
        }
        self.whole_network(name).map(Some)
    }

    fn folder(&self) -> PathBuf {
        self.state.join("netloom/locks")
    }

    fn take(&self, name: &str, kind: LockKind) -> Result<Guard, Error> {
        let dir = self.folder();
        let path = dir.join(name);
        let error = |source| Error::Io { doing: "lock", path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(error)?;
        loop {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(crate::NO_LINK)
                .open(&path)
                .map_err(error)?;
            (self.lock_file)(&file, &path, kind).map_err(error)?;
            // The last holder may have removed the file during the wait. A lock on a removed file excludes no process: retry.
            let inode = file.metadata().map_err(error)?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == inode) {
                return Ok(Guard { file, path, remove: false });
            }
        }
    }
}

fn turn(name: &str) -> String {
    format!("turn-network-{name}")
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.remove {
            drop(fs::remove_file(&self.path));
        }
        drop(self.file.unlock());
    }
}
