//! flannel's keys in etcd: `PREFIX/subnets/ADDRESS-LENGTH` says at which host a subnet is, and by which tunnel.
//!
//! Nodes of flannel's are nodes here, called after their subnets, and this node's blocks stand there as it writes its own: so the
//! two reach each other, and a cluster goes from one to the other node by node.

use std::{net::Ipv4Addr, path::Path};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;

use super::{Update, block_name, parse_block};
use crate::{config::Flannel, record::Record};

/// What stands at a subnet's key (flannel, `LeaseAttrs`).
#[derive(Debug, Deserialize)]
struct Lease {
    #[serde(rename = "PublicIP")]
    address: Ipv4Addr,
    #[serde(rename = "BackendType")]
    backend: String,
    #[serde(rename = "BackendData", default)]
    data: Option<Data>,
    /// The node of this cluster's that wrote it; flannel does not look at it.
    #[serde(rename = "Netloom", default)]
    netloom: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Data {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

/// Gives the prefix of the subnets' keys.
pub(super) fn prefix(how: &Flannel) -> String {
    format!("{}/subnets/", how.prefix)
}

/// Gives the key of a block, if flannel can have it.
pub(super) fn key(how: &Flannel, block: IpNet) -> Option<String> {
    block.addr().is_ipv4().then(|| format!("{}{}", prefix(how), block_name(block)))
}

/// Reads what has become of a key, behind the prefix.
pub(super) fn read(how: &Flannel, name: &str, value: Option<&[u8]>) -> Option<Update> {
    // With both families a key has both subnets.
    let block = parse_block(name.split('&').next()?)?;
    let name = format!("flannel-{}", block_name(block));
    let Some(value) = value else { return Some(Update::Node(name, None)) };
    let record = match serde_json::from_slice::<Lease>(value) {
        Ok(lease) if lease.netloom.is_some() => None,
        Ok(lease) => {
            let data = lease.data.filter(|_| lease.backend == "vxlan");
            let tunnel = data.as_ref().map(|data| json!({"vni": data.vni, "port": how.port}));
            let record = json!({
                "name": name, "addresses": [lease.address], "blocks": [block], "tunnel": tunnel,
                "mac": data.map(|data| data.mac),
            });
            Some(record.to_string().into_bytes())
        }
        // It is refused, with what is wrong with it.
        Err(_) => Some(value.to_vec()),
    };
    Some(Update::Node(name, record))
}

/// Writes a node as flannel's nodes read it; nothing where it has no address of IPv4.
pub(super) fn value(how: &Flannel, node: &Record) -> Option<Vec<u8>> {
    let address = node.address(true)?;
    let lease = json!({
        "PublicIP": address, "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": how.vni, "VtepMAC": node.mac().to_string()},
        "Netloom": node.name,
    });
    Some(lease.to_string().into_bytes())
}

/// Tells whether a key may be overwritten by a node: it wrote it itself, or flannel did on the same host.
pub(super) fn is_own(value: &[u8], node: &Record) -> bool {
    serde_json::from_slice::<Lease>(value).is_ok_and(|lease| match &lease.netloom {
        Some(name) => *name == node.name,
        None => node.address(true) == Some(lease.address.into()),
    })
}

/// Tells whether a node of this cluster's wrote it.
pub(super) fn is_of(value: &[u8], node: &str) -> bool {
    serde_json::from_slice::<Lease>(value).is_ok_and(|lease| lease.netloom.as_deref() == Some(node))
}

/// Reads which subnet flannel had on this host: `FLANNEL_SUBNET=10.244.3.1/24`.
pub(super) fn own_subnet(file: &Path) -> Option<IpNet> {
    let text = std::fs::read_to_string(file).ok()?;
    let subnet = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))?;
    subnet.trim().parse::<IpNet>().ok().map(|net| net.trunc())
}
