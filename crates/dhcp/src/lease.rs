//! Leases, and the outputs and timers of the clients.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A point in time, since the machine started, sleep included (`CLOCK_BOOTTIME`).
pub type Time = Duration;

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address, with its prefix.
    pub address: IpNet,
    /// The first router.
    pub gateway: Option<IpAddr>,
    /// Routes, also the default one.
    pub routes: Vec<Route>,
    /// The DNS settings from the server.
    pub dns: Dns,
    /// The server that granted the lease.
    pub server: Server,
    /// When to ask the server to extend the lease (T1).
    pub renew: Time,
    /// When to ask any server (T2).
    pub rebind: Time,
    /// When the lease expires.
    pub expire: Time,
}

/// The identity of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Server {
    /// Its address (option 54).
    V4(Ipv4Addr),
    /// Its DUID (RFC 8415, section 11).
    V6(Vec<u8>),
}

/// A route that comes with a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The next hop; `None` for a destination on the link.
    pub gateway: Option<IpAddr>,
}

/// The DNS settings of a lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers.
    pub servers: Vec<IpAddr>,
    /// The local domain.
    pub domain: String,
    /// The search domains.
    pub search: Vec<String>,
}

/// An output of a client, for the daemon to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Broadcast this on the link, without a source address.
    Broadcast(Vec<u8>),
    /// Send this to a server from the leased address, which receives the answer.
    Unicast {
        /// The message.
        packet: Vec<u8>,
        /// The leased address.
        from: Ipv4Addr,
        /// The server.
        to: Ipv4Addr,
    },
    /// Send this to all IPv6 servers on the link.
    Multicast(Vec<u8>),
    /// A lease was granted or extended.
    Bound(Lease),
    /// The lease ended before another was granted, for this reason.
    Lost(&'static str),
}

/// The limits of retransmission.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The time limit of the first wait for an answer.
    pub answer: Duration,
    /// The longest interval between later attempts.
    pub most: Duration,
}

impl Patience {
    /// Returns the wait after the n-th attempt: about 2 s four times, then doubled each time from 4 s on, randomized by one second
    /// (RFC 2131, section 4.1).
    pub(crate) fn after(&self, tries: u32, random: u32) -> Duration {
        const FAST: u32 = 4;
        let chance = Duration::from_millis(u64::from(random) % 2000);
        let base = if tries <= FAST {
            Duration::from_secs(2).min(self.answer)
        } else {
            Duration::from_secs(4 << (tries - FAST - 1).min(10)).min(self.most)
        };
        (base + chance).saturating_sub(Duration::from_secs(1)).max(Duration::from_millis(500))
    }
}

/// Returns the time of the next attempt to extend a lease: after half of the remaining time, but not too soon
/// (RFC 2131, section 4.4.5).
pub(crate) fn next_try(now: Time, until: Time, expire: Time) -> Time {
    let least = (expire.saturating_sub(now) / 20).clamp(Duration::from_secs(1), Duration::from_mins(1));
    (now + (until.saturating_sub(now) / 2).max(least)).min(until)
}
