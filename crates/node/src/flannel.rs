//! flannel's data: its keys in etcd, its annotations of Kubernetes nodes, and its file on each host.
//!
//! flannel's nodes are peers of this cluster's nodes, and this node publishes its blocks where flannel's nodes look for them. So the
//! two reach each other, and a cluster can migrate from one to the other node by node.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    block_name,
    config::{Config, Flannel},
    file,
    record::Record,
};

/// flannel's description of a node (`LeaseAttrs`): each family of pods has a tunnel of that family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    #[serde(rename = "PublicIP", default)]
    address4: Option<Ipv4Addr>,
    #[serde(rename = "PublicIPv6", default)]
    address6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType")]
    backend: String,
    #[serde(rename = "BackendData", default)]
    data4: Option<Data>,
    #[serde(rename = "BackendV6Data", default)]
    data6: Option<Data>,
    /// The node of this cluster that wrote the lease; flannel ignores the field.
    #[serde(rename = "Netloom", default, skip_serializing_if = "Option::is_none")]
    netloom: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Data {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

/// The backend of nodes with tunnels.
const VXLAN: &str = "vxlan";
/// The backend of nodes with plain routes.
const HOST_GATEWAY: &str = "host-gw";

impl Lease {
    /// A node of this cluster to flannel's nodes.
    pub(crate) fn of(node: &Record) -> Self {
        let data = || node.tunnel.map(|tunnel| Data { vni: tunnel.vni, mac: node.mac(true).to_string() });
        let mut lease = Self {
            address4: None,
            address6: None,
            backend: if node.tunnel.is_some() { VXLAN } else { HOST_GATEWAY }.into(),
            data4: None,
            data6: None,
            netloom: Some(node.name.clone()),
        };
        for address in &node.addresses {
            match address {
                IpAddr::V4(ip) => (lease.address4, lease.data4) = (Some(*ip), data()),
                IpAddr::V6(ip) => (lease.address6, lease.data6) = (Some(*ip), data()),
            }
        }
        lease
    }

    /// Parses a key's value, or returns `None` if it is not a lease.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.address4.map(IpAddr::V4), self.address6.map(IpAddr::V6)].into_iter().flatten()
    }

    /// Returns flannel's description of its own node as a record, to be checked like any other.
    fn record(self, how: &Flannel, name: &str, blocks: &[IpNet]) -> Value {
        // A node of another backend has no tunnel: it is reached directly, or its peers report the problem.
        let is_tunnel = self.backend == VXLAN;
        // flannel writes a zero address for a family that it does not use.
        let addresses = self.addresses().filter(|ip| !ip.is_unspecified());
        let (data4, data6) = (self.data4.filter(|_| is_tunnel), self.data6.filter(|_| is_tunnel));
        let vni = data4.as_ref().or(data6.as_ref()).map(|data| data.vni);
        json!({
            "name": name,
            "addresses": addresses.collect::<Vec<_>>(),
            "blocks": blocks,
            "tunnel": vni.map(|vni| json!({"vni": vni, "port": how.port})),
            "mac": data4.map(|data| data.mac),
            "mac6": data6.map(|data| data.mac),
            "flannel": true,
        })
    }

    /// Returns whether a node may overwrite the lease: it wrote it itself, or flannel did on the same host.
    pub(crate) fn is_own(&self, node: &Record) -> bool {
        if let Some(name) = &self.netloom {
            return *name == node.name;
        }
        self.addresses().any(|ip| node.addresses.contains(&ip))
    }

    /// Returns whether this node wrote the lease.
    pub(crate) fn is_of(&self, node: &str) -> bool {
        self.netloom.as_deref() == Some(node)
    }
}

/// flannel in etcd: the key of a node's lease is `PREFIX/subnets/ADDRESS-LENGTH`, with both families
/// `PREFIX/subnets/ADDRESS-LENGTH&ADDRESS-LENGTH`.
pub(crate) mod keys {
    use super::{Flannel, IpNet, Lease, Record, Value, block_name};

    /// Stands for a missing IPv4 subnet.
    const NONE: &str = "0.0.0.0-0";

    /// Returns the prefix of the subnets' keys.
    pub(crate) fn prefix(how: &Flannel) -> String {
        format!("{}/subnets/", how.place)
    }

