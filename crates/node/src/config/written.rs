//! The configuration as written: a TOML file, the environment and flags, with every value optional.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;
use ipnet::IpNet;
use serde::Deserialize;

use super::{
    invalid::InvalidValue,
    meant::{Config, Form, LogFormat, Underlay},
    network::{self, Mode, WrittenNetwork},
    store::{Etcd, Flannel, Kubernetes, Store, StoreKind},
};
use crate::name::is_name;

/// The configuration as written; every value is optional. Flags override the environment, which overrides the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Written {
    /// This node's name in the cluster [default: the host name]
    #[arg(long, env = "NETLOOMD_NODE", value_name = "NAME", global = true)]
    pub node: Option<String>,
    /// How pods of other nodes are reached [default: auto]
    #[arg(long, env = "NETLOOMD_MODE", global = true)]
    pub mode: Option<Mode>,
    /// Prefixes of the network's pods, the same on every node [default: 10.244.0.0/16]
    #[arg(long, env = "NETLOOMD_PODS", value_name = "PREFIX", value_delimiter = ',', global = true)]
    pub pods: Option<Vec<IpNet>>,
    /// Prefix length of IPv4 blocks [default: 24, with mode underlay 29]
    #[arg(long, env = "NETLOOMD_BLOCK4", value_name = "LENGTH", global = true)]
    pub block4: Option<u8>,
    /// Prefix length of IPv6 blocks [default: 64, with mode underlay 125]
    #[arg(long, env = "NETLOOMD_BLOCK6", value_name = "LENGTH", global = true)]
    pub block6: Option<u8>,
    /// This node's addresses, at most one per family [default: the source addresses of the default routes]
    #[arg(long, env = "NETLOOMD_ADDRESSES", value_name = "IP", value_delimiter = ',', global = true)]
    pub addresses: Option<Vec<IpAddr>>,
    /// Masquerade pods' packets that leave the cluster [default: true]
    #[arg(long, env = "NETLOOMD_MASQUERADE", value_name = "BOOL", global = true)]
    pub masquerade: Option<bool>,
    /// Prefixes outside the cluster that are excluded from masquerading
    #[arg(long, env = "NETLOOMD_UNMASQUERADED", value_name = "PREFIX", value_delimiter = ',', global = true)]
    pub unmasqueraded: Option<Vec<IpNet>>,
    /// How tunnels encapsulate packets, the same on every node [default: vxlan]
    #[arg(long, env = "NETLOOMD_TUNNEL", value_name = "FORM", global = true)]
    pub tunnel: Option<Form>,
    /// Kind of interface of pods on the hosts' own segment, if the uplink is not a bridge [default: macvlan]
    #[arg(long, env = "NETLOOMD_UNDERLAY", value_name = "LINK", global = true)]
    pub underlay: Option<Underlay>,
    /// VXLAN network identifier [default: 4242]
    #[arg(long, env = "NETLOOMD_VNI", global = true)]
    pub vni: Option<u32>,
    /// UDP port of the tunnels [default: 4789, with vxlan-gpe 4790]
    #[arg(long, env = "NETLOOMD_PORT", global = true)]
    pub port: Option<u16>,
    /// Let the network card compute checksums of tunnelled packets [default: true unless probes find them wrong]
    #[arg(long, env = "NETLOOMD_CHECKSUM_OFFLOAD", value_name = "BOOL", global = true)]
    pub checksum_offload: Option<bool>,
    /// UDP port on which daemons probe each other [default: 9471]
    #[arg(long, env = "NETLOOMD_PROBE_PORT", value_name = "PORT", global = true)]
    pub probe_port: Option<u16>,
    /// Routing table to which this node's blocks are exported for a BGP speaker [default: 4242 with mode bgp, otherwise none]
    #[arg(long, env = "NETLOOMD_EXPORT_TABLE", value_name = "TABLE", global = true)]
    pub export_table: Option<u32>,
    /// MTU of pods' links in bytes [default: the uplink's MTU less the tunnel's overhead]
    #[arg(long, env = "NETLOOMD_MTU", value_name = "BYTES", global = true)]
    pub mtu: Option<u32>,
    /// Store through which nodes learn of each other [default: file]
    #[arg(long, env = "NETLOOMD_STORE", global = true)]
    pub store: Option<StoreKind>,
    /// Directory of the file store [default: /var/lib/netloom/cluster]
    #[arg(long, env = "NETLOOMD_STORE_DIR", value_name = "DIR", global = true)]
    pub store_dir: Option<PathBuf>,
    /// Endpoints of etcd [default: http://127.0.0.1:2379]
    #[arg(long, env = "NETLOOMD_ETCD_ENDPOINTS", value_name = "URL", value_delimiter = ',', global = true)]
    pub etcd_endpoints: Option<Vec<String>>,
    /// Prefix of the cluster's keys in etcd [default: /netloom]
    #[arg(long, env = "NETLOOMD_ETCD_PREFIX", value_name = "KEY", global = true)]
    pub etcd_prefix: Option<String>,
    /// File with the certificate authority of etcd
    #[arg(long, env = "NETLOOMD_ETCD_CA", value_name = "FILE", global = true)]
    pub etcd_ca: Option<PathBuf>,
    /// File with this node's certificate for etcd
    #[arg(long, env = "NETLOOMD_ETCD_CERT", value_name = "FILE", global = true)]
    pub etcd_cert: Option<PathBuf>,
    /// File with the certificate's key
    #[arg(long, env = "NETLOOMD_ETCD_KEY", value_name = "FILE", global = true)]
    pub etcd_key: Option<PathBuf>,
    /// User name for etcd
    #[arg(long, env = "NETLOOMD_ETCD_USER", value_name = "NAME", global = true)]
    pub etcd_user: Option<String>,
    /// File with the user's password
    #[arg(long, env = "NETLOOMD_ETCD_PASSWORD_FILE", value_name = "FILE", global = true)]
    pub etcd_password_file: Option<PathBuf>,
    /// Join the nodes of a flannel network: the prefix of flannel's keys in the same etcd (/coreos.com/network) or of its annotations in Kubernetes (flannel.alpha.coreos.com); needs vni 1 and port 8472
    #[arg(long, env = "NETLOOMD_FLANNEL", value_name = "KEY", global = true)]
    pub flannel: Option<String>,
    /// File in which flannel records this host's subnet [default: /run/flannel/subnet.env]
    #[arg(long, env = "NETLOOMD_FLANNEL_SUBNET_FILE", value_name = "FILE", global = true)]
    pub flannel_subnet_file: Option<PathBuf>,
    /// Kubeconfig file [default: the pod's service account]
    #[arg(long, env = "KUBECONFIG", value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the Kubernetes API, if the one that pods use depends on this daemon
    #[arg(long, env = "NETLOOMD_KUBERNETES_SERVER", value_name = "URL", global = true)]
    pub kubernetes_server: Option<String>,
    /// Seconds after which a node that does not renew its lease is shown as silent [default: 60]
    #[arg(long, env = "NETLOOMD_LEASE", value_name = "SECONDS", global = true)]
    pub lease: Option<u32>,
    /// The network's name, as the container runtime knows it [default: netloom]
    #[arg(long, env = "NETLOOMD_NETWORK", value_name = "NAME", global = true)]
    pub network: Option<String>,
    /// Directory of the container runtime's network configurations [default: /etc/cni/net.d]
    #[arg(long, env = "NETLOOMD_CONF_DIR", value_name = "DIR", global = true)]
    pub conf_dir: Option<PathBuf>,
    /// Directory in which the daemon installs the plugins when it starts [default: none, use `netloom install`]
    #[arg(long, env = "NETLOOMD_PLUGINS", value_name = "DIR", global = true)]
    pub plugins: Option<PathBuf>,
    /// Directory of host-local's reservations [default: /var/lib/cni/networks]
    #[arg(long, env = "NETLOOMD_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Directory of the daemon's state [default: /var/lib/netloom/node]
    #[arg(long, env = "NETLOOMD_STATE_DIR", value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Directory of the kernel's network settings; in a container, a mount of the host's [default: /proc/sys/net]
    #[arg(long, env = "NETLOOMD_SYSCTL_DIR", value_name = "DIR", global = true)]
    pub sysctl_dir: Option<PathBuf>,
    /// Socket that `netloom cluster` connects to [default: /run/netloom/netloomd.sock]
    #[arg(long, env = "NETLOOMD_SOCKET", value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// Address and port on which to serve metrics, health and the web page [default: none]
    #[arg(long, env = "NETLOOMD_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    pub listen: Option<std::net::SocketAddr>,
    /// Log lines to write: a level (error, warn, info, debug, trace), or directives such as info,node::store=debug [default: info]
    #[arg(long, env = "NETLOOMD_LOG_LEVEL", value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
    /// Format of log lines [default: text]
    #[arg(long, env = "NETLOOMD_LOG_FORMAT", value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
    /// Further networks, in the file only.
    #[arg(skip)]
    pub networks: Option<Vec<WrittenNetwork>>,
}

