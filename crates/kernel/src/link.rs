//! Links: look them up, make veth pairs, change and remove them.

use std::{fmt, os::fd::AsRawFd, str::FromStr};

use rustix::io::Errno;

use crate::{
    error::{Error, Result, absent_is_none},
    message::{Attrs, Message, Received, read_text, read_u32},
    netns::Netns,
    socket::{ACK, CREATE, DUMP, EXCL, REQUEST, Socket},
};

/// Describes a link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The number by which the kernel knows it, in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; none for links without one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// What carrier and stack say: 6 is up (RFC 2863, `IF_OPER_UP`).
    pub operstate: u8,
    /// How many users asked for promiscuous mode.
    pub promiscuity: u32,
    /// The bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// `veth`, `bridge`, …; none for hardware and loopback.
    pub kind: Option<String>,
    /// The other end's index, in the other end's namespace.
    pub peer: Option<u32>,
    /// The routing table of a VRF.
    pub table: Option<u32>,
    /// Length of the transmit queue in packets.
    pub queue: u32,
    /// Takes all multicast frames (`IFF_ALLMULTI`).
    pub all_multicast: bool,
    /// Free text that stays with the link; Netloom writes the owner here.
    pub alias: Option<String>,
}

impl Link {
    /// Tells whether frames can pass.
    pub fn is_operational(&self) -> bool {
        self.operstate == OPER_UP
    }
}

/// Holds a hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    /// Parses six octets in hexadecimal, with `:` or `-` between them.
    fn from_str(text: &str) -> std::result::Result<Self, InvalidMac> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(InvalidMac)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() { Err(InvalidMac) } else { Ok(Self(octets)) }
    }
}

/// Says that a text is no hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a hardware address: write six octets like 02:42:ac:11:00:02")]
pub struct InvalidMac;

/// Describes a veth pair to be made. One end stays in the namespace of the socket.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Where the other end goes; none for the same namespace.
    pub peer_netns: Option<&'a Netns>,
    /// MTU of both ends in bytes; none for the kernel's default.
    pub mtu: Option<u32>,
    /// Hardware address of this end; none for a random one.
    pub mac: Option<Mac>,
}

/// Describes what to change of a link; what is none stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// Administrative state.
    pub up: Option<bool>,
    /// Promiscuous mode.
    pub promiscuous: Option<bool>,
    /// All multicast frames.
    pub all_multicast: Option<bool>,
    /// Length of the transmit queue in packets.
    pub queue: Option<u32>,
    /// Index of the new master; 0 for none.
    pub master: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Alias.
    pub alias: Option<&'a str>,
}

/// Finds a link by its name.
///
/// # Errors
/// When the kernel refuses to look.
#[doc(alias = "RTM_GETLINK")]
pub fn find(socket: &Socket, name: &str) -> Result<Option<Link>> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Ok(None);
    }
    let mut message = Message::new(libc::RTM_GETLINK, REQUEST, &ifinfo(0, 0, 0, 0));
    message.u32(libc::IFLA_EXT_MASK, SKIP_STATS).text(libc::IFLA_IFNAME, name);
    look_up(socket, message, &name)
}

/// Finds a link by its index.
///
/// # Errors
/// When the kernel refuses to look.
pub fn find_index(socket: &Socket, index: u32) -> Result<Option<Link>> {
    let mut message = Message::new(libc::RTM_GETLINK, REQUEST, &ifinfo(0, index, 0, 0));
    message.u32(libc::IFLA_EXT_MASK, SKIP_STATS);
    look_up(socket, message, &format_args!("with index {index}"))
}

/// Finds a link by its name, and takes its absence for an error.
///
/// # Errors
/// When it is not there.
pub fn require(socket: &Socket, name: &str) -> Result<Link> {
    find(socket, name)?.ok_or_else(|| Error::new("find link", name, Errno::NODEV))
}

/// Lists all links of the namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &Socket) -> Result<Vec<Link>> {
    let mut message = Message::new(libc::RTM_GETLINK, REQUEST | DUMP, &ifinfo(0, 0, 0, 0));
    message.u32(libc::IFLA_EXT_MASK, SKIP_STATS);
    socket.dump(&message, "list", &"links", |received| read(&received))
}

