//! What a node says of itself to the others: the one object that a store keeps for it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use kernel::link::Mac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{Config, Form};

/// Describes a node. Some 300 bytes of JSON, written when something of it changes and at no other time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its name, of which there is one in a cluster.
    pub name: String,
    /// Its addresses on the network of the hosts, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The blocks of pods' addresses that are its own.
    pub blocks: Vec<IpNet>,
    /// Hears tunnelled packets with this network identifier and at this UDP port; none where it makes no tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// The hardware address of its tunnel, where that does not follow from its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// That of its tunnel of IPv6, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac6: Option<String>,
    /// It is flannel's: each family of its pods is reached by the tunnel of that family, and never without one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flannel: bool,
    /// Networks of which it has no address left, and finds no block: others give back what they do not need.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub short: BTreeSet<String>,
    /// Tells two daemons of one name apart: made at a daemon's first start on a host, and kept there.
    #[serde(default)]
    pub incarnation: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(it: &bool) -> bool {
    !it
}

/// Says how a node hears tunnelled packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// Packets come as they are (VXLAN-GPE), not in Ethernet frames.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gpe: bool,
}

impl Tunnel {
    /// Says how a node with this configuration hears.
    pub fn of(config: &Config) -> Self {
        Self { vni: config.vni, port: config.port, gpe: config.tunnel == Form::VxlanGpe }
    }

    fn form(self) -> &'static str {
        if self.gpe { "VXLAN-GPE" } else { "VXLAN" }
    }
}

impl std::fmt::Display for Tunnel {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} network {} at port {}", self.form(), self.vni, self.port)
    }
}

/// Says why a record is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The text is no record.
    #[error("it is no record of a node: {0}")]
    Text(String),
    /// It stands under another name than its own.
    #[error("it calls itself {0:?}")]
    Name(String),
    /// A name that is none.
    #[error("{0:?} is no name: 1 to 253 letters, digits, '-' and '.', with a letter or digit first")]
    NotAName(String),
    /// A block outside the cluster.
    #[error("block {0} is outside the pods' prefixes")]
    Outside(IpNet),
    /// A hardware address that is none.
    #[error("{0:?} is no hardware address")]
    Mac(String),
    /// An address that no host has.
    #[error("{0} is no address of a host")]
    Address(IpAddr),
}

impl Record {
    /// Reads a record that stands under a name, and checks it: what somebody wrote by mistake is refused whole.
    ///
    /// # Errors
    /// When it is no record, another node's, or has addresses outside the pods' prefixes.
    pub fn parse(name: &str, text: &[u8], pods: &[IpNet]) -> Result<Self, Invalid> {
        let mut record: Self =
            serde_json::from_slice(text).map_err(|error| Invalid::Text(error.to_string()))?;
        if !is_name(name) {
            return Err(Invalid::NotAName(name.to_owned()));
        }
        if record.name != name {
            return Err(Invalid::Name(record.name));
        }
        for block in &mut record.blocks {
            *block = block.trunc();
            if !pods.iter().any(|net| net.contains(&*block)) {
                return Err(Invalid::Outside(*block));
            }
        }
        for ip in &record.addresses {
            let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || link_local {
                return Err(Invalid::Address(*ip));
            }
        }
        for mac in [&record.mac, &record.mac6].into_iter().flatten() {
            if mac.parse::<Mac>().is_err() {
                return Err(Invalid::Mac(mac.clone()));
            }
        }
        record.blocks.sort();
        record.blocks.dedup();
        Ok(record)
    }

    /// Returns the address of a family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// Returns the hardware address of the node's tunnel of a family, which usually follows from its name: it is the same after a
    /// reboot, and nobody need be told of it.
    pub fn mac(&self, v4: bool) -> Mac {
        let given = if v4 { self.mac.as_ref() } else { self.mac6.as_ref().or(self.mac.as_ref()) };
        given.and_then(|mac| mac.parse().ok()).unwrap_or_else(|| mac_of(&self.name))
    }
}

/// Returns whether a text can be a node's name (RFC 1123, section 2.1, as Kubernetes has it).
pub fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !text.contains("..")
}

/// Returns the hardware address of the tunnel of the node with this name: locally administered, of one host.
pub fn mac_of(name: &str) -> Mac {
    let digest = Sha256::digest(name);
    Mac([2, digest[0], digest[1], digest[2], digest[3], digest[4]])
}

/// Returns the next hop by which a tunnel leads to the node with this hardware address: its link-local address
/// (RFC 4291, appendix A), for IPv4 too (RFC 5549).
pub fn hop_of(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
