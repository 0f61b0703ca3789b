//! `sbr`: source-based routing, so that what leaves from an interface's address leaves by that interface.

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
    failure::{Errors, Explain, differs, invalid},
    prev_result::prev_result,
};

/// The plugin.
#[derive(Debug)]
pub struct Sbr;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// A table that somebody else keeps, to which only the rules lead; without it, the first free one from 100 on
    #[schemars(example = 200, range(min = 1, max = 4_294_967_295_u32))]
    table: Option<i64>,
    /// Gateways to route by, at most one of each family; without them, the result's
    #[schemars(example = serde_json::json!(["10.1.0.1"]))]
    gateways: Vec<String>,
    /// Routes say which source address to use
    add_source_hints: bool,
}

/// The configuration as meant.
struct Conf {
    /// The table is somebody else's: only rules lead to it.
    table: Option<u32>,
    /// Gateways that count more than the result's, one of each family.
    gateways: Vec<IpAddr>,
    source_hints: bool,
}

/// Tables from here on are tried, as the reference does.
const FIRST_TABLE: u32 = 100;

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let table = written.table.map(|table| {
            u32::try_from(table)
                .ok()
                .filter(|table| *table > 0)
                .ok_or_else(|| invalid(format!("`table` {table} is no number of a routing table")))
        });
        let parse = |(index, text): (usize, &String)| {
            text.parse::<IpAddr>().map_err(|_| {
                invalid(format!("invalid static gateway IP address: {text:?} in `gateways[{index}]`"))
            })
        };
        let gateways = written.gateways.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        for v4 in [true, false] {
            if gateways.iter().filter(|gateway| gateway.is_ipv4() == v4).count() > 1 {
                return Err(invalid("`gateways` has more than one address of a family")
                    .details("write at most one for IPv4 and one for IPv6"));
            }
        }
        Ok(Self { table: table.transpose()?, gateways, source_hints: written.add_source_hints })
    }

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
        // Others who choose a table in this container wait, also the reference's.
        let lock = container.netns.lock().explain()?;
        let before = Routes::read(&container)?;
        undo.push("put routes and rules back", {
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
        let Some(container) = ContainerNetns::open_if_there(sandbox.netns.as_deref())? else { return Ok(()) };
        let _lock = container.netns.lock().explain()?;
        // The interface may be gone already, and with it its routes; rules stay until they are removed.
        let mut sources: Vec<IpAddr> = Vec::new();
        if let Some(inside) = link::find(&container.socket, sandbox.ifname.as_str()).explain()? {
            let there = addr::list(&container.socket, &inside).explain()?;
            sources.extend(there.iter().map(|address| address.net.addr()));
        }
        if let Some(prev) = &request.prev_result {
            sources.extend(of_interface(prev, sandbox).map(|ip| ip.address.addr()));
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
            let there = rules.iter().any(|rule| {
                rule.source == Some(source) && conf.table.is_none_or(|table| rule.table == table)
            });
            if !there {
                return Err(differs(format!(
                    "no rule leads what leaves from {source} to a table of its own"
                )));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request).map(drop)
    }
}

fn of_interface<'a>(prev: &'a Success, sandbox: &'a Sandbox) -> impl Iterator<Item = &'a IpConfig> {
    prev.ips
        .iter()
        .filter(|ip| prev.interface_of(ip).is_none_or(|interface| interface.name == sandbox.ifname.as_str()))
}

fn addresses(prev: &Success, sandbox: &Sandbox) -> Result<Vec<IpConfig>, Error> {
    if prev.ips.is_empty() {
        return Err(invalid(format!("No IP addresses supplied on interface: {}", sandbox.ifname))
            .details("sbr routes by the addresses of prevResult: chain it behind a plugin that gives some"));
    }
    Ok(of_interface(prev, sandbox).cloned().collect())
}

/// What a container's routing was.
#[derive(Debug, Clone)]
struct Routes {
    rules: Vec<Rule>,
    all: Vec<Route>,
}

impl Routes {
    fn read(container: &ContainerNetns) -> Result<Self, Error> {
        let mut all = route::list(&container.socket, Ipv4Addr::UNSPECIFIED.into()).explain()?;
        all.extend(route::list(&container.socket, Ipv6Addr::UNSPECIFIED.into()).explain()?);
        Ok(Self { rules: rules(container)?, all })
    }

    /// Lists the routes of the main table by a link.
    fn of_link(&self, link: &Link) -> Vec<Route> {
        let by_link =
            self.all.iter().filter(|route| route.link == link.index && route.table == route::TABLE_MAIN);
        by_link.copied().collect()
    }

    /// Finds the first table from `candidate` on that no rule leads to and no route is in.
    fn free_table(&self, candidate: u32) -> u32 {
        let taken = |table: u32| {
            self.rules.iter().any(|rule| rule.table == table)
                || self.all.iter().any(|route| route.table == table)
        };
        (candidate..=u32::MAX).find(|table| !taken(*table)).unwrap_or(candidate)
    }

    /// Puts everything back.
    fn restore(&self, container: &ContainerNetns) -> Result<(), Error> {
        let now = Self::read(container)?;
        for rule in now.rules.iter().filter(|rule| !self.rules.contains(rule)) {
            if let Some(source) = rule.source {
                rule::remove(&container.socket, source, rule.table).explain()?;
            }
        }
        // Those that others go by come first.
        let mut missing: Vec<&Route> = self.all.iter().filter(|route| !now.all.contains(route)).collect();
        missing.sort_by_key(|route| route.gateway.is_some());
        for route in missing {
            route::replace(&container.socket, route).explain()?;
        }
        for route in now.all.iter().filter(|route| !self.all.contains(route)) {
            route::remove_exact(&container.socket, route).explain()?;
        }
        Ok(())
    }
}

fn rules(container: &ContainerNetns) -> Result<Vec<Rule>, Error> {
    let mut rules = rule::list(&container.socket, Ipv4Addr::UNSPECIFIED.into()).explain()?;
    rules.extend(rule::list(&container.socket, Ipv6Addr::UNSPECIFIED.into()).explain()?);
    Ok(rules)
}

/// Moves the interface's routes from the main table to one for each of its addresses.
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
            let all = IpNet::new(any(source), 0).map_err(|error| invalid(error.to_string()))?;
            // A gateway outside the subnets is refused by the kernel, as of any route.
            route::add(socket, &Route { table, ..Route::new(all, Some(gateway), inside.index) }).explain()?;
        }
        for route in &of_link {
            let generic = route.source.is_none() && route.gateway.is_none();
            let in_subnet = |other: Option<IpAddr>| other.is_some_and(|other| ip.address.contains(&other));
            if generic || in_subnet(route.source) || in_subnet(route.gateway) {
                route::replace(socket, &Route { table, ..*route }).explain()?;
            }
        }
        // Another table for each address.
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

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