/// Creates a veth pair; fails if a name is taken.
///
/// # Errors
/// [`crate::Kind::Exists`] when one of the two names is taken, [`crate::Kind::Unsupported`] without the driver.
pub fn create_veth(socket: &Socket, veth: &Veth<'_>) -> Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, REQUEST | ACK | CREATE | EXCL, &ifinfo(0, 0, 0, 0));
    message.text(libc::IFLA_IFNAME, veth.name);
    if let Some(mtu) = veth.mtu {
        message.u32(libc::IFLA_MTU, mtu);
    }
    if let Some(mac) = veth.mac {
        message.attr(libc::IFLA_ADDRESS, &mac.0);
    }
    message.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |data| {
            data.nest(VETH_INFO_PEER, |peer| {
                peer.raw(&ifinfo(0, 0, 0, 0)).text(libc::IFLA_IFNAME, veth.peer_name);
                if let Some(mtu) = veth.mtu {
                    peer.u32(libc::IFLA_MTU, mtu);
                }
                if let Some(netns) = veth.peer_netns {
                    let fd = std::os::fd::AsFd::as_fd(netns).as_raw_fd();
                    peer.attr(libc::IFLA_NET_NS_FD, &fd.to_ne_bytes());
                }
            });
        });
    });
    socket.change(message, "create veth pair", &format_args!("`{}` and `{}`", veth.name, veth.peer_name))
}

/// Creates a link of a kind that needs nothing but a name and what `fill` says of the kind (`ifb`, `vrf`).
fn create(
    socket: &Socket,
    name: &str,
    kind: &str,
    more: impl FnOnce(&mut Message),
    fill: impl FnOnce(&mut Message),
) -> Result<()> {
    let mut message = Message::new(
        libc::RTM_NEWLINK,
        REQUEST | ACK | CREATE | EXCL,
        &ifinfo(0, 0, libc::IFF_UP.cast_unsigned(), libc::IFF_UP.cast_unsigned()),
    );
    message.text(libc::IFLA_IFNAME, name);
    more(&mut message);
    message.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, kind).nest(libc::IFLA_INFO_DATA, fill);
    });
    socket.change(message, "create link", &format_args!("`{name}` of kind {kind}"))
}

/// Creates an ifb link, up: what is redirected to it can be queued as if it left by it.
///
/// # Errors
/// [`crate::Kind::Exists`] when the name is taken, [`crate::Kind::Unsupported`] without the driver.
pub fn create_ifb(socket: &Socket, name: &str, mtu: u32) -> Result<()> {
    let more = |message: &mut Message| {
        message.u32(libc::IFLA_MTU, mtu).u32(libc::IFLA_TXQLEN, 0);
    };
    create(socket, name, "ifb", more, |_| ())
}

/// Creates a VRF, up: a link whose members route by a table of their own.
///
/// # Errors
/// As [`create_ifb`].
pub fn create_vrf(socket: &Socket, name: &str, table: u32) -> Result<()> {
    create(
        socket,
        name,
        "vrf",
        |_| (),
        |data| {
            data.u32(VRF_TABLE, table);
        },
    )
}

