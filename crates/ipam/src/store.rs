//! Reservations: one file an address, as the reference plugin host-local keeps them.
//!
//! `DIR/NETWORK/ADDRESS` contains `CONTAINERID CR LF IFNAME`, and `last_reserved_ip.N` the last address assigned from range set N.
//! `lock` is held with `flock` during every read and change. Older files contain the container ID alone. Both plugins can use one
//! folder at the same time. An index finds the files of a container (`index.rs`); without a matching index every file is read.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use kernel::{
    file::{create_whole, open},
    waiting::{self, Lock},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{
    cooldown::Cooldown,
    index::{self, Entry, Index, NO_LINK, Outdated},
    pick::Candidates,
    range::{Range, RangeSet},
};

/// The attachment that a reservation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The container.
    pub container: &'a str,
    /// The interface in it.
    pub ifname: &'a str,
}

impl Owner<'_> {
    fn render(&self) -> String {
        format!("{}\r\n{}", self.container.trim(), self.ifname)
    }
}

/// A failed operation on a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct StoreError {
    /// The operation, as the rest of "cannot …".
    pub doing: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

type Result<T> = std::result::Result<T, StoreError>;

/// The folder of one network.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    rest: Option<Cooldown>,
}

/// The locked folder, which can be read and changed.
#[derive(Debug)]
pub struct Locked<'a> {
    dir: &'a Path,
    /// The index, or `None` if it is unavailable, as on a full disk: every file is read then.
    index: Option<Index>,
    rest: Option<Cooldown>,
    _lock: File,
}

/// The number of addresses that are tried one by one before the folder is read instead.
const TRIED: usize = 64;

impl Store {
    /// Returns the store of a network below `data_dir`.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self { dir: data_dir.join(network), rest: None }
    }

    /// Sets for how long a released address is not reused while others are free.
    #[must_use]
    pub fn with_rest(self, rest: Option<Cooldown>) -> Self {
        Self { rest, ..self }
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates the folder if it does not exist and takes its lock. Waits while another process holds the lock.
    ///
    /// # Errors
    /// If the folder or the lock file cannot be created.
    pub fn lock(&self) -> Result<Locked<'_>> {
        let error = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError { doing, path, source }
        };
        let path = self.dir.join("lock");
        let open = || open(&path, OFlags::RDWR | OFlags::CREATE | NO_LINK);
        let lock = match open() {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(&self.dir)
                    .map_err(error("create folder", &self.dir))?;
                open()
            }
            other => other,
        }
        .map_err(error("open lock file", &path))?;
        waiting::lock(&lock, &path, Lock::Exclusive).map_err(|errno| error("lock", &path)(errno.into()))?;
        let index = Index::open(&self.dir).and_then(|found| match found {
            Ok(index) => Ok(index),
            Err(outdated) => reindex(&self.dir, &outdated),
        });
        Ok(Locked { dir: &self.dir, index: index.ok(), rest: self.rest, _lock: lock })
    }

    /// Takes the lock, or returns `None` if the folder does not exist, since nothing is reserved then.
    ///
    /// # Errors
    /// As [`Self::lock`].
    pub fn lock_existing(&self) -> Result<Option<Locked<'_>>> {
        if self.exists()? { self.lock().map(Some) } else { Ok(None) }
    }

    /// Returns whether the folder exists. A folder that cannot be read is not one without reservations.
    fn exists(&self) -> Result<bool> {
        let error = |source| StoreError { doing: "read folder", path: self.dir.clone(), source };
        self.dir.try_exists().map_err(error)
    }
}

/// A reserved address, with the owner as its file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub ip: IpAddr,
    /// The container.
    pub container: String,
    /// The interface in it, or `None` in an older file.
    pub ifname: Option<String>,
}

impl Store {
    /// Lists the reservations without the lock, for a person to read. Changes nothing.
    ///
    /// # Errors
    /// If the folder exists and cannot be read.
    pub fn reservations(&self) -> Result<Vec<Reservation>> {
        if !self.exists()? {
            return Ok(Vec::new());
        }
        let read = |(ip, path): (IpAddr, PathBuf)| {
            let content = fs::read_to_string(path).ok()?;
            let (container, ifname) = owner_in(&content);
            Some(Reservation { ip, container: container.to_owned(), ifname: ifname.map(str::to_owned) })
        };
        Ok(files(&self.dir)?.into_iter().filter_map(read).collect())
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.indexed(Index::commit);
    }
}

