//! The daemon's configuration: as written in a TOML file, in the environment and as flags, and as meant.

mod network;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde::Deserialize;

use crate::record::is_name;
pub use network::{Mode, Network, WrittenNetwork};

/// Where nodes learn of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A folder that all nodes share, or that is distributed to them.
    File,
    /// etcd v3.
    Etcd,
    /// The API of the Kubernetes cluster that this host is a node of.
    Kubernetes,
}

/// How packets are put into tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// In Ethernet frames (VXLAN), with a neighbour and a forwarding entry to each node: as flannel's.
    Vxlan,
    /// As they are (VXLAN-GPE), by routes that say to which host: no hardware address is in it.
    VxlanGpe,
}

/// What pods have on a segment that they share with the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// Links with hardware addresses of their own.
    Macvlan,
    /// Links with the host's own, for segments that let no other in.
    Ipvlan,
}

impl Underlay {
    /// Returns the name, of the kernel's links and of the plugin.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }
}

/// The configuration as written: every value may be left out. A flag counts before the environment, and that before the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Written {
    /// This node's name in the cluster; without it the host's name
    #[arg(long, env = "NETLOOMD_NODE", value_name = "NAME", global = true)]
    pub node: Option<String>,
    /// By which way other nodes' pods are reached [default: auto]
    #[arg(long, env = "NETLOOMD_MODE", global = true)]
    pub mode: Option<Mode>,
    /// Prefixes of all pods of the network [default: 10.244.0.0/16]
    #[arg(long, env = "NETLOOMD_PODS", value_name = "PREFIX", value_delimiter = ',', global = true)]
    pub pods: Option<Vec<IpNet>>,
    /// Prefix length of an IPv4 block of pods' addresses [default: 24]
    #[arg(long, env = "NETLOOMD_BLOCK4", value_name = "LENGTH", global = true)]
    pub block4: Option<u8>,
    /// Prefix length of an IPv6 block [default: 64]
    #[arg(long, env = "NETLOOMD_BLOCK6", value_name = "LENGTH", global = true)]
    pub block6: Option<u8>,
    /// This node's addresses, at most one of each family; without it those by which its default routes leave
    #[arg(long, env = "NETLOOMD_ADDRESSES", value_name = "IP", value_delimiter = ',', global = true)]
    pub addresses: Option<Vec<IpAddr>>,
    /// What pods send out of the cluster leaves with the node's address [default: true]
    #[arg(long, env = "NETLOOMD_MASQUERADE", value_name = "BOOL", global = true)]
    pub masquerade: Option<bool>,
    /// Prefixes outside the cluster that pods reach with their own address
    #[arg(long, env = "NETLOOMD_UNMASQUERADED", value_name = "PREFIX", value_delimiter = ',', global = true)]
    pub unmasqueraded: Option<Vec<IpNet>>,
    /// How packets are put into tunnels, by all nodes [default: vxlan]
    #[arg(long, env = "NETLOOMD_TUNNEL", value_name = "FORM", global = true)]
    pub tunnel: Option<Form>,
    /// What pods on the hosts' own segment have, where the uplink is no bridge [default: macvlan]
    #[arg(long, env = "NETLOOMD_UNDERLAY", value_name = "LINK", global = true)]
    pub underlay: Option<Underlay>,
    /// VXLAN network identifier [default: 4242]
    #[arg(long, env = "NETLOOMD_VNI", global = true)]
    pub vni: Option<u32>,
    /// UDP port of tunnelled packets [default: 4789, with vxlan-gpe 4790]
    #[arg(long, env = "NETLOOMD_PORT", global = true)]
    pub port: Option<u16>,
    /// Checksums of tunnelled packets are left to the network card [default: true where that goes well]
    #[arg(long, env = "NETLOOMD_CHECKSUM_OFFLOAD", value_name = "BOOL", global = true)]
    pub checksum_offload: Option<bool>,
    /// UDP port at which daemons ask each other whether they are there [default: 9471]
    #[arg(long, env = "NETLOOMD_PROBE_PORT", value_name = "PORT", global = true)]
    pub probe_port: Option<u16>,
    /// Routing table into which this node's blocks are put for a BGP speaker; without it, with mode bgp, 4242, else none
    #[arg(long, env = "NETLOOMD_EXPORT_TABLE", value_name = "TABLE", global = true)]
    pub export_table: Option<u32>,
    /// MTU of pods' links in bytes; without it what is left of the uplink's
    #[arg(long, env = "NETLOOMD_MTU", value_name = "BYTES", global = true)]
    pub mtu: Option<u32>,
    /// Where nodes learn of each other [default: file]
    #[arg(long, env = "NETLOOMD_STORE", global = true)]
    pub store: Option<StoreKind>,
    /// Folder of the file store [default: /var/lib/netloom/cluster]
    #[arg(long, env = "NETLOOMD_STORE_DIR", value_name = "DIR", global = true)]
    pub store_dir: Option<PathBuf>,
    /// Endpoints of etcd [default: http://127.0.0.1:2379]
    #[arg(long, env = "NETLOOMD_ETCD_ENDPOINTS", value_name = "URL", value_delimiter = ',', global = true)]
    pub etcd_endpoints: Option<Vec<String>>,
    /// Prefix of the cluster's keys in etcd [default: /netloom]
    #[arg(long, env = "NETLOOMD_ETCD_PREFIX", value_name = "KEY", global = true)]
    pub etcd_prefix: Option<String>,
    /// File with etcd's certificate authority
    #[arg(long, env = "NETLOOMD_ETCD_CA", value_name = "FILE", global = true)]
    pub etcd_ca: Option<PathBuf>,
    /// File with this node's certificate for etcd
    #[arg(long, env = "NETLOOMD_ETCD_CERT", value_name = "FILE", global = true)]
    pub etcd_cert: Option<PathBuf>,
    /// File with its key
    #[arg(long, env = "NETLOOMD_ETCD_KEY", value_name = "FILE", global = true)]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, env = "NETLOOMD_ETCD_USER", value_name = "NAME", global = true)]
    pub etcd_user: Option<String>,
    /// File with the user's password
    #[arg(long, env = "NETLOOMD_ETCD_PASSWORD_FILE", value_name = "FILE", global = true)]
    pub etcd_password_file: Option<PathBuf>,
    /// Where flannel is whose nodes are reached as this cluster's are: the prefix of its keys in the same etcd (/coreos.com/network), or of its annotations in Kubernetes (flannel.alpha.coreos.com); with vni 1, port 8472
    #[arg(long, env = "NETLOOMD_FLANNEL", value_name = "KEY", global = true)]
    pub flannel: Option<String>,
    /// File by which flannel says which subnet it had on this host [default: /run/flannel/subnet.env]
    #[arg(long, env = "NETLOOMD_FLANNEL_SUBNET_FILE", value_name = "FILE", global = true)]
    pub flannel_subnet_file: Option<PathBuf>,
    /// File that says how Kubernetes is reached; without it as pods do
    #[arg(long, env = "KUBECONFIG", value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// URL of Kubernetes' API, where the one of pods leads by what this daemon is to make
    #[arg(long, env = "NETLOOMD_KUBERNETES_SERVER", value_name = "URL", global = true)]
    pub kubernetes_server: Option<String>,
    /// How long a node that is not heard of stays, in seconds [default: 60]
    #[arg(long, env = "NETLOOMD_LEASE", value_name = "SECONDS", global = true)]
    pub lease: Option<u32>,
    /// The network's name, for the container runtime [default: netloom]
    #[arg(long, env = "NETLOOMD_NETWORK", value_name = "NAME", global = true)]
    pub network: Option<String>,
    /// Folder of the container runtime's network files [default: /etc/cni/net.d]
    #[arg(long, env = "NETLOOMD_CONF_DIR", value_name = "DIR", global = true)]
    pub conf_dir: Option<PathBuf>,
    /// Folder into which the plugins are put when the daemon starts; without it they are put there by `netloom install`
    #[arg(long, env = "NETLOOMD_PLUGINS", value_name = "DIR", global = true)]
    pub plugins: Option<PathBuf>,
    /// Folder of host-local's reservations [default: /var/lib/cni/networks]
    #[arg(long, env = "NETLOOMD_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Folder in which the daemon remembers the cluster [default: /var/lib/netloom/node]
    #[arg(long, env = "NETLOOMD_STATE_DIR", value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Folder of the kernel's settings, in a container a mount of the host's [default: /proc/sys/net]
    #[arg(long, env = "NETLOOMD_SYSCTL_DIR", value_name = "DIR", global = true)]
    pub sysctl_dir: Option<PathBuf>,
    /// Socket at which `netloom cluster` asks [default: /run/netloom/netloomd.sock]
    #[arg(long, env = "NETLOOMD_SOCKET", value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// Address and port of metrics, health and the web page; without it there are none
    #[arg(long, env = "NETLOOMD_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    pub listen: Option<std::net::SocketAddr>,
    /// Further networks, which a file alone can have.
    #[arg(skip)]
    pub networks: Option<Vec<WrittenNetwork>>,
}

