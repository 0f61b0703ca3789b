//! Fast queries of links (netdevice(7)). Unlike `RTM_GETLINK` they do not take the lock of link changes, and do not first
//! process pending carrier changes.

use std::{ffi::c_ulong, os::fd::AsFd};

use rustix::io::Errno;

use super::{Mac, Named};
use crate::{
    error::{Error, Result, absent_is_none},
    ioctl::LinkRequest,
    message::read_text,
    socket::Socket,
};

/// The properties of a link that a fast query returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuickLink {
    /// The interface index, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The driver's name, such as `bridge`; empty if the driver reports none.
    pub driver: String,
    /// Whether the link is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether promiscuous mode was configured. Temporary promiscuous mode, as during a packet capture, does not count.
    pub promiscuous: bool,
}

impl Named for QuickLink {
    fn index(&self) -> u32 {
        self.index
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Finds a link by its name, with a fast query.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias("SIOCGIFINDEX", "SIOCGIFFLAGS", "ETHTOOL_GDRVINFO"))]
pub fn find_quick(socket: &Socket, name: &str) -> Result<Option<QuickLink>> {
    let look = || {
        let index = u32::from_ne_bytes(ask(socket, name, SIOCGIFINDEX)?);
        let flags = flags(socket, name)?;
        let driver = match driver(socket, name) {
            Err(Errno::OPNOTSUPP) => String::new(),
            other => other?,
        };
        let (up, promiscuous) = (flags & libc::IFF_UP != 0, flags & libc::IFF_PROMISC != 0);
        Ok(QuickLink { index, name: name.to_owned(), driver, up, promiscuous })
    };
    absent_is_none(look().map_err(|errno| Error::new("find link", name, errno)))
}

/// Returns whether a link is up and the kernel has seen its carrier, so that sent packets leave.
///
/// # Errors
/// If the link does not exist.
#[doc(alias = "SIOCGIFFLAGS")]
pub fn is_running(socket: &Socket, name: &str) -> Result<bool> {
    flags(socket, name)
        .map(|flags| flags & libc::IFF_RUNNING != 0)
        .map_err(|errno| Error::new("read state of link", format!("`{name}`"), errno))
}

/// Reads the hardware address of an Ethernet link.
///
/// # Errors
/// If the link does not exist.
#[doc(alias = "SIOCGIFHWADDR")]
pub fn mac(socket: &Socket, name: &str) -> Result<Mac> {
    // `struct sockaddr`, which starts with 2 bytes for the family.
    ask::<8>(socket, name, SIOCGIFHWADDR)
        .map(|[_, _, octets @ ..]| Mac(octets))
        .map_err(|errno| Error::new("read hardware address of link", format!("`{name}`"), errno))
}

fn flags(socket: &Socket, name: &str) -> Result<i32, Errno> {
    ask(socket, name, SIOCGIFFLAGS).map(|flags| i16::from_ne_bytes(flags).into())
}

/// Queries the name of the link's driver.
fn driver(socket: &Socket, name: &str) -> Result<String, Errno> {
    // `struct ethtool_drvinfo`: the command, the name of the driver in 32 bytes, and more.
    let mut info = [0; 49];
    info[0] = ETHTOOL_GDRVINFO;
    // SAFETY: the structure of this command is 196 bytes long.
    unsafe { LinkRequest::of(name)?.ask_driver(&socket.as_fd(), &mut info) }?;
    Ok(read_text(&info.map(u32::to_ne_bytes).as_flattened()[4..36]))
}

/// Queries the first `N` bytes of a property of a link.
fn ask<const N: usize>(socket: &Socket, name: &str, request: c_ulong) -> Result<[u8; N], Errno> {
    let mut about = LinkRequest::of(name)?;
    // SAFETY: these requests take only the name.
    unsafe { about.ask(&socket.as_fd(), request) }?;
    let mut answer = [0; N];
    answer.copy_from_slice(&about.subject()[..N]);
    Ok(answer)
}

/// `linux/sockios.h`.
const SIOCGIFFLAGS: c_ulong = 0x8913;
const SIOCGIFHWADDR: c_ulong = 0x8927;
const SIOCGIFINDEX: c_ulong = 0x8933;
/// `linux/ethtool.h`.
const ETHTOOL_GDRVINFO: u32 = 0x3;
