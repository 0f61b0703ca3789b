//! The conventional capabilities and their values in `runtimeConfig` (CONVENTIONS.md).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address;

/// The values that a runtime passes to plugins that declare the capability of the same name.
///
/// A field that the runtime did not send is empty. Keys that CONVENTIONS.md does not list stay in the configuration object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// `portMappings`: the published ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// `ipRanges`: a list of pools. The plugin allocates one address from each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// `bandwidth`: limits of the container's traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// `dns`: DNS settings for the container. The key names differ from those of a result's `dns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<RuntimeDns>,
    /// `ips`: requested addresses, as `ADDRESS` or `ADDRESS/LENGTH`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// `mac`: the requested hardware address, six octets in hexadecimal with colons.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// `infinibandGUID`: the requested GUID, eight octets in hexadecimal with colons.
    #[serde(rename = "infinibandGUID", skip_serializing_if = "String::is_empty")]
    pub infiniband_guid: String,
    /// `deviceID`: the address of a device, such as the PCI address `0000:04:00.5`.
    #[serde(rename = "deviceID", skip_serializing_if = "String::is_empty")]
    pub device_id: String,
    /// `aliases`: names that resolve to the container's addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// `cgroupPath`: the path of the pod's cgroup.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_path: String,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortMapping {
    // Wider than a port number, so that a plugin can name the value that it refuses.
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

/// A range of addresses to allocate from: an entry of `ipRanges` and of host-local's `ranges`.
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

/// Traffic limits: rates in bit/s, bursts in bit. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Rate of traffic to the container.
    pub ingress_rate: u64,
    /// Burst of traffic to the container.
    pub ingress_burst: u64,
    /// Rate of traffic from the container.
    pub egress_rate: u64,
    /// Burst of traffic from the container.
    pub egress_burst: u64,
}

/// The value of the `dns` capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeDns {
    /// Servers in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}
