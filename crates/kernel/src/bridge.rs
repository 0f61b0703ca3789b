//! Bridges, their ports and their VLANs.

use std::fmt;

use crate::{
    error::{Kind, Result},
    link::{IFINFO, Mac, Named, ifinfo},
    message::{Attrs, Message, read_text, read_u16, read_u32},
    socket::{CREATE, DUMP, EXCL, REQUEST, Socket},
};

/// The parameters of a new bridge.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its name.
    pub name: &'a str,
    /// Hardware address, which then stays. `None` for a random one, which the first port's replaces.
    pub mac: Option<Mac>,
    /// MTU in bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Whether the bridge filters VLANs.
    pub vlan_filtering: bool,
}

/// Settings of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Whether frames may leave on the port they arrived on (hairpin mode).
    pub hairpin: bool,
    /// Whether the port is isolated: frames do not pass between isolated ports.
    pub isolated: bool,
}

/// The state of a port, and which frames the bridge sends to it or accepts from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortState {
    /// The state of the spanning tree protocol: 0 disabled, 1 listening, 2 learning, 3 forwarding, 4 blocking.
    pub state: u8,
    /// Hairpin mode and isolation.
    pub port: Port,
    /// Whether the bridge learns the hardware addresses of the port.
    pub learning: bool,
    /// Whether broadcasts go to the port.
    pub broadcast: bool,
    /// Whether multicast goes to the port.
    pub multicast: bool,
    /// Whether frames to unknown hardware addresses go to the port.
    pub unknown: bool,
    /// Whether the port accepts only hardware addresses of static entries (IEEE 802.1X).
    pub locked: bool,
}

/// An entry of a bridge's forwarding database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The port's index, or the bridge's own.
    pub link: u32,
    /// The hardware address.
    pub mac: Mac,
    /// Whether the entry was set, not learnt (`NUD_NOARP` or `NUD_PERMANENT`).
    pub fixed: bool,
}

/// One VLAN of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// The VLAN ID, 1 to 4094.
    pub id: u16,
    /// Whether untagged frames that the port receives belong to this VLAN.
    pub pvid: bool,
    /// Whether frames of this VLAN leave the port without a tag.
    pub untagged: bool,
}

/// The side of a bridge that a VLAN is set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A port.
    Port,
    /// The bridge itself, as a host on its own network.
    Bridge,
}

/// Creates a bridge that is down.
///
/// # Errors
/// [`crate::Kind::Exists`] if the name is taken, [`crate::Kind::Unsupported`] if the kernel lacks the driver.
pub fn create(socket: &Socket, bridge: &New<'_>) -> Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, REQUEST | CREATE | EXCL, &ifinfo(0, 0, 0, 0));
    message.text(libc::IFLA_IFNAME, bridge.name);
    if let Some(mac) = bridge.mac {
        message.attr(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = bridge.mtu {
        message.u32(libc::IFLA_MTU, mtu);
    }
    message.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "bridge");
        if bridge.vlan_filtering {
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.u8(BR_VLAN_FILTERING, 1);
            });
        }
    });
    socket.change(message, "create bridge", &format_args!("`{}`", bridge.name))
}

/// Enables or disables VLAN filtering of a bridge.
///
/// # Errors
/// If the bridge does not exist or the kernel lacks VLAN filtering.
pub fn set_vlan_filtering(socket: &Socket, bridge: &dyn Named, on: bool) -> Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, REQUEST, &ifinfo(0, bridge.index(), 0, 0));
    message.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "bridge").nest(libc::IFLA_INFO_DATA, |data| {
            data.u8(BR_VLAN_FILTERING, u8::from(on));
        });
    });
    socket.change(message, "set VLAN filtering of bridge", &format_args!("`{}`", bridge.name()))
}

/// Sets a port's flags.
///
/// # Errors
/// If the link is not a bridge port.
#[doc(alias = "IFLA_PROTINFO")]
pub fn set_port(socket: &Socket, link: &dyn Named, port: Port) -> Result<()> {
    let mut message = Message::new(libc::RTM_SETLINK, REQUEST, &ifinfo(AF_BRIDGE, link.index(), 0, 0));
    message.nest(libc::IFLA_PROTINFO, |info| {
        info.u8(BRPORT_MODE, u8::from(port.hairpin)).u8(BRPORT_ISOLATED, u8::from(port.isolated));
    });
    socket.change(message, "set bridge port flags of", &format_args!("`{}`", link.name()))
}

