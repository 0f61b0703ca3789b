//! The host's IP layer on a path: gateway address, forwarding, reverse path filtering, routes, uplink.

use std::net::IpAddr;

use kernel::{
    IpFamily,
    link::Link,
    neigh, route,
    sysctl::{self, Setting},
};
use rustix::io::Errno;

use super::{
    super::Outcome,
    cause::Cause,
    inside,
    path::Path,
    place::{Place, Side, outside},
};

/// The kernel's answers for a packet that no route leads anywhere ([`route::way_of`]).
const NO_PATH: [Errno; 4] = [Errno::INVAL, Errno::ACCESS, Errno::HOSTUNREACH, Errno::NETUNREACH];

/// Returns what keeps the host from taking the container's packets.
pub(crate) fn entry(path: &Path<'_>, place: &Place) -> Outcome<Option<Cause>> {
    let host = path.host;
    let Some(link) = place.enters() else { return Ok(None) };
    let family = IpFamily::of(path.to);
    if family == IpFamily::V6
        && host.setting(Setting::Ipv6(&link.name, "disable_ipv6")).as_deref() == Some("1")
    {
        return Ok(Some(Cause::new(
            format!("IPv6 is disabled on `{}`", link.name),
            format!(
                "enable it and attach the containers again: `sysctl -w net.ipv6.conf.{}.disable_ipv6=0`",
                link.name
            ),
        )));
    }
    let gateway = place.gateway(path.to);
    let is_gateway = place.asks_for("isGateway") || place.asks_for("isDefaultGateway");
    if let Some(gateway) = gateway.filter(|gateway| is_gateway && !host.has(*gateway)) {
        let length = place.expected().into_iter().map(|(net, _)| net).find(|net| net.contains(&gateway));
        let net = length.map_or_else(|| gateway.to_string(), |net| format!("{gateway}/{}", net.prefix_len()));
        return Ok(Some(Cause::new(
            format!("the gateway {gateway} is no address of `{}` any more", link.name),
            format!("set it again: `ip addr add {net} dev {}`", link.name),
        )));
    }
    if let Some(gateway) = gateway.filter(|gateway| host.has(*gateway)) {
        let owner = host.links.iter().find(|link| {
            kernel::addr::list(&host.socket, *link)
                .is_ok_and(|list| list.iter().any(|it| it.net.addr() == gateway))
        });
        if let (Some(owner), Some(own)) = (owner, &place.link)
            && inside::next_hop(path, place) == Some(gateway)
            && owner.index == link.index
            && let Some(cause) = inside::neighbour(&place.side, own, gateway, owner, Some(place))?
        {
            return Ok(Some(cause));
        }
    }
    if family == IpFamily::V4 {
        let ignores =
            |key| host.setting(Setting::Ipv4(&link.name, key)).and_then(|value| value.parse::<u32>().ok());
        if let Some(value) = ignores("arp_ignore").filter(|value| *value >= 3) {
            return Ok(Some(Cause::new(
                format!("the host does not answer ARP on `{}` (arp_ignore = {value})", link.name),
                format!("reset it: `sysctl -w net.ipv4.conf.{}.arp_ignore=0`", link.name),
            )));
        }
    }
    // On a bridge without the host's address the host is no station.
    let is_router = place.bridge.is_none() || inside::next_hop(path, place).is_some_and(|hop| host.has(hop));
    match path.source.or(place.address_for(path.to)).filter(|_| is_router) {
        Some(address) => back_to(host, place, address),
        None => Ok(None),
    }
}

