//! A network of the cluster: its name, mode and prefixes.

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

use super::invalid::InvalidValue;
use crate::name::is_name;

/// How pods of other nodes are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Over tunnels: hosts only need to reach each other by IP.
    Overlay,
    /// Via plain routes: all hosts are on one segment.
    Routing,
    /// Via a plain route to nodes on the same segment, over a tunnel to others.
    Auto,
    /// Via routes that a BGP speaker on this host learns; the speaker reads this node's blocks from a routing table.
    Bgp,
    /// On the hosts' own segment, with addresses of its prefix.
    Underlay,
}

impl Mode {
    /// Returns the mode's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Routing => "routing",
            Self::Auto => "auto",
            Self::Bgp => "bgp",
            Self::Underlay => "underlay",
        }
    }

    /// Returns whether the mode uses tunnels.
    pub fn tunnels(self) -> bool {
        matches!(self, Self::Overlay | Self::Auto)
    }

    /// Returns whether hosts route for their pods.
    pub fn routes(self) -> bool {
        self != Self::Underlay
    }
}

/// A network as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WrittenNetwork {
    /// The network's name.
    pub name: Option<String>,
    /// How pods of other nodes are reached.
    pub mode: Option<Mode>,
    /// The prefixes of the network's pods.
    pub pods: Option<Vec<IpNet>>,
    /// The prefix length of IPv4 blocks.
    pub block4: Option<u8>,
    /// The prefix length of IPv6 blocks.
    pub block6: Option<u8>,
    /// The MTU of pods' links in bytes.
    pub mtu: Option<u32>,
}

/// A network as meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The network's name, as the container runtime knows it.
    pub name: String,
    /// How pods of other nodes are reached.
    pub mode: Mode,
    /// The prefixes of the network's pods.
    pub pods: Vec<IpNet>,
    /// The prefix lengths of blocks, IPv4 and IPv6.
    pub block: (u8, u8),
    /// The MTU of pods' links, or `None` to derive it from the uplink's.
    pub mtu: Option<u32>,
}

impl Network {
    /// Returns whether a block lies in the network's prefixes.
    pub fn has(&self, block: &IpNet) -> bool {
        self.pods.iter().any(|prefix| prefix.contains(block))
    }

    /// Returns the address families of the network's pods; true stands for IPv4.
    pub fn families(&self) -> impl Iterator<Item = bool> {
        [true, false].into_iter().filter(|v4| self.prefixes(*v4).next().is_some())
    }

    /// Returns the prefixes of a family.
    pub fn prefixes(&self, v4: bool) -> impl Iterator<Item = IpNet> {
        self.pods.iter().copied().filter(move |prefix| prefix.addr().is_ipv4() == v4)
    }

    /// Returns the prefix length of blocks of a family.
    pub fn block_length(&self, v4: bool) -> u8 {
        if v4 { self.block.0 } else { self.block.1 }
    }
}

impl WrittenNetwork {
    /// Applies defaults and checks the values.
    pub(super) fn meant(self) -> Result<Network, InvalidValue> {
        let name = self.name.unwrap_or_else(|| "netloom".into());
        if !is_name(&name) {
            return Err(InvalidValue::new("network", format!("`{name}` is not a network name")));
        }
        let mode = self.mode.unwrap_or(Mode::Auto);
        let pods = match self.pods {
            Some(pods) => pods,
            None if mode.routes() => vec![default_pods()],
            None => {
                return Err(InvalidValue::new(
                    "pods",
                    "mode underlay needs the addresses of the hosts' segment that pods may use",
                ));
            }
        };
        // On a shared segment a node reserves few addresses in advance.
        let (default4, default6) = if mode.routes() { (24, 64) } else { (29, 125) };
        let block = (self.block4.unwrap_or(default4), self.block6.unwrap_or(default6));
        check_pods(&pods, block, mode)?;
        if let Some(mtu) = self.mtu.filter(|mtu| !(1280..=65_535).contains(mtu)) {
            return Err(InvalidValue::new(
                "mtu",
                format!("{mtu} must be between 1280 (the minimum of IPv6) and 65535"),
            ));
        }
        Ok(Network { name, mode, pods, block, mtu: self.mtu })
    }
}

/// Checks that no two networks share a name or an address.
pub(super) fn check_apart(networks: &[Network]) -> Result<(), InvalidValue> {
    for (index, network) in networks.iter().enumerate() {
        for other in &networks[..index] {
            if network.name == other.name {
                return Err(InvalidValue::new(
                    "networks",
                    format!("two networks are named `{}`", network.name),
                ));
            }
            let both = network.pods.iter().flat_map(|net| other.pods.iter().map(move |other| (net, other)));
            for (net, theirs) in both {
                if net.contains(theirs) || theirs.contains(net) {
                    return Err(InvalidValue::new(
                        "networks",
                        format!("{net} of `{}` and {theirs} of `{}` overlap", network.name, other.name),
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

fn check_pods(pods: &[IpNet], block: (u8, u8), mode: Mode) -> Result<(), InvalidValue> {
    if pods.is_empty() {
        return Err(InvalidValue::new("pods", "no prefix is given"));
    }
    for (index, net) in pods.iter().enumerate() {
        let v4 = net.addr().is_ipv4();
        if net.addr() != net.network() {
            return Err(InvalidValue::new("pods", format!("{net} has host bits set: write {}", net.trunc())));
        }
        if let Some(other) = pods[..index].iter().find(|other| other.contains(net) || net.contains(*other)) {
            return Err(InvalidValue::new("pods", format!("{other} and {net} overlap")));
        }
        // Where hosts route, some addresses of each block are the host's own.
        let (max4, max6) = if mode.routes() { (30, 120) } else { (32, 128) };
        let (key, length, max) = if v4 { ("block4", block.0, max4) } else { ("block6", block.1, max6) };
        // The daemon probes every address of a segment's block.
        let min = if mode.routes() { 0 } else { net.max_prefix_len() - 8 };
        if length < net.prefix_len() || length > max || length < min {
            return Err(InvalidValue::new(
                key,
                format!("{length} must be between {} and {max} for {net}", net.prefix_len().max(min)),
            ));
        }
    }
    Ok(())
}