/// The configuration as meant.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The networks, the first one first: that is what the runtime takes where it is asked for none.
    pub networks: Vec<Network>,
    /// This node's addresses; empty for those by which default routes leave.
    pub addresses: Vec<IpAddr>,
    /// What pods send out of the cluster leaves with the node's address.
    pub masquerade: bool,
    /// Where pods keep their own.
    pub unmasqueraded: Vec<IpNet>,
    /// How packets are put into tunnels.
    pub tunnel: Form,
    /// What pods on the hosts' own segment have.
    pub underlay: Underlay,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of tunnelled packets.
    pub port: u16,
    /// Checksums of tunnelled packets are left to the network card; none for where that is found to go well.
    pub checksum_offload: Option<bool>,
    /// UDP port of probes.
    pub probe_port: u16,
    /// Routing table with this node's blocks; none for none.
    pub export_table: Option<u32>,
    /// Where nodes learn of each other.
    pub store: Store,
    /// flannel's nodes beside this cluster's.
    pub flannel: Option<Flannel>,
    /// How long a node that is not heard of stays, in seconds.
    pub lease: u32,
    /// Folder of the runtime's network files.
    pub conf_dir: PathBuf,
    /// Folder into which the daemon puts the plugins; none where somebody else does.
    pub plugins: Option<PathBuf>,
    /// Folder of host-local's reservations.
    pub data_dir: PathBuf,
    /// Folder of the daemon's memory.
    pub state_dir: PathBuf,
    /// Folder of the kernel's settings.
    pub sysctl_dir: PathBuf,
    /// Socket for `netloom cluster`.
    pub socket: PathBuf,
    /// Where metrics, health and the page are.
    pub listen: Option<std::net::SocketAddr>,
}

