//! What the kernel should hold: a function of what the nodes say and of how this host is connected, and of nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::{link::Mac, route::Carried};
use ruleset::cluster::Cluster;

use crate::{
    blocks,
    config::{Config, Form, Mode, Network, Underlay},
    record::{Record, Tunnel, hop_of, mac_of},
};

/// How this host is connected to the others, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The link's index.
    pub link: u32,
    /// Its name.
    pub name: String,
    /// It is a bridge.
    pub bridge: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The router by which the default route leads; none where there is no such route.
    pub gateway: Option<IpAddr>,
    /// The host's own address there.
    pub address: IpAddr,
    /// What is reached there without a router.
    pub on_link: Vec<IpNet>,
}

/// How this host is connected, at most once in each family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// IPv4.
    pub v4: Option<Uplink>,
    /// IPv6.
    pub v6: Option<Uplink>,
}

impl Uplinks {
    /// Returns the one of a family.
    pub fn of(&self, v4: bool) -> Option<&Uplink> {
        if v4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    fn all(&self) -> impl Iterator<Item = &Uplink> {
        self.v4.iter().chain(&self.v6)
    }
}

/// By which way another node's pods are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By a plain route to the node, which is on the same segment.
    Direct,
    /// By the tunnel of this outer family.
    Tunnel {
        /// Outer packets are IPv4.
        v4: bool,
    },
    /// By routes that a BGP speaker learns.
    Learnt,
    /// By the segment that hosts and pods share.
    Segment,
}

impl Way {
    /// Returns the name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel { .. } => "tunnel",
            Self::Learnt => "learnt",
            Self::Segment => "segment",
        }
    }
}

/// What there should be for another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The way to it in each network, by the network's name; without those where there is none.
    pub ways: BTreeMap<String, Way>,
    /// What an operator should know, and could do.
    pub problem: Option<String>,
}

/// A device of the daemon's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Somebody else's device of the same kind, in whose place it is made.
    pub replaces: Option<String>,
    /// It leaves checksums to the network card.
    pub checksum_offload: bool,
    /// MTU in bytes: for a tunnel what is left of the uplink's.
    pub mtu: u32,
    /// Its hardware address, where it has one.
    pub mac: Option<Mac>,
    /// Its own addresses, by which the host itself speaks to pods.
    pub addresses: Vec<IpNet>,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A VXLAN.
    Tunnel {
        /// The network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// The outer source, by whose family packets are sent.
        local: IpAddr,
    },
    /// A VXLAN-GPE, to which routes say where to.
    Gpe {
        /// The UDP port.
        port: u16,
    },
    /// A macvlan or ipvlan of the host's own, beside those of the pods: a link and those over it do not hear each other.
    Beside {
        /// What it is, as they are.
        underlay: Underlay,
        /// The index of the link that they share.
        link: u32,
    },
}

/// By what a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The link with this index.
    Link(u32),
    /// The device of the daemon's own with this name.
    Device(&'static str),
    /// Nothing: what goes there is dropped.
    Nothing,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By what.
    pub by: By,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The source that the host itself takes.
    pub source: Option<IpAddr>,
    /// Its metric.
    pub priority: u32,
    /// Its table.
    pub table: u32,
    /// To which host the device carries what goes there, where it has no entries that say so.
    pub carried: Option<Carried>,
}

impl Route {
    /// Makes a route of the table that packets are routed by.
    fn new(dst: IpNet, by: By, gateway: Option<IpAddr>, source: Option<IpAddr>) -> Self {
        Self { dst, by, gateway, source, priority: 0, table: MAIN, carried: None }
    }
}

/// The table that packets are routed by.
pub const MAIN: u32 = 254;

/// How pods are attached to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The network's name.
    pub network: String,
    /// MTU of pods' links in bytes.
    pub mtu: u32,
    /// The hosts' segment, where pods are on that; none where they are behind their host.
    pub segment: Option<Segment>,
}

