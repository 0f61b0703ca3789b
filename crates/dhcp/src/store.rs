//! Leases on disk, one file each, so that they survive a restart of the daemon.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use kernel::hash::fnv1a;
use serde::{Deserialize, Serialize};

use crate::{call::Owner, lease::Lease, v4, v6};

/// The stored state of an interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Named `who` in files, as in earlier versions.
    #[serde(rename = "who")]
    pub(crate) owner: Owner,
    pub(crate) netns: PathBuf,
    /// Device and inode of the namespace, since its path may lead to another one later.
    pub(crate) identity: (u64, u64),
    pub(crate) v4: Option<(v4::Wishes, Lease)>,
    pub(crate) v6: Option<(v6::Wishes, Lease)>,
    pub(crate) priority: u32,
    /// The boot that the times count from. They are meaningless after another boot.
    pub(crate) boot: String,
}

impl Stored {
    pub(crate) fn new(owner: &Owner, netns: &Path, identity: (u64, u64), priority: u32) -> Self {
        let netns = netns.to_owned();
        Self { owner: owner.clone(), netns, identity, v4: None, v6: None, priority, boot: boot() }
    }
}

/// A folder of leases.
#[derive(Debug)]
pub(crate) struct Store(PathBuf);

impl Store {
    /// Opens the folder that belongs to a socket, beside it.
    pub(crate) fn of_socket(socket: &Path) -> io::Result<Self> {
        let folder = folder(socket);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }

    pub(crate) fn write(&self, stored: &Stored) -> io::Result<()> {
        let file = self.0.join(name(&stored.owner));
        let json = serde_json::to_vec(stored)?;
        // No fsync: a lease file is worthless after a crash of the machine, whose boot ID then differs.
        kernel::file::replace(&file, &file.with_extension("new"), |mut fresh| fresh.write_all(&json))
    }

    pub(crate) fn remove(&self, owner: &Owner) -> io::Result<()> {
        remove(&self.0, owner)
    }

    /// Reads the leases of this boot. Removes those of earlier boots and damaged files, and renames files that an earlier
    /// version named differently.
    pub(crate) fn read(&self) -> io::Result<Vec<Stored>> {
        let boot = boot();
        let mut all = Vec::new();
        let paths: Vec<PathBuf> =
            fs::read_dir(&self.0)?.map(|entry| entry.map(|it| it.path())).collect::<io::Result<_>>()?;
        for path in paths {
            let stored = parse(&path).filter(|stored| stored.boot == boot && path.extension().is_none());
            let Some(stored) = stored else {
                remove_file(&path)?;
                continue;
            };
            let named = self.0.join(name(&stored.owner));
            if path != named {
                if named.exists() {
                    // The file under the current name is the newer one.
                    remove_file(&path)?;
                    continue;
                }
                fs::rename(&path, &named)?;
            }
            all.push(stored);
        }
        Ok(all)
    }
}

/// Removes the file of a lease while no daemon runs, so that the next daemon does not keep it.
///
/// # Errors
/// If the file exists and cannot be removed.
pub(crate) fn forget(socket: &Path, owner: &Owner) -> io::Result<()> {
    remove(&folder(socket), owner)
}

fn folder(socket: &Path) -> PathBuf {
    socket.with_extension("leases")
}

/// Returns the file name of an owner's lease: the same in every version, since a file outlives the binary.
fn name(owner: &Owner) -> String {
    let fields = [&owner.network, &owner.container, &owner.ifname];
    // No field contains a zero byte, so the fields of two owners cannot run together.
    format!("{:016x}", fnv1a(fields.into_iter().flat_map(|field| field.bytes().chain([0]))))
}

/// Removes an owner's file, also one that an earlier version named by a hash of the standard library. Succeeds if there is
/// none.
fn remove(folder: &Path, owner: &Owner) -> io::Result<()> {
    match fs::remove_file(folder.join(name(owner))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if parse(&path).is_some_and(|stored| stored.owner == *owner) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// Reads one file. Returns `None` if it cannot be read or is damaged.
fn parse(path: &Path) -> Option<Stored> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container: &str) -> Owner {
        Owner { network: "net".into(), container: container.into(), ifname: "eth0".into() }
    }

    /// Files that earlier versions named by a hash of the standard library are read, renamed and removed.
    #[test]
    fn files_with_old_names_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("dhcp.sock");
        let store = Store::of_socket(&socket).unwrap();
        let old = |container: &str, name: &str| {
            let stored = Stored::new(&owner(container), Path::new("/run/netns/a"), (1, 2), 0);
            store.write(&stored).unwrap();
            let path = store.0.join(name);
            fs::rename(store.0.join(super::name(&stored.owner)), &path).unwrap();
            path
        };
        let kept = old("kept", "0123456789abcdef");
        let removed = old("removed", "fedcba9876543210");
        forget(&socket, &owner("removed")).unwrap();
        assert!(!removed.exists(), "the file of the removed lease is still there");
        let read = store.read().unwrap();
        assert_eq!(read.iter().map(|it| &it.owner).collect::<Vec<_>>(), [&owner("kept")]);
        assert!(!kept.exists(), "the old name is still there");
        assert!(store.0.join(name(&owner("kept"))).exists(), "the lease has no file under its new name");
        store.remove(&owner("kept")).unwrap();
        assert!(store.read().unwrap().is_empty(), "a removed lease was read");
    }

    /// File names do not depend on the compiler.
    #[test]
    fn names_are_stable() {
        assert_eq!(name(&owner("c1")), format!("{:016x}", fnv1a("net\0c1\0eth0\0".bytes())));
    }
}
