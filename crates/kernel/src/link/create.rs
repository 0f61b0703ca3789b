//! Making links.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use rustix::io::Errno;

use super::{Link, Mac, by_name, ifinfo, read};
use crate::{
    error::{Error, Result},
    message::{Attrs, Message, read_ip, read_u16, read_u32},
    netns::Netns,
    socket::{CREATE, EXCL, REQUEST, Request, Socket},
};

/// Says what a virtual link is, with what its driver needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Drops what is sent by it.
    Dummy,
    /// Has what is redirected to it queued as if it left by it.
    Ifb,
    /// Its members route by a table of their own.
    Vrf {
        /// The table.
        table: u32,
    },
    /// Shares a link, with a hardware address of its own.
    Macvlan {
        /// Who hears whom.
        mode: MacvlanMode,
        /// How many broadcast frames may wait at the shared link; `None` for the kernel's default.
        broadcasts: Option<u32>,
    },
    /// Shares a link and its hardware address.
    Ipvlan {
        /// Where packets are told apart.
        mode: IpvlanMode,
    },
    /// Sends and receives by another link with a VLAN's tag.
    Vlan {
        /// The VLAN, 0 to 4094.
        id: u16,
    },
    /// Carries frames to other hosts in UDP (RFC 7348), to those alone that its FDB has: it learns nothing by itself.
    Vxlan {
        /// The network identifier, 24 bits.
        vni: u32,
        /// The UDP port, of all hosts.
        port: u16,
        /// The address of this host, by whose family others are sent to.
        local: IpAddr,
    },
    /// Carries packets, without Ethernet, to the host that the route says ([`crate::route::Carried`]), in UDP (VXLAN-GPE,
    /// draft-ietf-nvo3-vxlan-gpe).
    VxlanGpe {
        /// The UDP port, of all hosts.
        port: u16,
    },
}

/// Says which macvlans of one link hear each other (`IFLA_MACVLAN_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    /// None hears another.
    Private = 1,
    /// They do if the switch outside sends frames back.
    Vepa = 2,
    /// They do.
    Bridge = 4,
    /// There is one alone, with the link's own address.
    Passthru = 8,
}

impl MacvlanMode {
    const ALL: [Self; 4] = [Self::Private, Self::Vepa, Self::Bridge, Self::Passthru];
}

/// Says where packets of ipvlans are told apart (`IFLA_IPVLAN_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanMode {
    /// As on one segment, broadcast included.
    L2 = 0,
    /// By the host's routes, without broadcast.
    L3 = 1,
    /// As L3, and through the host's netfilter.
    L3s = 2,
}

impl IpvlanMode {
    const ALL: [Self; 3] = [Self::L2, Self::L3, Self::L3s];
}

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
            Self::Vrf { .. } => "vrf",
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Vlan { .. } => "vlan",
            Self::Vxlan { .. } | Self::VxlanGpe { .. } => "vxlan",
        }
    }

    fn write(self, data: &mut Message) {
        match self {
            Self::Dummy | Self::Ifb => {}
            Self::Vrf { table } => {
                data.u32(VRF_TABLE, table);
            }
            Self::Macvlan { mode, broadcasts } => {
                data.u32(MACVLAN_MODE, mode as u32);
                if let Some(length) = broadcasts {
                    data.u32(MACVLAN_BC_QUEUE_LEN, length);
                }
            }
            Self::Ipvlan { mode } => {
                data.attr(IPVLAN_MODE, &(mode as u16).to_ne_bytes());
            }
            Self::Vlan { id } => {
                data.attr(VLAN_ID, &id.to_ne_bytes());
            }
            Self::Vxlan { vni, port, local } => {
                data.u32(VXLAN_ID, vni).attr(VXLAN_PORT, &port.to_be_bytes()).u8(VXLAN_LEARNING, 0);
                data.ip(if local.is_ipv4() { VXLAN_LOCAL } else { VXLAN_LOCAL6 }, local);
            }
            Self::VxlanGpe { port } => {
                data.attr(VXLAN_PORT, &port.to_be_bytes()).u8(VXLAN_LEARNING, 0);
                data.u8(VXLAN_COLLECT_METADATA, 1).attr(VXLAN_GPE, &[]);
            }
        }
    }

    /// Reads what the kernel says of a link's kind; `None` for kinds that are not made here.
    pub(super) fn read(kind: &str, data: Attrs<'_>) -> Option<Self> {
        Some(match kind {
            "dummy" => Self::Dummy,
            "ifb" => Self::Ifb,
            "vrf" => Self::Vrf { table: data.find(VRF_TABLE).and_then(read_u32)? },
            "macvlan" => {
                let number = data.find(MACVLAN_MODE).and_then(read_u32)?;
                let mode = MacvlanMode::ALL.into_iter().find(|mode| *mode as u32 == number)?;
                Self::Macvlan { mode, broadcasts: data.find(MACVLAN_BC_QUEUE_LEN).and_then(read_u32) }
            }
            "ipvlan" => {
                let number = data.find(IPVLAN_MODE).and_then(read_u16)?;
                let mode = IpvlanMode::ALL.into_iter().find(|mode| *mode as u16 == number)?;
                Self::Ipvlan { mode }
            }
            "vlan" => Self::Vlan { id: data.find(VLAN_ID).and_then(read_u16)? },
            "vxlan" if data.find(VXLAN_GPE).is_some() => {
                Self::VxlanGpe { port: data.find(VXLAN_PORT).and_then(read_u16).map(u16::from_be)? }
            }
            "vxlan" => Self::Vxlan {
                vni: data.find(VXLAN_ID).and_then(read_u32)?,
                port: data.find(VXLAN_PORT).and_then(read_u16).map(u16::from_be)?,
                local: data.find(VXLAN_LOCAL).or(data.find(VXLAN_LOCAL6)).and_then(read_ip)?,
            },
            _ => return None,
        })
    }
}

