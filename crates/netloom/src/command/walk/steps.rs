//! The steps of a walk: probes of one attachment, or of one path, each with its outcome.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use kernel::{IpFamily, echo::SMALLEST, link::Link, neigh, packet::Capture, route};
use netloom_runtime::types::{address::parse_ip, capability::PortMapping};

use super::{
    super::Outcome,
    cause::{self, Cause},
    explain, inside, listen,
    path::Path,
    place::{Place, Side, outside},
    published,
    shot::{Kind, Reply, Shot},
    wire,
};

/// Time limit for an answer from this host.
const NEAR: Duration = Duration::from_millis(200);
/// Time limit for an answer from another host.
const FAR: Duration = Duration::from_millis(400);

/// The outcome of one step.
#[derive(Debug)]
pub(crate) enum Step {
    /// The packet arrived.
    Works(String),
    /// The step does not apply, or does not tell.
    Skipped(String),
    Broken(Cause),
}

/// Probes every path of an attachment, and passes each step on. Stops after the first that is broken, unless `all` is set.
pub(crate) fn attachment(
    host: &Side,
    place: &Place,
    all: bool,
    mut done: impl FnMut(String, Step),
) -> Outcome {
    let mut broken = false;
    let mut step = |what: String, work: &mut dyn FnMut() -> Outcome<Step>| -> Outcome {
        if !broken || all {
            let outcome = work()?;
            broken |= matches!(outcome, Step::Broken(_));
            done(what, outcome);
        }
        Ok(())
    };
    let expected = place.expected();
    if expected.is_empty() {
        return step(format!("interface `{}`", place.ifname), &mut || without_address(host, place));
    }
    for (net, gateway) in expected {
        let address = net.addr();
        let on_link = Walk { host, place, address };
        let gateway = gateway
            .filter(|gateway| gateway.is_ipv4() == address.is_ipv4())
            .or_else(|| place.gateway(address));
        let of_host = gateway.is_some_and(|gateway| host.has(gateway)) && place.parent.is_none();
        let mut answers = false;
        match gateway.filter(|gateway| on_link.uses(*gateway)) {
            Some(gateway) => step(format!("container to gateway {gateway}"), &mut || {
                let outcome = on_link.to_gateway(gateway)?;
                answers = matches!(outcome, Step::Works(_));
                Ok(outcome)
            })?,
            None => step(format!("address {address}"), &mut || on_link.alone())?,
        }
        if let Some(gateway) = gateway.filter(|_| of_host && answers) {
            step(format!("host to container {address}"), &mut || on_link.host_to_container())?;
            step(format!("{} bytes to gateway {gateway}", on_link.mtu()), &mut || {
                on_link.full_size(gateway)
            })?;
        }
        if of_host || place.enters().is_some() && gateway.is_some() {
            step(format!("{} out of the host", IpFamily::of(address)), &mut || on_link.to_outside())?;
        }
        for port in &place.ports {
            if let Some((kind, to, end)) = published_port(port, address, gateway) {
                step(
                    format!("published port {}", SocketAddr::new(to, kind.port().unwrap_or_default())),
                    &mut || on_link.to_published(kind, to, end),
                )?;
            }
        }
    }
    Ok(())
}

/// Probes one path.
pub(crate) fn one(path: &Path<'_>) -> Outcome<Step> {
    if let Some(published) = path.published
        && let Some(target) = path.target
    {
        let walk = Walk { host: path.host, place: target, address: published.ip() };
        return walk.published(path);
    }
    let shot = path.netns().run(|| Shot::open(path.to, path.kind, path.source));
    let shot = match shot? {
        Ok(shot) => shot,
        // The source address is gone, or the family is disabled.
        Err(failure) => return explain::stations(path)?.map(Step::Broken).ok_or(failure),
    };
    let local = path.target.is_some() || path.host.has(path.to) || path.to.is_loopback();
    let limit = if local { NEAR } else { FAR };
    match path.netns().run(|| shot.fire(path.netns(), limit))?? {
        Reply::Answered => full_size_to(path, local),
        Reply::Refused => Ok(Step::Broken(explain::stations(path)?.unwrap_or_else(|| listen::refused(path)))),
        Reply::Lost(_) => {
            if matches!(path.kind, Kind::Udp(_)) {
                return silent(path, &shot);
            }
            Ok(explain::explain(path, &shot)?.map_or_else(|| Step::Works(ANSWERS.into()), Step::Broken))
        }
    }
}

