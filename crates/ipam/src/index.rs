//! An index of each container's addresses: one read finds them, regardless of the number of reservations.
//!
//! A hash table in a file. The first page identifies the state of the folder that the table describes; pages of slots follow, and
//! the hash of a container's ID selects the page of its addresses. The reservation files are authoritative: a caller reads the file
//! of an address that it finds here. The first page holds the folder's modification time. Every change by any tool moves that time,
//! and this module sets it to a time that no other change can produce. A table of another time, folder, host or boot is rebuilt.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use kernel::{
    file::{self, open},
    hash::fnv1a,
};
use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps};

/// The name of the file; hidden, since people list these folders to see addresses.
const NAME: &str = ".netloom-index";
/// A symbolic link in the folder must not redirect the write to another file.
pub(crate) const NO_LINK: OFlags = OFlags::NOFOLLOW;
/// The name under which a complete new table is written.
const NEW: &str = ".netloom-index.new";
const FORMAT: &str = "netloom-index 1";
const PAGE: usize = 4096;
const SLOT: usize = 32;
/// The average number of filled slots in a page of a new table, which leaves room to grow.
const ROOMY: usize = 32;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One address of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// The hash of the container's ID.
    pub container: u64,
    /// The address.
    pub ip: IpAddr,
}

/// The table, matching the folder.
#[derive(Debug)]
pub(crate) struct Index {
    dir: PathBuf,
    file: File,
    host: Host,
    pages: usize,
    /// The last used page, as in the file. No other process changes it while the folder is locked.
    page: Option<(usize, Box<[u8; PAGE]>)>,
    changed: bool,
}

/// The content of a table that does not match the folder.
#[derive(Debug, Default)]
pub(crate) struct Outdated {
    /// What Netloom reserved, as far as the table can be read.
    pub ours: HashSet<Entry>,
    /// The time of the last write, if it was before the host's last boot: no container of that time runs.
    pub before_boot: Option<SystemTime>,
}

/// One boot of one machine.
#[derive(Debug, Clone)]
struct Host {
    name: String,
    boot: String,
}

impl Host {
    fn this() -> io::Result<Self> {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // One read returns everything, without a query of the size.
        let mut boot = [0; 64];
        let length = open(Path::new(BOOT_ID), OFlags::RDONLY)?.read(&mut boot)?;
        Ok(Self { name, boot: String::from_utf8_lossy(&boot[..length]).trim().to_owned() })
    }
}

/// Hashes a container's ID, or a head (FNV-1a): the same in every version, since the table outlives the binary.
pub(crate) fn hash(text: &str) -> u64 {
    fnv1a(text.trim().bytes())
}