macro_rules! first_of {
    ($first:ident, $second:ident, $($field:ident),*) => {
        Written { $($field: $first.$field.or($second.$field)),* }
    };
}

impl Written {
    /// Parses a TOML file.
    ///
    /// # Errors
    /// Returns the position in the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Fills missing values from another configuration.
    pub fn or(self, other: Self) -> Self {
        first_of!(
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
            log_level,
            log_format,
            networks
        )
    }

    /// Applies defaults and checks the values.
    ///
    /// # Errors
    /// Returns the first value that is wrong.
    pub fn meant(self) -> Result<Config, InvalidValue> {
        let node = match self.node {
            Some(node) => node,
            None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        if !is_name(&node) {
            return Err(InvalidValue::new(
                "node",
                format!("`{node}` is not a node name: use letters, digits, `-` and `.`"),
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
            return Err(InvalidValue::new("networks", "a network has no `name`"));
        }
        let networks =
            std::iter::once(first).chain(others).map(WrittenNetwork::meant).collect::<Result<Vec<_>, _>>()?;
        network::check_apart(&networks)?;
        let addresses = self.addresses.unwrap_or_default();
        for v4 in [true, false] {
            if addresses.iter().filter(|ip| ip.is_ipv4() == v4).count() > 1 {
                return Err(InvalidValue::new(
                    "addresses",
                    "at most one address per family is allowed: tunnels and routes lead to it",
                ));
            }
        }
        let vni = self.vni.unwrap_or(4242);
        if vni == 0 || vni >= 1 << 24 {
            return Err(InvalidValue::new("vni", format!("{vni} must be between 1 and 16777215")));
        }
        let bgp = networks.iter().any(|network| network.mode == Mode::Bgp);
        let export_table = self.export_table.or(bgp.then_some(EXPORT_TABLE));
        if let Some(table) = export_table.filter(|table| [0, 253, 254, 255].contains(table)) {
            return Err(InvalidValue::new("export-table", format!("{table} is reserved by the kernel")));
        }
        let lease = self.lease.unwrap_or(60);
        if !(5..=86_400).contains(&lease) {
            return Err(InvalidValue::new("lease", format!("{lease} must be between 5 and 86400 seconds")));
        }
        let path = |given: Option<PathBuf>, default: &str| given.unwrap_or_else(|| default.into());
        let tunnel = self.tunnel.unwrap_or(Form::Vxlan);
        // RFC 7348, and the VXLAN-GPE draft.
        let port = self.port.unwrap_or(if tunnel == Form::Vxlan { 4789 } else { 4790 });
        let kind = self.store.unwrap_or(StoreKind::File);
        if self.flannel.is_some() && kind == StoreKind::File {
            return Err(InvalidValue::new("flannel", "flannel needs `store` to be etcd or kubernetes"));
        }
        if self.flannel.is_some() && tunnel != Form::Vxlan {
            return Err(InvalidValue::new("tunnel", "flannel's nodes accept only `vxlan`"));
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
                    Some(path) => std::fs::read(&path).map(Some).map_err(|error| {
                        InvalidValue::new(key, format!("cannot read {}: {error}", path.display()))
                    }),
                };
                let identity = match (read("etcd-cert", self.etcd_cert)?, read("etcd-key", self.etcd_key)?) {
                    (Some(cert), Some(key)) => Some((cert, key)),
                    (None, None) => None,
                    _ => {
                        return Err(InvalidValue::new(
                            "etcd-cert",
                            "a certificate needs a key, and a key a certificate",
                        ));
                    }
                };
                let password = read("etcd-password-file", self.etcd_password_file)?;
                let user = match (self.etcd_user, password) {
                    (Some(user), Some(password)) => {
                        Some((user, String::from_utf8_lossy(&password).trim_end().to_owned()))
                    }
                    (None, None) => None,
                    _ => {
                        return Err(InvalidValue::new(
                            "etcd-user",
                            "a user needs a password file, and a password file a user",
                        ));
                    }
                };
                let endpoints = self.etcd_endpoints.unwrap_or_else(|| vec!["http://127.0.0.1:2379".into()]);
                if endpoints.is_empty() {
                    return Err(InvalidValue::new("etcd-endpoints", "no endpoint is given"));
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
            lease: Duration::from_secs(lease.into()),
            conf_dir: path(self.conf_dir, "/etc/cni/net.d"),
            plugins: self.plugins,
            data_dir: path(self.data_dir, "/var/lib/cni/networks"),
            state_dir: path(self.state_dir, "/var/lib/netloom/node"),
            sysctl_dir: path(self.sysctl_dir, "/proc/sys/net"),
            socket: path(self.socket, "/run/netloom/netloomd.sock"),
            listen: self.listen,
            log_level: self.log_level.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or_default(),
        })
    }
}

/// Returns whether the kernel computes checksums of tunnelled packets correctly. Before Linux 5.8, packets that were translated
/// twice and sent over a VXLAN with checksum offload had a wrong checksum, and were retransmitted seconds later.
fn offload_is_sound() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

/// The default export table in mode bgp.
const EXPORT_TABLE: u32 = 4242;

/// A configuration file in which every value is commented out and documented with its default.
pub const DEFAULT: &str = include_str!("../default.toml");
