//! Links: lookup, creation, change and removal.

mod create;
mod quick;

use std::{
    collections::HashSet,
    fmt,
    os::fd::{AsFd, AsRawFd},
    str::FromStr,
};

use rustix::io::Errno;

use crate::{
    error::{Error, Kind, Result, absent_is_none},
    message::{Attrs, Message, Received, read_text, read_u32},
    netns::Netns,
    socket::{CREATE, DUMP, EXCL, REQUEST, Request, Socket},
};

pub use create::{Driver, IpvlanMode, MacvlanMode, New, Veth, create, create_veth};
pub use quick::{QuickLink, find_quick, is_running, mac};

/// The state of a link in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface index, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; `None` for links without one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether the link is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether the driver has a carrier (`IFF_LOWER_UP`): a cable, or the other end of a veth pair that is up.
    pub carrier: bool,
    /// Whether the link resolves neighbours (`IFF_NOARP` is not set).
    pub resolves: bool,
    /// The operational state: 6 is up (RFC 2863, `IF_OPER_UP`).
    pub operstate: u8,
    /// The number of users of promiscuous mode.
    pub promiscuity: u32,
    /// The index of the bridge or bond that the link belongs to.
    pub master: Option<u32>,
    /// The link's kind: `veth`, `bridge`, …; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// The driver's settings, for the drivers that this crate creates.
    pub driver: Option<Driver>,
    /// The index of the other end, or of the parent link, in the namespace of that link.
    pub peer: Option<u32>,
    /// The namespace of `peer`, as its number in this link's namespace ([`crate::netns::number_in`]); `None` if both links are
    /// in the same namespace.
    pub peer_netns: Option<i32>,
    /// Length of the transmit queue in packets.
    pub queue: u32,
    /// Whether the link receives all multicast frames (`IFF_ALLMULTI`).
    pub all_multicast: bool,
    /// The link group; 0 by default.
    pub group: u32,
    /// Free text that the kernel keeps with the link. Netloom writes the owner here.
    pub alias: Option<String>,
    /// Alternative names of the link.
    pub other_names: Vec<String>,
}

impl Link {
    /// Returns whether frames can pass.
    pub fn is_operational(&self) -> bool {
        self.operstate == OPER_UP
    }
}

/// A link identified by its index, for requests, and by its name, for error messages.
pub trait Named {
    /// The interface index, unique in its namespace.
    fn index(&self) -> u32;
    /// Its name.
    fn name(&self) -> &str;
}

