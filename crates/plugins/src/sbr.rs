//! `sbr`: source-based routing, so that packets from an interface's address leave on that interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kernel::{
    addr,
    link::{self, Link},
    route::{self, Route},
    rule::{self, Rule},
};
use netloom_plugin::{
    Error, Plugin, Request, Sandbox, Undo,
    result::v100::{IpConfig, Success},
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    container_netns::ContainerNetns,
    error::{Errors, Explain, check_failed, invalid},
    prev_result::prev_result,
};

/// The plugin.
#[derive(Debug)]
pub struct Sbr;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Routing table that another program fills; the plugin adds only the rules that select it. Defaults to a new table, the first free one from 100 on, which the plugin fills
    #[schemars(example = 200, range(min = 1, max = 4_294_967_295_u32))]
    table: Option<i64>,
    /// Gateways of the default routes, at most one of each family. Defaults to those of the previous result
    #[schemars(example = serde_json::json!(["10.1.0.1"]))]
    gateways: Vec<String>,
    /// Adds routes with source hints to the main table, so that the kernel chooses the interface's address as source
    add_source_hints: bool,
}

/// The validated configuration.
struct Conf {
    /// The foreign table that rules select, or `None` for a table of the plugin's own.
    table: Option<u32>,
    /// Gateways that take precedence over the result's, at most one of each family.
    gateways: Vec<IpAddr>,
    source_hints: bool,
}

/// The first table that the plugin tries, as in the reference plugin.
const FIRST_TABLE: u32 = 100;

impl Conf {
    /// Reads and validates the configuration.
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let table = written.table.map(|table| {
            u32::try_from(table).ok().filter(|table| *table > 0).ok_or_else(|| {
                invalid(format!("`table` {table} is not a routing table"))
                    .details("use a number from 1 to 4294967295, or leave it out")
            })
        });
        let parse = |(index, text): (usize, &String)| {
            text.parse::<IpAddr>().map_err(|_| {
                invalid(format!("invalid static gateway IP address: {text:?} in `gateways[{index}]`"))
                    .details("write an address without prefix length, such as 10.1.0.1")
            })
        };
        let gateways = written.gateways.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        let ipv4 = gateways.iter().filter(|gateway| gateway.is_ipv4()).count();
        if ipv4 > 1 || gateways.len() - ipv4 > 1 {
            return Err(invalid("`gateways` has more than one address of a family")
                .details("list at most one for IPv4 and one for IPv6"));
        }
        Ok(Self { table: table.transpose()?, gateways, source_hints: written.add_source_hints })
    }

    /// Returns the gateway for packets from an address.
    fn gateway(&self, ip: &IpConfig) -> Option<IpAddr> {
        let same_family = |gateway: &IpAddr| gateway.is_ipv4() == ip.address.addr().is_ipv4();
        self.gateways.iter().copied().find(same_family).or(ip.gateway)
    }
}

impl Plugin for Sbr {
    fn name(&self) -> &'static str {
        "sbr"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let prev = prev_result(request)?;
        let conf = Conf::of(request)?;
        let ips = addresses(&prev, sandbox)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let inside = link::require(&container.socket, sandbox.ifname.as_str()).explain()?;
        // Another plugin, ours or the reference, must not choose the same table in this container meanwhile.
        let lock = container.netns.lock().explain()?;
        let before = Routes::read(&container)?;
        undo.push("restore routes and rules", {
            let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
            let before = before.clone();
            move || before.restore(&container)
        })?;
        match conf.table {
            Some(table) => {
                for ip in &ips {
                    rule::add(&container.socket, ip.address.addr(), table).explain()?;
                }
            }
            None => route_by_source(&container, &inside, &conf, &ips, &before)?,
        }
        drop(lock);
        Ok(prev)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let Some(container) = ContainerNetns::open_if_exists(sandbox.netns.as_deref())? else {
            return Ok(());
        };
        let _lock = container.netns.lock().explain()?;
        // If the interface is gone, its routes are too, but rules stay until they are removed.
        let mut sources: Vec<IpAddr> = Vec::new();
        if let Some(inside) = link::find(&container.socket, sandbox.ifname.as_str()).explain()? {
            let addresses = addr::list(&container.socket, &inside).explain()?;
            sources.extend(addresses.iter().map(|address| address.net.addr()));
        }
        if let Some(prev) = &request.prev_result {
            sources.extend(interface_ips(prev, sandbox).map(|ip| ip.address.addr()));
        }
        let mut errors = Errors::default();
        for rule in rules(&container)? {
            if let Some(source) = rule.source.filter(|source| sources.contains(source)) {
                errors.note(rule::remove(&container.socket, source, rule.table).explain());
            }
        }
        errors.into_result()
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let prev = prev_result(request)?;
        let conf = Conf::of(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let rules = rules(&container)?;
        for ip in addresses(&prev, sandbox)? {
            let source = ip.address.addr();
            let exists = rules.iter().any(|rule| {
                rule.source == Some(source) && conf.table.is_none_or(|table| rule.table == table)
            });
            if !exists {
                return Err(check_failed(format!(
                    "no rule selects a routing table for packets from {source}"
                )));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request).map(drop)
    }
}

/// Returns the addresses of the container's interface in the previous result.
fn interface_ips<'a>(prev: &'a Success, sandbox: &'a Sandbox) -> impl Iterator<Item = &'a IpConfig> {
    prev.ips
        .iter()
        .filter(|ip| prev.interface_of(ip).is_none_or(|interface| interface.name == sandbox.ifname.as_str()))
}

/// Returns those addresses, and fails if the result has none at all.
fn addresses(prev: &Success, sandbox: &Sandbox) -> Result<Vec<IpConfig>, Error> {
    if prev.ips.is_empty() {
        return Err(invalid(format!("No IP addresses supplied on interface: {}", sandbox.ifname))
            .details("put sbr after a plugin that returns addresses in `plugins`"));
    }
    Ok(interface_ips(prev, sandbox).cloned().collect())
}

/// A container's rules and routes before a change.
#[derive(Debug, Clone)]
struct Routes {
    rules: Vec<Rule>,
    routes: Vec<Route>,
}

impl Routes {
    fn read(container: &ContainerNetns) -> Result<Self, Error> {
        let mut routes = route::list(&container.socket, Ipv4Addr::UNSPECIFIED.into()).explain()?;
        routes.extend(route::list(&container.socket, Ipv6Addr::UNSPECIFIED.into()).explain()?);
        Ok(Self { rules: rules(container)?, routes })
    }

