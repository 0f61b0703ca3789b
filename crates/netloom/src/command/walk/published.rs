//! Why a published port does not lead to its container.

use std::collections::BTreeSet;

use kernel::{IpFamily, Protocol, Socket, conntrack, sysctl::Setting};

use super::{
    super::Outcome,
    cause::Cause,
    filters::Evidence,
    listen::{self, Listens},
    path::Path,
    shot::{Kind, Reply},
};

/// Explains a published port whose probe was not answered, from what a watched probe shows.
pub(crate) fn explain(path: &Path<'_>, evidence: &Evidence<'_>) -> Outcome<Cause> {
    let host = path.host;
    let port = path.kind.port().unwrap_or_default();
    let end = path.published.map_or_else(String::new, |published| published.to_string());
    if let Some((other, rule)) = &evidence.diverted {
        return Ok(Cause::new(
            format!(
                "the published port {} leads to {other} instead of {end}: {rule} takes the port",
                path.destination()
            ),
            "delete that rule, or publish the container on another port",
        ));
    }
    if matches!(path.kind, Kind::Udp(_))
        && let Some(cause) = stale(path)?
    {
        return Ok(cause);
    }
    if evidence.at_target {
        return Ok(match (evidence.reply, path.target) {
            (Reply::Refused, _) => listen::refused(path),
            (_, Some(target)) => Cause::new(
                format!(
                    "packets to the published port {} reach {end}, but no answer comes back",
                    path.destination()
                ),
                target.look_inside(),
            ),
            _ => Cause::new(format!("no answer comes from {end}"), "check the service"),
        });
    }
    if path.to.is_loopback()
        && path.to.is_ipv4()
        && host.setting(Setting::Ipv4("all", "route_localnet")).as_deref() == Some("0")
    {
        return Ok(Cause::new(
            format!(
                "the host does not route packets from its loopback address, to which port {port} is published"
            ),
            "turn it on: `sysctl -w net.ipv4.conf.all.route_localnet=1`, or use the host's own address",
        ));
    }
    let again = path.target.map(super::place::Place::add_again).unwrap_or_default();
    if listen::on(host, path.kind, path.to, port) == Listens::There {
        return Ok(Cause::new(
            format!("a program of the host takes port {port}, and no rule leads it to {end}"),
            format!("stop the program (`ss -ltnup 'sport = :{port}'`) or publish another port, and {again}"),
        ));
    }
    Ok(Cause::new(
        format!("no rule of the host leads the published port {} to {end}", path.destination()),
        again,
    ))
}

/// Returns a tracked connection that sends packets for the port elsewhere.
pub(crate) fn stale(path: &Path<'_>) -> Outcome<Option<Cause>> {
    let (Some(port), Some(end)) = (path.kind.port(), path.published) else { return Ok(None) };
    let family = IpFamily::of(path.to);
    let ports = BTreeSet::from([(family, port)]);
    let protocol = path.kind.protocol(path.to);
    let list = path.host.netns.run(|| {
        let socket = Socket::open(Protocol::Netfilter)?;
        conntrack::to_ports(&socket, protocol, &ports)
    })?;
    // A kernel without connection tracking refuses the request.
    let stale = list
        .unwrap_or_default()
        .into_iter()
        .find(|it| it.destination.0 == path.to && it.answers_from != end.ip());
    Ok(stale.map(|it| {
        let name = if protocol == 17 { "udp" } else { "tcp" };
        Cause::new(
            format!(
                "a stale tracked connection sends packets for {} to {} instead of {end}",
                path.destination(),
                it.answers_from
            ),
            format!("delete it: `conntrack -D -p {name} --orig-dst {} --dport {port}`", path.to),
        )
    }))
}