const ANSWERS: &str = "answers";

/// A UDP service need not answer: the datagram must arrive, or leave the host.
fn silent(path: &Path<'_>, shot: &Shot) -> Outcome<Step> {
    let Some(cause) = explain::explain(path, shot)? else { return Ok(Step::Works(ANSWERS.into())) };
    let there = if let Some(target) = path.target {
        arrives(path, shot, target, path.end(), path.end_port().unwrap_or_default())?
    } else {
        let way = route::way_to(&path.host.socket, path.to)?.filter(|way| !way.local);
        let own = path.from.and_then(|place| place.address_for(path.to));
        match way.and_then(|way| path.host.link(way.link)) {
            // A name server answers every query.
            Some(link) if path.kind.port() != Some(53) => {
                explain::source_at(path, shot, link)?.is_some_and(|source| Some(source) != own)
            }
            _ => false,
        }
    };
    if !there {
        return Ok(Step::Broken(cause));
    }
    let listens = path
        .target
        .map(|target| listen::on(&target.side, path.kind, path.end(), path.end_port().unwrap_or_default()));
    Ok(match listens {
        Some(listen::Listens::There) | None => Step::Works("arrives; a UDP service need not answer".into()),
        Some(_) => Step::Broken(listen::refused(path)),
    })
}

/// Sends the probe once more, and returns whether it is seen at the container's interface.
fn arrives(path: &Path<'_>, shot: &Shot, target: &Place, end: IpAddr, port: u16) -> Outcome<bool> {
    let Some(link) = &target.link else { return Ok(false) };
    let capture = target.side.netns.run(|| Capture::open(link, path.kind.protocol(path.to)))??;
    path.netns().run(|| shot.fire(path.netns(), Duration::from_millis(30)))??;
    explain::arrival(&capture, Duration::from_millis(60), |packet| is_to(packet, end, port))
}

fn is_to(packet: &[u8], to: IpAddr, port: u16) -> bool {
    explain::source_of(packet, to, port).is_some()
}

/// Sends a packet of the interface's MTU, if the destination is on this host.
fn full_size_to(path: &Path<'_>, local: bool) -> Outcome<Step> {
    let (Kind::Echo(_), true, Some(place)) = (path.kind, local && !path.to.is_loopback(), path.from) else {
        return Ok(Step::Works(ANSWERS.into()));
    };
    let other = path.target.and_then(|target| target.link.as_ref()).map_or(u32::MAX, |link| link.mtu);
    let mtu = place.link.as_ref().map_or(0, |link| link.mtu).min(other);
    let full = Path { kind: Kind::Echo(usize::try_from(mtu).unwrap_or(SMALLEST)), ..*path };
    let shot = full.netns().run(|| Shot::open(full.to, full.kind, full.source))??;
    if fired(&full, &shot, NEAR)? == Reply::Answered {
        return Ok(Step::Works(ANSWERS.into()));
    }
    Ok(Step::Broken(too_large(path, mtu)))
}

fn too_large(path: &Path<'_>, mtu: u32) -> Cause {
    let places = [path.from, path.target];
    let links = places.iter().flatten().flat_map(|place| [&place.host_end, &place.bridge]).flatten();
    let smallest: Option<&Link> = links.min_by_key(|link| link.mtu);
    match smallest.filter(|link| link.mtu < mtu) {
        Some(link) => Cause::new(
            format!("packets of {mtu} bytes to {} are lost: `{}` has MTU {}", path.to, link.name, link.mtu),
            format!(
                "make them equal: `ip link set {} mtu {mtu}`, or set `\"mtu\": {}` in the network's configuration",
                link.name, link.mtu
            ),
        ),
        None => Cause::new(
            format!("packets of {mtu} bytes to {} are lost, and smaller ones are not", path.to),
            "set `mtu` of the network to the smallest MTU on the path",
        ),
    }
}