impl Locked<'_> {
    /// Reserves an address. Returns false if it is reserved already.
    ///
    /// The file appears with its content or not at all, so that a kill leaves no address without owner.
    ///
    /// # Errors
    /// If the file cannot be written, as on a full disk; nothing is reserved then.
    pub fn reserve(&mut self, ip: IpAddr, owner: Owner<'_>, range_set: usize) -> Result<bool> {
        let path = self.dir.join(ip.to_string());
        // No other process creates this file while the lock is held, so a check first is safe and cheaper.
        if path.exists() {
            return Ok(false);
        }
        let error = |source| StoreError { doing: "write reservation", path: path.clone(), source };
        self.indexed(|index| index.insert(entry(owner.container, ip)));
        match write_whole(&path, owner.render().as_bytes()) {
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            other => other.map_err(error)?,
        }
        let last = self.last_path(range_set);
        if let Err(source) = write_private(&last, ip.to_string().as_bytes()) {
            drop(fs::remove_file(&path));
            return Err(StoreError { doing: "write", path: last, source });
        }
        Ok(true)
    }

    /// Reserves the next free address of a set, or returns `None` if there is none. A recently released address is used only if no
    /// other one is free.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn reserve_next<'s>(
        &mut self,
        set: &'s RangeSet,
        owner: Owner<'_>,
        range_set: usize,
    ) -> Result<Option<(&'s Range, IpAddr)>> {
        let resting = self.rest.and_then(|rest| rest.resting(self.dir));
        let rests = |ip: &IpAddr| resting.as_ref().is_some_and(|resting| resting.has(*ip));
        let all = Candidates::new(set, self.last_reserved(range_set)).into_iter().flatten();
        let mut candidates = all.clone();
        for (range, ip) in candidates.by_ref().take(TRIED) {
            if !rests(&ip) && self.reserve(ip, owner, range_set)? {
                return Ok(Some((range, ip)));
            }
        }
        let taken = self.reserved()?;
        let rested = candidates.filter(|(_, ip)| !taken.contains(ip) && !rests(ip));
        let tired = all.filter(|(_, ip)| !taken.contains(ip) && rests(ip));
        for (range, ip) in rested.chain(tired) {
            if self.reserve(ip, owner, range_set)? {
                return Ok(Some((range, ip)));
            }
        }
        Ok(None)
    }

    /// Returns whether any address of a set is free.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn any_free(&self, set: &RangeSet, range_set: usize) -> Result<bool> {
        let mut candidates = Candidates::new(set, self.last_reserved(range_set)).into_iter().flatten();
        if candidates.by_ref().take(TRIED).any(|(_, ip)| !self.dir.join(ip.to_string()).exists()) {
            return Ok(true);
        }
        let taken = self.reserved()?;
        Ok(candidates.any(|(_, ip)| !taken.contains(&ip)))
    }

    /// Returns the address that was last assigned from a range set.
    pub fn last_reserved(&self, range_set: usize) -> Option<IpAddr> {
        // An address fits into one read. `read_to_string` would query the size and read twice.
        let mut text = [0; 64];
        let file = open(&self.last_path(range_set), OFlags::RDONLY);
        let length = file.and_then(|mut file| file.read(&mut text)).ok()?;
        str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
    }

    /// Lists the reserved addresses without reading their owners.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn reserved(&self) -> Result<HashSet<IpAddr>> {
        Ok(files(self.dir)?.into_iter().map(|(ip, _)| ip).collect())
    }

    /// Lists the addresses of an owner. If it has none, lists those whose files name the container alone.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn owned(&mut self, owner: Owner<'_>) -> Result<Vec<IpAddr>> {
        Ok(self.owned_files(owner)?.into_iter().map(|(ip, _)| ip).collect())
    }

    /// Releases every address of an owner. Succeeds if there is none.
    ///
    /// # Errors
    /// If the folder cannot be read or a file cannot be removed. The other addresses are released nevertheless.
    pub fn release(&mut self, owner: Owner<'_>) -> Result<()> {
        let files = self.owned_files(owner)?;
        self.remove_all(files.into_iter().map(|(ip, path)| (owner.container.to_owned(), ip, path)))
    }

    /// Releases one address if it is the owner's.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn release_one(&mut self, ip: IpAddr, owner: Owner<'_>) -> Result<()> {
        let path = self.dir.join(ip.to_string());
        match fs::read_to_string(&path) {
            Ok(content) if content.trim() == owner.render() => {
                self.remove_all([(owner.container.to_owned(), ip, path)])
            }
            _ => Ok(()),
        }
    }

    /// Releases every address whose owner `keep` does not know (container, and interface where the file has it).
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn retain(&mut self, keep: impl Fn(&str, Option<&str>) -> bool) -> Result<()> {
        let mut stale = Vec::new();
        for (ip, path) in files(self.dir)? {
            let Ok(content) = fs::read_to_string(&path) else { continue };
            let (container, ifname) = owner_in(&content);
            if !keep(container, ifname) {
                stale.push((container.to_owned(), ip, path));
            }
        }
        self.remove_all(stale)
    }

    fn owned_files(&mut self, owner: Owner<'_>) -> Result<Vec<(IpAddr, PathBuf)>> {
        let candidates = match self.index.as_mut().and_then(|index| index.addresses(owner.container).ok()) {
            Some(ips) => ips.into_iter().map(|ip| (ip, self.dir.join(ip.to_string()))).collect(),
            None => files(self.dir)?,
        };
        let (whole, bare) = (owner.render(), owner.container.trim());
        let (mut exact, mut older) = (Vec::new(), Vec::new());
        for (ip, path) in candidates {
            let Ok(content) = fs::read_to_string(&path) else { continue };
            match content.trim() {
                text if text == whole => exact.push((ip, path)),
                text if text == bare => older.push((ip, path)),
                _ => {}
            }
        }
        Ok(if exact.is_empty() { older } else { exact })
    }

    /// Changes the index. Discards the index if the change fails.
    fn indexed(&mut self, change: impl FnOnce(&mut Index) -> io::Result<()>) {
        if self.index.as_mut().is_some_and(|index| change(index).is_err()) {
            self.index = None;
            index::spoil(self.dir);
        }
    }

    fn remove_all(&mut self, files: impl IntoIterator<Item = (String, IpAddr, PathBuf)>) -> Result<()> {
        let mut outcome = Ok(());
        for (container, ip, path) in files {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    outcome = outcome.and(Err(StoreError { doing: "remove reservation", path, source }));
                }
                _ => {
                    if let Some(rest) = self.rest {
                        // Without the record the address is reused in rotation.
                        drop(rest.begin(self.dir, ip));
                    }
                    self.indexed(|index| index.remove(entry(&container, ip)));
                }
            }
        }
        outcome
    }

    fn last_path(&self, range_set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{range_set}"))
    }
}

