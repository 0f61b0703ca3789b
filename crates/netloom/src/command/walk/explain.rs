//! Why a path does not work: the stations in the order of the packet, then what a watched probe shows.

use std::net::IpAddr;

use kernel::{link::Link, qdisc, route};
use rustix::io::Errno;

use super::{
    super::Outcome,
    capture,
    cause::{self, Cause},
    filters::{self, Evidence},
    forward, inside,
    listen::{self, Listens},
    path::Path,
    place::Place,
    published,
    shot::{Kind, Reply, Shot},
    wire,
};

/// Returns the cause of a path that was probed in vain, or `None` if it works after all.
pub(crate) fn explain(path: &Path<'_>, shot: &Shot) -> Outcome<Option<Cause>> {
    if let Some(cause) = stations(path)? {
        return Ok(Some(cause));
    }
    let evidence = filters::watch(path, shot)?;
    if evidence.reply == Reply::Answered {
        return Ok(None);
    }
    if let Some(cause) = &evidence.dropped {
        return Ok(Some(with_bridge(path, cause.clone())));
    }
    if let Some(place) = evidence.reverse_path {
        let command = "sysctl -w net.ipv4.conf.all.rp_filter=2";
        let (name, command) = match place {
            filters::In::Container(place) => (format!("container `{}`", place.name), place.inside(command)),
            filters::In::Host => ("the host".to_owned(), format!("`{command}`")),
        };
        let sentence = format!("reverse path filtering on {name} drops the packet");
        return Ok(Some(Cause::new(sentence, format!("loosen it, also on the interface: {command}"))));
    }
    if path.published.is_some() {
        return published::explain(path, &evidence).map(Some);
    }
    if evidence.reply == Reply::Refused {
        return Ok(Some(listen::refused(path)));
    }
    remaining(path, shot, &evidence).map(Some)
}

/// Compares each station on the path with what the packet needs.
pub(crate) fn stations(path: &Path<'_>) -> Outcome<Option<Cause>> {
    let host = path.host;
    if let Some(place) = path.from {
        if let Some(cause) = inside::interface(place, path.to) {
            return Ok(Some(cause));
        }
        if let Some(cause) = inside::route(path, place)? {
            return Ok(Some(cause));
        }
        if path.to.is_loopback() {
            return Ok(None);
        }
        if let Some(cause) = wire::host_side(host, place)? {
            return Ok(Some(cause));
        }
    }
    let other = path.target.filter(|target| !path.from.is_some_and(|from| std::ptr::eq(from, *target)));
    if let Some(target) = other {
        if let Some(cause) = inside::interface(target, path.end()) {
            return Ok(Some(cause));
        }
        if let Some(cause) = wire::host_side(host, target)? {
            return Ok(Some(cause));
        }
    }
    let on_the_way = match path.from {
        Some(place) => from_container(path, place)?,
        None => None,
    };
    if on_the_way.is_some() {
        return Ok(on_the_way);
    }
    match other {
        Some(target) => to_container(path, target),
        None => Ok(None),
    }
}

fn from_container(path: &Path<'_>, place: &Place) -> Outcome<Option<Cause>> {
    let host = path.host;
    let hop = inside::next_hop(path, place);
    if hop == Some(path.to)
        && let Some(target) = path.target
    {
        if let Some(cause) = wire::between(host, place, target)? {
            return Ok(Some(cause));
        }
        let sides =
            [(place, Some(path.to), target), (target, path.source.or(place.address_for(path.to)), place)];
        for (at, ip, owner) in sides {
            if let (Some(link), Some(ip), Some(owner)) = (&at.link, ip, &owner.link)
                && let Some(cause) = inside::neighbour(&at.side, link, ip, owner, Some(at))?
            {
                return Ok(Some(cause));
            }
        }
        return Ok(None);
    }
    if let Some(parent) = &place.parent {
        if host.has(path.to) && place.kind() != "vlan" {
            return Ok(Some(Cause::new(
                format!(
                    "a {} container does not reach its own host over the parent link `{}`",
                    place.kind(),
                    parent.name
                ),
                "give the host an interface of the same kind on that parent, or add a second network such as `ptp` to the container",
            )));
        }
        return Ok(None);
    }
    if let Some(cause) = wire::to_host(host, place)? {
        return Ok(Some(cause));
    }
    if let Some(cause) = forward::entry(path, place)? {
        return Ok(Some(cause));
    }
    let enters = place.enters().map(|link| link.index);
    if hop.is_none()
        || host.has(path.to) && path.published.is_none()
        || hop == Some(path.to) && place.bridge.is_some()
    {
        return Ok(None);
    }
    let onward = Path { to: path.end(), ..*path };
    if let Some(cause) = forward::forwarding(&onward, place)? {
        return Ok(Some(cause));
    }
    let Some(way) =
        route::way_to(&host.socket, path.end())?.filter(|way| !way.local && Some(way.link) != enters)
    else {
        return Ok(None);
    };
    match host.link(way.link) {
        Some(link) if path.target.is_none() => forward::uplink(host, path.end(), link, way.gateway),
        _ => Ok(None),
    }
}

