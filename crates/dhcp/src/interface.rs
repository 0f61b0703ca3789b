//! The interface of a lease: found in its namespace, and given another address when the old one is lost.

use std::{net::IpAddr, path::Path};

use ipnet::IpNet;
use kernel::{
    Errno, Error, Kind, Netns, Protocol, Result, Socket,
    addr::{self, Detection},
    link::{self, Change, Link},
    route,
};

use crate::lease::Lease;

/// Does work in a namespace, if it is still the one that the lease is for.
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

/// Finds the interface, and sets it up: nothing can be asked by one that is down.
pub(crate) fn ready(ifname: &str) -> Result<Link> {
    let socket = Socket::open(Protocol::Route)?;
    let link = link::require(&socket, ifname)?;
    if !link.up {
        link::change(&socket, &link, &Change { up: Some(true), ..Change::default() })?;
    }
    Ok(link)
}

/// Returns the settled address by which the interface speaks with servers of IPv6.
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

/// Returns the interface the address and the routes of a lease.
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