    /// Returns the range of keys, as first key and end, that may contain a block.
    pub(crate) fn around(how: &Flannel, block: IpNet) -> (String, String) {
        let prefix = prefix(how);
        if block.addr().is_ipv4() {
            let first = format!("{prefix}{}", block_name::key(block));
            // The key ends here, or continues with '&'.
            let end = format!("{first}'");
            (first, end)
        } else {
            let end = format!("{}0", prefix.trim_end_matches('/'));
            (prefix, end)
        }
    }

    /// Returns whether a key, without the prefix, contains a block.
    pub(crate) fn has(name: &str, block: IpNet) -> bool {
        name.split('&').any(|part| block_name::parse(part) == Some(block))
    }

    /// Returns the keys for a node's blocks.
    pub(crate) fn of(how: &Flannel, node: &Record) -> Vec<String> {
        let (four, six): (Vec<IpNet>, Vec<IpNet>) =
            node.blocks.iter().copied().partition(|block| block.addr().is_ipv4());
        let pair = |index: usize| {
            let four = four.get(index).map_or_else(|| NONE.to_owned(), |block| block_name::key(*block));
            match six.get(index) {
                Some(six) => format!("{}{four}&{}", prefix(how), block_name::key(*six)),
                None => format!("{}{four}", prefix(how)),
            }
        };
        (0..four.len().max(six.len())).map(pair).collect()
    }

    /// Reads a key, without the prefix, and its value: the node's name in this cluster and its record. There is no record if a node
    /// of this cluster wrote the key, or if the key was deleted.
    pub(crate) fn read(how: &Flannel, name: &str, value: Option<&[u8]>) -> Option<(String, Option<Vec<u8>>)> {
        let blocks: Vec<IpNet> = name.split('&').map(block_name::parse).collect::<Option<_>>()?;
        let blocks: Vec<IpNet> = blocks.into_iter().filter(|block| block.prefix_len() > 0).collect();
        let name = format!("flannel-{}", block_name::without_colons(*blocks.first()?));
        let Some(value) = value else { return Some((name, None)) };
        let record = match serde_json::from_slice::<Lease>(value) {
            Ok(lease) if lease.netloom.is_some() => None,
            Ok(lease) => Some(Value::to_string(&lease.record(how, &name, &blocks)).into_bytes()),
            // The record check refuses it and says why.
            Err(_) => Some(value.to_vec()),
        };
        Some((name, record))
    }
}

/// flannel in Kubernetes: annotations of a `Node`, whose podCIDRs are its subnets.
pub(crate) mod annotations {
    use super::{BTreeMap, Flannel, IpNet, Lease, Record, Value, json};

    type Annotations = BTreeMap<String, String>;

    /// Returns the prefix of the annotations' names, as flannel derives it from `-kube-annotation-prefix`.
    fn prefix(how: &Flannel) -> String {
        let slash = if how.place.contains('/') { "" } else { "/" };
        let place = format!("{}{slash}", how.place);
        let dash = if place.ends_with(['/', '-']) { "" } else { "-" };
        format!("{place}{dash}")
    }