/// The segment that hosts and pods share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The name of the link by which this host is on it.
    pub link: String,
    /// That is a bridge, which pods are plugged into.
    pub bridge: bool,
    /// Its prefixes, with the router of each.
    pub prefixes: BTreeMap<IpNet, Option<IpAddr>>,
    /// Addresses that no pod gets: hosts', routers', and those that mean the network itself.
    pub reserved: BTreeSet<IpAddr>,
    /// This host's IPv6 address, and the next hop by which its own pods reach that.
    pub host6: Option<(IpAddr, Ipv6Addr)>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The devices.
    pub devices: Vec<Device>,
    /// Hardware address and host of each node that a tunnel leads to, by the tunnel's device.
    pub heard: BTreeSet<(&'static str, Mac, IpAddr)>,
    /// Routes, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// This node's blocks in the table of a BGP speaker.
    pub exported: Vec<Route>,
    /// What packets may do; none where pods' packets do not come by the host.
    pub ruleset: Option<Cluster>,
    /// The other nodes, by name.
    pub peers: BTreeMap<String, Peer>,
    /// How pods are attached to each network, or why they cannot be.
    pub attach: Vec<Result<Attach, String>>,
}

/// Bytes that a tunnel puts around a packet: Ethernet, VXLAN, UDP, and the outer header.
const OVERHEAD4: u32 = 50;
const OVERHEAD6: u32 = 70;
/// Of which a tunnel without frames saves as much.
const ETHERNET: u32 = 14;
/// Of the route that drops what no node has: any other comes before it.
pub const LAST: u32 = 0xffff_0000;

/// Works out what there should be.
pub fn desired(
    config: &Config,
    own: &Record,
    nodes: &BTreeMap<String, Record>,
    uplinks: &Uplinks,
) -> Desired {
    let devices = devices(config, own, uplinks);
    let bridged: Vec<IpNet> = config
        .networks
        .iter()
        .filter(|network| !network.mode.routes() && uplink_of(network, uplinks).is_some_and(|it| it.bridge))
        .flat_map(|network| network.pods.iter().copied())
        .collect();
    let routed = || config.networks.iter().filter(|network| network.mode.routes());
    let mut desired = Desired {
        heard: BTreeSet::new(),
        routes: BTreeMap::new(),
        exported: Vec::new(),
        ruleset: (routed().next().is_some() || !bridged.is_empty()).then(|| Cluster {
            bridged,
            pods: routed().flat_map(|network| network.pods.iter().copied()).collect(),
            unmasqueraded: config.unmasqueraded.clone(),
            masquerade: config.masquerade,
            tunnel_port: config.port,
            nodes: nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        }),
        peers: BTreeMap::new(),
        attach: config
            .networks
            .iter()
            .map(|network| attach(config, network, own, nodes, uplinks, &devices))
            .collect(),
        devices,
    };
    let owners = owners(own, nodes);
    for (name, node) in nodes.iter().filter(|(name, _)| **name != own.name) {
        let peer = desired.add(config, own, node, uplinks, &owners);
        desired.peers.insert(name.clone(), peer);
    }
    // What no node has leaves by no default route.
    for prefix in routed().flat_map(|network| &network.pods) {
        let last = Route { priority: LAST, ..Route::new(*prefix, By::Nothing, None, None) };
        desired.routes.entry(*prefix).or_insert(last);
    }
    desired.reach_own_pods(config, own, uplinks);
    // What is announced leads nowhere by that table: it says what there is, and nobody routes by it.
    let behind = own.blocks.iter().filter(|block| routed().any(|network| network.has(block)));
    let exported = behind.filter_map(|block| Some((*block, config.export_table?)));
    desired.exported =
        exported.map(|(dst, table)| Route { table, ..Route::new(dst, By::Nothing, None, None) }).collect();
    desired
}

/// Says who has which block, where several say that they do: this node itself, or else the first by name.
fn owners<'a>(own: &'a Record, nodes: &'a BTreeMap<String, Record>) -> BTreeMap<IpNet, &'a str> {
    let mut owners: BTreeMap<IpNet, &str> =
        own.blocks.iter().map(|block| (*block, own.name.as_str())).collect();
    for (name, node) in nodes {
        for block in &node.blocks {
            owners.entry(*block).or_insert(name);
        }
    }
    owners
}