/// Sends a probe, twice if need be.
fn fired(path: &Path<'_>, shot: &Shot, limit: Duration) -> Outcome<Reply> {
    let first = path.netns().run(|| shot.fire(path.netns(), limit))??;
    match first {
        // The first packet may have taught the kernel a smaller MTU of the path.
        Reply::Lost(_) => path.netns().run(|| shot.fire(path.netns(), limit))?,
        other => Ok(other),
    }
}

/// An interface without addresses is in order if it is connected.
fn without_address(host: &Side, place: &Place) -> Outcome<Step> {
    let v4: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    let cause = match (&place.link, &place.result) {
        (Some(link), Some(_)) if link.up && link.carrier => wire::host_side(host, place)?,
        _ => inside::interface(place, v4),
    };
    Ok(cause.map_or_else(|| Step::Works("is up; the network gives it no address".into()), Step::Broken))
}

/// Opens a probe, or returns what keeps the container from sending from its address.
fn opened(path: &Path<'_>) -> Outcome<Result<Shot, Step>> {
    let shot = path.netns().run(|| Shot::open(path.to, path.kind, path.source))?;
    match shot {
        Ok(shot) => Ok(Ok(shot)),
        Err(failure) => Ok(Err(explain::stations(path)?.map(Step::Broken).ok_or(failure)?)),
    }
}

/// The probes of one address of an attachment.
struct Walk<'a> {
    host: &'a Side,
    place: &'a Place,
    address: IpAddr,
}