impl Named for Link {
    fn index(&self) -> u32 {
        self.index
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Index and name of a link, without its other properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// The interface index, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
}

impl Named for Handle {
    fn index(&self) -> u32 {
        self.index
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// A hardware address.
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

/// The error of a text that is not a hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a hardware address: write six octets like 02:42:ac:11:00:02")]
pub struct InvalidMac;

/// Changes of a link. `None` leaves a property unchanged.
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
    /// Group; 0 is the default group.
    pub group: Option<u32>,
    /// Alias.
    pub alias: Option<&'a str>,
    /// A new name.
    pub name: Option<&'a str>,
    /// Whether the kernel announces IPv4 addresses to neighbours when the link's state changes (`arp_notify`).
    pub announce: Option<bool>,
    /// The namespace to move the link to. `name`, if given, is set in the same step, in case the old name is taken there.
    pub netns: Option<&'a Netns>,
}

/// Finds a link by its name or one of its alternative names, which may have up to 127 bytes.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "RTM_GETLINK")]
pub fn find(socket: &Socket, name: &str) -> Result<Option<Link>> {
    if name.is_empty() || name.len() >= ALTIFNAMSIZ {
        return Ok(None);
    }
    look_up(socket, by_name(name), &name)
}

/// Finds a link by its index.
///
/// # Errors
/// If the kernel refuses the request.
pub fn find_index(socket: &Socket, index: u32) -> Result<Option<Link>> {
    let mut message = Message::new(libc::RTM_GETLINK, REQUEST, &ifinfo(0, index, 0, 0));
    message.u32(libc::IFLA_EXT_MASK, SKIP_STATS);
    look_up(socket, message, &format_args!("with index {index}"))
}

/// Finds a link by its name. Fails if it does not exist.
///
/// # Errors
/// If the link does not exist.
pub fn require(socket: &Socket, name: &str) -> Result<Link> {
    find(socket, name)?.ok_or_else(|| Error::new("find link", name, Errno::NODEV))
}

/// Lists all links of the namespace.
///
/// # Errors
/// If the kernel refuses the request.
pub fn list(socket: &Socket) -> Result<Vec<Link>> {
    let mut message = Message::new(libc::RTM_GETLINK, REQUEST | DUMP, &ifinfo(0, 0, 0, 0));
    message.u32(libc::IFLA_EXT_MASK, SKIP_STATS);
    socket.dump(&message, "list", &"links", |received| read(&received))
}

/// Changes a link.
///
/// # Errors
/// If the link does not exist or the kernel refuses a value.
#[doc(alias = "RTM_SETLINK")]
pub fn change(socket: &Socket, link: &dyn Named, change: &Change<'_>) -> Result<()> {
    socket.make([changing(link, change)])
}

/// Returns the request of [`change`], to send together with others. The namespace in it must stay open until then.
pub fn changing(link: &dyn Named, change: &Change<'_>) -> Request {
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
    let mut message = Message::new(libc::RTM_SETLINK, REQUEST, &ifinfo(0, link.index(), flags, mask));
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
    if let Some(group) = change.group {
        message.u32(libc::IFLA_GROUP, group);
    }
    if let Some(name) = change.name {
        message.text(libc::IFLA_IFNAME, name);
    }
    if let Some(netns) = change.netns {
        message.attr(libc::IFLA_NET_NS_FD, &netns.as_fd().as_raw_fd().to_ne_bytes());
    }
    if let Some(announce) = change.announce {
        message.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(libc::AF_INET as u16, |ipv4| {
                ipv4.nest(IFLA_INET_CONF, |conf| {
                    conf.u32(IPV4_DEVCONF_ARP_NOTIFY, announce.into());
                });
            });
        });
    }
    if let Some(alias) = change.alias {
        // The kernel takes at most 255 bytes.
        message.attr(libc::IFLA_IFALIAS, &alias.as_bytes()[..alias.len().min(255)]);
    }
    Request { message, doing: "change link", object: format!("`{}`", link.name()) }
}

/// Adds or removes an alternative name of a link. Succeeds if nothing needs to change. Needs Linux 5.5.
///
/// # Errors
/// If another link has the name, or the kernel lacks alternative names.
#[doc(alias = "RTM_NEWLINKPROP")]
pub fn set_other_name(socket: &Socket, link: &Link, name: &str, there: bool) -> Result<()> {
    if link.other_names.iter().any(|it| it == name) == there {
        return Ok(());
    }
    let (kind, flags) = if there { (RTM_NEWLINKPROP, CREATE | EXCL) } else { (RTM_DELLINKPROP, 0) };
    let mut message = Message::new(kind, REQUEST | flags, &ifinfo(0, link.index, 0, 0));
    message.nest(IFLA_PROP_LIST, |list| {
        list.text(IFLA_ALT_IFNAME, name);
    });
    socket.change(message, "set other name of link", &format_args!("`{}`", link.name))
}

/// Removes a link (both ends of a veth pair). Succeeds if it is already gone.
///
/// Waits until the kernel has freed the link, which takes a grace period of about 15 ms.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "RTM_DELLINK")]
pub fn remove(socket: &Socket, link: &dyn Named) -> Result<()> {
    absent_is_none(socket.change(removal(link), "remove link", &format_args!("`{}`", link.name()))).map(drop)
}

/// Removes links of one namespace together, so that the kernel waits for its grace periods once. Skips links that are already
/// gone. Returns the refusals.
///
/// The links are first moved to a group of their own, which is then removed.
#[doc(alias = "RTM_DELLINK")]
pub fn remove_all(socket: &Socket, links: &[Link]) -> Vec<Error> {
    if links.len() > 1
        && let Ok(refused) = remove_by_group(socket, links)
    {
        return refused;
    }
    // A single link, or a link that cannot be removed, which prevents the removal of its whole group.
    links.iter().filter_map(|link| remove(socket, link).err()).collect()
}