fn devices(config: &Config, own: &Record, uplinks: &Uplinks) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    let tunnelled = || config.networks.iter().filter(|network| network.mode.tunnels());
    let own_blocks = own.blocks.iter().filter(|block| tunnelled().any(|network| network.has(block)));
    let mut addresses: Vec<IpNet> =
        own_blocks.map(|block| IpNet::from(blocks::own_address(*block))).collect();
    let configured = tunnelled().map(|network| network.mtu).collect::<Option<Vec<u32>>>();
    let configured = configured.and_then(|mtus| mtus.into_iter().max());
    let gpe = config.tunnel == Form::VxlanGpe;
    let outer = [(true, DEVICE4), (false, DEVICE6)].into_iter().filter(|_| config.tunnels());
    let outer: Vec<_> = outer.filter_map(|(v4, name)| Some((v4, uplinks.of(v4)?, name))).collect();
    for (v4, uplink, name) in outer.iter().filter(|_| !gpe) {
        devices.push(Device {
            name,
            kind: Kind::Tunnel { vni: config.vni, port: config.port, local: uplink.address },
            checksum_offload: config.checksum_offload.unwrap_or(true),
            replaces: config.flannel.as_ref().map(|how| how.device(*v4)),
            mtu: configured.unwrap_or(uplink.mtu.saturating_sub(overhead(config, *v4))),
            mac: Some(own.mac(*v4)),
            // On one of them: an address is on one link.
            addresses: std::mem::take(&mut addresses),
        });
    }
    // One carries by both families.
    let left = outer.iter().map(|(v4, uplink, _)| uplink.mtu.saturating_sub(overhead(config, *v4))).min();
    if let Some(left) = left.filter(|_| gpe) {
        devices.push(Device {
            name: GPE,
            kind: Kind::Gpe { port: config.port },
            checksum_offload: config.checksum_offload.unwrap_or(true),
            replaces: None,
            mtu: configured.unwrap_or(left),
            mac: None,
            addresses,
        });
    }
    let on_segment = config.networks.iter().find(|network| !network.mode.routes());
    let uplink = on_segment.and_then(|network| uplink_of(network, uplinks));
    if let Some(uplink) = uplink.filter(|uplink| !uplink.bridge) {
        let mac = beside_mac(own);
        let (mac, addresses) = match config.underlay {
            Underlay::Macvlan => (Some(mac), Vec::new()),
            // It has the uplink's hardware address, and what goes to that is told apart by its IP address: to be answered it needs some.
            Underlay::Ipvlan => {
                (None, vec![link_local4(mac).into(), Ipv6Net::new_assert(hop_of(mac), 64).into()])
            }
        };
        devices.push(Device {
            name: BESIDE,
            kind: Kind::Beside { underlay: config.underlay, link: uplink.link },
            replaces: None,
            checksum_offload: true,
            mtu: uplink.mtu,
            mac,
            addresses,
        });
    }
    devices
}

/// The hardware address of the host's own link beside its pods', or what its addresses follow from.
fn beside_mac(own: &Record) -> Mac {
    mac_of(&format!("{} beside", own.name))
}

/// Returns an IPv4 address of the link alone (RFC 3927), from a part of the prefix in which neither clouds nor name servers on nodes
/// have theirs.
fn link_local4(mac: Mac) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 224 + mac.0[4] % 16, mac.0[5]), 32)
}

/// Returns the bytes that a tunnel of an outer family puts around a packet.
fn overhead(config: &Config, v4: bool) -> u32 {
    let frame = if config.tunnel == Form::VxlanGpe { ETHERNET } else { 0 };
    (if v4 { OVERHEAD4 } else { OVERHEAD6 }) - frame
}

/// Finds the link by which this host is on the segment of a network.
fn uplink_of<'a>(network: &Network, uplinks: &'a Uplinks) -> Option<&'a Uplink> {
    network.families().find_map(|v4| uplinks.of(v4))
}