/// Returns what keeps the host from sending to a container's address.
pub(crate) fn back_to(host: &Side, place: &Place, address: IpAddr) -> Outcome<Option<Cause>> {
    let Some(link) = place.enters() else { return Ok(None) };
    let show = format!("`ip route get {address}`");
    let way = match route::way_of(&host.socket, &route::Packet { to: address, from: None, enters: None }) {
        Ok(way) => way,
        Err(error) if NO_PATH.contains(&error.errno) => {
            let what = match error.errno {
                Errno::NETUNREACH => "no route",
                Errno::INVAL => "a blackhole route",
                _ => "a route or rule that refuses packets",
            };
            let set = if place.bridge.is_none() {
                format!("ip route add {address} dev {}", link.name)
            } else {
                format!("ip route del {address}` or `ip route del {}", subnet(place, address))
            };
            return Ok(Some(Cause::new(
                format!("the host has {what} to the container's address {address}"),
                format!("correct the route: {show}, `{set}`"),
            )));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(way) = way.filter(|way| way.link != link.index) {
        let other = host.link(way.link);
        // The host may send by a VLAN link on the bridge, or by an alias of the same link.
        if other.is_some_and(|other| other.peer == Some(link.index) && other.peer_netns.is_none()) {
            return Ok(None);
        }
        let name = other.map_or("another link", |other| other.name.as_str());
        let is_default = route::way_to(&host.socket, outside(address))?
            .is_some_and(|it| (it.link, it.gateway) == (way.link, way.gateway));
        if is_default && !way.local {
            let net = if place.bridge.is_some() { subnet(place, address) } else { address.to_string() };
            return Ok(Some(Cause::new(
                format!(
                    "the host has lost its route to the container's address {address}, and sends the packets to `{name}`"
                ),
                format!("set it again: `ip route add {net} dev {}`", link.name),
            )));
        }
        let sentence = if way.local {
            format!("the container's address {address} is an address of the host, too")
        } else {
            format!(
                "the host sends packets for {address} to `{name}` instead of `{}`: another network overlaps with the container's",
                link.name
            )
        };
        return Ok(Some(Cause::new(
            sentence,
            format!("give one of the two another subnet, or delete the route: {show}"),
        )));
    }
    let owner = place.link.as_ref();
    if let Some(cause) =
        owner.map(|owner| inside::neighbour(host, link, address, owner, None)).transpose()?.flatten()
    {
        return Ok(Some(cause));
    }
    Ok(None)
}

fn subnet(place: &Place, address: IpAddr) -> String {
    let net = place.expected().into_iter().map(|(net, _)| net).find(|net| net.addr() == address);
    net.map_or_else(|| address.to_string(), |net| net.trunc().to_string())
}

/// Returns what keeps the host from forwarding the container's packet.
pub(crate) fn forwarding(path: &Path<'_>, place: &Place) -> Outcome<Option<Cause>> {
    let host = path.host;
    let (Some(link), Some(source)) = (place.enters(), path.source.or(place.address_for(path.to))) else {
        return Ok(None);
    };
    let family = IpFamily::of(path.to);
    let key = if path.to.is_ipv4() { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
    if !host.netns.run(|| sysctl::is_forwarding(&host.socket, path.to))? {
        return Ok(Some(Cause::new(
            format!("the host does not forward {family} packets"),
            format!("turn it on: `sysctl -w {key}=1`, and find what turned it off"),
        )));
    }
    let of_link = if path.to.is_ipv4() {
        Setting::Ipv4(&link.name, "forwarding")
    } else {
        Setting::Ipv6(&link.name, "forwarding")
    };
    if host.setting(of_link).as_deref() == Some("0") {
        let protocol = if path.to.is_ipv4() { "ipv4" } else { "ipv6" };
        return Ok(Some(Cause::new(
            format!("the host does not forward the {family} packets of `{}`", link.name),
            format!("turn it on: `sysctl -w net.{protocol}.conf.{}.forwarding=1`", link.name),
        )));
    }
    if let Some(full) = connections(host) {
        return Ok(Some(full));
    }
    let packet = route::Packet { to: path.to, from: Some(source), enters: Some(link.index) };
    match route::way_of(&host.socket, &packet) {
        Ok(_) => Ok(None),
        Err(error) if error.errno == Errno::XDEV => Ok(Some(Cause::new(
            format!("reverse path filtering drops the container's packets on `{}`", link.name),
            format!(
                "make the host's route to {source} lead there, or loosen the filter: `sysctl -w net.ipv4.conf.{}.rp_filter=2`",
                link.name
            ),
        ))),
        Err(error) if NO_PATH.contains(&error.errno) => {
            let what = match error.errno {
                Errno::INVAL => "a blackhole route",
                Errno::ACCESS => "a prohibiting route or rule",
                Errno::HOSTUNREACH => "an unreachable route, or none,",
                _ => "no route",
            };
            Ok(Some(Cause::new(
                format!("the host has {what} for packets from {source} to {}", path.to),
                format!("correct it: `ip route get {} from {source} iif {}`, `ip rule`", path.to, link.name),
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns whether the table of tracked connections is full.
fn connections(host: &Side) -> Option<Cause> {
    let number = |name| host.setting(Setting::Net(name)).and_then(|value| value.parse::<u64>().ok());
    let (count, most) = (number("netfilter/nf_conntrack_count")?, number("netfilter/nf_conntrack_max")?);
    (most > 0 && count >= most).then(|| {
        Cause::new(
            format!("the table of tracked connections is full: {count} of {most}"),
            format!("enlarge it: `sysctl -w net.netfilter.nf_conntrack_max={}`, and find who opens so many: `conntrack -L`", most.saturating_mul(2)),
        )
    })
}

/// Returns what is wrong with the link by which packets leave the host, and with the next hop there.
pub(crate) fn uplink(
    host: &Side,
    to: IpAddr,
    link: &Link,
    gateway: Option<IpAddr>,
) -> Outcome<Option<Cause>> {
    if !link.up {
        return Ok(Some(Cause::new(
            format!("the host's link `{}` to {to} is down", link.name),
            format!("set it up: `ip link set {} up`", link.name),
        )));
    }
    if !link.carrier {
        return Ok(Some(Cause::new(
            format!("the host's link `{}` to {to} has no carrier", link.name),
            "check the cable and the switch port: the fault is not the container's",
        )));
    }
    let next = gateway.unwrap_or(to);
    let known = neigh::list(&host.socket, link, next)?.into_iter().find(|it| it.ip == next);
    Ok(known.filter(|it| it.failed || it.mac.is_none()).map(|_| {
        Cause::new(
            format!("the host itself does not reach {next} on `{}`: nobody answers {}", link.name, if next.is_ipv4() { "ARP" } else { "neighbour discovery" }),
            format!("check the segment and VLAN of `{}`, and whether {next} is up: the fault is not the container's", link.name),
        )
    }))
}
