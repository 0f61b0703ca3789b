//! Kernel events: waits for links, addresses and neighbours.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    addr::{self, Address},
    error::{Error, Result},
    link::{self, Link},
    message::{Received, read_u32},
    nft, route,
    socket::{Protocol, Socket},
    sysctl,
};

/// A subscription to the events of the namespace in which it was opened.
///
/// Subscribe first, then read the state, then wait. In this order no change is missed.
#[derive(Debug)]
pub struct Events(Socket);

impl Events {
    /// Listens for links.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn of_links() -> Result<Self> {
        Socket::open_listening(Protocol::Route, GROUP_LINK).map(Self)
    }

    /// Listens for IPv6 addresses.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn of_addresses() -> Result<Self> {
        Socket::open_listening(Protocol::Route, GROUP_IPV6_ADDRESS).map(Self)
    }

    /// Listens for changes of links, and of addresses, routes, neighbours and settings (forwarding, `rp_filter`, proxy ARP) of both
    /// families.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn of_network() -> Result<Self> {
        Socket::open_listening(Protocol::Route, GROUPS_OF_NETWORK).map(Self)
    }

    /// Listens for neighbours of both families.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn of_neighbours() -> Result<Self> {
        Socket::open_listening(Protocol::Route, GROUP_NEIGH).map(Self)
    }

    /// Listens for changes of the nftables ruleset.
    ///
    /// # Errors
    /// If the kernel lacks nftables or the socket cannot be opened.
    pub fn of_ruleset() -> Result<Self> {
        Socket::open_listening(Protocol::Netfilter, GROUP_NFTABLES).map(Self)
    }

    /// Listens for traces of packets ([`crate::nft::trace`]).
    ///
    /// # Errors
    /// If the kernel lacks nftables or the socket cannot be opened.
    pub fn of_traces() -> Result<Self> {
        Socket::open_listening(Protocol::Netfilter, GROUP_NFTRACE).map(Self)
    }

    /// Reads pending events, and returns the greatest concern of a caller that maintains routes of `protocol`.
    ///
    /// # Errors
    /// If the socket is broken. Lost events are no error: they may concern the caller's own objects.
    pub fn concern(&self, protocol: u8, links: &Links) -> Result<Concern> {
        self.greatest(|received| match received.kind {
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => match link_of(received) {
                Some(link) if !links.own.contains(&link) => Concern::None,
                _ => Concern::Own,
            },
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => match route::announced(received) {
                Some((length, of)) if of != protocol && received.flags & REPLACE == 0 => {
                    if length == 0 {
                        Concern::Surroundings
                    } else {
                        Concern::None
                    }
                }
                _ => Concern::Own,
            },
            // With a link or an address of it, routes over the link go, and their removal is not always announced.
            libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                match link_of(received) {
                    Some(link) if !links.has(link) => Concern::Surroundings,
                    _ => Concern::Own,
                }
            }
            // The settings of other links are their owners'.
            RTM_NEWNETCONF | RTM_DELNETCONF => match sysctl::announced(received) {
                Some(link) if i32::try_from(link).is_ok() && !links.has(link) => Concern::None,
                _ => Concern::Own,
            },
            _ => Concern::Own,
        })
    }

    /// Reads pending events of the ruleset, and returns the greatest concern of a caller that maintains tables with a name. Elements of
    /// other tables' sets do not concern it.
    ///
    /// # Errors
    /// As [`Self::concern`].
    pub fn concern_of_tables(&self, name: &str) -> Result<Concern> {
        self.greatest(|received| if nft::is_elsewhere(received, name) { Concern::None } else { Concern::Own })
    }

    fn greatest(&self, of: impl Fn(&Received<'_>) -> Concern) -> Result<Concern> {
        let mut greatest = Concern::None;
        let outcome = self.0.receive(|received| {
            greatest = greatest.max(of(&received));
            false
        });
        match outcome {
            Ok(_) => Ok(greatest),
            Err(Errno::NOBUFS | Errno::MSGSIZE) => Ok(Concern::Own),
            Err(errno) => Err(Error::new("listen to", "the kernel", errno)),
        }
    }

    /// Waits for an event of a link that `fits` accepts.
    ///
    /// # Errors
    /// [`crate::Kind::TimedOut`] after `limit`, [`crate::Kind::Interrupted`] by a signal.
    pub fn wait_for_link(&self, limit: Duration, object: &str, fits: impl Fn(&Link) -> bool) -> Result<()> {
        self.wait(limit, "wait for link", object, |received| {
            link::read(received).is_some_and(|link| fits(&link))
        })
    }

    /// Waits for an event of an address that `fits` accepts.
    ///
    /// # Errors
    /// As [`Self::wait_for_link`].
    pub fn wait_for_address(
        &self,
        limit: Duration,
        object: &str,
        fits: impl Fn(&Address) -> bool,
    ) -> Result<()> {
        self.wait(limit, "wait for address", object, |received| {
            addr::read(received).is_some_and(|address| fits(&address))
        })
    }

    /// Reads pending events and returns whether a link was removed.
    pub(crate) fn announces_removal(&self, index: u32) -> Result<bool, Errno> {
        let mut removed = false;
        let outcome = self.0.receive(|received| {
            // A bridge sends the same message when a port leaves it.
            let of_bridge =
                received.payload.first().is_some_and(|family| i32::from(*family) == libc::AF_BRIDGE);
            removed |= received.kind == libc::RTM_DELLINK
                && !of_bridge
                && link::read(&received).is_some_and(|link| link.index == index);
            false
        });
        match outcome {
            // Events were lost: the caller relies on the child's exit instead.
            Err(Errno::NOBUFS) => Ok(false),
            other => other.map(|_| removed),
        }
    }

    /// Waits until `fits` returns true for an event, or until events were lost.
    ///
    /// # Errors
    /// [`crate::Kind::TimedOut`] after `limit`, [`crate::Kind::Interrupted`] by a signal.
    pub(crate) fn wait(
        &self,
        limit: Duration,
        doing: &'static str,
        object: &str,
        mut fits: impl FnMut(&Received<'_>) -> bool,
    ) -> Result<()> {
        let error = |errno| Error::new(doing, object, errno);
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| error(Errno::INVAL))?;
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            if poll(&mut fds, Some(&left)).map_err(error)? == 0 {
                return Err(error(Errno::TIMEDOUT));
            }
            match self.0.receive(|received| fits(&received)) {
                Ok(true) => return Ok(()),
                // Events overflowed the socket's buffer: the caller reads the state again.
                Err(Errno::NOBUFS) => return Ok(()),
                Ok(false) => {}
                Err(errno) => return Err(error(errno)),
            }
        }
    }
}