/// Reads the state of a port, or returns `None` if the link is no port of a bridge.
///
/// # Errors
/// If the kernel refuses the request.
pub fn port_state(socket: &Socket, link: &dyn Named) -> Result<Option<PortState>> {
    let message = Message::new(libc::RTM_GETLINK, REQUEST, &ifinfo(0, link.index(), 0, 0));
    let mut found = None;
    socket.ask(message, "read the port", &format_args!("`{}`", link.name()), |received| {
        let info =
            Attrs(Attrs::after(received.payload, IFINFO).find(libc::IFLA_LINKINFO).unwrap_or_default());
        if info.find(IFLA_INFO_SLAVE_KIND).map(read_text).as_deref() == Some("bridge") {
            found = info.find(IFLA_INFO_SLAVE_DATA).map(|data| read_port(Attrs(data)));
        }
    })?;
    Ok(found)
}

fn read_port(attrs: Attrs<'_>) -> PortState {
    let flag = |kind, default| attrs.find(kind).and_then(|data| data.first()).map_or(default, |it| *it != 0);
    PortState {
        state: attrs.find(BRPORT_STATE).and_then(|data| data.first()).copied().unwrap_or(FORWARDING),
        port: Port { hairpin: flag(BRPORT_MODE, false), isolated: flag(BRPORT_ISOLATED, false) },
        learning: flag(BRPORT_LEARNING, true),
        broadcast: flag(BRPORT_BCAST_FLOOD, true),
        multicast: flag(BRPORT_MCAST_FLOOD, true),
        unknown: flag(BRPORT_UNICAST_FLOOD, true),
        locked: flag(BRPORT_LOCKED, false),
    }
}

/// Returns whether a bridge filters VLANs.
///
/// # Errors
/// If the kernel refuses the request.
pub fn filters_vlans(socket: &Socket, bridge: &dyn Named) -> Result<bool> {
    let message = Message::new(libc::RTM_GETLINK, REQUEST, &ifinfo(0, bridge.index(), 0, 0));
    let mut filters = false;
    socket.ask(message, "read bridge", &format_args!("`{}`", bridge.name()), |received| {
        let info = Attrs::after(received.payload, IFINFO).find(libc::IFLA_LINKINFO).unwrap_or_default();
        let data = Attrs(Attrs(info).find(libc::IFLA_INFO_DATA).unwrap_or_default());
        filters = data.find(BR_VLAN_FILTERING).is_some_and(|value| value.first() == Some(&1));
    })?;
    Ok(filters)
}

/// Lists the forwarding databases of all bridges.
///
/// # Errors
/// If the kernel refuses the request.
pub fn entries(socket: &Socket) -> Result<Vec<Entry>> {
    let mut fixed = [0; NDMSG];
    fixed[0] = AF_BRIDGE;
    let message = Message::new(libc::RTM_GETNEIGH, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list", &"the bridges' forwarding databases", |received| {
        let state = read_u16(received.payload.get(8..)?)?;
        let mac = Attrs::after(received.payload, NDMSG).find(NDA_LLADDR)?.try_into().ok().map(Mac)?;
        Some(Entry { link: read_u32(received.payload.get(4..)?)?, mac, fixed: state & SET_STATES != 0 })
    })
}

/// Lists the VLANs of a port, or of the bridge itself.
///
/// # Errors
/// If the link does not exist or the kernel refuses.
#[doc(alias = "RTM_GETVLAN")]
pub fn vlans(socket: &Socket, link: &dyn Named) -> Result<Vec<Vlan>> {
    // `struct br_vlan_msg` limits the answer to this link.
    let mut fixed = [0; BR_VLAN_MSG];
    fixed[0] = AF_BRIDGE;
    fixed[4..].copy_from_slice(&link.index().to_ne_bytes());
    let message = Message::new(RTM_GETVLAN, REQUEST | DUMP, &fixed);
    let found = socket.dump(&message, "list VLANs of", &format_args!("`{}`", link.name()), |received| {
        let entries = Attrs::after(received.payload, BR_VLAN_MSG);
        let entries = entries.filter(|(kind, _)| *kind == BRIDGE_VLANDB_ENTRY);
        Some(entries.flat_map(|(_, entry)| read_range(entry)).collect::<Vec<_>>())
    });
    match found {
        Err(error) if error.kind() == Kind::Unsupported => vlans_of_all(socket, link),
        other => Ok(other?.into_iter().flatten().collect()),
    }
}

/// Reads the VLANs of an entry. Consecutive VLANs with the same flags share one entry.
fn read_range(entry: &[u8]) -> Vec<Vlan> {
    let attrs = Attrs(entry);
    let Some(first) = attrs.find(BRIDGE_VLANDB_ENTRY_INFO).and_then(read_vlan) else { return Vec::new() };
    let last = attrs.find(BRIDGE_VLANDB_ENTRY_RANGE).and_then(read_u16).unwrap_or(first.id);
    (first.id..=last).map(|id| Vlan { id, ..first }).collect()
}

fn read_vlan(info: &[u8]) -> Option<Vlan> {
    let (flags, id) = (read_u16(info)?, read_u16(info.get(2..)?)?);
    Some(Vlan { id, pvid: flags & VLAN_PVID != 0, untagged: flags & VLAN_UNTAGGED != 0 })
}

