//! What the kernel should hold: a function of what the nodes say and of how this host is connected, and of nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kernel::link::Mac;
use ruleset::cluster::Cluster;

use crate::{
    blocks,
    config::{Config, Mode},
    record::{Record, hop_of},
};

/// How this host is connected to the others, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The link's index.
    pub link: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
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
    /// Gives the one of a family.
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
}

/// What there should be for another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The way to it; none where there is none.
    pub way: Option<Way>,
    /// What an operator should know, and could do.
    pub problem: Option<String>,
}

/// A tunnel's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// Outer packets are IPv4.
    pub v4: bool,
    /// The network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The outer source.
    pub local: IpAddr,
    /// MTU in bytes: what is left of the uplink's.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Mac,
    /// Its own addresses, by which the host itself speaks to pods.
    pub addresses: Vec<IpNet>,
}

/// By what a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The link with this index.
    Link(u32),
    /// The tunnel of this outer family.
    Tunnel {
        /// Outer packets are IPv4.
        v4: bool,
    },
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
}

/// The table that packets are routed by.
pub const MAIN: u32 = 254;

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The tunnels' devices.
    pub devices: Vec<Device>,
    /// Hardware address and host of each node that a tunnel leads to, by the tunnel's outer family.
    pub heard: BTreeSet<(bool, Mac, IpAddr)>,
    /// Routes, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// This node's blocks in the table of a BGP speaker.
    pub exported: Vec<Route>,
    /// What packets may do.
    pub ruleset: Cluster,
    /// The other nodes, by name.
    pub peers: BTreeMap<String, Peer>,
    /// MTU of pods' links in bytes.
    pub mtu: u32,
}

/// Bytes that a tunnel puts around a packet: Ethernet, VXLAN, UDP, and the outer header.
const OVERHEAD4: u32 = 50;
const OVERHEAD6: u32 = 70;
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
    let overhead = |device: &Device| if device.v4 { OVERHEAD4 } else { OVERHEAD6 };
    let uplink_mtu = uplinks.all().map(|uplink| uplink.mtu).min().unwrap_or(1500);
    let mtu = devices.iter().map(|device| uplink_mtu - overhead(device)).min().unwrap_or(uplink_mtu);
    let mut desired = Desired {
        heard: BTreeSet::new(),
        routes: BTreeMap::new(),
        exported: Vec::new(),
        ruleset: Cluster {
            pods: config.pods.clone(),
            unmasqueraded: config.unmasqueraded.clone(),
            masquerade: config.masquerade,
            tunnel_port: config.port,
            nodes: nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        },
        peers: BTreeMap::new(),
        mtu: config.mtu.unwrap_or(mtu),
        devices,
    };
    let owners = owners(own, nodes);
    for (name, node) in nodes.iter().filter(|(name, _)| **name != own.name) {
        let peer = desired.add(config, own, node, uplinks, &owners);
        desired.peers.insert(name.clone(), peer);
    }
    // What no node has leaves by no default route.
    for prefix in &config.pods {
        desired.routes.entry(*prefix).or_insert(Route {
            dst: *prefix,
            by: By::Nothing,
            gateway: None,
            source: None,
            priority: LAST,
            table: MAIN,
        });
    }
    // What is announced leads nowhere by that table: it says what there is, and nobody routes by it.
    let exported = own.blocks.iter().filter_map(|block| Some((*block, config.export_table?)));
    desired.exported = exported
        .map(|(dst, table)| Route { dst, by: By::Nothing, gateway: None, source: None, priority: 0, table })
        .collect();
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
    if matches!(config.mode, Mode::Routing | Mode::Bgp) {
        return Vec::new();
    }
    let mut devices = Vec::new();
    for (v4, name, overhead) in [(true, DEVICE4, OVERHEAD4), (false, DEVICE6, OVERHEAD6)] {
        let Some(uplink) = uplinks.of(v4) else { continue };
        let whole = |ip: IpAddr| IpNet::from(ip);
        devices.push(Device {
            name,
            v4,
            vni: config.vni,
            port: config.port,
            local: uplink.address,
            mtu: config.mtu.unwrap_or(uplink.mtu.saturating_sub(overhead)),
            mac: own.mac(),
            // On one of them: an address is on one link.
            addresses: if devices.is_empty() {
                own.blocks.iter().map(|block| whole(blocks::own_address(*block))).collect()
            } else {
                Vec::new()
            },
        });
    }
    devices
}

