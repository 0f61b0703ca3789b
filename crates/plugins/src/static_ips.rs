//! `static`: addresses that stand in the configuration, or that the runtime asks for.

use std::net::IpAddr;

use ipnet::IpNet;
use netloom_plugin::{
    Code, Error, Plugin, Request, RuntimeConfig, Sandbox, SpecVersion, Undo,
    result::{
        Dns, Route,
        v100::{IpConfig, Success},
    },
};
use netloom_types::address::{parse_cidr, parse_ip};
use serde::Deserialize;

use crate::failure::{differs, invalid};

/// The plugin.
#[derive(Debug)]
pub struct Static;

/// The configuration as written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    ipam: Option<Ipam>,
    #[serde(default)]
    args: Args,
    #[serde(default)]
    runtime_config: RuntimeConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ipam {
    addresses: Vec<Address>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(default)]
    address: String,
    #[serde(default, with = "netloom_types::address::optional_ip")]
    gateway: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Args {
    pub(crate) cni: CniArgs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CniArgs {
    pub(crate) ips: Vec<String>,
    pub(crate) mac: String,
}

/// The configuration as meant.
struct Conf {
    addresses: Vec<(IpNet, Option<IpAddr>)>,
    routes: Vec<Route>,
    dns: Dns,
}

/// The keys of `CNI_ARGS` that plugins here know: one variable serves the interface plugin and its IPAM.
pub(crate) const KNOWN_ARGS: [&str; 3] = ["IP", "GATEWAY", "MAC"];

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let ipam = written.ipam.ok_or_else(|| invalid("IPAM config missing 'ipam' key"))?;
        require_known_args(request)?;
        let mut addresses = Vec::new();
        for (index, entry) in ipam.addresses.iter().enumerate() {
            let key = format!("`ipam.addresses[{index}].address`");
            addresses.push((cidr(&key, &entry.address)?, entry.gateway));
        }
        for item in listed(request, "IP") {
            addresses.push((cidr("`IP` of CNI_ARGS", item)?, None));
        }
        for item in listed(request, "GATEWAY") {
            let gateway =
                parse_ip(item).map_err(|_| invalid(format!("invalid gateway address: {item} (CNI_ARGS)")))?;
            for (net, of_net) in &mut addresses {
                if net.contains(&gateway) {
                    *of_net = Some(gateway);
                }
            }
        }
        // What the runtime asks for replaces the rest; the capability comes last and so wins.
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
                return Err(differs(format!(
                    "static: address {} of `{}` has another gateway than {gateway}",
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

/// Refuses keys of `CNI_ARGS` that no plugin here knows, unless they are to be ignored.
pub(crate) fn require_known_args(request: &Request) -> Result<(), Error> {
    request
        .args
        .require_known(&KNOWN_ARGS)
        .map_err(|error| Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: {error}")))
}

/// Versions before 0.3.0 cannot say more than one address of a family.
pub(crate) fn require_one_per_family(
    version: SpecVersion,
    ips: impl Iterator<Item = IpAddr> + Clone,
) -> Result<(), Error> {
    let v4 = ips.clone().filter(IpAddr::is_ipv4).count();
    if version < SpecVersion::V0_3_0 && (v4 > 1 || ips.count() - v4 > 1) {
        return Err(invalid(format!(
            "CNI version {version} does not support more than 1 address per family"
        ))
        .details("set `cniVersion` to 0.3.1 or later"));
    }
    Ok(())
}

fn listed<'a>(request: &'a Request, key: &str) -> impl Iterator<Item = &'a str> {
    request.args.value(key).into_iter().flat_map(|text| text.split(',')).map(str::trim)
}

fn cidr(key: &str, text: &str) -> Result<IpNet, Error> {
    parse_cidr(text).map_err(|error| invalid(format!("{key} is expected to be in CIDR notation: {error}")))
}
