//! One operation at a time for a container, and GC alone on its network (SPEC, "Lifecycle & Ordering").
//!
//! Locks are files under `STATE/netloom/locks`, so that programs that live for one call keep the order too.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::Error;

/// A lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    file: File,
    path: PathBuf,
    remove: bool,
}

/// Waits until nothing else is done for a container.
pub(crate) fn container(state: &Path, id: &str) -> Result<Guard, Error> {
    let mut guard = take(state, &format!("container-{id}"), File::lock)?;
    guard.remove = true;
    Ok(guard)
}

/// Waits until no GC runs on a network or waits for it. Other operations may run at the same time.
pub(crate) fn network(state: &Path, name: &str) -> Result<Guard, Error> {
    drop(take(state, &turn(name), File::lock_shared)?);
    take(state, &format!("network-{name}"), File::lock_shared)
}

/// Waits until no operation runs on a network, and holds off others.
///
/// File locks are not fair: on a busy host there is always one who shares the network's lock. So whoever wants it alone takes
/// the turn first, which lets no one else in.
pub(crate) fn whole_network(state: &Path, name: &str) -> Result<Guard, Error> {
    let _turn = take(state, &turn(name), File::lock)?;
    take(state, &format!("network-{name}"), File::lock)
}

fn turn(name: &str) -> String {
    format!("turn-network-{name}")
}

fn take(state: &Path, name: &str, lock: fn(&File) -> io::Result<()>) -> Result<Guard, Error> {
    let dir = state.join("netloom/locks");
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
        // The last holder may have removed the file while this one waited: then it is no lock any more.
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