impl Walk<'_> {
    fn mtu(&self) -> u32 {
        self.place.link.as_ref().map_or(0, |link| link.mtu)
    }

    fn path(&self, to: IpAddr) -> Path<'_> {
        Path {
            host: self.host,
            from: Some(self.place),
            source: Some(self.address),
            to,
            kind: Kind::Echo(SMALLEST),
            target: None,
            published: None,
        }
    }

    /// Returns whether packets go to a gateway: the network has routes by it, or the host has the address.
    fn uses(&self, gateway: IpAddr) -> bool {
        let family = IpFamily::of(gateway);
        let has_routes = self
            .place
            .result
            .as_ref()
            .is_none_or(|result| result.routes.iter().any(|it| family.has(it.dst.addr())));
        has_routes
            || self.place.asks_for("isGateway")
            || self.place.asks_for("isDefaultGateway")
            || self.host.has(gateway)
    }

    /// Compares the stations without a probe, for an address without a gateway.
    fn alone(&self) -> Outcome<Step> {
        let cause = match inside::interface(self.place, self.address) {
            None => wire::host_side(self.host, self.place)?,
            cause => cause,
        };
        Ok(cause.map_or_else(|| Step::Works("is set; the network has no gateway".into()), Step::Broken))
    }

    fn to_gateway(&self, gateway: IpAddr) -> Outcome<Step> {
        let path = self.path(gateway);
        let shot = match opened(&path)? {
            Ok(shot) => shot,
            Err(step) => return Ok(step),
        };
        if path.netns().run(|| shot.fire(path.netns(), NEAR))?? == Reply::Answered {
            return Ok(Step::Works(ANSWERS.into()));
        }
        // A router may ignore echo requests, but it must resolve.
        let resolved = match &self.place.link {
            Some(link) => neigh::list(&self.place.side.socket, link, gateway)?,
            None => Vec::new(),
        };
        let cause = explain::explain(&path, &shot)?;
        let is_resolved = resolved.iter().any(|it| it.ip == gateway && it.mac.is_some() && !it.permanent);
        Ok(match cause {
            None => Step::Works(ANSWERS.into()),
            // The host or the router may ignore echo requests on purpose.
            Some(cause)
                if is_resolved && [cause::Kind::HostRule, cause::Kind::Silent].contains(&cause.kind) =>
            {
                Step::Skipped(format!("resolves, and does not answer echo requests ({})", cause.sentence))
            }
            Some(cause) => Step::Broken(cause),
        })
    }

    /// Sends from the host to the container, which may have rules of its own.
    fn host_to_container(&self) -> Outcome<Step> {
        let path = Path { from: None, source: None, target: Some(self.place), ..self.path(self.address) };
        match one(&path)? {
            Step::Broken(cause) if cause.kind == cause::Kind::ContainerRule => {
                Ok(Step::Skipped(cause.sentence))
            }
            other => Ok(other),
        }
    }

    /// Sends a packet of the container's MTU: a smaller MTU on the way, as on a bridge, drops it silently.
    fn full_size(&self, gateway: IpAddr) -> Outcome<Step> {
        full_size_to(&self.path(gateway), true)
    }

    /// Sends a packet to the host's next hop, and looks for it on the link by which it must leave the host.
    fn to_outside(&self) -> Outcome<Step> {
        let (host, place) = (self.host, self.place);
        let outside = outside(self.address);
        let family = IpFamily::of(self.address);
        let wants_default = place.result.as_ref().is_some_and(|result| {
            result.routes.iter().any(|it| it.dst.prefix_len() == 0 && family.has(it.dst.addr()))
        });
        let of_container = route::way_to(&place.side.socket, outside)?;
        if of_container.is_none() && !wants_default {
            return Ok(Step::Skipped("the network gives the container no default route".into()));
        }
        let Some(way) = route::way_to(&host.socket, outside)?.filter(|way| !way.local) else {
            return Ok(Step::Skipped(format!("the host has no {family} default route")));
        };
        let Some(uplink) = host.link(way.link) else {
            return Ok(Step::Skipped("the host's default route has no link".into()));
        };
        let leads_elsewhere =
            of_container.is_some_and(|way| place.link.as_ref().is_some_and(|link| link.index != way.link));
        if leads_elsewhere && !wants_default {
            return Ok(Step::Skipped("the container's default route leads to another interface".into()));
        }
        // Without a next hop the packet goes to an address to which nobody answers; its loss says nothing.
        let target = way.gateway.unwrap_or(outside);
        let path = self.path(target);
        if of_container.is_none() || leads_elsewhere {
            let cause = inside::route(&self.path(outside), place)?;
            return Ok(
                cause.map_or_else(|| Step::Skipped("the default route leads elsewhere".into()), Step::Broken)
            );
        }
        let capture = host.netns.run(|| Capture::open(uplink, path.kind.protocol(target)))??;
        let shot = match opened(&path)? {
            Ok(shot) => shot,
            Err(step) => return Ok(step),
        };
        let reply = path.netns().run(|| shot.fire(path.netns(), NEAR))??;
        let source = explain::captured_source(&path, &shot, &capture)?;
        if reply != Reply::Answered
            && let Some(step) = self.unanswered(&path, &shot, uplink, source)?
        {
            return Ok(step);
        }
        let source = source.map_or_else(String::new, |source| format!(" from {source}"));
        let (name, mtu, size) = (&uplink.name, uplink.mtu, self.mtu());
        if size > mtu {
            return Ok(Step::Works(format!(
                "leaves by `{name}`{source}; its MTU {mtu} is below the container's {size}, which costs a retry per connection"
            )));
        }
        Ok(Step::Works(format!("leaves by `{name}`{source}")))
    }

    /// Judges a packet to the next hop that was not answered. Returns `None` if it left as it must.
    fn unanswered(
        &self,
        path: &Path<'_>,
        shot: &Shot,
        uplink: &Link,
        source: Option<IpAddr>,
    ) -> Outcome<Option<Step>> {
        let host = self.host;
        let of_host = host.netns.run(|| Shot::open(path.to, path.kind, None))??;
        if host.netns.run(|| of_host.fire(&host.netns, NEAR))?? == Reply::Answered {
            return Ok(explain::explain(path, shot)?.map(Step::Broken));
        }
        match source {
            Some(source) if source == self.address && self.place.asks_for("ipMasq") => {
                Ok(Some(Step::Broken(explain::not_masqueraded(path, uplink, source))))
            }
            Some(_) => Ok(None),
            None => {
                let known = neigh::list(&host.socket, uplink, path.to)?;
                if known.iter().any(|it| it.ip == path.to && it.mac.is_some() && !it.failed) {
                    return Ok(explain::explain(path, shot)?.map(Step::Broken));
                }
                let name = &uplink.name;
                Ok(Some(Step::Skipped(format!(
                    "the host itself does not reach its next hop {} by `{name}`",
                    path.to
                ))))
            }
        }
    }

    /// Connects to a published port from the host, and looks for the packet at the container's interface.
    fn to_published(&self, kind: Kind, to: IpAddr, end: SocketAddr) -> Outcome<Step> {
        let path = Path {
            host: self.host,
            from: None,
            source: None,
            to,
            kind,
            target: Some(self.place),
            published: Some(end),
        };
        match self.published(&path)? {
            Step::Broken(cause) if cause.kind == cause::Kind::NoListener => {
                Ok(Step::Works(format!("reaches {end}, where nothing listens")))
            }
            other => Ok(other),
        }
    }

    fn published(&self, path: &Path<'_>) -> Outcome<Step> {
        let Some(link) = &self.place.link else {
            return Ok(explain::stations(path)?
                .map_or_else(|| Step::Skipped("the container has no interface".into()), Step::Broken));
        };
        let end = path.published.unwrap_or(SocketAddr::new(path.to, 0));
        let capture = self.place.side.netns.run(|| Capture::open(link, path.kind.protocol(path.to)))??;
        let shot = path.netns().run(|| Shot::open(path.to, path.kind, path.source))??;
        let is_udp = matches!(path.kind, Kind::Udp(_));
        let limit = if is_udp { Duration::from_millis(60) } else { NEAR };
        let reply = path.netns().run(|| shot.fire(path.netns(), limit))??;
        let arrived = explain::arrival(&capture, Duration::from_millis(60), |packet| {
            is_to(packet, end.ip(), end.port())
        })?;
        if let Some(cause) = published::stale(path)?.filter(|_| is_udp) {
            return Ok(Step::Broken(cause));
        }
        match (arrived, reply) {
            (true, Reply::Answered) => Ok(Step::Works(format!("reaches {end}"))),
            (true, Reply::Refused) => Ok(Step::Broken(listen::refused(path))),
            (true, Reply::Lost(_)) if is_udp => Ok(Step::Works(format!("reaches {end}"))),
            (false, Reply::Answered | Reply::Refused) => {
                let cause = explain::stations(path)?;
                let evidence = super::filters::watch(path, &shot)?;
                let cause = match cause.or_else(|| evidence.dropped.clone()) {
                    Some(cause) => cause,
                    None => published::explain(path, &evidence)?,
                };
                Ok(Step::Broken(cause))
            }
            (_, Reply::Lost(_)) => Ok(explain::explain(path, &shot)?
                .map_or_else(|| Step::Works(format!("reaches {end}")), Step::Broken)),
        }
    }
}

/// Returns probe, host address and container address of a published port, or `None` if it is of another family or protocol.
pub(crate) fn published_port(
    port: &PortMapping,
    address: IpAddr,
    gateway: Option<IpAddr>,
) -> Option<(Kind, IpAddr, SocketAddr)> {
    let number = u16::try_from(port.host_port).ok().filter(|number| *number > 0)?;
    let kind = match port.protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Kind::Tcp(number),
        "udp" => Kind::Udp(number),
        _ => return None,
    };
    let written = parse_ip(&port.host_ip).ok().filter(|ip| !ip.is_unspecified());
    let ip = written.or(gateway).unwrap_or(Ipv4Addr::LOCALHOST.into());
    let end = SocketAddr::new(address, u16::try_from(port.container_port).unwrap_or_default());
    (ip.is_ipv4() == address.is_ipv4()).then_some((kind, ip, end))
}