/// A link to be made.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub driver: Driver,
    /// The index of the link that it is made over.
    pub over: Option<u32>,
    /// Where it goes; `None` for the namespace of the socket.
    pub netns: Option<&'a Netns>,
    /// MTU in bytes; `None` for the driver's choice.
    pub mtu: Option<u32>,
    /// Hardware address; `None` for the driver's choice.
    pub mac: Option<Mac>,
    /// Length of the transmit queue in packets; `None` for the driver's choice.
    pub queue: Option<u32>,
    /// Up from the start.
    pub up: bool,
}

impl<'a> New<'a> {
    /// A link with nothing but name and driver, down.
    pub fn of(name: &'a str, driver: Driver) -> Self {
        Self { name, driver, over: None, netns: None, mtu: None, mac: None, queue: None, up: false }
    }
}

/// Creates a link; fails if the name is taken. Before Linux 6.15 a name that is to go elsewhere counts as taken if the
/// socket's namespace has it.
///
/// # Errors
/// [`crate::Kind::Exists`] if the name is taken, [`crate::Kind::Unsupported`] without the driver.
#[doc(alias = "RTM_NEWLINK")]
pub fn create(socket: &Socket, new: &New<'_>) -> Result<()> {
    let up = libc::IFF_UP.cast_unsigned();
    let fixed = ifinfo(0, 0, if new.up { up } else { 0 }, if new.up { up } else { 0 });
    let mut message = Message::new(libc::RTM_NEWLINK, REQUEST | CREATE | EXCL, &fixed);
    message.text(libc::IFLA_IFNAME, new.name);
    for (kind, value) in
        [(libc::IFLA_LINK, new.over), (libc::IFLA_MTU, new.mtu), (libc::IFLA_TXQLEN, new.queue)]
    {
        if let Some(value) = value {
            message.u32(kind, value);
        }
    }
    if let Some(mac) = new.mac {
        message.attr(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(netns) = new.netns {
        message.attr(libc::IFLA_NET_NS_FD, &netns.as_fd().as_raw_fd().to_ne_bytes());
    }
    message.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, new.driver.name())
            .nest(libc::IFLA_INFO_DATA, |data| new.driver.write(data));
    });
    socket.change(message, "create link", &format_args!("`{}` of kind {}", new.name, new.driver.name()))
}

/// A veth pair to be made. One end stays in the namespace of the socket.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Where the other end goes; `None` for the same namespace.
    pub peer_netns: Option<&'a Netns>,
    /// Group of the other end; `None` for that of all links.
    pub peer_group: Option<u32>,
    /// MTU of both ends in bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Hardware address of this end; `None` for a random one.
    pub mac: Option<Mac>,
    /// Hardware address of the other end; none for a random one.
    pub peer_mac: Option<Mac>,
}

/// Creates a veth pair and returns this end; fails if a name is taken.
///
/// # Errors
/// [`crate::Kind::Exists`] if one of the two names is taken, [`crate::Kind::Unsupported`] without the driver.
pub fn create_veth(socket: &Socket, veth: &Veth<'_>) -> Result<Link> {
    // One queue is what the kernel has a pair use. Unasked it makes one for each processor all the same, then waits a grace
    // period for the others to be out of use.
    let one_queue = |end: &mut Message| {
        end.u32(libc::IFLA_NUM_TX_QUEUES, 1).u32(libc::IFLA_NUM_RX_QUEUES, 1);
    };
    let mut message = Message::new(libc::RTM_NEWLINK, REQUEST | CREATE | EXCL, &ifinfo(0, 0, 0, 0));
    message.text(libc::IFLA_IFNAME, veth.name);
    one_queue(&mut message);
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
                one_queue(peer);
                if let Some(mtu) = veth.mtu {
                    peer.u32(libc::IFLA_MTU, mtu);
                }
                if let Some(mac) = veth.peer_mac {
                    peer.attr(libc::IFLA_ADDRESS, &mac.0);
                }
                if let Some(group) = veth.peer_group {
                    peer.u32(libc::IFLA_GROUP, group);
                }
                if let Some(netns) = veth.peer_netns {
                    let fd = netns.as_fd().as_raw_fd();
                    peer.attr(libc::IFLA_NET_NS_FD, &fd.to_ne_bytes());
                }
            });
        });
    });
    let object = format!("`{}` and `{}`", veth.name, veth.peer_name);
    let mut made = None;
    let request = Request { message, doing: "create veth pair", object };
    socket.make_and_ask(request, by_name(veth.name), |received| made = read(&received))?;
    made.ok_or_else(|| Error::new("find link", veth.name, Errno::NODEV))
}

const VETH_INFO_PEER: u16 = 1;
const VRF_TABLE: u16 = 1;
const MACVLAN_MODE: u16 = 1;
const MACVLAN_BC_QUEUE_LEN: u16 = 7;
const IPVLAN_MODE: u16 = 1;
const VLAN_ID: u16 = 1;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const VXLAN_COLLECT_METADATA: u16 = 25;
const VXLAN_GPE: u16 = 27;