fn to_container(path: &Path<'_>, target: &Place) -> Outcome<Option<Cause>> {
    let host = path.host;
    let is_bridged = path.from.is_some_and(|from| inside::next_hop(path, from) == Some(path.to));
    if is_bridged {
        return Ok(None);
    }
    if let Some(cause) = wire::to_host(host, target)? {
        return Ok(Some(cause));
    }
    if let Some(parent) = &target.parent {
        let from_host = path.from.is_none() && target.kind() != "vlan";
        return Ok(from_host.then(|| {
            Cause::new(
                format!("the host does not reach a {} container over its parent link `{}`", target.kind(), parent.name),
                "give the host an interface of the same kind on that parent, or add a second network such as `ptp` to the container",
            )
        }));
    }
    if let Some(cause) = forward::back_to(host, target, path.end())? {
        return Ok(Some(cause));
    }
    let source = match path.from {
        Some(from) => path.source.or(from.address_for(path.to)),
        None => route::way_to(&host.socket, path.end())?.and_then(|way| way.source),
    };
    let Some(source) = source else { return Ok(None) };
    let back = Path {
        from: Some(target),
        target: path.from,
        source: Some(path.end()),
        to: source,
        kind: Kind::Echo(0),
        published: None,
        ..*path
    };
    if let Some(cause) = inside::route(&back, target)? {
        return Ok(Some(cause));
    }
    forward::entry(&back, target)
}

/// Adds that the packet met the rule on a bridge, if the kernel passes bridged packets to iptables.
fn with_bridge(path: &Path<'_>, cause: Cause) -> Cause {
    let bridged =
        path.from.is_some_and(|from| inside::next_hop(path, from) == Some(path.to)) && path.target.is_some();
    match wire::bridged_rules(path.host, path.to.is_ipv4())
        .filter(|_| bridged && cause.kind == cause::Kind::HostRule)
    {
        Some(setting) => Cause::new(
            format!("{}; the kernel passes bridged packets to it, because of {setting} = 1", cause.sentence),
            format!("{}, or keep bridged packets from it: `sysctl -w {setting}=0`", cause.remedy),
        ),
        None => cause,
    }
}

/// Names the place where the packets are lost, if no station and no rule explains it.
fn remaining(path: &Path<'_>, shot: &Shot, evidence: &Evidence<'_>) -> Outcome<Cause> {
    let host = path.host;
    // Neighbours are resolved while the probe waits, so that they are looked at once more.
    if let Some(cause) = stations(path)? {
        return Ok(cause);
    }
    if let Some(place) = path.from {
        let hop = inside::next_hop(path, place);
        let unresolved = match (hop, &place.link) {
            (Some(hop), Some(link)) => {
                let known =
                    kernel::neigh::list(&place.side.socket, link, hop)?.into_iter().find(|it| it.ip == hop);
                known.is_some_and(|it| it.failed || it.mac.is_none()).then_some(hop)
            }
            _ => None,
        };
        if let Some(cause) = queues(path, place)? {
            return Ok(cause);
        }
        if let Some(hop) = unresolved {
            let on =
                place.bridge.as_ref().or(place.parent.as_ref()).map_or("its link", |link| link.name.as_str());
            let what = if Some(hop) == place.gateway(path.to) { "gateway " } else { "" };
            let remedy = if place.parent.is_some() {
                format!("check that `{on}` is connected to the segment and VLAN of {hop}")
            } else {
                format!(
                    "check that a container or host on `{on}` has the address {hop}: `ip -br addr`, `bridge fdb show br {on}`"
                )
            };
            return Ok(Cause::new(format!("nobody on `{on}` answers for {what}{hop}"), remedy));
        }
        if evidence.at_host == Some(false) && place.parent.is_none() && hop != Some(path.to) {
            return Ok(Cause::new(
                format!(
                    "packets leave interface `{}` of container `{}` and do not arrive at the host",
                    place.ifname, place.name
                ),
                format!(
                    "look for filters before the IP layer: `tc -s filter show dev {0} ingress`, `nft list ruleset netdev`, XDP: `ip -d link show {0}`",
                    place.host_end.as_ref().map_or("LINK", |link| link.name.as_str())
                ),
            ));
        }
    }
    if let Some(target) = path.target {
        if let Some(cause) = queues(path, target)? {
            return Ok(cause);
        }
        if evidence.at_target {
            return Ok(no_answer(path, target));
        }
        return Ok(Cause::new(
            format!("packets from {} do not arrive in container `{}`", path.sender(), target.name),
            format!("watch them on the way: `tcpdump -ni any host {}`", path.end()),
        ));
    }
    if host.has(path.to) {
        return Ok(Cause::new(
            format!("the host takes the {} for {} and does not answer", path.kind.noun(), path.destination()),
            "check `sysctl net.ipv4.icmp_echo_ignore_all`, and the rules of the hook input",
        )
        .of(cause::Kind::Silent));
    }
    beyond(path, shot, evidence)
}

