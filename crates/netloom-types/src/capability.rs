//! The conventional capabilities and their values in `runtimeConfig` (CONVENTIONS.md).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address;

/// The values that a runtime passes to plugins that declare the capability of the same name.
///
/// Every field is absent unless the runtime gave it. Keys that are not in CONVENTIONS.md stay in the
/// configuration object and can be read from there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// `portMappings`: ports of the host that lead to the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// `ipRanges`: a list of pools; one address is taken from each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// `bandwidth`: limits of the container's traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// `dns`: servers for the container (other key names than a result's `dns`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<RuntimeDns>,
    /// `ips`: addresses asked for, `ADDRESS` or `ADDRESS/LENGTH`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// `mac`: the hardware address asked for, as six octets in hexadecimal with colons.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// `infinibandGUID`: eight octets in hexadecimal with colons.
    #[serde(rename = "infinibandGUID", skip_serializing_if = "String::is_empty")]
    pub infiniband_guid: String,
    /// `deviceID`: a device by its address, such as the PCI address `0000:04:00.5`.
    #[serde(rename = "deviceID", skip_serializing_if = "String::is_empty")]
    pub device_id: String,
    /// `aliases`: names to be resolved to the container's addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// `cgroupPath`: path of the pod's cgroup.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_path: String,
}

/// Asks for one published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortMapping {
    // Wider than a port is, so that a plugin can refuse what does not fit by name.
    /// Port of the host, 1 to 65535
    #[cfg_attr(feature = "schema", schemars(example = 8080, range(min = 1, max = 65535)))]
    #[serde(default)]
    pub host_port: i64,
    /// Port of the container, 1 to 65535
    #[cfg_attr(feature = "schema", schemars(example = 80, range(min = 1, max = 65535)))]
    #[serde(default)]
    pub container_port: i64,
    /// `tcp`, `udp` or `sctp`, in either case
    #[cfg_attr(feature = "schema", schemars(example = &"tcp"))]
    #[serde(default)]
    pub protocol: String,
    /// Address of the host to publish on; without it, on all
    #[cfg_attr(feature = "schema", schemars(example = &"127.0.0.1"))]
    #[serde(default, rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// Describes addresses to choose from: `ipRanges` and host-local's `ranges`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct IpRange {
    /// The subnet; required
    #[cfg_attr(feature = "schema", schemars(with = "String", example = &"10.88.0.0/16"))]
    #[serde(with = "address::cidr")]
    pub subnet: IpNet,
    /// First address to give out; without it, the subnet's first
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", example = &"10.88.1.0"))]
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// Last address to give out; without it, the subnet's last before the broadcast address
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", example = &"10.88.1.255"))]
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The gateway; without it, the subnet's first address
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", example = &"10.88.0.1"))]
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// Limits traffic: rates in bit/s, bursts in bit; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Into the container.
    pub ingress_rate: u64,
    /// Into the container.
    pub ingress_burst: u64,
    /// Out of the container.
    pub egress_rate: u64,
    /// Out of the container.
    pub egress_burst: u64,
}

/// The `dns` capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeDns {
    /// Servers in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Domains to search.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}