/// The tunnels' devices.
pub const DEVICE4: &str = "netloom4";
/// With IPv6 around the packets.
pub const DEVICE6: &str = "netloom6";
/// With either, without frames.
pub const GPE: &str = "netloom-gpe";
/// The host's own macvlan or ipvlan, beside those of its pods.
pub const BESIDE: &str = "netloom0";

/// Says how pods are attached to a network.
fn attach(
    config: &Config,
    network: &Network,
    own: &Record,
    nodes: &BTreeMap<String, Record>,
    uplinks: &Uplinks,
    devices: &[Device],
) -> Result<Attach, String> {
    let name = network.name.clone();
    let uplink_mtu = uplinks.all().map(|uplink| uplink.mtu).min().unwrap_or(1500);
    if network.mode.routes() {
        let families = [true, false].into_iter().filter(|v4| uplinks.of(*v4).is_some());
        let tunnels = families.filter(|_| network.mode.tunnels()).map(|v4| overhead(config, v4));
        let mtu = network.mtu.unwrap_or(uplink_mtu.saturating_sub(tunnels.max().unwrap_or_default()));
        return Ok(Attach { network: name, mtu, segment: None });
    }
    let not = |why: String| Err(format!("network {name:?}: {why}"));
    let Some(uplink) = uplink_of(network, uplinks) else {
        return not("this host has no address of its family".into());
    };
    let mut segment = Segment {
        link: uplink.name.clone(),
        bridge: uplink.bridge,
        prefixes: BTreeMap::new(),
        reserved: nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        host6: None,
    };
    for pods in &network.pods {
        let v4 = pods.addr().is_ipv4();
        let of_family = uplinks.of(v4).filter(|other| other.link == uplink.link);
        let whole = of_family.and_then(|it| Some((it, it.on_link.iter().find(|net| net.contains(pods))?)));
        let Some((uplink, whole)) = whole else {
            return not(format!(
                "{pods} is not of the segment at {}: `pods` are to be addresses of the hosts' own prefix",
                uplink.name
            ));
        };
        let gateway = uplink.gateway.filter(|ip| whole.contains(ip) || ip.is_ipv6());
        segment.prefixes.insert(*whole, gateway);
        segment.reserved.extend(gateway);
        segment.reserved.insert(whole.network());
        if v4 {
            segment.reserved.insert(whole.broadcast());
        } else if devices.iter().any(|device| device.name == BESIDE) {
            segment.host6 = Some((uplink.address, hop_of(beside_mac(own))));
        }
    }
    Ok(Attach { network: name.clone(), mtu: network.mtu.unwrap_or(uplink.mtu), segment: Some(segment) })
}

impl Desired {
    fn add(
        &mut self,
        config: &Config,
        own: &Record,
        node: &Record,
        uplinks: &Uplinks,
        owners: &BTreeMap<IpNet, &str>,
    ) -> Peer {
        let mut problems = Vec::new();
        let mut ways = BTreeMap::new();
        for network in &config.networks {
            match way(network.mode, config, node, uplinks) {
                Ok(way) => drop(ways.insert(network.name.clone(), way)),
                // The same may be so for several.
                Err(problem) if problems.contains(&problem) => {}
                Err(problem) => problems.push(problem),
            }
        }
        for block in &node.blocks {
            let Some(network) = config.network_of(block) else { continue };
            if let Some(owner) = owners.get(block).filter(|owner| **owner != node.name) {
                problems.push(format!("it says that block {block} is its own, which is {owner}'s"));
                continue;
            }
            let v4 = block.addr().is_ipv4();
            let route = match ways.get(&network.name) {
                None | Some(Way::Learnt | Way::Segment) => continue,
                Some(Way::Direct) => {
                    let (Some(gateway), Some(uplink)) = (node.address(v4), uplinks.of(v4)) else {
                        problems.push(format!(
                            "block {block}: it and this host have no address of that family in common"
                        ));
                        continue;
                    };
                    Route::new(*block, By::Link(uplink.link), Some(gateway), None)
                }
                Some(Way::Tunnel { v4: outer }) => {
                    let outer = if node.flannel { v4 } else { *outer };
                    let (Some(address), Some(uplink)) = (node.address(outer), uplinks.of(outer)) else {
                        problems.push(format!(
                            "block {block}: flannel's tunnel is of its family, and it and this host have no address of that in common"
                        ));
                        continue;
                    };
                    let mut of_network = own.blocks.iter().filter(|own| network.has(own));
                    let source = of_network.find(|own| own.addr().is_ipv4() == v4);
                    let source = source.map(|block| blocks::own_address(*block));
                    if config.tunnel == Form::VxlanGpe {
                        let carried = Carried { vni: config.vni, from: uplink.address, to: address };
                        Route { carried: Some(carried), ..Route::new(*block, By::Device(GPE), None, source) }
                    } else {
                        self.heard.insert((tunnel(outer), node.mac(outer), address));
                        let hop = hop_of(node.mac(outer)).into();
                        Route::new(*block, By::Device(tunnel(outer)), Some(hop), source)
                    }
                }
            };
            self.routes.insert(*block, route);
        }
        Peer { ways, problem: Some(problems.join("; ")).filter(|text| !text.is_empty()) }
    }

