//! The daemon's objects in the kernel, and how this host is connected.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use kernel::{
    Socket, addr,
    link::{self, Link, Mac},
    neigh::{self, Forward},
    route,
};

use crate::{
    config::Config,
    desired::{BESIDE, DEVICE4, DEVICE6, GPE, Uplink, Uplinks},
};

/// The protocol number that identifies the daemon's routes (`RTPROT_*`); unassigned in `linux/rtnetlink.h`.
pub const PROTOCOL: u8 = 95;

/// The names of the daemon's devices.
const DEVICES: [&str; 4] = [DEVICE4, DEVICE6, GPE, BESIDE];

/// A device of the daemon as it is in the kernel.
#[derive(Debug, Clone)]
pub struct Device {
    /// The link.
    pub link: Link,
    /// The link's addresses.
    pub addresses: BTreeSet<IpNet>,
    /// The hardware address of each next hop.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The remote host of each hardware address.
    pub forwards: BTreeSet<Forward>,
}

/// The daemon's objects in the kernel.
#[derive(Debug, Clone, Default)]
pub struct Actual {
    /// The devices, by name.
    pub devices: BTreeMap<&'static str, Device>,
    /// The routes.
    pub routes: Vec<route::Route>,
}

/// Reads the daemon's objects.
///
/// # Errors
/// If a netlink request fails.
pub fn read(socket: &Socket) -> kernel::Result<Actual> {
    let mut actual = Actual::default();
    for name in DEVICES {
        let Some(link) = link::find(socket, name)? else { continue };
        let any6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let neighbours = neigh::list(socket, &link, any6)?.into_iter().filter(|it| it.permanent);
        let addresses = addr::list(socket, &link)?.into_iter().map(|address| address.net);
        let device = Device {
            addresses: addresses.collect(),
            neighbours: neighbours.filter_map(|it| Some((it.ip, it.mac?))).collect(),
            forwards: if [DEVICE4, DEVICE6].contains(&name) {
                neigh::forwards(socket, &link)?.into_iter().collect()
            } else {
                BTreeSet::new()
            },
            link,
        };
        actual.devices.insert(name, device);
    }
    for family in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        actual.routes.extend(route::list_of(socket, family, PROTOCOL)?);
    }
    Ok(actual)
}

/// Lists this host's networks that overlap prefixes of pods, with their links' names: those of other programs, such as a bridge of
/// containers. A route to a block inside one would take over its traffic. Left out are the daemon's own devices, networks inside `own`
/// blocks, and single addresses, which the host ends of pods' links have.
///
/// # Errors
/// If a netlink request fails.
pub fn networks_among(
    socket: &Socket,
    pods: &[IpNet],
    own: &[IpNet],
) -> kernel::Result<BTreeMap<IpNet, String>> {
    let overlaps = |net: &IpNet| pods.iter().any(|pods| pods.contains(net) || net.contains(pods));
    let mut networks = BTreeMap::new();
    for address in addr::list_all(socket)? {
        let net = address.net.trunc();
        if net.prefix_len() == net.max_prefix_len()
            || !overlaps(&net)
            || own.iter().any(|own| own.contains(&net))
        {
            continue;
        }
        let Some(link) = link::find_index(socket, address.link)? else { continue };
        if !DEVICES.contains(&link.name.as_str()) {
            networks.insert(net, link.name);
        }
    }
    Ok(networks)
}

/// Finds which of the host's links connect it: by its configured addresses, or else by its default routes. Without a default route, what was
/// found `last` stays as long as the link is up and has the address: the other hosts of the segment are reached without one.
///
/// # Errors
/// If a netlink request fails.
pub fn uplinks(socket: &Socket, links: &[Link], config: &Config, last: &Uplinks) -> kernel::Result<Uplinks> {
    let mut uplinks = Uplinks::default();
    for v4 in [true, false] {
        let configured = config.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
        // If addresses are configured, a family without one is not used.
        if configured.is_none() && !config.addresses.is_empty() {
            continue;
        }
        let default = default_route(socket, v4)?;
        let found = match configured {
            Some(ip) => by_address(socket, links, ip)?,
            None => match (by_default_route(socket, links, config, v4, default)?, last.of(v4)) {
                (None, Some(last)) => by_address(socket, links, last.address)?
                    .filter(|(link, _)| link.index == last.link && link.up),
                (found, _) => found,
            },
        };
        let Some((link, address)) = found else { continue };
        let on_link = addr::list(socket, link)?.into_iter().map(|address| address.net.trunc());
        let on_link = on_link.filter(|net| net.addr().is_ipv4() == v4).collect();
        let over = default.filter(|route| route.link == link.index);
        let uplink = Some(Uplink {
            link: link.index,
            name: link.name.clone(),
            bridge: link.kind.as_deref() == Some("bridge"),
            mtu: link.mtu,
            gateway: over.and_then(|route| route.gateway),
            leads_out: over.is_some(),
            address,
            on_link,
        });
        if v4 {
            uplinks.v4 = uplink;
        } else {
            uplinks.v6 = uplink;
        }
    }
    Ok(uplinks)
}

fn by_address<'a>(
    socket: &Socket,
    links: &'a [Link],
    ip: IpAddr,
) -> kernel::Result<Option<(&'a Link, IpAddr)>> {
    for link in links {
        if addr::list(socket, link)?.iter().any(|address| address.net.addr() == ip) {
            return Ok(Some((link, ip)));
        }
    }
    Ok(None)
}

/// Returns the kernel's path for packets that only a default route matches.
fn default_route(socket: &Socket, v4: bool) -> kernel::Result<Option<route::Way>> {
    // Addresses that no host has: the dummy address (RFC 7600), and one for documentation (RFC 3849).
    let anywhere: IpAddr = if v4 {
        Ipv4Addr::new(192, 0, 0, 8).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into()
    };
    route::way_to(socket, anywhere)
}

fn by_default_route<'a>(
    socket: &Socket,
    links: &'a [Link],
    config: &Config,
    v4: bool,
    default: Option<route::Way>,
) -> kernel::Result<Option<(&'a Link, IpAddr)>> {
    let Some(route) = default else { return Ok(None) };
    let Some(link) = links.iter().find(|link| link.index == route.link) else { return Ok(None) };
    // If the link has no address, the kernel selects one of another link: it may be a loopback address, but not one of a pod's gateway.
    let is_pods = |ip: &IpAddr| config.routed_pods().any(|pods| pods.contains(ip));
    if let Some(source) = route.source.filter(|ip| !is_pods(ip)) {
        return Ok(Some((link, source)));
    }
    let addresses = addr::list(socket, link)?;
    let global = addresses
        .iter()
        .map(|address| address.net.addr())
        .find(|ip| ip.is_ipv4() == v4 && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    Ok(global.map(|ip| (link, ip)))
}
