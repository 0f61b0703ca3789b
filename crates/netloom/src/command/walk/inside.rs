//! A container's own side of a path: interface, addresses, routes, neighbours.

use std::net::IpAddr;

use kernel::{IpFamily, link::Link, neigh, route, sysctl::Setting};
use rustix::io::Errno;

use super::{super::Outcome, cause::Cause, path::Path, place::Place, wire};

/// Returns what is wrong with the interface and with its addresses of the family of `like`.
pub(crate) fn interface(place: &Place, like: IpAddr) -> Option<Cause> {
    let ifname = &place.ifname;
    let Some(link) = &place.link else {
        let sentence = if ifname.is_empty() {
            format!(
                "the namespace of container `{}` has no interface: no ADD has succeeded for it, or a DEL has run",
                place.name
            )
        } else {
            format!(
                "container `{}` has no interface `{ifname}` any more: something removed it after ADD",
                place.name
            )
        };
        return Some(Cause::new(sentence, place.add_again()));
    };
    if !link.up {
        return Some(Cause::new(
            format!("interface `{ifname}` of container `{}` is down", place.name),
            format!("set it up: {}", place.inside(&format!("ip link set {ifname} up"))),
        ));
    }
    if !link.carrier {
        return Some(no_carrier(place));
    }
    if !link.resolves && link.kind.as_deref() == Some("veth") {
        return Some(Cause::new(
            format!("interface `{ifname}` of container `{}` resolves no addresses: ARP is off", place.name),
            format!("turn it on: {}", place.inside(&format!("ip link set {ifname} arp on"))),
        ));
    }
    addresses(place, like)
}

fn no_carrier(place: &Place) -> Cause {
    match (&place.host_end, &place.parent) {
        (Some(end), _) => wire::end_is_down(place, end),
        (None, Some(parent)) => wire::parent_is_off(place, parent),
        (None, None) => Cause::new(
            format!(
                "interface `{}` of container `{}` has no carrier: its other end is down or gone",
                place.ifname, place.name
            ),
            place.add_again(),
        ),
    }
}

fn addresses(place: &Place, like: IpAddr) -> Option<Cause> {
    let (ifname, family) = (&place.ifname, IpFamily::of(like));
    let of_family = |ip: IpAddr| family.has(ip);
    let expected = place.expected().into_iter().map(|(net, _)| net).find(|net| of_family(net.addr()));
    if family == IpFamily::V6 {
        let disabled = Setting::Ipv6(ifname, "disable_ipv6");
        if place.side.setting(disabled).as_deref() == Some("1") {
            return Some(Cause::new(
                format!("IPv6 is disabled on interface `{ifname}` of container `{}`", place.name),
                format!(
                    "enable it and attach the container again: {}",
                    place.inside(&format!("sysctl -w net.ipv6.conf.{ifname}.disable_ipv6=0"))
                ),
            ));
        }
    }
    let Some(expected) = expected else {
        return place.result.is_none().then(|| {
            Cause::new(
                format!("interface `{ifname}` of container `{}` has no {family} address", place.name),
                place.add_again(),
            )
        });
    };
    let Some(present) = place.addresses.iter().find(|it| it.net.addr() == expected.addr()) else {
        return Some(Cause::new(
            format!("interface `{ifname}` of container `{}` has lost its address {expected}", place.name),
            format!("set it again: {}", place.inside(&format!("ip addr add {expected} dev {ifname}"))),
        ));
    };
    if present.duplicate {
        return Some(Cause::new(
            format!(
                "another host of the segment has the address {} of container `{}` (duplicate address detection failed)",
                expected.addr(),
                place.name
            ),
            "give one of the two another address, and exclude the address from the network's range"
                .to_owned(),
        ));
    }
    if present.tentative {
        return Some(Cause::new(
            format!(
                "the address {} of container `{}` is tentative: duplicate address detection is not finished",
                expected.addr(),
                place.name
            ),
            format!(
                "wait a second, or turn the detection off: {}",
                place.inside(&format!("sysctl -w net.ipv6.conf.{ifname}.accept_dad=0"))
            ),
        ));
    }
    (present.net.prefix_len() != expected.prefix_len()).then(|| {
        Cause::new(
            format!("the address of container `{}` is {}, and ADD set {expected}", place.name, present.net),
            format!(
                "set the prefix length again: {}",
                place.inside(&format!("ip addr replace {expected} dev {ifname}"))
            ),
        )
    })
}

