//! The steps of a walk: the probes of one attachment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kernel::{IpFamily, echo::SMALLEST, link::Link, neigh, packet::Capture, route};
use netloom_runtime::types::{address::parse_ip, capability::PortMapping};

use super::{
    super::Outcome,
    capture, cause, explain, inside,
    path::Path,
    place::{Place, Side, outside},
    shot::{Kind, Reply, Shot},
    single::{self, Step},
    wire,
};

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

/// An interface without addresses is in order if it is connected.
fn without_address(host: &Side, place: &Place) -> Outcome<Step> {
    let cause = match (&place.link, &place.result) {
        (Some(link), Some(_)) if link.up && link.carrier => wire::host_side(host, place)?,
        _ => inside::interface(place, IpFamily::V4.unspecified()),
    };
    Ok(cause.map_or_else(|| Step::Works("is up; the network gives it no address".into()), Step::Broken))
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
        let shot = match single::opened(&path)? {
            Ok(shot) => shot,
            Err(step) => return Ok(step),
        };
        if path.netns().run(|| shot.fire(path.netns(), single::NEAR))?? == Reply::Answered {
            return Ok(Step::Works(single::ANSWERS.into()));
        }
        // A router may ignore echo requests, but it must resolve.
        let resolved = match &self.place.link {
            Some(link) => neigh::list(&self.place.side.socket, link, gateway)?,
            None => Vec::new(),
        };
        let cause = explain::explain(&path, &shot)?;
        let is_resolved = resolved.iter().any(|it| it.ip == gateway && it.mac.is_some() && !it.permanent);
        Ok(match cause {
            None => Step::Works(single::ANSWERS.into()),
            // The host or the router may ignore echo requests on purpose.
            Some(cause)
                if is_resolved && [cause::Kind::HostRule, cause::Kind::Silent].contains(&cause.kind) =>
            {
                Step::Skipped(format!("resolves, and does not answer echo requests ({})", cause.sentence))
            }
            Some(cause) => Step::Broken(cause),
        })
    }

    /// Sends from the host to the container, which may have rules of its own. It has answered the gateway, and is therefore near.
    fn host_to_container(&self) -> Outcome<Step> {
        let path = Path { from: None, source: None, target: Some(self.place), ..self.path(self.address) };
        let shot = path.netns().run(|| Shot::open(path.to, path.kind, None))??;
        if path.netns().run(|| shot.fire(path.netns(), single::NEAR / 2))?? == Reply::Answered {
            return Ok(Step::Works(single::ANSWERS.into()));
        }
        Ok(match explain::explain(&path, &shot)? {
            None => Step::Works(single::ANSWERS.into()),
            Some(cause) if cause.kind == cause::Kind::ContainerRule => Step::Skipped(cause.sentence),
            Some(cause) => Step::Broken(cause),
        })
    }

    /// Sends a packet of the container's MTU: a smaller MTU on the way, as on a bridge, drops it silently.
    fn full_size(&self, gateway: IpAddr) -> Outcome<Step> {
        single::full_size_to(&self.path(gateway), true)
    }

    /// Sends a packet to the host's next hop, and looks for it on the link by which it must leave the host.
    fn to_outside(&self) -> Outcome<Step> {
        let (host, place) = (self.host, self.place);
        let outside = outside(self.address);
        let family = IpFamily::of(self.address);
        let wants_default = place.wants_default(family);
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
        // Without a next hop the packet goes to an address that never answers; its loss says nothing.
        let target = way.gateway.unwrap_or(outside);
        let path = self.path(target);
        if of_container.is_none() || leads_elsewhere {
            let cause = inside::route(&self.path(outside), place)?;
            return Ok(
                cause.map_or_else(|| Step::Skipped("the default route leads elsewhere".into()), Step::Broken)
            );
        }
        let capture = host.netns.run(|| Capture::open(uplink, path.kind.protocol(target)))??;
        let shot = match single::opened(&path)? {
            Ok(shot) => shot,
            Err(step) => return Ok(step),
        };
        let reply = path.netns().run(|| shot.fire(path.netns(), single::NEAR))??;
        let source = capture::captured_source(&path, &shot, &capture)?;
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
        if host.netns.run(|| of_host.fire(&host.netns, single::NEAR / 2))?? == Reply::Answered {
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
        match single::to_published(&path, self.place)? {
            Step::Broken(cause) if cause.kind == cause::Kind::NoListener => {
                Ok(Step::Works(format!("reaches {end}, where nothing listens")))
            }
            other => Ok(other),
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