/// Lists the VLANs of a link on kernels before 5.6. These list the VLANs of all links, and omit some if links are removed
/// meanwhile.
fn vlans_of_all(socket: &Socket, link: &dyn Named) -> Result<Vec<Vlan>> {
    let mut message = Message::new(libc::RTM_GETLINK, REQUEST | DUMP, &ifinfo(AF_BRIDGE, 0, 0, 0));
    message.u32(libc::IFLA_EXT_MASK, FILTER_VLAN);
    let all = socket.dump(&message, "list VLANs of", &format_args!("`{}`", link.name()), |received| {
        let index = read_u32(received.payload.get(4..)?)?;
        if index != link.index() {
            return None;
        }
        let spec = Attrs::after(received.payload, IFINFO).find(libc::IFLA_AF_SPEC)?;
        let infos = Attrs(spec).filter(|(kind, _)| *kind == BRIDGE_VLAN_INFO);
        Some(infos.filter_map(|(_, info)| read_vlan(info)).collect::<Vec<_>>())
    })?;
    Ok(all.into_iter().flatten().collect())
}

/// Adds VLANs to a port, or to the bridge itself. A VLAN that exists gets the given flags.
///
/// # Errors
/// If the link is not a bridge port, or the bridge does not filter VLANs.
pub fn add_vlans(socket: &Socket, link: &dyn Named, side: Side, vlans: &[Vlan]) -> Result<()> {
    set_vlans(socket, libc::RTM_SETLINK, "add VLANs to", link, side, vlans)
}

/// Removes VLANs from a port, or from the bridge itself.
///
/// # Errors
/// If the link is not a bridge port.
pub fn remove_vlans(socket: &Socket, link: &dyn Named, side: Side, vlans: &[Vlan]) -> Result<()> {
    set_vlans(socket, libc::RTM_DELLINK, "remove VLANs from", link, side, vlans)
}

/// The number of VLANs in one message: about 2.4 KiB of attributes, well below the limit of 64 KiB.
const VLANS_PER_MESSAGE: usize = 300;

fn set_vlans(
    socket: &Socket,
    kind: u16,
    doing: &'static str,
    link: &dyn Named,
    side: Side,
    vlans: &[Vlan],
) -> Result<()> {
    for chunk in vlans.chunks(VLANS_PER_MESSAGE) {
        let mut message = Message::new(kind, REQUEST, &ifinfo(AF_BRIDGE, link.index(), 0, 0));
        message.nest(libc::IFLA_AF_SPEC, |spec| {
            let flags: u16 = match side {
                Side::Port => BRIDGE_FLAGS_MASTER,
                Side::Bridge => BRIDGE_FLAGS_SELF,
            };
            spec.attr(BRIDGE_FLAGS, &flags.to_ne_bytes());
            for vlan in chunk {
                let mut flags = 0;
                flags |= if vlan.pvid { VLAN_PVID } else { 0 };
                flags |= if vlan.untagged { VLAN_UNTAGGED } else { 0 };
                let [a, b] = flags.to_ne_bytes();
                let [c, d] = vlan.id.to_ne_bytes();
                spec.attr(BRIDGE_VLAN_INFO, &[a, b, c, d]);
            }
        });
        let object: &dyn fmt::Display = &format_args!("`{}`", link.name());
        socket.change(message, doing, object)?;
    }
    Ok(())
}

const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const BR_VLAN_FILTERING: u16 = 7;
const BRPORT_STATE: u16 = 1;
const BRPORT_MODE: u16 = 4;
const BRPORT_LEARNING: u16 = 8;
const BRPORT_UNICAST_FLOOD: u16 = 9;
const BRPORT_MCAST_FLOOD: u16 = 27;
const BRPORT_BCAST_FLOOD: u16 = 30;
const BRPORT_ISOLATED: u16 = 33;
const BRPORT_LOCKED: u16 = 39;
/// The state of a port that forwards frames (`BR_STATE_FORWARDING`).
pub const FORWARDING: u8 = 3;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
/// `struct ndmsg`.
const NDMSG: usize = 12;
const NDA_LLADDR: u16 = 2;
const SET_STATES: u16 = 0x40 | 0x80;
const RTM_GETVLAN: u16 = 114;
const BR_VLAN_MSG: usize = 8;
const BRIDGE_VLANDB_ENTRY: u16 = 1;
const BRIDGE_VLANDB_ENTRY_INFO: u16 = 1;
const BRIDGE_VLANDB_ENTRY_RANGE: u16 = 2;
const FILTER_VLAN: u32 = 1 << 1;
const BRIDGE_FLAGS: u16 = 0;
const BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_MASTER: u16 = 1;
const BRIDGE_FLAGS_SELF: u16 = 2;
const VLAN_PVID: u16 = 1 << 1;
const VLAN_UNTAGGED: u16 = 1 << 2;