/// What an event means to a caller that maintains some of the kernel's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Nothing.
    None,
    /// A link, an address, a setting or a default route has changed: what the caller wants may depend on it.
    Surroundings,
    /// One of the caller's objects may have changed.
    Own,
}

/// The links, by index, of a caller that maintains some of the kernel's objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// Its own.
    pub own: BTreeSet<u32>,
    /// Others that its objects depend on.
    pub uplinks: BTreeSet<u32>,
}

impl Links {
    fn has(&self, link: u32) -> bool {
        self.own.contains(&link) || self.uplinks.contains(&link)
    }
}

/// Returns the link's index in an event of a neighbour, a link or an address (`struct ndmsg`, `ifinfomsg`, `ifaddrmsg`).
fn link_of(received: &Received<'_>) -> Option<u32> {
    read_u32(received.payload.get(4..)?)
}

const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
/// `linux/netconf.h`.
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
const GROUP_LINK: u32 = 1;
const GROUP_NEIGH: u32 = 1 << 2;
const GROUP_IPV4_ADDRESS: u32 = 1 << 4;
const GROUP_IPV4_ROUTE: u32 = 1 << 6;
const GROUP_IPV6_ROUTE: u32 = 1 << 10;
const GROUPS_OF_NETWORK: u32 = GROUP_LINK
    | GROUP_NEIGH
    | GROUP_IPV4_ADDRESS
    | GROUP_IPV4_ROUTE
    | GROUP_IPV6_ADDRESS
    | GROUP_IPV6_ROUTE
    | GROUP_IPV4_NETCONF
    | GROUP_IPV6_NETCONF;
const GROUP_IPV4_NETCONF: u32 = 1 << 23;
const GROUP_IPV6_NETCONF: u32 = 1 << 24;
const GROUP_NFTABLES: u32 = 1 << 6;
const GROUP_NFTRACE: u32 = 1 << 8;
const GROUP_IPV6_ADDRESS: u32 = 1 << 8;

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