impl Config {
    /// Returns the prefixes of all networks' pods.
    pub fn pods(&self) -> Vec<IpNet> {
        self.networks.iter().flat_map(|network| network.pods.iter().copied()).collect()
    }

    /// Returns the network that a block is of.
    pub fn network_of(&self, block: &IpNet) -> Option<&Network> {
        self.networks.iter().find(|network| network.has(block))
    }

    /// Returns whether this node makes tunnels.
    pub fn tunnels(&self) -> bool {
        self.networks.iter().any(|network| network.mode.tunnels())
    }
}

/// Where nodes learn of each other, as meant.
#[derive(Debug, Clone)]
pub enum Store {
    /// This folder.
    File(PathBuf),
    /// etcd.
    Etcd(Etcd),
    /// Kubernetes.
    Kubernetes(Kubernetes),
}

impl Store {
    /// Returns the kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Etcd(_) => "etcd",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// How Kubernetes' API is reached.
#[derive(Debug, Clone, Default)]
pub struct Kubernetes {
    /// The file that says so; none for as pods do.
    pub kubeconfig: Option<PathBuf>,
    /// Another URL than that one's.
    pub server: Option<String>,
}

/// How etcd is reached.
#[derive(Debug, Clone, Default)]
pub struct Etcd {
    /// Its endpoints.
    pub endpoints: Vec<String>,
    /// The prefix of the cluster's keys, without a slash at its end.
    pub prefix: String,
    /// Certificate authority, certificate and key, in PEM.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// User and password.
    pub user: Option<(String, String)>,
}

/// How flannel's nodes are reached.
#[derive(Debug, Clone)]
pub struct Flannel {
    /// The prefix of its keys in etcd, without a slash at its end, or of its annotations in Kubernetes.
    pub place: String,
    /// VXLAN network identifier, of both.
    pub vni: u32,
    /// UDP port, of both.
    pub port: u16,
    /// Where flannel says which subnet it had on this host.
    pub subnet_file: PathBuf,
}

impl Flannel {
    /// Returns the name of flannel's tunnel of a family, whose place this daemon's takes.
    pub fn device(&self, v4: bool) -> String {
        format!("flannel{}.{}", if v4 { "" } else { "-v6" }, self.vni)
    }
}

/// Says which value is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {why}")]
pub struct Wrong {
    /// The value, by its name in the file.
    pub key: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn wrong(key: &'static str, why: impl Into<String>) -> Wrong {
    Wrong { key, why: why.into() }
}

macro_rules! first {
    ($first:ident, $second:ident, $($field:ident),*) => {
        Written { $($field: $first.$field.or($second.$field)),* }
    };
}

impl Written {
    /// Reads a file's text.
    ///
    /// # Errors
    /// With the place in the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Takes what is left out here from another.
    pub fn or(self, other: Self) -> Self {
        first!(
            self,
            other,
            node,
            mode,
            pods,
            block4,
            block6,
            addresses,
            masquerade,
            unmasqueraded,
            tunnel,
            underlay,
            vni,
            port,
            checksum_offload,
            probe_port,
            export_table,
            mtu,
            store,
            store_dir,
            etcd_endpoints,
            etcd_prefix,
            etcd_ca,
            etcd_cert,
            etcd_key,
            etcd_user,
            etcd_password_file,
            flannel,
            flannel_subnet_file,
            kubeconfig,
            kubernetes_server,
            lease,
            network,
            conf_dir,
            plugins,
            data_dir,
            state_dir,
            sysctl_dir,
            socket,
            listen,
            networks
        )
    }