fn no_answer(path: &Path<'_>, target: &Place) -> Cause {
    let port = path.end_port();
    let listens = port.map(|port| listen::on(&target.side, path.kind, path.end(), port));
    match (listens, port) {
        (Some(Listens::Nowhere), Some(port)) => Cause::new(
            format!("packets reach container `{}`, where nothing listens on port {port}", target.name),
            "start the service, or correct the port",
        ),
        _ => Cause::new(
            format!("packets reach container `{}`, and no answer comes back", target.name),
            target.look_inside(),
        ),
    }
}

/// Explains the loss of packets that are for an address beyond this host.
fn beyond(path: &Path<'_>, shot: &Shot, evidence: &Evidence<'_>) -> Outcome<Cause> {
    let host = path.host;
    let Some(way) = route::way_to(&host.socket, path.to)? else {
        return Ok(Cause::new(
            format!("the host has no route to {}", path.to),
            "add one, such as a default route: `ip route add default via ROUTER`",
        ));
    };
    let Some(link) = host.link(way.link) else {
        return Ok(Cause::new(
            format!("no answer comes from {}", path.destination()),
            "check the destination",
        ));
    };
    if let Some(cause) = forward::uplink(host, path.to, link, way.gateway)? {
        return Ok(cause);
    }
    let source = capture::source_at(path, shot, link)?;
    let own = path.from.and_then(|place| path.source.or(place.address_for(path.to)));
    match source {
        Some(source) if Some(source) == own => Ok(not_masqueraded(path, link, source)),
        Some(source) if evidence.answer_at_host => Ok(Cause::new(
            format!(
                "answers from {} come back to the host for {source}, and do not reach {}",
                path.to,
                path.sender()
            ),
            "look for stale connections and for rules that drop the answer: `conntrack -L`, `nft list ruleset`",
        )),
        Some(source) => Ok(Cause::new(
            format!(
                "packets leave the host by `{}` from {source}, and no answer comes from {}",
                link.name,
                path.destination()
            ),
            format!("check {} and the path to it beyond this host: `traceroute {}`", path.to, path.to),
        )
        .of(cause::Kind::Silent)),
        None => Ok(Cause::new(
            format!("the host takes the packets for {} and does not send them by `{}`", path.to, link.name),
            format!(
                "look at the queues and filters of the link: `tc -s qdisc show dev {}`, `nft list ruleset`",
                link.name
            ),
        )),
    }
}

/// Explains that packets leave with an address that routers beyond the host have no route to.
pub(crate) fn not_masqueraded(path: &Path<'_>, link: &Link, source: IpAddr) -> Cause {
    let sentence = format!(
        "packets leave by `{}` with the container's address {source}: they are not masqueraded",
        link.name
    );
    match path.from {
        Some(place) if place.asks_for("ipMasq") => Cause::new(
            sentence,
            "look for a rule that comes before the network's (`nft list ruleset | grep -n -e notrack -e postrouting`, `iptables -t nat -vnL POSTROUTING`); if its own is gone, attach the container again",
        ),
        Some(place) => Cause::new(
            sentence,
            format!(
                "set `\"ipMasq\": true` in network `{}` and attach the container again, or add a route to the container's subnet on the router",
                place.list.as_ref().map_or("of the container", |list| list.name.as_str())
            ),
        ),
        None => Cause::new(sentence, "add a route to the subnet on the router"),
    }
}

/// Returns a queue on the way that drops packets.
fn queues(path: &Path<'_>, place: &Place) -> Outcome<Option<Cause>> {
    let ends = [
        (place.link.as_ref(), &place.side, true),
        (place.host_end.as_ref(), path.host, false),
        (place.bridge.as_ref(), path.host, false),
    ];
    for (link, side, is_inside) in ends {
        let Some(link) = link else { continue };
        let (root, _) = match qdisc::look(&side.socket, link) {
            Err(error) if error.errno == Errno::INVAL => continue,
            other => other?,
        };
        let Some(root) = root.filter(|root| ["netem", "tbf"].contains(&root.kind.as_str())) else { continue };
        let is_tight = root.kind == "netem"
            || root.bucket.is_some_and(|(_, _, buffer)| buffer < 2000)
            || root.bucket.is_some_and(|(rate, ..)| rate < 1000);
        if is_tight {
            let command = format!("tc qdisc del dev {} root", link.name);
            let (at, command) = if is_inside {
                (format!("in container `{}`", place.name), place.inside(&command))
            } else {
                ("on the host".to_owned(), format!("`{command}`"))
            };
            return Ok(Some(Cause::new(
                format!(
                    "the queueing discipline `{}` of `{}` {at} drops or delays the packets",
                    root.kind, link.name
                ),
                format!("remove it: {command}"),
            )));
        }
    }
    Ok(None)
}