impl Index {
    /// Opens the table of a folder whose lock is held.
    pub(crate) fn open(dir: &Path) -> io::Result<Result<Self, Outdated>> {
        let file = match open(&dir.join(NAME), OFlags::RDWR | NO_LINK) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(Outdated::default())),
            Err(error) => return Err(error),
        };
        let host = Host::this()?;
        let mut head = [0; PAGE];
        let read = file.read_at(&mut head, 0)?;
        let end = head[..read].iter().position(|byte| *byte == 0).unwrap_or(read);
        let text = String::from_utf8_lossy(&head[..end]);
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let pages = line("pages ").and_then(|pages| pages.parse().ok()).filter(|pages| *pages > 0);
        // Reservations are released if the boot differs, so a damaged head must not count as another boot.
        let whole = text.rsplit_once("sum ");
        let whole = whole.is_some_and(|(head, sum)| sum.trim_end() == format!("{:016x}", hash(head)));
        let (Some(pages), true) = (pages, whole && text.starts_with(FORMAT)) else {
            return Ok(Err(Outdated::default()));
        };
        let index = Self { dir: dir.to_owned(), file, host, pages, page: None, changed: false };
        let meta = fs::metadata(dir)?;
        if text == index.head(&meta, meta.mtime(), meta.mtime_nsec()) {
            return Ok(Ok(index));
        }
        let same = |key: &str, now: &str| line(key) == Some(now);
        let before_boot = same("host ", &index.host.name) && !same("boot ", &index.host.boot);
        Ok(Err(Outdated {
            ours: index.entries()?.filter_map(|(entry, ours)| ours.then_some(entry)).collect(),
            before_boot: before_boot.then(|| index.file.metadata()?.modified()).transpose()?,
        }))
    }

    /// Rebuilds the table from the folder's content; `true` marks what Netloom reserved.
    pub(crate) fn create(dir: &Path, entries: &[(Entry, bool)]) -> io::Result<Self> {
        let mut index = Self::write(dir, Host::this()?, entries)?;
        index.commit()?;
        Ok(index)
    }

    /// Returns the container's addresses according to the table.
    pub(crate) fn addresses(&mut self, container: &str) -> io::Result<Vec<IpAddr>> {
        let container = hash(container);
        let page = self.page(container)?;
        let entries = page.chunks_exact(SLOT).filter_map(decode);
        Ok(entries.filter(|(entry, _)| entry.container == container).map(|(entry, _)| entry.ip).collect())
    }

    /// Adds an address before its reservation file is created: a file that a crash leaves is then in the table, and an entry without
    /// a file is harmless.
    pub(crate) fn insert(&mut self, entry: Entry) -> io::Result<()> {
        self.changed = true;
        loop {
            let page = self.page(entry.container)?;
            let same = |slot: &[u8]| decode(slot).is_some_and(|(there, _)| there == entry);
            let at = page.chunks_exact(SLOT).position(same);
            if let Some(at) = at.or_else(|| page.chunks_exact(SLOT).position(|slot| decode(slot).is_none())) {
                return self.write_slot(entry.container, at, &encode(entry, true));
            }
            let all: Vec<_> = self.entries()?.collect();
            *self = Self::write(&self.dir, self.host.clone(), &all)?;
        }
    }

    /// Removes an address, after its file is removed.
    pub(crate) fn remove(&mut self, entry: Entry) -> io::Result<()> {
        self.changed = true;
        let page = self.page(entry.container)?;
        let same = |slot: &[u8]| decode(slot).is_some_and(|(there, _)| there == entry);
        match page.chunks_exact(SLOT).position(same) {
            Some(at) => self.write_slot(entry.container, at, &[0; SLOT]),
            None => Ok(()),
        }
    }

    /// Records that the table matches the folder in its present state.
    ///
    /// The time comes from the clock, not from its last tick as the kernel's own timestamps do, so a change by another process in the
    /// same tick produces another time.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let seconds = i64::try_from(now.as_secs()).map_err(io::Error::other)?;
        let nanoseconds = i64::from(now.subsec_nanos());
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        };
        rustix::fs::utimensat(CWD, &self.dir, &times, AtFlags::empty())?;
        self.write_head(&fs::metadata(&self.dir)?, seconds, nanoseconds)?;
        self.changed = false;
        Ok(())
    }

    fn write_head(&self, folder: &fs::Metadata, seconds: i64, nanoseconds: i64) -> io::Result<()> {
        let mut head = self.head(folder, seconds, nanoseconds).into_bytes();
        // Terminated, since the previous text may have been longer.
        head.push(0);
        self.file.write_all_at(&head, 0)
    }

    fn head(&self, folder: &fs::Metadata, seconds: i64, nanoseconds: i64) -> String {
        let Host { name, boot } = &self.host;
        let (inode, pages) = (folder.ino(), self.pages);
        let head = format!(
            "{FORMAT}\nhost {name}\nboot {boot}\nfolder {inode}\nmodified {seconds}.{nanoseconds:09}\npages {pages}\n"
        );
        let sum = hash(&head);
        format!("{head}sum {sum:016x}\n")
    }

    /// Replaces the table with a complete new one, with enough pages for the entries.
    fn write(dir: &Path, host: Host, entries: &[(Entry, bool)]) -> io::Result<Self> {
        let mut pages = (entries.len() / ROOMY).max(1).next_power_of_two();
        let slots = loop {
            let mut slots = vec![Vec::new(); pages];
            for (entry, ours) in entries {
                slots[page_of(entry.container, pages)].extend_from_slice(&encode(*entry, *ours));
            }
            if slots.iter().all(|page| page.len() < PAGE) {
                break slots;
            }
            if pages > entries.len() {
                return Err(io::Error::other("one container has more addresses than a page has slots"));
            }
            pages *= 2;
        };
        file::replace(&dir.join(NAME), &dir.join(NEW), |file| {
            file.set_len(offset(pages))?;
            for (at, page) in slots.iter().enumerate().filter(|(_, page)| !page.is_empty()) {
                file.write_all_at(page, offset(at))?;
            }
            let index = Self { dir: dir.to_owned(), file, host, pages, page: None, changed: true };
            // The head names the folder's time before the rename: it is readable, but matches nothing until the commit.
            let folder = fs::metadata(dir)?;
            index.write_head(&folder, folder.mtime(), folder.mtime_nsec())?;
            Ok(index)
        })
    }

    fn entries(&self) -> io::Result<impl Iterator<Item = (Entry, bool)> + use<>> {
        let size = usize::try_from(self.file.metadata()?.len()).map_err(io::Error::other)?;
        let mut all = vec![0; size.saturating_sub(PAGE)];
        self.file.read_exact_at(&mut all, offset(0))?;
        let decoded: Vec<_> = all.chunks_exact(SLOT).filter_map(decode).collect();
        Ok(decoded.into_iter())
    }

    fn page(&mut self, container: u64) -> io::Result<&[u8; PAGE]> {
        let number = page_of(container, self.pages);
        let page = match self.page.take() {
            Some((there, page)) if there == number => page,
            _ => {
                let mut page = Box::new([0; PAGE]);
                self.file.read_exact_at(&mut *page, offset(number))?;
                page
            }
        };
        Ok(&self.page.insert((number, page)).1)
    }

    fn write_slot(&mut self, container: u64, at: usize, slot: &[u8; SLOT]) -> io::Result<()> {
        let number = page_of(container, self.pages);
        let within = at * SLOT;
        self.file.write_all_at(slot, offset(number) + u64::try_from(within).map_err(io::Error::other)?)?;
        if let Some((_, page)) = self.page.as_mut().filter(|(there, _)| *there == number) {
            page[within..within + SLOT].copy_from_slice(slot);
        }
        Ok(())
    }
}