/// Returns what is wrong with the route of a packet from the container.
pub(crate) fn route(path: &Path<'_>, place: &Place) -> Outcome<Option<Cause>> {
    let packet = route::Packet { to: path.to, from: path.source, enters: None };
    let found = route::way_of(&place.side.socket, &packet);
    let table = place.inside(&format!("ip route get {}", path.to));
    let way = match found {
        Ok(Some(way)) => way,
        Ok(None) => return Ok(None),
        Err(error)
            if error.errno == Errno::INVAL
                || error.errno == Errno::ACCESS
                || error.errno == Errno::HOSTUNREACH =>
        {
            let what = match error.errno {
                Errno::INVAL => "a blackhole route",
                Errno::ACCESS => "a prohibiting route or rule",
                _ => "an unreachable route",
            };
            return Ok(Some(Cause::new(
                format!("container `{}` has {what} for {}", place.name, path.to),
                format!("find and delete it: {table}, {}", place.inside("ip rule")),
            )));
        }
        Err(error) if error.errno == Errno::NETUNREACH => return Ok(Some(no_route(path, place))),
        Err(error) => return Err(error.into()),
    };
    if way.local {
        let is_own = place.addresses.iter().any(|it| it.net.addr() == path.to) || path.to.is_loopback();
        let lo = place.side.named("lo").filter(|lo| !lo.up);
        return Ok(lo.filter(|_| is_own).map(|_| {
            Cause::new(
                format!("the loopback interface of container `{}` is down", place.name),
                format!(
                    "set it up: {}, and add the plugin `loopback` to the runtime's configuration",
                    place.inside("ip link set lo up")
                ),
            )
        }));
    }
    if let Some(other) =
        place.side.link(way.link).filter(|_| place.link.as_ref().is_some_and(|own| own.index != way.link))
    {
        if !other.up || !other.carrier {
            return Ok(Some(Cause::new(
                format!("the route to {} leads to interface `{}`, which is down", path.to, other.name),
                format!("delete the route or set the interface up: {table}"),
            )));
        }
        let of_this = place.expected().iter().any(|(net, _)| net.contains(&path.to));
        if of_this || place.result.is_some() && !has_other_attachment(place, other) {
            return Ok(Some(Cause::new(
                format!(
                    "container `{}` sends packets for {} to interface `{}` instead of `{}`",
                    place.name, path.to, other.name, place.ifname
                ),
                format!("delete the route that leads there: {table}"),
            )));
        }
        return Ok(None);
    }
    let gateway = place.gateway(path.to);
    if let (Some(used), Some(gateway)) = (way.gateway, gateway)
        && used != gateway
        && place.result.as_ref().is_some_and(|result| !result.routes.iter().any(|it| it.gw == Some(used)))
    {
        return Ok(Some(Cause::new(
            format!(
                "container `{}` sends packets for {} to {used}, and not to its gateway {gateway}",
                place.name, path.to
            ),
            format!(
                "set the route again: {}",
                place.inside(&format!("ip route replace default via {gateway}"))
            ),
        )));
    }
    Ok(None)
}

/// Returns whether another interface of the namespace has addresses, and therefore a network of its own.
fn has_other_attachment(place: &Place, other: &Link) -> bool {
    kernel::addr::list(&place.side.socket, other)
        .is_ok_and(|list| list.iter().any(|it| it.net.addr().is_ipv4() || it.net.prefix_len() < 64))
        && other.kind.as_deref() != Some("dummy")
}

fn no_route(path: &Path<'_>, place: &Place) -> Cause {
    let family = IpFamily::of(path.to);
    let subnet = place.expected().into_iter().map(|(net, _)| net).find(|net| net.contains(&path.to));
    if let Some(net) = subnet {
        return Cause::new(
            format!("container `{}` has no route to its own subnet {}", place.name, net.trunc()),
            format!(
                "set it again: {}",
                place.inside(&format!("ip route add {} dev {}", net.trunc(), place.ifname))
            ),
        );
    }
    match place.gateway(path.to) {
        Some(gateway) if place.wants_default(family) => Cause::new(
            format!("container `{}` has lost its {family} default route", place.name),
            format!(
                "set it again: {}",
                place.inside(&format!("ip route add default via {gateway} dev {}", place.ifname))
            ),
        ),
        _ => Cause::new(
            format!("container `{}` has no {family} route to {}", place.name, path.to),
            "add a default route to the network: `\"isDefaultGateway\": true`, or `\"routes\"` of its IPAM plugin",
        ),
    }
}

/// Returns the next hop of a packet from the container on its own link.
pub(crate) fn next_hop(path: &Path<'_>, place: &Place) -> Option<IpAddr> {
    let packet = route::Packet { to: path.to, from: path.source, enters: None };
    let way = route::way_of(&place.side.socket, &packet).ok()??;
    (!way.local).then(|| way.gateway.unwrap_or(path.to))
}

/// Returns a neighbour entry that has another hardware address than the link that should have it.
pub(crate) fn neighbour(
    side: &super::place::Side,
    at: &Link,
    ip: IpAddr,
    owner: &Link,
    place: Option<&Place>,
) -> Outcome<Option<Cause>> {
    let Some(entry) = neigh::list(&side.socket, at, ip)?.into_iter().find(|it| it.ip == ip) else {
        return Ok(None);
    };
    let (Some(mac), Some(right)) = (entry.mac, owner.mac) else { return Ok(None) };
    if mac == right {
        return Ok(None);
    }
    let (who, command) = match place {
        Some(place) => (
            format!("container `{}`", place.name),
            place.inside(&format!("ip neigh del {ip} dev {}", at.name)),
        ),
        None => ("the host".to_owned(), format!("`ip neigh del {ip} dev {}`", at.name)),
    };
    Ok(Some(if entry.permanent {
        Cause::new(
            format!(
                "{who} has a permanent neighbour entry for {ip} with the wrong hardware address {mac} instead of {right}"
            ),
            format!("delete it: {command}"),
        )
    } else {
        Cause::new(
            format!(
                "{mac} answers for {ip} on `{}`, and not {right}: another machine or container has the same address",
                at.name
            ),
            format!(
                "find the owner of {mac} (`bridge fdb | grep {mac}`) and give one of the two another address"
            ),
        )
    }))
}
