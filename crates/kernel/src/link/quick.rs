//! What is told of a link at once (netdevice(7)): without the lock that all changes of links take, and without first doing
//! what is to be done about a carrier that came or went, as an answer to `RTM_GETLINK` does.

use std::{ffi::c_ulong, os::fd::AsFd};

use rustix::io::Errno;

use super::{Mac, Named};
use crate::{
    error::{Error, Result, absent_is_none},
    ioctl::LinkRequest,
    message::read_text,
    socket::Socket,
};

/// A link as far as it is told at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuickLink {
    /// The number by which the kernel knows it, in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What its driver calls itself, `bridge` for one; empty where it does not say.
    pub driver: String,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Somebody set it to promiscuous mode; that it is so for a while, as by who listens on it, does not count.
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

/// Finds a link by its name, and tells what is told at once.
///
/// # Errors
/// If the kernel refuses to look.
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

/// Returns whether a link is up and has a carrier that the kernel knows of, so that what is sent goes out.
///
/// # Errors
/// If it is not there.
#[doc(alias = "SIOCGIFFLAGS")]
pub fn is_running(socket: &Socket, name: &str) -> Result<bool> {
    flags(socket, name)
        .map(|flags| flags & libc::IFF_RUNNING != 0)
        .map_err(|errno| Error::new("read state of link", format!("`{name}`"), errno))
}

/// Reads the hardware address of a link that has one of Ethernet.
///
/// # Errors
/// If the link is not there.
#[doc(alias = "SIOCGIFHWADDR")]
pub fn mac(socket: &Socket, name: &str) -> Result<Mac> {
    // `struct sockaddr`, of which the family is 2 bytes.
    ask::<8>(socket, name, SIOCGIFHWADDR)
        .map(|[_, _, octets @ ..]| Mac(octets))
        .map_err(|errno| Error::new("read hardware address of link", format!("`{name}`"), errno))
}

fn flags(socket: &Socket, name: &str) -> Result<i32, Errno> {
    ask(socket, name, SIOCGIFFLAGS).map(|flags| i16::from_ne_bytes(flags).into())
}

/// Asks what the link's driver calls itself.
fn driver(socket: &Socket, name: &str) -> Result<String, Errno> {
    // `struct ethtool_drvinfo`: the command, the name of the driver in 32 bytes, and more.
    let mut info = [0; 49];
    info[0] = ETHTOOL_GDRVINFO;
    // SAFETY: the structure of this command is 196 bytes long.
    unsafe { LinkRequest::of(name)?.ask_driver(&socket.as_fd(), &mut info) }?;
    Ok(read_text(&info.map(u32::to_ne_bytes).as_flattened()[4..36]))
}

/// Asks for the first `N` bytes of what is told of a link.
fn ask<const N: usize>(socket: &Socket, name: &str, request: c_ulong) -> Result<[u8; N], Errno> {
    let mut about = LinkRequest::of(name)?;
    // SAFETY: these requests take nothing but the name.
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
