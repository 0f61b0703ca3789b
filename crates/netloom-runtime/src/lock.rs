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

/// A lock that is released on drop.
#[derive(Debug)]
pub(crate) struct Guard {
    file: File,
    path: PathBuf,
    remove: bool,
}

/// Waits for other operations of a container and excludes new ones.
pub(crate) fn container(state: &Path, id: &str) -> Result<Guard, Error> {
    let mut guard = take(state, &format!("container-{id}"), File::lock)?;
    guard.remove = true;
    Ok(guard)
}

/// Waits until no GC of a network runs or waits, and excludes GC. Other operations may run at the same time.
pub(crate) fn network(state: &Path, name: &str) -> Result<Guard, Error> {
    drop(take(state, &turn(name), File::lock_shared)?);
    take(state, &format!("network-{name}"), File::lock_shared)
}

/// Waits until no operation runs on a network, and excludes all others.
///
/// File locks are not fair: on a busy host there is always an operation that shares the network's lock. GC therefore acquires the
/// turn lock first, which new operations must pass.
pub(crate) fn whole_network(state: &Path, name: &str) -> Result<Guard, Error> {
    let _turn = take(state, &turn(name), File::lock)?;
    take(state, &format!("network-{name}"), File::lock)
}

/// Does as [`whole_network`], but creates no file: returns `None` if no operation on the network ever took its lock.
pub(crate) fn whole_network_if_used(state: &Path, name: &str) -> Result<Option<Guard>, Error> {
    let files = [turn(name), format!("network-{name}")];
    if !files.iter().all(|file| folder(state).join(file).exists()) {
        return Ok(None);
    }
    whole_network(state, name).map(Some)
}

fn folder(state: &Path) -> PathBuf {
    state.join("netloom/locks")
}

fn turn(name: &str) -> String {
    format!("turn-network-{name}")
}

fn take(state: &Path, name: &str, lock: fn(&File) -> io::Result<()>) -> Result<Guard, Error> {
    let dir = folder(state);
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
        lock(&file).map_err(error)?;
        // The last holder may have removed the file during the wait. A lock on a removed file excludes no process: retry.
        let inode = file.metadata().map_err(error)?.ino();
        if fs::metadata(&path).is_ok_and(|there| there.ino() == inode) {
            return Ok(Guard { file, path, remove: false });
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.remove {
            drop(fs::remove_file(&self.path));
        }
        drop(self.file.unlock());
    }
}
