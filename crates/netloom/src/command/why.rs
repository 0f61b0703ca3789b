//! `netloom why`: why a container has no network, or does not reach an address.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path as FilePath,
};

use clap::Args;
use kernel::{IpFamily, echo::SMALLEST};
use netloom_runtime::cache::Entry;
use serde_json::{Value, json};

use super::{
    Failure, Outcome, Places, cluster,
    find::Target,
    say, say_json,
    unprivileged::require_capabilities,
    walk::{
        cause::{self, Cause},
        names::Resolver,
        path::Path,
        place::{Place, Side},
        shot::Kind,
        single::{self, Step},
        steps,
    },
};

/// Options of `netloom why`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Container: its ID or a prefix of it, its name, its namespace's path or name, or a process ID
    container: String,
    /// `to ADDRESS[:PORT]`: what the container does not reach, an address or another container. `from SOURCE`: who does not reach
    /// the container, another container or `host`. Defaults to every path of the container
    #[arg(value_name = "to DESTINATION | from SOURCE", num_args = 0..=4)]
    words: Vec<String>,
    /// Interface of the container [default: all]
    #[arg(short, long, value_name = "NAME")]
    ifname: Option<String>,
    /// Send UDP to the port instead of opening a TCP connection
    #[arg(long)]
    udp: bool,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn why(places: &Places, options: &Options) -> Outcome {
    require_capabilities("why")?;
    let request = Request::parse(options)?;
    let entries = places.runtime().attachments()?;
    let host = Side::of_host()?;
    let mut report = Report { json: options.json, steps: Vec::new(), cause: None };
    match (&request.to, &request.from) {
        (None, None) => all_paths(&host, &entries, options, &mut report)?,
        _ => one_path(&host, &entries, options, &request, &mut report)?,
    }
    report.finish(&options.container)
}

/// What the words ask for.
#[derive(Debug, Default)]
struct Request {
    to: Option<String>,
    from: Option<String>,
}

impl Request {
    fn parse(options: &Options) -> Outcome<Self> {
        let mut request = Self::default();
        let mut words = options.words.iter().peekable();
        while let Some(word) = words.next() {
            let slot = match word.as_str() {
                "from" => &mut request.from,
                "to" => &mut request.to,
                _ if request.to.is_none() => {
                    request.to = Some(word.clone());
                    continue;
                }
                other => {
                    return Err(Failure::new(format!("unexpected argument `{other}`"))
                        .hint("write `to ADDRESS:PORT` and `from SOURCE`"));
                }
            };
            let value = words.next().ok_or_else(|| {
                Failure::new(format!("`{word}` lacks a value"))
                    .hint("write `to ADDRESS:PORT` or `from SOURCE`")
            })?;
            *slot = Some(value.clone());
        }
        Ok(request)
    }
}

/// Prints the steps as they are done, or keeps them for JSON.
struct Report {
    json: bool,
    steps: Vec<Value>,
    cause: Option<Cause>,
}

impl Report {
    fn add(&mut self, what: &str, step: Step) {
        if self.json {
            let (word, text) = outcome(&step);
            self.steps.push(json!({"step": what, "outcome": word.to_lowercase(), "text": text}));
        } else {
            show(what, &step);
        }
        if let Step::Broken(cause) = step {
            self.cause.get_or_insert(cause);
        }
    }

    fn finish(self, container: &str) -> Outcome {
        if self.json {
            let (cause, remedy) = self.cause.as_ref().map(|cause| (&cause.sentence, &cause.remedy)).unzip();
            let value = json!({"container": container, "works": self.cause.is_none(), "steps": self.steps, "cause": cause, "remedy": remedy});
            say_json(serde_json::to_string_pretty(&value).unwrap_or_default());
        }
        match self.cause {
            Some(cause) => Err(cause.into()),
            None if self.json => Ok(()),
            None => {
                say(format!("Nothing is wrong with the network of `{container}` on this host."));
                Ok(())
            }
        }
    }
}

/// Returns the outcome of a step as a word, and what there is to say.
fn outcome(step: &Step) -> (&'static str, &str) {
    match step {
        Step::Works(text) => ("ok", text),
        Step::Skipped(text) => ("skip", text),
        Step::Broken(cause) => ("FAIL", &cause.sentence),
    }
}

/// Prints a step.
pub(crate) fn show(what: &str, step: &Step) {
    let (word, text) = outcome(step);
    say(format!("  {word:<4}  {what:<40}  {text}"));
}

