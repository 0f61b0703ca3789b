//! Which addresses were given back just now: what still speaks to one would speak to whoever has it next.
//!
//! A file of slots, each with an address and the time until which it rests; an address hashes to a slot, and of two in
//! one the later is remembered. Nothing depends on it: without it addresses are given out by turns alone.

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
/// More are not remembered at once: some 100 KiB.
const SLOTS: u64 = 4096;

/// How long an address rests after it was given back, and what the time is.
#[derive(Debug, Clone, Copy)]
pub struct Cooldown {
    /// How long.
    pub cooldown: Duration,
    /// Now.
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

    /// Writes down that an address was given back.
    pub(crate) fn begin(self, dir: &Path, ip: IpAddr) -> io::Result<()> {
        let file = open(&dir.join(NAME), OFlags::WRONLY | OFlags::CREATE | NO_LINK)?;
        let mut slot = [0; SLOT];
        slot[..16].copy_from_slice(&octets(ip));
        slot[16..].copy_from_slice(&self.now().saturating_add(self.cooldown()).to_le_bytes());
        file.write_all_at(&slot, offset(ip))
    }

    /// Opens what was written down; none where nothing was.
    pub(crate) fn resting(self, dir: &Path) -> Option<Resting> {
        let file = open(&dir.join(NAME), OFlags::RDONLY | NO_LINK).ok()?;
        Some(Resting { file, rest: self })
    }
}

/// Who rests.
#[derive(Debug)]
pub(crate) struct Resting {
    file: File,
    rest: Cooldown,
}

impl Resting {
    /// Returns whether an address rests. What is to rest for longer than anything does was written by a clock that was wrong.
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