/// The tunnels' devices.
pub const DEVICE4: &str = "netloom4";
/// With IPv6 around the packets.
pub const DEVICE6: &str = "netloom6";

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
        let way = way(config, node, uplinks);
        if let Err(problem) = &way {
            problems.push(problem.clone());
        }
        let way = way.ok();
        for block in &node.blocks {
            if let Some(owner) = owners.get(block).filter(|owner| **owner != node.name) {
                problems.push(format!("it says that block {block} is its own, which is {owner}'s"));
                continue;
            }
            let v4 = block.addr().is_ipv4();
            let route = match way {
                None => continue,
                Some(Way::Direct) => {
                    let (Some(gateway), Some(uplink)) = (node.address(v4), uplinks.of(v4)) else {
                        problems.push(format!(
                            "block {block}: it and this host have no address of that family in common"
                        ));
                        continue;
                    };
                    let (by, gateway) = (By::Link(uplink.link), Some(gateway));
                    Route { dst: *block, by, gateway, source: None, priority: 0, table: MAIN }
                }
                Some(Way::Tunnel { v4: outer }) => {
                    let source = own.blocks.iter().find(|own| own.addr().is_ipv4() == v4);
                    Route {
                        dst: *block,
                        by: By::Tunnel { v4: outer },
                        gateway: Some(hop_of(node.mac()).into()),
                        source: source.map(|block| blocks::own_address(*block)),
                        priority: 0,
                        table: MAIN,
                    }
                }
                Some(Way::Learnt) => continue,
            };
            self.routes.insert(*block, route);
        }
        if let Some(Way::Tunnel { v4 }) = way
            && let Some(address) = node.address(v4)
        {
            self.heard.insert((v4, node.mac(), address));
        }
        Peer { way, problem: Some(problems.join("; ")).filter(|text| !text.is_empty()) }
    }
}

/// Chooses the way to a node.
fn way(config: &Config, node: &Record, uplinks: &Uplinks) -> Result<Way, String> {
    let common =
        [true, false].into_iter().find(|v4| node.address(*v4).is_some() && uplinks.of(*v4).is_some());
    let Some(v4) = common else {
        return Err("it and this host have no address of one family in common".into());
    };
    let mut on_link = [true, false].into_iter().filter_map(|v4| Some((uplinks.of(v4)?, node.address(v4)?)));
    // In every family that both have: else packets of one would go astray.
    let direct = on_link.all(|(uplink, ip)| uplink.on_link.iter().any(|net| net.contains(&ip)));
    match (config.mode, direct) {
        (Mode::Bgp, _) => Ok(Way::Learnt),
        (Mode::Routing | Mode::Auto, true) => Ok(Way::Direct),
        (Mode::Routing, false) => {
            Err(format!("node {} is not on this L2 segment: use mode overlay, auto or bgp", node.name))
        }
        (Mode::Overlay, _) | (Mode::Auto, false) => match node.tunnel {
            Some(tunnel) if tunnel.vni == config.vni && tunnel.port == config.port => Ok(Way::Tunnel { v4 }),
            Some(tunnel) => Err(format!(
                "it hears VXLAN network {} at port {}, and this host network {} at port {}: set them alike",
                tunnel.vni, tunnel.port, config.vni, config.port
            )),
            None => Err("it makes no tunnel: its mode is routing".into()),
        },
    }
}