    /// Returns a node's record without a name, or `None` if flannel does not run on the node.
    pub(crate) fn read(how: &Flannel, annotations: &Annotations, blocks: &[IpNet]) -> Option<Value> {
        let prefix = prefix(how);
        let of = |name: &str| annotations.get(&format!("{prefix}{name}"));
        let data = |name: &str| match of(name) {
            Some(text) => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone())),
            None => Value::Null,
        };
        of("kube-subnet-manager").filter(|managed| *managed == "true")?;
        let lease = json!({
            "PublicIP": of("public-ip"), "PublicIPv6": of("public-ipv6"), "BackendType": of("backend-type"),
            "BackendData": data("backend-data"), "BackendV6Data": data("backend-v6-data"),
        });
        match serde_json::from_value::<Lease>(lease.clone()) {
            Ok(lease) => Some(lease.record(how, "", blocks)),
            // The record check refuses it and says why.
            Err(_) => Some(lease),
        }
    }

    /// Returns the annotations of this cluster's node that need a change; `None` removes one. An address that the operator
    /// overrode for flannel (`public-ip-overwrite`) is used here too.
    pub(crate) fn missing(
        how: &Flannel,
        node: &Record,
        there: &Annotations,
    ) -> BTreeMap<String, Option<String>> {
        let prefix = prefix(how);
        let lease = Lease::of(node);
        let address = |name: &str, own: Option<String>| {
            own.map(|own| there.get(&format!("{prefix}{name}-overwrite")).cloned().unwrap_or(own))
        };
        let text = |data: Option<&super::Data>| data.map(|data| json!(data).to_string());
        let wanted = [
            ("kube-subnet-manager", Some("true".to_owned())),
            ("backend-type", Some(lease.backend)),
            ("public-ip", address("public-ip", lease.address4.map(|ip| ip.to_string()))),
            ("public-ipv6", address("public-ipv6", lease.address6.map(|ip| ip.to_string()))),
            ("backend-data", text(lease.data4.as_ref())),
            ("backend-v6-data", text(lease.data6.as_ref())),
        ];
        let named = wanted.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value));
        named.filter(|(name, value)| there.get(name) != value.as_ref()).collect()
    }

    /// Returns the annotations to remove with a node of this cluster, if the node wrote them: they contain its hardware address.
    pub(crate) fn own(how: &Flannel, mac: &str, there: &Annotations) -> BTreeMap<String, Option<String>> {
        let prefix = prefix(how);
        let names = ["backend-data", "backend-v6-data"];
        if !names
            .iter()
            .any(|name| there.get(&format!("{prefix}{name}")).is_some_and(|data| data.contains(mac)))
        {
            return BTreeMap::new();
        }
        let all = ["kube-subnet-manager", "backend-type", "public-ip", "public-ipv6"];
        all.iter().chain(&names).map(|name| (format!("{prefix}{name}"), None)).collect()
    }
}

/// flannel's file on each host (`subnet.env`): the host's subnets, which flannel's CNI plugin reads.
pub(crate) mod subnet_file {
    use super::{Config, Flannel, IpNet, file, io};

    /// Identifies a file that this daemon wrote, which holds no news for it.
    const MARK: &str = "NETLOOM=true";

    /// Returns the subnets that flannel had on this host: `FLANNEL_SUBNET=10.244.3.1/24`, `FLANNEL_IPV6_SUBNET=fd44:0:0:3::1/64`.
    pub(crate) fn read(how: &Flannel) -> Vec<IpNet> {
        let text = std::fs::read_to_string(&how.subnet_file).unwrap_or_default();
        if is_own(&text) {
            return Vec::new();
        }
        let subnet = |line: &str| {
            let (name, subnet) = line.split_once('=')?;
            let is_subnet = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].contains(&name);
            subnet.trim().parse::<IpNet>().ok().filter(|_| is_subnet).map(|net| net.trunc())
        };
        text.lines().filter_map(subnet).collect()
    }

    /// Writes the file with the first block of each family, so that flannel's CNI plugin keeps working.
    pub(crate) fn write(how: &Flannel, config: &Config, own: &[IpNet], mtu: u32) -> io::Result<bool> {
        let Some(network) = config.networks.first() else { return Ok(false) };
        let mut text = String::new();
        for (v4, family) in [(true, ""), (false, "IPV6_")] {
            let block = own.iter().find(|block| network.has(block) && block.addr().is_ipv4() == v4);
            let prefix = block.and_then(|block| network.prefixes(v4).find(|prefix| prefix.contains(block)));
            let (Some(block), Some(prefix)) = (block, prefix) else { continue };
            // The first host address, as flannel writes it.
            let gateway = block.hosts().find(|ip| *ip != block.network()).unwrap_or(block.addr());
            text += &format!(
                "FLANNEL_{family}NETWORK={prefix}\nFLANNEL_{family}SUBNET={gateway}/{}\n",
                block.prefix_len()
            );
        }
        // The daemon masquerades, so the plugin need not.
        text += &format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n{MARK}\n");
        file::write(&how.subnet_file, text.as_bytes(), 0o644)
    }

    /// Removes the file if this daemon wrote it.
    pub(crate) fn remove(how: &Flannel) -> io::Result<()> {
        let text = std::fs::read_to_string(&how.subnet_file).unwrap_or_default();
        if is_own(&text) { file::remove(&how.subnet_file) } else { Ok(()) }
    }

    fn is_own(text: &str) -> bool {
        text.lines().any(|line| line == MARK)
    }
}
