//! Conversion between neighbouring result formats.

use super::{ResultError, Route, v020, v040, v100};

impl TryFrom<v040::Success> for v020::Success {
    type Error = ResultError;

    fn try_from(from: v040::Success) -> Result<Self, ResultError> {
        let family = |version: &str, is_v4: bool| {
            from.ips.iter().find(|ip| ip.version == version).map(|ip| v020::IpConfig {
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

impl From<v020::Success> for v040::Success {
    fn from(from: v020::Success) -> Self {
        let mut result = Self { dns: from.dns, ..Self::default() };
        for (version, config) in [("4", from.ip4), ("6", from.ip6)] {
            let Some(config) = config else { continue };
            result.ips.push(v040::IpConfig {
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

impl From<v100::Success> for v040::Success {
    fn from(from: v100::Success) -> Self {
        let interface =
            |from: v100::Interface| v040::Interface { name: from.name, mac: from.mac, sandbox: from.sandbox };
        let ip = |from: v100::IpConfig| v040::IpConfig {
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

impl From<v040::Success> for v100::Success {
    fn from(from: v040::Success) -> Self {
        let interface = |from: v040::Interface| v100::Interface {
            name: from.name,
            mac: from.mac,
            sandbox: from.sandbox,
            ..v100::Interface::default()
        };
        let ip = |from: v040::IpConfig| v100::IpConfig {
            address: from.address,
            gateway: from.gateway,
            interface: from.interface,
        };
        Self {
            interfaces: from.interfaces.into_iter().map(interface).collect(),
            ips: from.ips.into_iter().map(ip).collect(),
            routes: from.routes,
            dns: from.dns,
        }
    }
}
