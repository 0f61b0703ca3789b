//! A network of the cluster: its name, which addresses its pods have, and by which way they reach those of other nodes.

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

use super::{Wrong, wrong};
use crate::record::is_name;

/// By which way other nodes' pods are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By tunnels: hosts need only reach each other.
    Overlay,
    /// By plain routes: all hosts are on one segment.
    Routing,
    /// By a plain route to whoever is on the same segment, and a tunnel to others.
    Auto,
    /// By routes that a BGP speaker on this host learns: it finds this node's blocks in a routing table.
    Bgp,
    /// By the hosts' own segment: pods are on it beside the hosts, with addresses of its prefix.
    Underlay,
}

impl Mode {
    /// Returns the name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Routing => "routing",
            Self::Auto => "auto",
            Self::Bgp => "bgp",
            Self::Underlay => "underlay",
        }
    }

    /// Returns whether a node makes tunnels for it.
    pub fn tunnels(self) -> bool {
        matches!(self, Self::Overlay | Self::Auto)
    }

    /// Returns whether its pods are behind their hosts, which route for them.
    pub fn routes(self) -> bool {
        self != Self::Underlay
    }
}

/// A network as written; what is left out is as for the first one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WrittenNetwork {
    /// Its name.
    pub name: Option<String>,
    /// By which way other nodes' pods are reached.
    pub mode: Option<Mode>,
    /// Prefixes of its pods.
    pub pods: Option<Vec<IpNet>>,
    /// Prefix length of an IPv4 block.
    pub block4: Option<u8>,
    /// Prefix length of an IPv6 block.
    pub block6: Option<u8>,
    /// MTU of pods' links in bytes.
    pub mtu: Option<u32>,
}

/// A network as meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name, for the container runtime.
    pub name: String,
    /// By which way other nodes' pods are reached.
    pub mode: Mode,
    /// Prefixes of its pods.
    pub pods: Vec<IpNet>,
    /// Prefix lengths of blocks, IPv4 and IPv6.
    pub block: (u8, u8),
    /// MTU of pods' links; none for what is left of the uplink's.
    pub mtu: Option<u32>,
}

impl Network {
    /// Returns whether a block is one of this network's.
    pub fn has(&self, block: &IpNet) -> bool {
        self.pods.iter().any(|prefix| prefix.contains(block))
    }

    /// Returns the families that its pods have addresses of, by whether that is IPv4.
    pub fn families(&self) -> impl Iterator<Item = bool> {
        [true, false].into_iter().filter(|v4| self.prefixes(*v4).next().is_some())
    }

    /// Returns its prefixes of a family.
    pub fn prefixes(&self, v4: bool) -> impl Iterator<Item = IpNet> {
        self.pods.iter().copied().filter(move |prefix| prefix.addr().is_ipv4() == v4)
    }

    /// Returns the prefix length of its blocks of a family.
    pub fn block_length(&self, v4: bool) -> u8 {
        if v4 { self.block.0 } else { self.block.1 }
    }
}

impl WrittenNetwork {
    /// Works out what is meant.
    pub(super) fn meant(self) -> Result<Network, Wrong> {
        let name = self.name.unwrap_or_else(|| "netloom".into());
        if !is_name(&name) {
            return Err(wrong("network", format!("{name:?} is no name of a network")));
        }
        let mode = self.mode.unwrap_or(Mode::Auto);
        let pods = match self.pods {
            Some(pods) => pods,
            None if mode.routes() => vec![default_pods()],
            None => {
                return Err(wrong(
                    "pods",
                    "with mode underlay say which addresses of the hosts' segment are pods'",
                ));
            }
        };
        // Of a segment that all share little is held in advance.
        let (usual4, usual6) = if mode.routes() { (24, 64) } else { (29, 125) };
        let block = (self.block4.unwrap_or(usual4), self.block6.unwrap_or(usual6));
        check_pods(&pods, block, mode)?;
        if let Some(mtu) = self.mtu.filter(|mtu| !(1280..=65_535).contains(mtu)) {
            return Err(wrong("mtu", format!("{mtu} must be between 1280 (which IPv6 needs) and 65535")));
        }
        Ok(Network { name, mode, pods, block, mtu: self.mtu })
    }
}

/// Sees to it that no two networks have a name or an address in common.
pub(super) fn check_apart(networks: &[Network]) -> Result<(), Wrong> {
    for (index, network) in networks.iter().enumerate() {
        for other in &networks[..index] {
            if network.name == other.name {
                return Err(wrong("networks", format!("two are called {:?}", network.name)));
            }
            let both = network.pods.iter().flat_map(|net| other.pods.iter().map(move |other| (net, other)));
            for (net, theirs) in both {
                if net.contains(theirs) || theirs.contains(net) {
                    return Err(wrong(
                        "networks",
                        format!(
                            "{net} of {:?} and {theirs} of {:?} have addresses in common",
                            network.name, other.name
                        ),
                    ));
                }
            }
        }
    }
    Ok(())
}

fn default_pods() -> IpNet {
    IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16))
}

fn check_pods(pods: &[IpNet], block: (u8, u8), mode: Mode) -> Result<(), Wrong> {
    if pods.is_empty() {
        return Err(wrong("pods", "there is no prefix"));
    }
    for (index, net) in pods.iter().enumerate() {
        let v4 = net.addr().is_ipv4();
        if net.addr() != net.network() {
            return Err(wrong("pods", format!("{net} has bits behind its prefix: write {}", net.trunc())));
        }
        if let Some(other) = pods[..index].iter().find(|other| other.contains(net) || net.contains(*other)) {
            return Err(wrong("pods", format!("{other} and {net} have addresses in common")));
        }
        // Behind a host a block loses some of its addresses to the host itself.
        let (most4, most6) = if mode.routes() { (30, 120) } else { (32, 128) };
        let (key, length, most) = if v4 { ("block4", block.0, most4) } else { ("block6", block.1, most6) };
        // All addresses of a segment's block are asked for.
        let least = if mode.routes() { 0 } else { net.max_prefix_len() - 8 };
        if length < net.prefix_len() || length > most || length < least {
            return Err(wrong(
                key,
                format!("{length} must be between {} and {most} with {net}", net.prefix_len().max(least)),
            ));
        }
    }
    Ok(())
}
