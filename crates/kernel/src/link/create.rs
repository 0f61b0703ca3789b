//! Creation of links.

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

/// The driver of a virtual link, with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// A link that drops all sent packets.
    Dummy,
    /// A link that queues redirected packets as if they left on it.
    Ifb,
    /// A link whose members use a routing table of their own.
    Vrf {
        /// The routing table.
        table: u32,
    },
    /// A link on a parent link, with a hardware address of its own.
    Macvlan {
        /// The mode.
        mode: MacvlanMode,
        /// The length of the broadcast queue on the parent link; `None` for the kernel's default.
        broadcasts: Option<u32>,
    },
    /// A link on a parent link, with the parent's hardware address.
    Ipvlan {
        /// The mode.
        mode: IpvlanMode,
    },
    /// A link that sends and receives frames of one VLAN on a parent link.
    Vlan {
        /// The VLAN ID, 0 to 4094.
        id: u16,
    },
    /// A tunnel that carries frames to other hosts in UDP (RFC 7348), only to the hosts in its FDB: learning is off.
    Vxlan {
        /// The network identifier, 24 bits.
        vni: u32,
        /// The UDP port, the same on all hosts.
        port: u16,
        /// The address of this host. Its family is the family of the outer packets.
        local: IpAddr,
    },
    /// A tunnel that carries packets without an Ethernet header in UDP to the host that the route names
    /// ([`crate::route::Carried`]; VXLAN-GPE, draft-ietf-nvo3-vxlan-gpe).
    VxlanGpe {
        /// The UDP port, the same on all hosts.
        port: u16,
    },
}

/// The mode of a macvlan: which macvlans of one parent link reach each other (`IFLA_MACVLAN_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    /// Macvlans do not reach each other.
    Private = 1,
    /// Macvlans reach each other if the external switch reflects frames.
    Vepa = 2,
    /// Macvlans reach each other directly.
    Bridge = 4,
    /// The parent link has a single macvlan, which uses the parent's hardware address.
    Passthru = 8,
}

impl MacvlanMode {
    const ALL: [Self; 4] = [Self::Private, Self::Vepa, Self::Bridge, Self::Passthru];
}

/// The mode of an ipvlan (`IFLA_IPVLAN_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanMode {
    /// Layer 2, with broadcast.
    L2 = 0,
    /// Layer 3: the host's routes apply, without broadcast.
    L3 = 1,
    /// As L3, and packets pass the host's netfilter.
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

    /// Parses a link's kind and driver data. Returns `None` for kinds that this crate does not create.
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

/// The parameters of a new link.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its name.
    pub name: &'a str,
    /// The driver.
    pub driver: Driver,
    /// The index of the parent link.
    pub over: Option<u32>,
    /// The namespace of the new link; `None` for the namespace of the socket.
    pub netns: Option<&'a Netns>,
    /// MTU in bytes; `None` for the driver's choice.
    pub mtu: Option<u32>,
    /// Hardware address; `None` for the driver's choice.
    pub mac: Option<Mac>,
    /// Length of the transmit queue in packets; `None` for the driver's choice.
    pub queue: Option<u32>,
    /// Link group; `None` for the default group.
    pub group: Option<u32>,
    /// Whether the link is created administratively up.
    pub up: bool,
}

impl<'a> New<'a> {
    /// Returns parameters with only name and driver; the link is down.
    pub fn of(name: &'a str, driver: Driver) -> Self {
        Self {
            name,
            driver,
            over: None,
            netns: None,
            mtu: None,
            mac: None,
            queue: None,
            group: None,
            up: false,
        }
    }
}

/// Creates a link. Fails if the name is taken. Before Linux 6.15 this includes names in the socket's namespace even if the link
/// is created in another one.
///
/// # Errors
/// [`crate::Kind::Exists`] if the name is taken, [`crate::Kind::Unsupported`] if the kernel lacks the driver.
#[doc(alias = "RTM_NEWLINK")]
pub fn create(socket: &Socket, new: &New<'_>) -> Result<()> {
    let up = libc::IFF_UP.cast_unsigned();
    let fixed = ifinfo(0, 0, if new.up { up } else { 0 }, if new.up { up } else { 0 });
    let mut message = Message::new(libc::RTM_NEWLINK, REQUEST | CREATE | EXCL, &fixed);
    message.text(libc::IFLA_IFNAME, new.name);
    for (kind, value) in [
        (libc::IFLA_LINK, new.over),
        (libc::IFLA_MTU, new.mtu),
        (libc::IFLA_TXQLEN, new.queue),
        (libc::IFLA_GROUP, new.group),
    ] {
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

/// The parameters of a new veth pair. One end stays in the namespace of the socket.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// The namespace of the other end; `None` for the same namespace.
    pub peer_netns: Option<&'a Netns>,
    /// Group of the other end; `None` for the default group.
    pub peer_group: Option<u32>,
    /// MTU of both ends in bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Hardware address of this end; `None` for a random one.
    pub mac: Option<Mac>,
    /// Hardware address of the other end; `None` for a random one.
    pub peer_mac: Option<Mac>,
}

/// Creates a veth pair and returns this end. Fails if a name is taken.
///
/// # Errors
/// [`crate::Kind::Exists`] if one of the two names is taken, [`crate::Kind::Unsupported`] if the kernel lacks the driver.
pub fn create_veth(socket: &Socket, veth: &Veth<'_>) -> Result<Link> {
    // The kernel uses one queue of a pair. By default it still creates one queue for each processor, and then waits a grace
    // period until the others are out of use.
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
