//! Neighbours: which hardware address an address of the link has.

use std::net::IpAddr;

use crate::{
    addr::family,
    error::Result,
    link::{Link, Mac},
    message::{Attrs, Message, read_ip, read_u32},
    socket::{DUMP, REQUEST, Socket},
};

/// Describes a neighbour as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link's index.
    pub link: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address, once known.
    pub mac: Option<Mac>,
}

/// Lists the neighbours of a link in one family (that of `like`).
///
/// # Errors
/// When the kernel refuses.
#[doc(alias = "RTM_GETNEIGH")]
pub fn list(socket: &Socket, link: &Link, like: IpAddr) -> Result<Vec<Neighbour>> {
    let mut fixed = [0; NDMSG];
    fixed[0] = family(like);
    let message = Message::new(libc::RTM_GETNEIGH, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list neighbours of", &format_args!("`{}`", link.name), |received| {
        let index = read_u32(received.payload.get(4..)?)?;
        let attrs = Attrs::after(received.payload, NDMSG);
        let ip = read_ip(attrs.find(NDA_DST)?)?;
        let mac = attrs.find(NDA_LLADDR).and_then(|data| data.try_into().ok()).map(Mac);
        (index == link.index).then_some(Neighbour { link: index, ip, mac })
    })
}

const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
