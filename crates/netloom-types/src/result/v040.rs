//! Results of 0.3.0, 0.3.1 and 0.4.0: interfaces, and a flat list of addresses that say their family.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Dns, Route, v020, v100};
use crate::address;

/// Holds a success result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Success {
    /// Interfaces of the host and of the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// DNS settings, printed also when empty.
    pub dns: Dns,
}

/// Describes one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The namespace that it is in; empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// Describes one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// `4` or `6`.
    #[serde(default)]
    pub version: String,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    /// Address with prefix length.
    #[serde(with = "address::cidr")]
    pub address: IpNet,
    /// The gateway of the subnet.
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

impl From<v020::Success> for Success {
    fn from(from: v020::Success) -> Self {
        let mut result = Self { dns: from.dns, ..Self::default() };
        for (version, config) in [("4", from.ip4), ("6", from.ip6)] {
            let Some(config) = config else { continue };
            result.ips.push(IpConfig {
                version: version.to_owned(),
                interface: None,
                address: config.ip,
                gateway: config.gateway,
            });
            result.routes.extend(config.routes);
        }
        result
    }
}

impl From<v100::Success> for Success {
    fn from(from: v100::Success) -> Self {
        let interface =
            |from: v100::Interface| Interface { name: from.name, mac: from.mac, sandbox: from.sandbox };
        let ip = |from: v100::IpConfig| IpConfig {
            version: if from.address.addr().is_ipv4() { "4" } else { "6" }.to_owned(),
            interface: from.interface,
            address: from.address,
            gateway: from.gateway,
        };
        Self {
            interfaces: from.interfaces.into_iter().map(interface).collect(),
            ips: from.ips.into_iter().map(ip).collect(),
            routes: from.routes,
            dns: from.dns,
        }
    }
}