/// Opens the attachments of a container that is named as a person knows it.
fn places_of(host: &Side, entries: &[Entry], text: &str, ifname: Option<&str>) -> Outcome<Vec<Place>> {
    let target = Target::new(text);
    let mut matching: Vec<&Entry> = entries
        .iter()
        .filter(|entry| target.matches(&entry.container_id, entry.sandbox(), &entry.args))
        .filter(|entry| ifname.is_none_or(|name| name == entry.ifname))
        .collect();
    if matching.iter().any(|entry| entry.container_id == text) {
        matching.retain(|entry| entry.container_id == text);
    }
    let sandboxes: std::collections::BTreeSet<&str> = matching.iter().map(|entry| entry.sandbox()).collect();
    if sandboxes.len() > 1 {
        let ids: Vec<&str> = matching.iter().map(|entry| entry.container_id.as_str()).collect();
        return Err(Failure::new(format!("`{text}` matches several containers: {}", ids.join(", ")))
            .hint("write the whole ID, or the namespace's path"));
    }
    if matching.is_empty() {
        let path = target.path().ok_or_else(|| {
            Failure::new(format!("no attachment matches `{text}`, and it is no namespace and no process"))
                .hint("list the attachments with `netloom list`; if the container is not there, no ADD has succeeded for it: see the runtime's log")
        })?;
        return Ok(vec![Place::of_netns(host, &path, ifname)?]);
    }
    matching
        .into_iter()
        .map(|entry| {
            if entry.sandbox().is_empty() || !FilePath::new(entry.sandbox()).exists() {
                return Err(Failure::from(Cause::new(
                    format!("the network namespace `{}` of container `{}` is gone: the container has ended, or its runtime lost it", entry.sandbox(), entry.container_id),
                    format!("restart the container; `netloom gc` removes what is left of network `{}`", entry.network),
                )));
            }
            Place::of_entry(host, entry)
        })
        .collect()
}

/// Walks every path of the container.
fn all_paths(host: &Side, entries: &[Entry], options: &Options, report: &mut Report) -> Outcome {
    for place in places_of(host, entries, &options.container, options.ifname.as_deref())? {
        if place.link.is_none() && place.result.is_none() {
            let cause = Cause::new(
                format!(
                    "container `{}` has no interface but the loopback, and no runtime has cached an ADD for it",
                    options.container
                ),
                "look for the failed ADD in the runtime's log; `netloom list` shows the networks and what is wrong with them",
            );
            report.add("interface", Step::Broken(cause));
            break;
        }
        steps::attachment(host, &place, false, |what, step| report.add(&what, step))?;
        if report.cause.is_none()
            && let Some(resolver) = Resolver::of(&place)
        {
            let (what, step) = resolver.step(&from_place(host, &place))?;
            report.add(&what, step);
        }
        if report.cause.is_some() {
            break;
        }
    }
    Ok(())
}

/// Returns a path from a container. The caller sets the destination.
fn from_place<'a>(host: &'a Side, place: &'a Place) -> Path<'a> {
    Path {
        host,
        from: Some(place),
        source: None,
        to: IpFamily::V4.unspecified(),
        kind: Kind::Echo(SMALLEST),
        target: None,
        published: None,
    }
}

/// Walks the path that the request names.
fn one_path(
    host: &Side,
    entries: &[Entry],
    options: &Options,
    request: &Request,
    report: &mut Report,
) -> Outcome {
    let text = &options.container;
    // With a source, the container is the destination and may carry a port.
    let (container, own_port) = match text.rsplit_once(':') {
        Some((name, port)) if request.from.is_some() && !name.contains(':') => {
            (name, port.parse::<u16>().ok())
        }
        _ => (text.as_str(), None),
    };
    let own = places_of(host, entries, container, options.ifname.as_deref())?;
    let sender = match request.from.as_deref() {
        Some("host") => None,
        Some(name) => Some(places_of(host, entries, name, None)?),
        None => None,
    };
    let senders: Option<&[Place]> = match (&request.from, &sender) {
        (None, _) => Some(&own),
        (Some(_), Some(places)) => Some(places),
        (Some(_), None) => None,
    };
    let others = neighbours(host, entries, &own);
    let (to, port) = match &request.to {
        Some(text) => match destination(host, entries, text, &own)? {
            Destination::Address(to, port) => (to, port),
            Destination::Name(name, port) => match resolve(host, senders, &name)? {
                Ok(to) => (to, port),
                Err(cause) => {
                    report.add(&format!("address of {name}"), Step::Broken(cause));
                    return Ok(());
                }
            },
        },
        None => (address_of(&own, container)?, own_port),
    };
    let from = senders.and_then(|places| sending(places, to));
    let is_publisher = |place: &&Place| {
        request.from.is_some() || !std::ptr::eq(*place, from.unwrap_or(place)) || host.has(to)
    };
    let all: Vec<&Place> = own.iter().chain(&others).collect();
    let kind = match port {
        None => Kind::Echo(SMALLEST),
        Some(port) if options.udp => Kind::Udp(port),
        Some(port) => Kind::Tcp(port),
    };
    let target = all.iter().copied().find(|place| place.expected().iter().any(|(net, _)| net.addr() == to));
    let published = (target.is_none() && (host.has(to) || to.is_loopback() && from.is_none()))
        .then(|| all.iter().copied().filter(is_publisher).find_map(|place| published_by(place, kind, to)))
        .flatten();
    let path = Path {
        host,
        from,
        source: from.and_then(|place| place.address_for(to)),
        to,
        kind,
        target: published
            .map_or(target, |(place, _)| Some(place))
            .filter(|target| !from.is_some_and(|from| std::ptr::eq(*target, from) && published.is_none())),
        published: published.map(|(_, end)| end),
    };
    let step = match single::one(&path)? {
        Step::Broken(cause) => Step::Broken(of_cluster(&path, cause)),
        step => step,
    };
    report.add(&format!("{} to {}", path.sender(), path.destination()), step);
    Ok(())
}

