//! `static`: addresses from the configuration or from the runtime.

use std::net::IpAddr;

use ipnet::IpNet;
use netloom_plugin::{
    Error, Plugin, Request, Sandbox, Undo,
    result::{
        Dns, Route,
        v100::{IpConfig, Success},
    },
};
use netloom_types::address::{parse_cidr, parse_ip};
use schemars::JsonSchema;
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    error::{check_failed, invalid},
    runtime_args::{IpamConf, require_one_per_family},
};

/// The plugin.
#[derive(Debug)]
pub struct Static;

/// The value of `ipam` as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Ipam {
    /// Addresses of the container. Those that the runtime requests replace them
    #[schemars(example = serde_json::json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]))]
    addresses: Vec<Address>,
    /// Routes of the container
    #[schemars(example = serde_json::json!([{"dst": "0.0.0.0/0"}]))]
    routes: Vec<Route>,
    /// DNS settings of the result
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Address {
    /// Address with prefix length
    #[schemars(example = &"10.1.0.5/24")]
    #[serde(default)]
    address: String,
    /// Gateway of the address's subnet
    #[schemars(with = "Option<String>", example = &"10.1.0.1")]
    #[serde(default, with = "netloom_types::address::optional_ip")]
    gateway: Option<IpAddr>,
    // Programs that write the reference plugin's own type as JSON have its parsed address beside the text.
    #[schemars(skip)]
    #[serde(default, rename = "Address")]
    _parsed: IgnoredAny,
}

/// The validated configuration.
struct Conf {
    addresses: Vec<(IpNet, Option<IpAddr>)>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Conf {
    /// Reads and validates the configuration.
    fn of(request: &Request) -> Result<Self, Error> {
        let written: IpamConf<Ipam> = IpamConf::of(request)?;
        let ipam = written.ipam;
        let mut addresses = Vec::new();
        for (index, entry) in ipam.addresses.iter().enumerate() {
            let key = format!("`ipam.addresses[{index}].address`");
            addresses.push((cidr(&key, &entry.address)?, entry.gateway));
        }
        for item in listed(request, "IP") {
            addresses.push((cidr("`IP` of CNI_ARGS", item)?, None));
        }
        for item in listed(request, "GATEWAY") {
            let gateway = parse_ip(item).map_err(|_| {
                invalid(format!("invalid gateway address: {item} (CNI_ARGS)"))
                    .details("pass an address without prefix length, such as GATEWAY=10.1.0.1")
            })?;
            for (net, gateway_of_net) in &mut addresses {
                if net.contains(&gateway) {
                    *gateway_of_net = Some(gateway);
                }
            }
        }
        // Requested addresses replace configured ones. The capability is last and takes precedence.
        for (key, ips) in
            [("`args.cni.ips`", &written.args.cni.ips), ("`runtimeConfig.ips`", &written.runtime_config.ips)]
        {
            if !ips.is_empty() {
                let nets = ips.iter().map(|text| cidr(key, text).map(|net| (net, None)));
                addresses = nets.collect::<Result<_, _>>()?;
            }
        }
        require_one_per_family(request.version, addresses.iter().map(|(net, _)| net.addr()))?;
        Ok(Self { addresses, routes: ipam.routes, dns: ipam.dns })
    }
}

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn uses_netns(&self) -> bool {
        false
    }

    fn add(&self, request: &Request, _: &Sandbox, _: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let ips = conf.addresses.into_iter();
        Ok(Success {
            ips: ips.map(|(address, gateway)| IpConfig { address, gateway, interface: None }).collect(),
            routes: conf.routes,
            dns: conf.dns,
            ..Success::default()
        })
    }

    fn del(&self, _: &Request, _: &Sandbox) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let prev = request.require_prev_result()?;
        for (net, gateway) in Conf::of(request)?.addresses {
            let found = prev.ips.iter().find(|ip| ip.address.addr() == net.addr());
            if let (Some(found), Some(gateway)) = (found, gateway)
                && found.gateway != Some(gateway)
            {
                return Err(check_failed(format!(
                    "static: the gateway of address {} of `{}` is not {gateway}",
                    net.addr(),
                    sandbox.ifname
                )));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request).map(drop)
    }
}

/// Returns the items of a comma-separated value of `CNI_ARGS`.
fn listed<'a>(request: &'a Request, key: &str) -> impl Iterator<Item = &'a str> {
    request.args.value(key).into_iter().flat_map(|text| text.split(',')).map(str::trim)
}

fn cidr(key: &str, text: &str) -> Result<IpNet, Error> {
    parse_cidr(text).map_err(|error| {
        invalid(format!("{key} is expected to be in CIDR notation: {error}"))
            .details("write it with a prefix length, such as 10.1.0.5/24")
    })
}