    /// Returns a link's routes in the main table.
    fn of_link(&self, link: &Link) -> Vec<Route> {
        let routes = self.routes.iter();
        routes.filter(|route| route.link == link.index && route.table == route::TABLE_MAIN).copied().collect()
    }

    /// Returns the first table from `candidate` on that no rule selects and that has no route.
    fn free_table(&self, candidate: u32) -> u32 {
        let taken = |table: u32| {
            self.rules.iter().any(|rule| rule.table == table)
                || self.routes.iter().any(|route| route.table == table)
        };
        (candidate..=u32::MAX).find(|table| !taken(*table)).unwrap_or(candidate)
    }

    /// Restores the rules and routes.
    fn restore(&self, container: &ContainerNetns) -> Result<(), Error> {
        let now = Self::read(container)?;
        for rule in now.rules.iter().filter(|rule| !self.rules.contains(rule)) {
            if let Some(source) = rule.source {
                rule::remove(&container.socket, source, rule.table).explain()?;
            }
        }
        // Routes without a gateway come first: those with one need them to reach it.
        let mut missing: Vec<&Route> =
            self.routes.iter().filter(|route| !now.routes.contains(route)).collect();
        missing.sort_by_key(|route| route.gateway.is_some());
        for route in missing {
            route::replace(&container.socket, route).explain()?;
        }
        for route in now.routes.iter().filter(|route| !self.routes.contains(route)) {
            route::remove_exact(&container.socket, route).explain()?;
        }
        Ok(())
    }
}

/// Lists the rules of both families.
fn rules(container: &ContainerNetns) -> Result<Vec<Rule>, Error> {
    let mut rules = rule::list(&container.socket, Ipv4Addr::UNSPECIFIED.into()).explain()?;
    rules.extend(rule::list(&container.socket, Ipv6Addr::UNSPECIFIED.into()).explain()?);
    Ok(rules)
}

/// Moves the interface's routes from the main table to one table for each of its addresses.
fn route_by_source(
    container: &ContainerNetns,
    inside: &Link,
    conf: &Conf,
    ips: &[IpConfig],
    before: &Routes,
) -> Result<(), Error> {
    let socket = &container.socket;
    let of_link = before.of_link(inside);
    let mut table = before.free_table(FIRST_TABLE);
    for ip in ips {
        let source = ip.address.addr();
        rule::add(socket, source, table).explain()?;
        if let Some(gateway) = conf.gateway(ip) {
            let default = IpNet::new(unspecified(source), 0).map_err(|error| invalid(error.to_string()))?;
            // The kernel refuses a gateway outside the interface's subnets, as for any route.
            route::add(socket, &Route { table, ..Route::new(default, Some(gateway), inside.index) })
                .explain()?;
        }
        for route in &of_link {
            let unspecific = route.source.is_none() && route.gateway.is_none();
            let in_subnet = |other: Option<IpAddr>| other.is_some_and(|other| ip.address.contains(&other));
            if unspecific || in_subnet(route.source) || in_subnet(route.gateway) {
                route::replace(socket, &Route { table, ..*route }).explain()?;
            }
        }
        // Each address gets a table of its own.
        table = before.free_table(table + 1);
    }
    if conf.source_hints {
        for ip in ips {
            let hint = Route {
                source: Some(ip.address.addr()),
                scope: route::SCOPE_LINK,
                ..Route::new(ip.address.trunc(), None, inside.index)
            };
            route::replace(socket, &hint).explain()?;
        }
    }
    for route in of_link.iter().filter(|route| !conf.source_hints || route.scope != route::SCOPE_LINK) {
        route::remove_exact(socket, route).explain()?;
    }
    Ok(())
}

/// Returns the unspecified address of an address's family.
fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
