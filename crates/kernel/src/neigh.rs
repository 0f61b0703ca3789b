//! Neighbours (the hardware addresses of IP addresses) and the forwarding databases of VXLANs.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use crate::{
    addr::family,
    error::{Error, Result},
    events::Events,
    link::{Link, Mac},
    message::{Attrs, Message, Received, read_ip, read_u32},
    socket::{CREATE, DUMP, Protocol, REQUEST, Request, Socket},
};

/// A neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link's index.
    pub link: u32,
    /// The IP address.
    pub ip: IpAddr,
    /// The hardware address, once known.
    pub mac: Option<Mac>,
    /// Whether the entry is static and does not age.
    pub permanent: bool,
    /// Whether nobody answered (`NUD_FAILED`).
    pub failed: bool,
}

/// An entry of a VXLAN's forwarding database: frames to this hardware address go to that host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// The link's index.
    pub link: u32,
    /// The destination hardware address of the frames.
    pub mac: Mac,
    /// The address of the host that receives the frames.
    pub to: IpAddr,
}

/// A change of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Set the hardware address of an address permanently.
    Neighbour(u32, IpAddr, Mac),
    /// Remove the entry of an address.
    NoNeighbour(u32, IpAddr),
    /// Forward frames to the host.
    Forward(Forward),
    /// Remove the forwarding entry.
    NoForward(Forward),
}

/// Lists the neighbours of a link in one family (that of `like`).
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "RTM_GETNEIGH")]
pub fn list(socket: &Socket, link: &Link, like: IpAddr) -> Result<Vec<Neighbour>> {
    let mut fixed = [0; NDMSG];
    fixed[0] = family(like);
    let message = Message::new(libc::RTM_GETNEIGH, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list neighbours of", &format_args!("`{}`", link.name), |received| {
        read(&received).filter(|neighbour| neighbour.link == link.index)
    })
}

/// Lists the forwarding database of a VXLAN.
///
/// # Errors
/// If the kernel refuses the request.
pub fn forwards(socket: &Socket, link: &Link) -> Result<Vec<Forward>> {
    let mut fixed = [0; NDMSG];
    fixed[0] = AF_BRIDGE;
    fixed[4..8].copy_from_slice(&link.index.to_ne_bytes());
    let message = Message::new(libc::RTM_GETNEIGH, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list the forwarding database of", &format_args!("`{}`", link.name), |received| {
        read_forward(&received).filter(|forward| forward.link == link.index)
    })
}

/// Probes the segment of a link for addresses, as the kernel does (ARP, RFC 826; NDP, RFC 4861, section 7.2). Returns the
/// addresses that were answered for within `limit`.
///
/// # Errors
/// If the kernel refuses the request.
pub fn who_has(link: u32, ips: &BTreeSet<IpAddr>, limit: Duration) -> Result<BTreeSet<IpAddr>> {
    let mut answered = BTreeSet::new();
    let events = Events::of_neighbours()?;
    let socket = Socket::open(Protocol::Route)?;
    // The kernel does not probe an address with an existing entry, and that entry may be outdated.
    let forget: Vec<Fate> = ips.iter().map(|ip| Fate::NoNeighbour(link, *ip)).collect();
    drop(change_all(&socket, &forget));
    let refused = socket.change_all(ips.iter().map(|ip| {
        let mut message =
            Message::new(libc::RTM_NEWNEIGH, REQUEST | CREATE, &ndmsg(family(*ip), link, 0, NTF_USE));
        message.ip(NDA_DST, *ip);
        Request { message, doing: "ask who has", object: ip.to_string() }
    }));
    if let Some((_, error)) = refused.into_iter().next() {
        return Err(error);
    }
    let outcome = events.wait(limit, "wait for", "neighbours of the segment", |received| {
        if let Some(neighbour) = read(received)
            && neighbour.link == link
            && neighbour.mac.is_some()
            && ips.contains(&neighbour.ip)
        {
            answered.insert(neighbour.ip);
        }
        answered.len() == ips.len()
    });
    let unanswered: Vec<Fate> = ips.difference(&answered).map(|ip| Fate::NoNeighbour(link, *ip)).collect();
    drop(change_all(&socket, &unanswered));
    match outcome {
        Err(error) if error.kind() != crate::Kind::TimedOut => Err(error),
        _ => Ok(answered),
    }
}

