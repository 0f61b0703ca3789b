//! A node's record: what the node publishes about itself in the store.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use kernel::link::Mac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    config::{Config, Form},
    name::is_name,
};

/// A node's record: some 300 bytes of JSON, written only when its content changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The node's name, unique in the cluster.
    pub name: String,
    /// The node's addresses on the hosts' network, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The blocks that the node owns.
    pub blocks: Vec<IpNet>,
    /// The tunnel format that the node accepts, or `None` if it has no tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// The hardware address of the node's tunnel, if it is not derived from the node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The hardware address of the node's IPv6 tunnel, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac6: Option<String>,
    /// A flannel node: each family of its pods is reached over the tunnel of that family, never directly.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flannel: bool,
    /// Networks in mode `overlay`: the node sends over its tunnel to nodes on its segment too. So that both ends of a path choose the
    /// same, which a strict reverse-path filter demands, a node in mode `auto` then does likewise.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub overlay: BTreeSet<String>,
    /// Networks in which the node has no address left and finds no free block. The other nodes then release unused blocks.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub short: BTreeSet<String>,
    /// Nodes whose leases ended long ago and on whose hosts nothing answers this node. Published while a node is short of addresses, which
    /// may take their blocks only if two nodes say so.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unreachable: BTreeSet<String>,
    /// Random identity of the node, created at the daemon's first start on a host and kept in its state directory.
    #[serde(default)]
    pub incarnation: String,
    /// Random identity of the daemon's run: a copy of the host has the same incarnation, but another instance.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The tunnel format that a node accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// VXLAN-GPE: packets are carried without Ethernet frames.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gpe: bool,
}

impl Tunnel {
    /// Returns the format that a configuration selects.
    pub fn of(config: &Config) -> Self {
        Self { vni: config.vni, port: config.port, gpe: config.tunnel == Form::VxlanGpe }
    }

    fn form(self) -> &'static str {
        if self.gpe { "VXLAN-GPE" } else { "VXLAN" }
    }
}

impl std::fmt::Display for Tunnel {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} network {} on port {}", self.form(), self.vni, self.port)
    }
}

/// The reason a record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The text is not a record.
    #[error("not a node record: {0}")]
    Text(String),
    /// The record is stored under the name of another node.
    #[error("the record names another node: `{0}`")]
    Name(String),
    /// The name is invalid.
    #[error(
        "`{0}` is not a node name: 1 to 253 letters, digits, `-` and `.`, starting with a letter or digit"
    )]
    NotAName(String),
    /// The text is longer than any record.
    #[error("more than {} bytes, the size of the longest record", Record::LONGEST)]
    TooLong,
    /// A hardware address is malformed, zero or a group's.
    #[error("`{0}` is not a hardware address of a device")]
    Mac(String),
    /// An address cannot be a host's.
    #[error("{0} is not a host address")]
    Address(IpAddr),
}

impl Record {
    /// The longest record in bytes: thousands of blocks.
    pub(crate) const LONGEST: usize = 1 << 17;

    /// Parses the record stored under a name. A record with any invalid field is refused as a whole. Whether the node may have
    /// the blocks that it claims is decided elsewhere ([`crate::ownership`]).
    ///
    /// # Errors
    /// If the text is not a record, names another node, or has addresses that no host can have.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Invalid> {
        if text.len() > Self::LONGEST {
            return Err(Invalid::TooLong);
        }
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
        }
        for ip in &record.addresses {
            let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            if *ip == Ipv4Addr::BROADCAST
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_loopback()
                || link_local
            {
                return Err(Invalid::Address(*ip));
            }
        }
        for mac in [&record.mac, &record.mac6].into_iter().flatten() {
            // The lowest bit of the first octet marks groups, broadcast included.
            if mac.parse::<Mac>().is_ok_and(|mac| mac.0[0] & 1 == 0 && mac.0 != [0; 6]) {
                continue;
            }
            return Err(Invalid::Mac(mac.clone()));
        }
        record.blocks.sort();
        record.blocks.dedup();
        Ok(record)
    }

    /// Returns the node's address of a family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// Returns the hardware address of the node's tunnel of a family. It is usually derived from the node's name, so that it
    /// survives a reboot and need not be published.
    pub fn mac(&self, v4: bool) -> Mac {
        let given = if v4 { self.mac.as_ref() } else { self.mac6.as_ref().or(self.mac.as_ref()) };
        given.and_then(|mac| mac.parse().ok()).unwrap_or_else(|| mac_of(&self.name))
    }
}

/// Derives a tunnel's hardware address from a node's name: locally administered, unicast.
pub fn mac_of(name: &str) -> Mac {
    let digest = Sha256::digest(name);
    Mac([2, digest[0], digest[1], digest[2], digest[3], digest[4]])
}

/// Returns the next hop of routes over a tunnel to the node with a hardware address: its link-local address
/// (RFC 4291, appendix A), also for IPv4 routes (RFC 5549).
pub fn hop_of(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