/// Names the node of the cluster that has the address, if packets for it leave this host and the node does not answer.
fn of_cluster(path: &Path<'_>, cause: Cause) -> Cause {
    if cause.kind != cause::Kind::Silent || path.target.is_some() || path.host.has(path.to) {
        return cause;
    }
    match cluster::silent_peer(path.to) {
        Some(cluster::Peer { name, path: way, problem }) => {
            let over = if way.is_empty() { String::new() } else { format!(" (path: {way})") };
            let problem = if problem.is_empty() { String::new() } else { format!(": {problem}") };
            Cause::new(
                format!("node `{name}`, which has {}, does not answer this node{over}{problem}", path.to),
                "see `netloom cluster` on both nodes, and let their tunnel or routes through every firewall between them",
            )
        }
        None => cause,
    }
}

/// Returns the container and address that a port of the host is published to.
fn published_by(place: &Place, kind: Kind, to: IpAddr) -> Option<(&Place, SocketAddr)> {
    place.ports.iter().find_map(|port| {
        let address = place
            .expected()
            .into_iter()
            .map(|(net, _)| net.addr())
            .find(|ip| ip.is_ipv4() == to.is_ipv4())?;
        let (of_port, host_ip, end) = steps::published_port(port, address, Some(to))?;
        (of_port == kind && host_ip == to).then_some((place, end))
    })
}

/// Returns the attachment that sends to an address: the one of its subnet, or of its route.
fn sending(places: &[Place], to: IpAddr) -> Option<&Place> {
    let link = places.first().and_then(|place| kernel::route::way_to(&place.side.socket, to).ok().flatten());
    let of_route =
        |place: &&Place| link.zip(place.link.as_ref()).is_some_and(|(way, link)| way.link == link.index);
    places
        .iter()
        .find(|place| place.expected().iter().any(|(net, _)| net.contains(&to)))
        .or_else(|| places.iter().find(of_route))
        .or(places.first())
}

/// Opens the other attachments of this host whose namespaces exist.
fn neighbours(host: &Side, entries: &[Entry], own: &[Place]) -> Vec<Place> {
    let is_other = |entry: &&Entry| {
        !own.iter().any(|place| place.path == FilePath::new(entry.sandbox()) && place.ifname == entry.ifname)
    };
    entries.iter().filter(is_other).filter_map(|entry| Place::of_entry(host, entry).ok()).collect()
}

fn address_of(places: &[Place], name: &str) -> Outcome<IpAddr> {
    let address = places.iter().flat_map(Place::expected).map(|(net, _)| net.addr()).next();
    address.ok_or_else(|| {
        Failure::new(format!("container `{name}` has no address"))
            .hint(format!("find out why: `netloom why {name}`"))
    })
}

/// A destination as a person writes it.
enum Destination {
    Address(IpAddr, Option<u16>),
    Name(String, Option<u16>),
}

/// Parses a destination: an address, another container, or a name, with or without a port.
fn destination(host: &Side, entries: &[Entry], text: &str, own: &[Place]) -> Outcome<Destination> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Destination::Address(ip, None));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(Destination::Address(socket.ip(), Some(socket.port())));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => {
            let number = port.parse::<u16>();
            let wrong = || Failure::new(format!("invalid port `{port}`")).hint("write ADDRESS:PORT");
            (name, Some(number.map_err(|_| wrong())?))
        }
        None => (text, None),
    };
    let Ok(places) = places_of(host, entries, name, None) else {
        return Ok(Destination::Name(name.to_owned(), port));
    };
    let families: Vec<bool> =
        own.iter().flat_map(Place::expected).map(|(net, _)| net.addr().is_ipv4()).collect();
    let addresses = places.iter().flat_map(Place::expected).map(|(net, _)| net.addr());
    let address = addresses.into_iter().find(|ip| families.contains(&ip.is_ipv4()));
    Ok(Destination::Address(address.map_or_else(|| address_of(&places, name), Ok)?, port))
}

/// Resolves a name as the sender does.
fn resolve(host: &Side, senders: Option<&[Place]>, name: &str) -> Outcome<Result<IpAddr, Cause>> {
    let place = senders.and_then(|places| places.first());
    let Some((place, resolver)) = place.and_then(|place| Some((place, Resolver::of(place)?))) else {
        return Err(Failure::new(format!(
            "`{name}` is no address and no container, and the container has no process with a resolv.conf"
        ))
        .hint("write an address such as 192.0.2.7 or [2001:db8::7]:443"));
    };
    resolver.look_up(&from_place(host, place), name)
}