/// Creates a file that appears only with its whole content.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let Err(error) = create_whole(path, content) else { return Ok(()) };
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        // This file system has no unnamed files, so a failed write removes the file.
        Some(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(content).inspect_err(|_| drop(fs::remove_file(path)))
        }
        _ => Err(error),
    }
}

/// Writes a file that may exist. The file is not truncated first: that takes the kernel longer than the rest.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = open(path, OFlags::WRONLY | OFlags::CREATE | NO_LINK)?;
    let length = u64::try_from(content.len()).map_err(io::Error::other)?;
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    file.write_all(content)
}

/// Lists the files that are named by an address.
fn files(dir: &Path) -> Result<Vec<(IpAddr, PathBuf)>> {
    let error =
        |errno: Errno| StoreError { doing: "read folder", path: dir.to_owned(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(dir, flags, Mode::empty()).map_err(error)?;
    let mut files = Vec::new();
    // The standard library's iterator panics if a folder cannot be closed.
    for entry in rustix::fs::Dir::new(folder).map_err(error)? {
        let entry = entry.map_err(error)?;
        // Some file systems do not allow `:` in names. The reference plugin writes `_` there.
        let name = entry.file_name().to_str().ok();
        let ip = name.and_then(|name| Some((name, name.replace('_', ":").parse().ok()?)));
        files.extend(ip.map(|(name, ip)| (ip, dir.join(name))));
    }
    Ok(files)
}

/// Reads the container, and the interface where the file has it.
fn owner_in(content: &str) -> (&str, Option<&str>) {
    match content.trim().split_once("\r\n") {
        Some((container, ifname)) => (container, Some(ifname)),
        None => (content.trim(), None),
    }
}

fn entry(container: &str, ip: IpAddr) -> Entry {
    Entry { container: index::hash(container), ip }
}

/// Rebuilds the index from the files. Reservations that Netloom made before the host's last boot are released, since no network
/// namespace outlives its kernel. Reservations by other programs or by hand stay.
fn reindex(dir: &Path, outdated: &Outdated) -> io::Result<Index> {
    let mut entries = Vec::new();
    for (ip, path) in files(dir).map_err(|error| error.source)? {
        let Ok(content) = fs::read_to_string(&path) else { continue };
        let entry = entry(owner_in(&content).0, ip);
        let ours = outdated.ours.contains(&entry);
        let stale = |written: SystemTime| {
            fs::symlink_metadata(&path).and_then(|meta| meta.modified()).is_ok_and(|time| time <= written)
        };
        if ours && outdated.before_boot.is_some_and(stale) {
            fs::remove_file(&path)?;
        } else {
            entries.push((entry, ours));
        }
    }
    Index::create(dir, &entries)
}