/// Invalidates the existing table.
pub(crate) fn spoil(dir: &Path) {
    drop(fs::remove_file(dir.join(NAME)));
}

fn page_of(container: u64, pages: usize) -> usize {
    // The low bits of FNV-1a are better distributed than the high ones, so both halves are folded together.
    usize::try_from((container ^ (container >> 32)) & u64::from(u32::MAX)).unwrap_or(0) % pages
}

fn offset(page: usize) -> u64 {
    u64::try_from((page + 1) * PAGE).unwrap_or(u64::MAX)
}

/// A slot: the hash, the family (4 or 6; 0 if the slot is empty), whether Netloom created it, the address.
fn encode(entry: Entry, ours: bool) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(&entry.container.to_le_bytes());
    slot[9] = u8::from(ours);
    match entry.ip {
        IpAddr::V4(ip) => {
            slot[8] = 4;
            slot[16..20].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            slot[8] = 6;
            slot[16..].copy_from_slice(&ip.octets());
        }
    }
    slot
}

fn decode(slot: &[u8]) -> Option<(Entry, bool)> {
    let container = u64::from_le_bytes(*slot.first_chunk()?);
    let address = &slot[16..];
    let ip = match slot[8] {
        4 => IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?)),
        6 => IpAddr::V6(Ipv6Addr::from(*address.first_chunk::<16>()?)),
        _ => return None,
    };
    Some((Entry { container, ip }, slot[9] == 1))
}
