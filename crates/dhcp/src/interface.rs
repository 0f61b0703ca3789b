//! The interface of a lease: looked up in its namespace, and given a new address when the old one is lost.

use std::{net::IpAddr, path::Path};

use ipnet::IpNet;
use kernel::{
    Errno, Error, Kind, Netns, Protocol, Result, Socket,
    addr::{self, Detection},
    link::{self, Change, Link},
    route,
};

use crate::lease::Lease;

/// Runs a closure in a namespace, if it is still the namespace of the lease.
pub(crate) fn within<T>(
    path: &Path,
    identity: Option<(u64, u64)>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let netns = Netns::open(path)?;
    if identity.is_some_and(|identity| netns.identity().ok() != Some(identity)) {
        return Err(Error::new("find again network namespace", path.display(), Errno::NOENT));
    }
    netns.run(work)?
}

/// Returns the interface, set up: a link that is down sends nothing.
pub(crate) fn ready(ifname: &str) -> Result<Link> {
    let socket = Socket::open(Protocol::Route)?;
    let link = link::require(&socket, ifname)?;
    if !link.up {
        link::change(&socket, &link, &Change { up: Some(true), ..Change::default() })?;
    }
    Ok(link)
}

/// Returns the link-local address for the exchange with IPv6 servers, once duplicate address detection has ended.
pub(crate) fn link_local(link: &Link) -> Result<Option<std::net::Ipv6Addr>> {
    let socket = Socket::open(Protocol::Route)?;
    let addresses = addr::list(&socket, link)?;
    Ok(addresses.iter().filter(|address| !address.tentative).find_map(|address| match address.net.addr() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
        _ => None,
    }))
}

/// Removes a lost address and its routes.
pub(crate) fn take_away(ifname: &str, lost: IpNet) -> Result<()> {
    let socket = Socket::open(Protocol::Route)?;
    let link = link::require(&socket, ifname)?;
    addr::remove(&socket, &link, lost)
}

/// Adds the address and the routes of a lease to the interface.
pub(crate) fn give(ifname: &str, lease: &Lease, priority: u32) -> Result<()> {
    let socket = Socket::open(Protocol::Route)?;
    let link = link::require(&socket, ifname)?;
    match addr::add(&socket, &link, lease.address, Detection::AsSet) {
        Err(error) if error.kind() == Kind::Exists => {}
        other => other?,
    }
    for wanted in &lease.routes {
        let scope = if wanted.gateway.is_none() { route::SCOPE_LINK } else { route::SCOPE_UNIVERSE };
        let route =
            route::Route { priority, scope, ..route::Route::new(wanted.dst, wanted.gateway, link.index) };
        route::replace(&socket, &route)?;
    }
    Ok(())
}
