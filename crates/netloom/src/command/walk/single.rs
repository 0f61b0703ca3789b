//! One path: its probe, and the outcome.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use kernel::{echo::SMALLEST, link::Link, packet::Capture, route};

use super::{
    super::Outcome,
    capture,
    cause::Cause,
    explain, filters, listen,
    path::Path,
    place::Place,
    published,
    shot::{Kind, Reply, Shot},
};

/// Time limit for an answer from this host.
pub(crate) const NEAR: Duration = Duration::from_millis(200);
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

/// Probes one path.
pub(crate) fn one(path: &Path<'_>) -> Outcome<Step> {
    if let Some(target) = path.target.filter(|_| path.published.is_some()) {
        return to_published(path, target);
    }
    let shot = match opened(path)? {
        Ok(shot) => shot,
        Err(step) => return Ok(step),
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

pub(crate) const ANSWERS: &str = "answers";

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
                capture::source_at(path, shot, link)?.is_some_and(|source| Some(source) != own)
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
    capture::arrival(&capture, Duration::from_millis(60), |packet| is_to(packet, end, port))
}

fn is_to(packet: &[u8], to: IpAddr, port: u16) -> bool {
    capture::source_of(packet, to, port).is_some()
}

/// Sends a packet of the interface's MTU, if the destination is on this host.
pub(crate) fn full_size_to(path: &Path<'_>, local: bool) -> Outcome<Step> {
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

/// Opens a probe, or returns what keeps the container from sending: its address is gone, or the family is disabled.
pub(crate) fn opened(path: &Path<'_>) -> Outcome<Result<Shot, Step>> {
    let shot = path.netns().run(|| Shot::open(path.to, path.kind, path.source))?;
    match shot {
        Ok(shot) => Ok(Ok(shot)),
        Err(failure) => Ok(Err(explain::stations(path)?.map(Step::Broken).ok_or(failure)?)),
    }
}

/// Probes a published port, and looks for the packet at the container's interface.
pub(crate) fn to_published(path: &Path<'_>, target: &Place) -> Outcome<Step> {
    let Some(link) = &target.link else {
        return Ok(explain::stations(path)?
            .map_or_else(|| Step::Skipped("the container has no interface".into()), Step::Broken));
    };
    let end = path.published.unwrap_or(SocketAddr::new(path.to, 0));
    let capture = target.side.netns.run(|| Capture::open(link, path.kind.protocol(path.to)))??;
    let shot = path.netns().run(|| Shot::open(path.to, path.kind, path.source))??;
    let is_udp = matches!(path.kind, Kind::Udp(_));
    let limit = if is_udp { Duration::from_millis(60) } else { NEAR };
    let reply = path.netns().run(|| shot.fire(path.netns(), limit))??;
    let arrived =
        capture::arrival(&capture, Duration::from_millis(60), |packet| is_to(packet, end.ip(), end.port()))?;
    if let Some(cause) = published::stale(path)?.filter(|_| is_udp) {
        return Ok(Step::Broken(cause));
    }
    match (arrived, reply) {
        (true, Reply::Answered) => Ok(Step::Works(format!("reaches {end}"))),
        (true, Reply::Refused) => Ok(Step::Broken(listen::refused(path))),
        (true, Reply::Lost(_)) if is_udp => Ok(Step::Works(format!("reaches {end}"))),
        (false, Reply::Answered | Reply::Refused) => {
            let cause = explain::stations(path)?;
            let evidence = filters::watch(path, &shot)?;
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
