//! Recently released addresses. Peers may still send to such an address, so it is not reused at once.
//!
//! A file of slots, each with an address and the time until which it is not reused. An address hashes to a slot; of two in
//! one slot the later is kept. The file is a hint: without it, addresses are assigned in rotation only.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, SystemTime},
};

use kernel::file::open;
use rustix::fs::OFlags;

use crate::index::{NO_LINK, hash};

/// The name of the file; hidden, as the index is.
const NAME: &str = ".netloom-resting";
const SLOT: usize = 24;
/// The number of slots, some 100 KiB.
const SLOTS: u64 = 4096;

/// The time for which a released address is not reused, and the current time.
#[derive(Debug, Clone, Copy)]
pub struct Cooldown {
    /// The duration.
    pub cooldown: Duration,
    /// The current time.
    pub now: SystemTime,
}

impl Cooldown {
    /// Milliseconds since 1970.
    fn now(self) -> u64 {
        let since = self.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn cooldown(self) -> u64 {
        u64::try_from(self.cooldown.as_millis()).unwrap_or(u64::MAX)
    }

    /// Records the release of an address.
    pub(crate) fn begin(self, dir: &Path, ip: IpAddr) -> io::Result<()> {
        let file = open(&dir.join(NAME), OFlags::WRONLY | OFlags::CREATE | NO_LINK)?;
        let mut slot = [0; SLOT];
        slot[..16].copy_from_slice(&octets(ip));
        slot[16..].copy_from_slice(&self.now().saturating_add(self.cooldown()).to_le_bytes());
        file.write_all_at(&slot, offset(ip))
    }

    /// Opens the file, or returns `None` if nothing was recorded.
    pub(crate) fn resting(self, dir: &Path) -> Option<Resting> {
        let file = open(&dir.join(NAME), OFlags::RDONLY | NO_LINK).ok()?;
        Some(Resting { file, rest: self })
    }
}

/// The addresses that are not reused yet.
#[derive(Debug)]
pub(crate) struct Resting {
    file: File,
    rest: Cooldown,
}

impl Resting {
    /// Returns whether an address is not to be reused yet. A time further away than any cooldown comes from a wrong clock, and is ignored.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        let mut slot = [0; SLOT];
        if self.file.read_exact_at(&mut slot, offset(ip)).is_err() || slot[..16] != octets(ip) {
            return false;
        }
        let until = slot.last_chunk().map_or(0, |until| u64::from_le_bytes(*until));
        until > self.rest.now() && until - self.rest.now() <= self.rest.cooldown()
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip),
    }
}

fn offset(ip: IpAddr) -> u64 {
    let hash = hash(&ip.to_string());
    (hash ^ (hash >> 32)) % SLOTS * SLOT as u64
}
