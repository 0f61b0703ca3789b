//! The objects that the daemon wants in the kernel, as values.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use kernel::{link::Mac, route::Carried};
use ruleset::cluster::Cluster;

use crate::config::{Network, Underlay};

/// How this host is connected to the other hosts in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The link's index.
    pub link: u32,
    /// The link's name.
    pub name: String,
    /// Whether the link is a bridge.
    pub bridge: bool,
    /// The link's MTU in bytes.
    pub mtu: u32,
    /// The default route's gateway, if there is a default route via this link.
    pub gateway: Option<IpAddr>,
    /// Whether a default route leads over the link.
    pub leads_out: bool,
    /// The host's address on the link.
    pub address: IpAddr,
    /// The prefixes that are reached on the link without a gateway.
    pub on_link: Vec<IpNet>,
}

/// How this host is connected, at most once per address family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// IPv4.
    pub v4: Option<Uplink>,
    /// IPv6.
    pub v6: Option<Uplink>,
}

impl Uplinks {
    /// Returns the uplink of a family.
    pub fn of(&self, v4: bool) -> Option<&Uplink> {
        if v4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// Returns both uplinks, IPv4 first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Uplink> {
        self.v4.iter().chain(&self.v6)
    }

    /// Returns the uplink on a network's segment.
    pub(crate) fn of_network(&self, network: &Network) -> Option<&Uplink> {
        network.families().find_map(|v4| self.of(v4))
    }
}

/// How packets reach a peer's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerPath {
    /// Via a plain route to the peer, which is on the same segment.
    Direct,
    /// Over a tunnel.
    Tunnel {
        /// Whether outer packets are IPv4.
        v4: bool,
    },
    /// Via routes that a BGP speaker learns.
    Learnt,
    /// On the segment that hosts and pods share.
    Segment,
}

impl PeerPath {
    /// Returns the path's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel { .. } => "tunnel",
            Self::Learnt => "learnt",
            Self::Segment => "segment",
        }
    }
}

/// The desired state for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The path in each network by the network's name, without networks that have no path. Most peers have the same.
    pub paths: Arc<BTreeMap<String, PeerPath>>,
    /// A problem that the operator can solve.
    pub problem: Option<String>,
}

/// A network device of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device's name.
    pub name: &'static str,
    /// The device's kind.
    pub kind: Kind,
    /// The name of flannel's device that this one replaces.
    pub replaces: Option<String>,
    /// Whether the network card computes checksums.
    pub checksum_offload: bool,
    /// The MTU in bytes; for a tunnel, the uplink's less the overhead.
    pub mtu: u32,
    /// The hardware address, unless the kernel chooses it.
    pub mac: Option<Mac>,
    /// The device's addresses: the sources of packets that the host itself sends to pods.
    pub addresses: Vec<IpNet>,
}

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A VXLAN device.
    Tunnel {
        /// The network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// The outer source address, whose family is that of outer packets.
        local: IpAddr,
    },
    /// A VXLAN-GPE device; its routes name the remote hosts.
    Gpe {
        /// The UDP port.
        port: u16,
    },
    /// The host's own macvlan or ipvlan on the uplink: a parent link and its child links do not receive each other's packets.
    Beside {
        /// The driver, the same as for pods.
        underlay: Underlay,
        /// The parent link's index.
        link: u32,
    },
}

/// What a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The link with this index.
    Link(u32),
    /// The daemon's device with this name.
    Device(&'static str),
    /// Nothing: the kernel drops the packets.
    Blackhole,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// What the route leads to.
    pub to: Target,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The source address of the host's own packets.
    pub source: Option<IpAddr>,
    /// The metric.
    pub priority: u32,
    /// The routing table.
    pub table: u32,
    /// The remote host of a lightweight tunnel.
    pub carried: Option<Carried>,
}

impl Route {
    /// Creates a route of the main table.
    pub(super) fn new(dst: IpNet, to: Target, gateway: Option<IpAddr>, source: Option<IpAddr>) -> Self {
        Self { dst, to, gateway, source, priority: 0, table: MAIN, carried: None }
    }
}

/// The main routing table (`RT_TABLE_MAIN`).
pub const MAIN: u32 = 254;
/// The metric of the blackhole routes: any other route is preferred.
pub const LAST: u32 = 0xffff_0000;

/// The VXLAN device with IPv4 outer packets.
pub const DEVICE4: &str = "netloom4";
/// The VXLAN device with IPv6 outer packets.
pub const DEVICE6: &str = "netloom6";
/// The VXLAN-GPE device, with outer packets of both families.
pub const GPE: &str = "netloom-gpe";
/// The host's own macvlan or ipvlan beside those of its pods.
pub const BESIDE: &str = "netloom0";

/// How pods are attached to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The network's name.
    pub network: String,
    /// The MTU of pods' links in bytes.
    pub mtu: u32,
    /// The hosts' segment that pods share, or `None` if the host routes for its pods.
    pub segment: Option<Segment>,
}

/// The segment that hosts and pods share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The name of this host's link on the segment.
    pub link: String,
    /// Whether the link is a bridge, to which pods are attached.
    pub bridge: bool,
    /// The segment's prefixes, each with its gateway.
    pub prefixes: BTreeMap<IpNet, Option<IpAddr>>,
    /// Addresses that no pod gets: those of hosts and routers, and the prefixes' first and last.
    pub reserved: BTreeSet<IpAddr>,
    /// This host's IPv6 address, and the next hop via which its own pods reach it.
    pub host6: Option<(IpAddr, Ipv6Addr)>,
}

/// The whole desired state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The devices.
    pub devices: Vec<Device>,
    /// Tunnel device, hardware address and host of each node that is reached over a tunnel.
    pub remotes: BTreeSet<(&'static str, Mac, IpAddr)>,
    /// The routes, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// Whether routes of other programs to the same destinations are replaced: flannel's, which this daemon takes the place of.
    pub takes_over_routes: bool,
    /// This node's blocks in the export table.
    pub exported: Vec<Route>,
    /// The ruleset, or `None` if pods' packets do not pass through the host.
    pub ruleset: Option<Cluster>,
    /// The peers, by name.
    pub peers: BTreeMap<String, Peer>,
    /// For each network how pods are attached, or why they cannot be.
    pub attach: Vec<Result<Attach, String>>,
}
