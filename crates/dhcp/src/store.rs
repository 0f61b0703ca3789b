//! Leases on disk, a file each, so that they outlive the daemon.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::{call::Who, lease::Lease, v4, v6};

/// What is remembered of an interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) who: Who,
    pub(crate) netns: PathBuf,
    /// Device and inode of the namespace, since its path may lead to another one later.
    pub(crate) identity: (u64, u64),
    pub(crate) v4: Option<(v4::Wishes, Lease)>,
    pub(crate) v6: Option<(v6::Wishes, Lease)>,
    pub(crate) priority: u32,
    /// Times count from a machine's start, so they mean nothing after another one.
    pub(crate) boot: String,
}

impl Stored {
    pub(crate) fn new(who: &Who, netns: &Path, identity: (u64, u64), priority: u32) -> Self {
        let netns = netns.to_owned();
        Self { who: who.clone(), netns, identity, v4: None, v6: None, priority, boot: boot() }
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
        let file = self.0.join(name(&stored.who));
        let fresh = file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut open = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&fresh)?;
        io::Write::write_all(&mut open, &serde_json::to_vec(stored)?)?;
        fs::rename(&fresh, &file)
    }

    pub(crate) fn remove(&self, who: &Who) -> io::Result<()> {
        remove_file(&self.0.join(name(who)))
    }

    /// Reads all that are of this start of the machine, and removes the others and what is damaged.
    pub(crate) fn read(&self) -> io::Result<Vec<Stored>> {
        let boot = boot();
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let stored = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
            match stored.filter(|stored| stored.boot == boot && path.extension().is_none()) {
                Some(stored) => all.push(stored),
                None => remove_file(&path)?,
            }
        }
        Ok(all)
    }
}

/// Forgets a lease while no daemon runs, so that the next one does not keep it.
///
/// # Errors
/// When the file is there and cannot be removed.
pub(crate) fn forget(socket: &Path, who: &Who) -> io::Result<()> {
    remove_file(&folder(socket).join(name(who)))
}

fn folder(socket: &Path) -> PathBuf {
    socket.with_extension("leases")
}

fn name(who: &Who) -> String {
    let mut hasher = DefaultHasher::new();
    who.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
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