fn remove_by_group(socket: &Socket, links: &[Link]) -> Result<Vec<Error>> {
    let taken: HashSet<u32> = list(socket)?.iter().map(|link| link.group).collect();
    let group = DOOMED
        .into_iter()
        .find(|group| !taken.contains(group))
        .ok_or_else(|| Error::new("find a group for", "links to remove", Errno::BUSY))?;
    let refused = socket.change_all(links.iter().map(|link| {
        let mut message = Message::new(libc::RTM_SETLINK, REQUEST, &ifinfo(0, link.index, 0, 0));
        message.u32(libc::IFLA_GROUP, group);
        Request { message, doing: "remove link", object: format!("`{}`", link.name) }
    }));
    // These requests set a group, so `change_all` does not know that an absent link is no failure.
    let refused = refused.into_iter().map(|(_, error)| error).filter(|error| error.kind() != Kind::NotFound);
    let refused = refused.collect();
    let mut message = Message::new(libc::RTM_DELLINK, REQUEST, &ifinfo(0, 0, 0, 0));
    message.u32(libc::IFLA_GROUP, group);
    absent_is_none(socket.change(message, "remove", &format_args!("{} links", links.len())))?;
    Ok(refused)
}

/// Returns the request to remove a link, which the kernel answers only if it refuses.
pub(crate) fn removal(link: &dyn Named) -> Message {
    Message::new(libc::RTM_DELLINK, REQUEST, &ifinfo(0, link.index(), 0, 0))
}

/// Parses a link from a message, or returns `None` if the message is not about a link.
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
        carrier: read_u32(&fixed[8..])? & IFF_LOWER_UP != 0,
        resolves: read_u32(&fixed[8..])? & libc::IFF_NOARP.cast_unsigned() == 0,
        operstate: 0,
        promiscuity: 0,
        master: None,
        kind: None,
        peer: None,
        peer_netns: None,
        driver: None,
        queue: 0,
        all_multicast: read_u32(&fixed[8..])? & libc::IFF_ALLMULTI.cast_unsigned() != 0,
        group: 0,
        alias: None,
        other_names: Vec::new(),
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
            libc::IFLA_LINK_NETNSID => link.peer_netns = read_u32(data).map(u32::cast_signed),
            libc::IFLA_GROUP => link.group = read_u32(data)?,
            libc::IFLA_IFALIAS => link.alias = Some(read_text(data)),
            IFLA_PROP_LIST => {
                link.other_names = Attrs(data).map(|(_, name)| read_text(name)).collect();
            }
            libc::IFLA_TXQLEN => link.queue = read_u32(data)?,
            libc::IFLA_LINKINFO => {
                link.kind = Attrs(data).find(libc::IFLA_INFO_KIND).map(read_text);
                let of_kind = Attrs(Attrs(data).find(libc::IFLA_INFO_DATA).unwrap_or_default());
                link.driver = link.kind.as_deref().and_then(|kind| Driver::read(kind, of_kind));
            }
            _ => {}
        }
    }
    Some(link)
}

/// Returns the request for a link by its name.
fn by_name(name: &str) -> Message {
    let mut message = Message::new(libc::RTM_GETLINK, REQUEST, &ifinfo(0, 0, 0, 0));
    // The kernel looks up both kinds of names by either attribute, but one has room for short names alone.
    let attribute = if name.len() < libc::IFNAMSIZ { libc::IFLA_IFNAME } else { IFLA_ALT_IFNAME };
    message.u32(libc::IFLA_EXT_MASK, SKIP_STATS).text(attribute, name);
    message
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
/// `linux/if.h`.
const IFF_LOWER_UP: u32 = 1 << 16;
/// `linux/if.h`.
const ALTIFNAMSIZ: usize = 128;
/// The groups of links under removal: below the groups of owners, above the groups that administrators use.
const DOOMED: std::ops::Range<u32> = 0x7f00_0000..0x8000_0000;
const SKIP_STATS: u32 = 1 << 3;
/// `linux/if_link.h` and `linux/ip.h`.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;
const RTM_NEWLINKPROP: u16 = 108;
const RTM_DELLINKPROP: u16 = 109;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
