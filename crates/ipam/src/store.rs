//! Who has which address: a file per address, as the reference plugin host-local keeps them.
//!
//! `DIR/NETWORK/ADDRESS` holds `CONTAINERID CR LF IFNAME`, `last_reserved_ip.N` the address given out last from
//! range set N, `lock` is locked by `flock` for as long as anything is read or changed. Older files hold the
//! container ID alone. Both plugins can work on one folder at the same time.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::fd::AsRawFd,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// Names who has an address.
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

/// Says what could not be done with which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct StoreError {
    /// The operation, as the rest of "cannot …".
    pub doing: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

type Result<T> = std::result::Result<T, StoreError>;

/// Names the folder of one network.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// Holds the lock of the folder, and with it the right to read and change.
#[derive(Debug)]
pub struct Locked<'a> {
    dir: &'a Path,
    _lock: File,
}

impl Store {
    /// Names the folder of a network below `data_dir`.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self { dir: data_dir.join(network) }
    }

    /// Gives the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder if there is none, and takes its lock; waits while somebody else has it.
    ///
    /// # Errors
    /// When folder or lock file cannot be made.
    pub fn lock(&self) -> Result<Locked<'_>> {
        let error = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError { doing, path, source }
        };
        let path = self.dir.join("lock");
        let open = || {
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)
        };
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
        lock.lock().map_err(error("lock", &path))?;
        Ok(Locked { dir: &self.dir, _lock: lock })
    }

    /// Takes the lock if there is a folder; none if there is not, since then nothing is reserved.
    ///
    /// # Errors
    /// As [`Self::lock`].
    pub fn lock_existing(&self) -> Result<Option<Locked<'_>>> {
        if self.dir.is_dir() { self.lock().map(Some) } else { Ok(None) }
    }
}

impl Locked<'_> {
    /// Reserves an address; false if somebody has it.
    ///
    /// The file appears with its content or not at all, so that a kill leaves no address without owner.
    ///
    /// # Errors
    /// When the file cannot be written, as on a full disk; nothing is reserved then.
    pub fn reserve(&self, ip: IpAddr, owner: Owner<'_>, range_set: usize) -> Result<bool> {
        let path = self.dir.join(ip.to_string());
        let error = |source| StoreError { doing: "write reservation", path: path.clone(), source };
        match self.write_whole(&path, owner.render().as_bytes()) {
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

    /// Gives the address that was given out last from a range set.
    pub fn last_reserved(&self, range_set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(range_set)).ok()?.trim().parse().ok()
    }

    /// Lists the addresses that somebody has, without looking who.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn reserved(&self) -> Result<HashSet<IpAddr>> {
        Ok(self.files()?.into_iter().map(|(ip, _)| ip).collect())
    }

    /// Lists the addresses of an owner; those of the container alone, as older files have it, if there are none.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn owned(&self, owner: Owner<'_>) -> Result<Vec<IpAddr>> {
        Ok(self.owned_files(owner)?.into_iter().map(|(ip, _)| ip).collect())
    }

    /// Releases every address of an owner. None is fine.
    ///
    /// # Errors
    /// When the folder cannot be read or a file not removed; the others are released all the same.
    pub fn release(&self, owner: Owner<'_>) -> Result<()> {
        remove_all(self.owned_files(owner)?)
    }

    /// Releases one address if it is the owner's.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn release_one(&self, ip: IpAddr, owner: Owner<'_>) -> Result<()> {
        let path = self.dir.join(ip.to_string());
        match fs::read_to_string(&path) {
            Ok(content) if content.trim() == owner.render() => remove_all(vec![(ip, path)]),
            _ => Ok(()),
        }
    }

    /// Releases every address whose owner `keep` does not know (container, and interface where the file has it).
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn retain(&self, keep: impl Fn(&str, Option<&str>) -> bool) -> Result<()> {
        let stale = self.files()?.into_iter().filter(|(_, path)| match fs::read_to_string(path) {
            Ok(content) => match content.trim().split_once("\r\n") {
                Some((container, ifname)) => !keep(container, Some(ifname)),
                None => !keep(content.trim(), None),
            },
            Err(_) => false,
        });
        remove_all(stale.collect())
    }

    fn owned_files(&self, owner: Owner<'_>) -> Result<Vec<(IpAddr, PathBuf)>> {
        let (whole, bare) = (owner.render(), owner.container.trim());
        let (mut exact, mut older) = (Vec::new(), Vec::new());
        for (ip, path) in self.files()? {
            let Ok(content) = fs::read_to_string(&path) else { continue };
            match content.trim() {
                text if text == whole => exact.push((ip, path)),
                text if text == bare => older.push((ip, path)),
                _ => {}
            }
        }
        Ok(if exact.is_empty() { older } else { exact })
    }

    /// Lists the files that are named by an address.
    fn files(&self) -> Result<Vec<(IpAddr, PathBuf)>> {
        let error = |source| StoreError { doing: "read folder", path: self.dir.to_owned(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(self.dir).map_err(error)? {
            let entry = entry.map_err(error)?;
            // Some file systems cannot have `:` in a name; the reference plugin writes `_` there.
            let ip = entry.file_name().to_str().and_then(|name| name.replace('_', ":").parse().ok());
            files.extend(ip.map(|ip| (ip, entry.path())));
        }
        Ok(files)
    }

    fn last_path(&self, range_set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{range_set}"))
    }

    /// Writes a new file that appears only with its whole content.
    fn write_whole(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        // With the lock held nobody else makes this file: look before taking the trouble.
        if path.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let unnamed = match rustix::fs::open(self.dir, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
                return write_exclusive(path, content);
            }
            Err(errno) => return Err(errno.into()),
        };
        let mut file = File::from(unnamed);
        file.write_all(content)?;
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, by_descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

/// Serves file systems without unnamed files: a failed write takes the file away again.
fn write_exclusive(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content).inspect_err(|_| drop(fs::remove_file(path)))
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)
}

fn remove_all(files: Vec<(IpAddr, PathBuf)>) -> Result<()> {
    let mut outcome = Ok(());
    for (_, path) in files {
        if let Err(source) = fs::remove_file(&path)
            && source.kind() != io::ErrorKind::NotFound
            && outcome.is_ok()
        {
            outcome = Err(StoreError { doing: "remove reservation", path, source });
        }
    }
    outcome
}