/// Changes many entries, in as few sends as the socket's receive buffer allows, and returns the refusals, each with
/// its place in `fates`.
#[doc(alias = "RTM_NEWNEIGH")]
pub fn change_all<'a>(socket: &Socket, fates: impl IntoIterator<Item = &'a Fate>) -> Vec<(usize, Error)> {
    socket.change_all(fates.into_iter().map(|fate| match *fate {
        Fate::Neighbour(link, ip, mac) => {
            let mut message = put(family(ip), link, PERMANENT, 0);
            message.ip(NDA_DST, ip).attr(NDA_LLADDR, &mac.0);
            Request { message, doing: "add neighbour", object: ip.to_string() }
        }
        Fate::NoNeighbour(link, ip) => {
            let mut message = Message::new(libc::RTM_DELNEIGH, REQUEST, &ndmsg(family(ip), link, 0, 0));
            message.ip(NDA_DST, ip);
            Request { message, doing: "remove neighbour", object: ip.to_string() }
        }
        Fate::Forward(forward) => {
            let mut message = put(AF_BRIDGE, forward.link, PERMANENT | NOARP, NTF_SELF);
            message.attr(NDA_LLADDR, &forward.mac.0).ip(NDA_DST, forward.to);
            Request {
                message,
                doing: "add forwarding entry",
                object: format!("{} at {}", forward.mac, forward.to),
            }
        }
        Fate::NoForward(forward) => {
            let fixed = ndmsg(AF_BRIDGE, forward.link, 0, NTF_SELF);
            let mut message = Message::new(libc::RTM_DELNEIGH, REQUEST, &fixed);
            message.attr(NDA_LLADDR, &forward.mac.0).ip(NDA_DST, forward.to);
            Request {
                message,
                doing: "remove forwarding entry",
                object: format!("{} at {}", forward.mac, forward.to),
            }
        }
    }))
}

fn put(family: u8, link: u32, state: u16, flags: u8) -> Message {
    let replace = libc::NLM_F_REPLACE as u16;
    Message::new(libc::RTM_NEWNEIGH, REQUEST | CREATE | replace, &ndmsg(family, link, state, flags))
}

pub(crate) fn read(received: &Received<'_>) -> Option<Neighbour> {
    let link = read_u32(received.payload.get(4..)?)?;
    let state = u16::from_ne_bytes(*received.payload.get(8..)?.first_chunk()?);
    let attrs = Attrs::after(received.payload, NDMSG);
    let ip = read_ip(attrs.find(NDA_DST)?)?;
    let mac = attrs.find(NDA_LLADDR).and_then(|data| data.try_into().ok()).map(Mac);
    Some(Neighbour { link, ip, mac, permanent: state & PERMANENT != 0, failed: state & FAILED != 0 })
}

pub(crate) fn read_forward(received: &Received<'_>) -> Option<Forward> {
    let link = read_u32(received.payload.get(4..)?)?;
    let attrs = Attrs::after(received.payload, NDMSG);
    let mac = attrs.find(NDA_LLADDR).and_then(|data| data.try_into().ok()).map(Mac)?;
    Some(Forward { link, mac, to: read_ip(attrs.find(NDA_DST)?)? })
}

/// Builds `struct ndmsg`.
fn ndmsg(family: u8, link: u32, state: u16, flags: u8) -> [u8; NDMSG] {
    let mut fixed = [0; NDMSG];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&link.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed[10] = flags;
    fixed
}

const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const NTF_USE: u8 = 1;
const NTF_SELF: u8 = 1 << 1;
const PERMANENT: u16 = 0x80;
const FAILED: u16 = 0x20;
const NOARP: u16 = 0x40;
