//! The configuration as meant: every value set.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

use super::{
    network::Network,
    store::{Flannel, Store},
};

/// How tunnels encapsulate packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// In Ethernet frames (VXLAN), with a neighbour and a forwarding entry per node, as flannel does.
    Vxlan,
    /// Without frames (VXLAN-GPE): each route names the remote host, and there are no hardware addresses.
    VxlanGpe,
}

/// The kind of interface of pods on the hosts' own segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// macvlan: each pod has a hardware address of its own.
    Macvlan,
    /// ipvlan: pods share the host's hardware address, for segments that accept no other.
    Ipvlan,
}

impl Underlay {
    /// Returns the name of the kernel's driver, which is also the plugin's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Level, target and message; the service manager adds the time.
    #[default]
    Text,
    /// One JSON object a line, with the time.
    Json,
}

/// The configuration as meant.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The networks. A runtime that asks for no particular network takes the first.
    pub networks: Vec<Network>,
    /// This node's addresses; if empty, the source addresses of the default routes.
    pub addresses: Vec<IpAddr>,
    /// Whether pods' packets leave the cluster with the node's address.
    pub masquerade: bool,
    /// Destinations outside the cluster that see pods' own addresses.
    pub unmasqueraded: Vec<IpNet>,
    /// How tunnels encapsulate packets.
    pub tunnel: Form,
    /// The kind of interface of pods on the hosts' own segment.
    pub underlay: Underlay,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The tunnels' UDP port.
    pub port: u16,
    /// Whether the network card computes the checksums of tunnelled packets; `None` for as long as probes find no fault.
    pub checksum_offload: Option<bool>,
    /// The probes' UDP port.
    pub probe_port: u16,
    /// The routing table to which this node's blocks are exported.
    pub export_table: Option<u32>,
    /// The store through which nodes learn of each other.
    pub store: Store,
    /// The flannel network beside this cluster.
    pub flannel: Option<Flannel>,
    /// How long a node may be silent before its peers show it as such.
    pub lease: Duration,
    /// The directory of the runtime's network configurations.
    pub conf_dir: PathBuf,
    /// The directory in which the daemon installs the plugins, or `None` if it does not.
    pub plugins: Option<PathBuf>,
    /// The directory of host-local's reservations.
    pub data_dir: PathBuf,
    /// The directory of the daemon's state.
    pub state_dir: PathBuf,
    /// The directory of the kernel's network settings.
    pub sysctl_dir: PathBuf,
    /// The socket for `netloom cluster`.
    pub socket: PathBuf,
    /// Where metrics, health and the web page are served.
    pub listen: Option<std::net::SocketAddr>,
    /// Which log lines are written: a level, or directives such as `info,node::store=debug`.
    pub log_level: String,
    /// The format of log lines.
    pub log_format: LogFormat,
}

impl Config {
    /// Returns the prefixes of all networks' pods.
    pub fn pods(&self) -> Vec<IpNet> {
        self.networks.iter().flat_map(|network| network.pods.iter().copied()).collect()
    }

    /// Returns the networks whose pods' packets the host routes.
    pub fn routed(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter().filter(|network| network.mode.routes())
    }

    /// Returns the prefixes of the pods of those networks.
    pub fn routed_pods(&self) -> impl Iterator<Item = IpNet> {
        self.routed().flat_map(|network| network.pods.iter().copied())
    }

    /// Returns the network that contains a block.
    pub fn network_of(&self, block: &IpNet) -> Option<&Network> {
        self.networks.iter().find(|network| network.has(block))
    }

    /// Returns whether this node has tunnels.
    pub fn tunnels(&self) -> bool {
        self.networks.iter().any(|network| network.mode.tunnels())
    }
}
