//! Results of 0.3.0, 0.3.1 and 0.4.0: interfaces, and a flat list of addresses with their family.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Dns, Route};
use crate::address;

/// A success result.
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
    /// DNS settings, printed even if empty.
    pub dns: Dns,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// The interface's hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The path of the interface's namespace; empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The family: `4` or `6`.
    #[serde(default)]
    pub version: String,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    /// The address with its prefix length.
    #[serde(with = "address::cidr")]
    pub address: IpNet,
    /// The gateway of the subnet.
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}
