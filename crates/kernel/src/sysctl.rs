//! `/proc/sys/net` of the calling thread's namespace.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rustix::{fs::OFlags, io::Errno};

use crate::{
    error::{Error, Kind, Result},
    file::open,
    inject, link,
    message::{Attrs, Message, Received, read_u32},
    route,
    socket::{REQUEST, Socket},
};

/// `linux/netconf.h`.
const RTM_GETNETCONF: u16 = 82;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;

/// `linux/rtnetlink.h`: routes from router advertisements.
const RTPROT_RA: u8 = 9;

/// A setting that plugins use. Interface names may contain dots, so the parts are separate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting<'a> {
    /// `net/ipv4/ip_forward`
    Ipv4Forward,
    /// `net/ipv6/conf/all/forwarding`
    Ipv6Forward,
    /// `net/ipv4/conf/IF/KEY`
    Ipv4(&'a str, &'a str),
    /// `net/ipv6/conf/IF/KEY`
    Ipv6(&'a str, &'a str),
    /// `net/ipv6/neigh/IF/KEY`
    Ipv6Neighbour(&'a str, &'a str),
    /// Any setting below `net`, as a path of plain names.
    Net(&'a str),
}

impl Setting<'_> {
    /// Returns the setting's file.
    pub fn path(self) -> PathBuf {
        let tail: [&str; 4] = match self {
            Self::Ipv4Forward => ["ipv4", "ip_forward", "", ""],
            Self::Ipv6Forward => ["ipv6", "conf", "all", "forwarding"],
            Self::Ipv4(link, key) => ["ipv4", "conf", link, key],
            Self::Ipv6(link, key) => ["ipv6", "conf", link, key],
            Self::Ipv6Neighbour(link, key) => ["ipv6", "neigh", link, key],
            Self::Net(path) => [path, "", "", ""],
        };
        let mut path = ROOT.get().map_or_else(|| PathBuf::from("/proc/sys/net"), Clone::clone);
        path.extend(tail.iter().filter(|part| !part.is_empty()));
        path
    }
}

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Sets the path of `/proc/sys/net` for this process, once: in a container it is read-only unless the host's is mounted.
pub fn found_at(dir: &Path) {
    drop(ROOT.set(dir.to_owned()));
}

/// Reads a setting, without the newline, or `None` if the kernel does not have it (IPv6 may be off).
///
/// # Errors
/// If it cannot be read.
pub fn read(setting: Setting<'_>) -> Result<Option<String>> {
    let path = setting.path();
    // One read gives all: a setting is a line. `read_to_string` would ask for the size, which is 0, and read twice.
    let mut line = [0; 256];
    match open(&path, OFlags::RDONLY).and_then(|mut file| io::Read::read(&mut file, &mut line)) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&line[..length]).trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from_io("read", path.display(), &error)),
    }
}

/// Writes a setting. It must exist.
///
/// # Errors
/// If the kernel does not have it or refuses the value.
pub fn write(setting: Setting<'_>, value: &str) -> Result<()> {
    let path = setting.path();
    inject::point("write", &path.display().to_string())?;
    // Opened without O_CREAT and O_TRUNC, which procfs does not need.
    open(&path, OFlags::WRONLY)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|error| Error::from_io("write", path.display(), &error))
}

/// Writes a setting unless it has the value or the kernel does not have the setting. Returns whether it was written.
///
/// # Errors
/// If it exists and cannot be read or written.
pub fn ensure(setting: Setting<'_>, value: &str) -> Result<bool> {
    match read(setting)? {
        Some(current) if current != value => match write(setting, value) {
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            other => other.map(|()| true),
        },
        _ => Ok(false),
    }
}

/// Enables forwarding for an address's family in the calling thread's namespace, which must be the socket's too. Routes from router
/// advertisements stay.
///
/// # Errors
/// If the kernel refuses the request.
pub fn ensure_forwarding(socket: &Socket, address: IpAddr) -> Result<()> {
    if is_forwarding(socket, address) {
        return Ok(());
    }
    if address.is_ipv6() {
        keep_accepting_advertisements(socket)?;
    }
    ensure(forwarding_of(address), "1").map(drop)
}

/// Returns the setting that enables forwarding for an address's family.
pub fn forwarding_of(address: IpAddr) -> Setting<'static> {
    if address.is_ipv4() { Setting::Ipv4Forward } else { Setting::Ipv6Forward }
}

/// Returns whether the socket's namespace forwards packets of an address's family. False if IPv6 is disabled, where the kernel
/// refuses the request, which is faster than opening the setting.
#[doc(alias = "RTM_GETNETCONF")]
pub fn is_forwarding(socket: &Socket, address: IpAddr) -> bool {
    let mut message = Message::new(RTM_GETNETCONF, REQUEST, &[crate::addr::family(address), 0, 0, 0]);
    message.u32(NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL);
    let mut forwards = None;
    let read = |received: Received<'_>| {
        forwards = Attrs::after(received.payload, 4).find(NETCONFA_FORWARDING).and_then(read_u32);
    };
    socket.ask(message, "read", &"whether the host forwards", read).is_ok()
        && forwards.is_some_and(|forwards| forwards != 0)
}

/// Reads the link's index from an event of a setting.
pub(crate) fn announced(received: &Received<'_>) -> Option<u32> {
    Attrs::after(received.payload, 4).find(NETCONFA_IFINDEX).and_then(read_u32)
}

/// Sets `accept_ra` to 2 on links that have it at 1 and a route from a router advertisement. With 1 a host that begins to forward
/// loses these routes and ignores further advertisements (`rt6_purge_dflt_routers`, `ipv6_accept_ra`).
fn keep_accepting_advertisements(socket: &Socket) -> Result<()> {
    // A kernel without IPv6 refuses the request.
    let routes = route::list_of(socket, Ipv6Addr::UNSPECIFIED.into(), RTPROT_RA).unwrap_or_default();
    for advertised in routes {
        let Some(link) = link::find_index(socket, advertised.link)? else { continue };
        let accept = Setting::Ipv6(&link.name, "accept_ra");
        if read(accept)?.as_deref() == Some("1") {
            set(accept, "2")?;
        }
    }
    Ok(())
}

/// Writes a setting of a new link without reading it first. Succeeds if the kernel does not have the setting.
///
/// # Errors
/// If it exists and cannot be written.
pub fn set(setting: Setting<'_>, value: &str) -> Result<()> {
    match write(setting, value) {
        Err(error) if error.kind() == Kind::NotFound || is_read_only(&error) => Ok(()),
        other => other,
    }
}

/// Returns whether `/proc/sys` may not be written, as in a container without the host's rights.
fn is_read_only(error: &Error) -> bool {
    matches!(error.errno, Errno::ROFS | Errno::ACCESS | Errno::PERM)
}