/// Changes a link.
///
/// # Errors
/// When it is gone or the kernel refuses a value.
#[doc(alias = "RTM_SETLINK")]
pub fn change(socket: &Socket, link: &Link, change: &Change<'_>) -> Result<()> {
    let (mut flags, mut mask) = (0, 0);
    for (wanted, flag) in [
        (change.up, libc::IFF_UP),
        (change.promiscuous, libc::IFF_PROMISC),
        (change.all_multicast, libc::IFF_ALLMULTI),
    ] {
        if let Some(wanted) = wanted {
            mask |= flag.cast_unsigned();
            flags |= if wanted { flag.cast_unsigned() } else { 0 };
        }
    }
    let mut message = Message::new(libc::RTM_SETLINK, REQUEST | ACK, &ifinfo(0, link.index, flags, mask));
    if let Some(mac) = change.mac {
        message.attr(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = change.mtu {
        message.u32(libc::IFLA_MTU, mtu);
    }
    if let Some(queue) = change.queue {
        message.u32(libc::IFLA_TXQLEN, queue);
    }
    if let Some(master) = change.master {
        message.u32(libc::IFLA_MASTER, master);
    }
    if let Some(alias) = change.alias {
        // The kernel takes at most 255 bytes.
        message.attr(libc::IFLA_IFALIAS, &alias.as_bytes()[..alias.len().min(255)]);
    }
    socket.change(message, "change link", &format_args!("`{}`", link.name))
}

/// Removes a link (both ends of a veth pair). Absent is fine.
///
/// Waits until the kernel has let go of it, which takes a grace period of some 15 ms.
///
/// # Errors
/// When the kernel refuses.
#[doc(alias = "RTM_DELLINK")]
pub fn remove(socket: &Socket, link: &Link) -> Result<()> {
    let mut message = removal(link);
    message.add_flags(ACK);
    absent_is_none(socket.change(message, "remove link", &format_args!("`{}`", link.name))).map(drop)
}

/// Makes the request to remove a link, which is answered only if it is refused.
pub(crate) fn removal(link: &Link) -> Message {
    Message::new(libc::RTM_DELLINK, REQUEST, &ifinfo(0, link.index, 0, 0))
}

/// Reads a link from a message; none when it is no link's.
pub(crate) fn read(received: &Received<'_>) -> Option<Link> {
    if received.kind != libc::RTM_NEWLINK && received.kind != libc::RTM_DELLINK {
        return None;
    }
    let fixed = received.payload.first_chunk::<IFINFO>()?;
    let mut link = Link {
        index: read_u32(&fixed[4..])?,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: read_u32(&fixed[8..])? & libc::IFF_UP.cast_unsigned() != 0,
        operstate: 0,
        promiscuity: 0,
        master: None,
        kind: None,
        peer: None,
        table: None,
        queue: 0,
        all_multicast: read_u32(&fixed[8..])? & libc::IFF_ALLMULTI.cast_unsigned() != 0,
        alias: None,
    };
    for (kind, data) in Attrs::after(received.payload, IFINFO) {
        match kind {
            libc::IFLA_IFNAME => link.name = read_text(data),
            libc::IFLA_ADDRESS => link.mac = data.try_into().ok().map(Mac),
            libc::IFLA_MTU => link.mtu = read_u32(data)?,
            libc::IFLA_OPERSTATE => link.operstate = *data.first()?,
            libc::IFLA_PROMISCUITY => link.promiscuity = read_u32(data)?,
            libc::IFLA_MASTER => link.master = read_u32(data),
            libc::IFLA_LINK => link.peer = read_u32(data),
            libc::IFLA_IFALIAS => link.alias = Some(read_text(data)),
            libc::IFLA_TXQLEN => link.queue = read_u32(data)?,
            libc::IFLA_LINKINFO => {
                link.kind = Attrs(data).find(libc::IFLA_INFO_KIND).map(read_text);
                if link.kind.as_deref() == Some("vrf") {
                    let of_kind = Attrs(data).find(libc::IFLA_INFO_DATA);
                    link.table = of_kind.and_then(|data| Attrs(data).find(VRF_TABLE)).and_then(read_u32);
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn look_up(socket: &Socket, message: Message, object: &dyn fmt::Display) -> Result<Option<Link>> {
    let mut found = None;
    absent_is_none(socket.ask(message, "find link", object, |received| found = read(&received)))?;
    Ok(found)
}

pub(crate) const IFINFO: usize = 16;

/// Builds `struct ifinfomsg`.
pub(crate) fn ifinfo(family: u8, index: u32, flags: u32, mask: u32) -> [u8; IFINFO] {
    let mut bytes = [0; IFINFO];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&mask.to_ne_bytes());
    bytes
}

const OPER_UP: u8 = 6;
const VRF_TABLE: u16 = 1;
const VETH_INFO_PEER: u16 = 1;
const SKIP_STATS: u32 = 1 << 3;