    /// Leads the host itself to its pods on the segment.
    fn reach_own_pods(&mut self, config: &Config, own: &Record, uplinks: &Uplinks) {
        if self.devices.iter().all(|device| device.name != BESIDE) {
            return;
        }
        let on_segment = own
            .blocks
            .iter()
            .filter(|block| config.network_of(block).is_some_and(|network| !network.mode.routes()));
        for block in on_segment {
            let source = uplinks.of(block.addr().is_ipv4()).map(|uplink| uplink.address);
            self.routes.insert(*block, Route::new(*block, By::Device(BESIDE), None, source));
        }
    }
}

fn tunnel(v4: bool) -> &'static str {
    if v4 { DEVICE4 } else { DEVICE6 }
}

/// Chooses the way to a node in a network of this mode.
fn way(mode: Mode, config: &Config, node: &Record, uplinks: &Uplinks) -> Result<Way, String> {
    let common =
        [true, false].into_iter().find(|v4| node.address(*v4).is_some() && uplinks.of(*v4).is_some());
    let Some(v4) = common else {
        return Err("it and this host have no address of one family in common".into());
    };
    let mut on_link = [true, false].into_iter().filter_map(|v4| Some((uplinks.of(v4)?, node.address(v4)?)));
    // In every family that both have: else packets of one would go astray.
    let direct = on_link.all(|(uplink, ip)| uplink.on_link.iter().any(|net| net.contains(&ip)));
    match (mode, direct && !(node.flannel && node.tunnel.is_some())) {
        (Mode::Bgp, _) => Ok(Way::Learnt),
        (Mode::Underlay, true) => Ok(Way::Segment),
        (Mode::Underlay, false) => {
            Err(format!("node {} is not on this L2 segment, which its pods and this host's share", node.name))
        }
        (Mode::Routing | Mode::Auto, true) => Ok(Way::Direct),
        (Mode::Routing, false) if node.flannel => Err(format!(
            "flannel's node {} tunnels, or is not on this L2 segment: use mode overlay or auto",
            node.name
        )),
        (Mode::Routing, false) => {
            Err(format!("node {} is not on this L2 segment: use mode overlay, auto or bgp", node.name))
        }
        (Mode::Overlay, _) | (Mode::Auto, false) => match node.tunnel {
            Some(tunnel) if tunnel == Tunnel::of(config) => Ok(Way::Tunnel { v4 }),
            // It is on its way from one form to another.
            Some(_) if direct && !node.flannel => Ok(Way::Direct),
            Some(tunnel) => Err(format!(
                "it hears {tunnel}, and this host {}: set them alike (`tunnel`, `vni`, `port`)",
                Tunnel::of(config)
            )),
            // It is on its way from one mode to another: both can route.
            None if direct => Ok(Way::Direct),
            None => Err("it makes no tunnel: its mode is routing".into()),
        },
    }
}