    /// Works out what is meant.
    ///
    /// # Errors
    /// With the first value that is wrong.
    pub fn meant(self) -> Result<Config, Wrong> {
        let node = match self.node {
            Some(node) => node,
            None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        if !is_name(&node) {
            return Err(wrong(
                "node",
                format!("{node:?} is no name of a node: letters, digits, '-' and '.'"),
            ));
        }
        let first = WrittenNetwork {
            name: self.network,
            mode: self.mode,
            pods: self.pods,
            block4: self.block4,
            block6: self.block6,
            mtu: self.mtu,
        };
        let others = self.networks.unwrap_or_default().into_iter();
        if others.clone().any(|network| network.name.is_none()) {
            return Err(wrong("networks", "one of them has no `name`"));
        }
        let networks =
            std::iter::once(first).chain(others).map(WrittenNetwork::meant).collect::<Result<Vec<_>, _>>()?;
        network::check_apart(&networks)?;
        let addresses = self.addresses.unwrap_or_default();
        for v4 in [true, false] {
            if addresses.iter().filter(|ip| ip.is_ipv4() == v4).count() > 1 {
                return Err(wrong(
                    "addresses",
                    "at most one of each family: tunnels and routes lead to that one",
                ));
            }
        }
        let vni = self.vni.unwrap_or(4242);
        if vni == 0 || vni >= 1 << 24 {
            return Err(wrong("vni", format!("{vni} must be between 1 and 16777215")));
        }
        let bgp = networks.iter().any(|network| network.mode == Mode::Bgp);
        let export_table = self.export_table.or(bgp.then_some(EXPORT_TABLE));
        if let Some(table) = export_table.filter(|table| [0, 253, 254, 255].contains(table)) {
            return Err(wrong("export-table", format!("{table} is one of the kernel's own tables")));
        }
        let lease = self.lease.unwrap_or(60);
        if !(5..=86_400).contains(&lease) {
            return Err(wrong("lease", format!("{lease} must be between 5 and 86400 seconds")));
        }
        let path = |given: Option<PathBuf>, default: &str| given.unwrap_or_else(|| default.into());
        let tunnel = self.tunnel.unwrap_or(Form::Vxlan);
        // Those of RFC 7348 and of VXLAN-GPE.
        let port = self.port.unwrap_or(if tunnel == Form::Vxlan { 4789 } else { 4790 });
        let kind = self.store.unwrap_or(StoreKind::File);
        if self.flannel.is_some() && kind == StoreKind::File {
            return Err(wrong("flannel", "it is in etcd or in Kubernetes: `store` is to be that too"));
        }
        if self.flannel.is_some() && tunnel != Form::Vxlan {
            return Err(wrong("tunnel", "flannel's nodes hear `vxlan` alone"));
        }
        let flannel = self.flannel.map(|place| Flannel {
            place: place.trim_end_matches('/').to_owned(),
            vni,
            port,
            subnet_file: path(self.flannel_subnet_file, "/run/flannel/subnet.env"),
        });
        let store = match kind {
            StoreKind::File => Store::File(path(self.store_dir, "/var/lib/netloom/cluster")),
            StoreKind::Kubernetes => {
                Store::Kubernetes(Kubernetes { kubeconfig: self.kubeconfig, server: self.kubernetes_server })
            }
            StoreKind::Etcd => {
                let read = |key: &'static str, path: Option<PathBuf>| match path {
                    None => Ok(None),
                    Some(path) => std::fs::read(&path)
                        .map(Some)
                        .map_err(|error| wrong(key, format!("cannot read {}: {error}", path.display()))),
                };
                let identity = match (read("etcd-cert", self.etcd_cert)?, read("etcd-key", self.etcd_key)?) {
                    (Some(cert), Some(key)) => Some((cert, key)),
                    (None, None) => None,
                    _ => return Err(wrong("etcd-cert", "a certificate and its key go together")),
                };
                let password = read("etcd-password-file", self.etcd_password_file)?;
                let user = match (self.etcd_user, password) {
                    (Some(user), Some(password)) => {
                        Some((user, String::from_utf8_lossy(&password).trim_end().to_owned()))
                    }
                    (None, None) => None,
                    _ => return Err(wrong("etcd-user", "a user and a file with the password go together")),
                };
                let endpoints = self.etcd_endpoints.unwrap_or_else(|| vec!["http://127.0.0.1:2379".into()]);
                if endpoints.is_empty() {
                    return Err(wrong("etcd-endpoints", "there is none"));
                }
                let prefix = self.etcd_prefix.unwrap_or_else(|| "/netloom".into());
                let prefix = prefix.trim_end_matches('/').to_owned();
                let ca = read("etcd-ca", self.etcd_ca)?;
                Store::Etcd(Etcd { endpoints, prefix, ca, identity, user })
            }
        };
        Ok(Config {
            node,
            networks,
            export_table,
            addresses,
            masquerade: self.masquerade.unwrap_or(true),
            unmasqueraded: self.unmasqueraded.unwrap_or_default(),
            tunnel,
            underlay: self.underlay.unwrap_or(Underlay::Macvlan),
            vni,
            port,
            checksum_offload: self.checksum_offload.or((!offload_is_sound()).then_some(false)),
            probe_port: self.probe_port.unwrap_or(9471),
            store,
            flannel,
            lease,
            conf_dir: path(self.conf_dir, "/etc/cni/net.d"),
            plugins: self.plugins,
            data_dir: path(self.data_dir, "/var/lib/cni/networks"),
            state_dir: path(self.state_dir, "/var/lib/netloom/node"),
            sysctl_dir: path(self.sysctl_dir, "/proc/sys/net"),
            socket: path(self.socket, "/run/netloom/netloomd.sock"),
            listen: self.listen,
        })
    }
}

/// Before Linux 5.8 what was translated twice and sent by a VXLAN with the checksum left to the card came out wrong, and was
/// sent again after seconds.
fn offload_is_sound() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

/// The table of mode bgp.
const EXPORT_TABLE: u32 = 4242;

/// The configuration with nothing in it but comments: every value, and what it is when it is left out.
pub const DEFAULT: &str = include_str!("default.toml");
