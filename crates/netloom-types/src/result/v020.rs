//! Results of 0.1.0 and 0.2.0: one address per family, with its routes inside.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Dns, ResultError, Route, v040};
use crate::address;

/// Holds a success result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Success {
    /// The IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip4: Option<IpConfig>,
    /// The IPv6 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip6: Option<IpConfig>,
    /// DNS settings, printed also when empty.
    pub dns: Dns,
}

/// Describes one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address with prefix length.
    #[serde(with = "address::cidr")]
    pub ip: IpNet,
    /// The gateway of the subnet.
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Routes of this family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

impl TryFrom<v040::Success> for Success {
    type Error = ResultError;

    fn try_from(from: v040::Success) -> Result<Self, ResultError> {
        let family = |version: &str, is_v4: bool| {
            from.ips.iter().find(|ip| ip.version == version).map(|ip| IpConfig {
                ip: ip.address,
                gateway: ip.gateway,
                routes: from
                    .routes
                    .iter()
                    .filter(|route| route.dst.addr().is_ipv4() == is_v4)
                    .map(|route| Route::new(route.dst, route.gw))
                    .collect(),
            })
        };
        let result = Self { ip4: family("4", true), ip6: family("6", false), dns: from.dns.clone() };
        if result.ip4.is_none() && result.ip6.is_none() {
            return Err(ResultError::NoAddresses);
        }
        Ok(result)
    }
}
