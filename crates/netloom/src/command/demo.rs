//! `netloom demo`: attaches two containers to the embedded network, tests it and removes everything again.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use kernel::{Netns, Protocol, Socket, echo::ping, link};
use netloom_runtime::{
    Container,
    types::{NetworkList, result::v100::Success},
};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{
    Failure, Outcome, Places,
    networks::{self, Runtime},
    say_lines as say,
    temporary_netns::TemporaryNetns,
    unprivileged::require_capabilities,
};

/// Options of `netloom demo`, which has none.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {}

/// The signal that asked this process to end, or 0.
static ENDING: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// Time limit for each answer.
const LIMIT: Duration = Duration::from_secs(3);
/// The port on which the demo's server listens in its container.
const SERVER_PORT: u16 = 8000;

pub(crate) fn demo(places: &Places, _: &Options) -> Outcome {
    require_capabilities("demo")?;
    let _folder = places.prepare()?;
    let list = places.with_own_reservations(networks::embedded()?)?;
    let runtime = places.own_runtime()?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(signal, Arc::clone(&ENDING), usize::try_from(signal).unwrap_or(0))?;
    }
    let before = HostObjects::collect(&list)?;
    say("Attaching two containers on this host to the embedded network, with this binary's plugins only.\n");
    if filters_forwarded_packets() {
        say(
            "  This host filters forwarded packets. The plugin `firewall` lets those of the containers through.\n",
        );
    }
    let shown = show(places, &runtime, &list);
    let proof = final_step("nothing is left", || {
        remove_bridge(&before)?;
        let after = HostObjects::collect(&list)?;
        after.require_same(&before)?;
        Ok((
            (),
            format!(
                "unchanged: {} links, {} nftables elements, {} reservations",
                after.links.len(),
                after.elements.len(),
                after.reservations.len()
            ),
        ))
    });
    shown?;
    proof?;
    stop_if_asked()?;
    say("\nDone. Run a command of your own on this network: `netloom run -- COMMAND`");
    Ok(())
}

/// Returns whether the host has a foreign filter at the forward hook, which may drop the containers' packets.
fn filters_forwarded_packets() -> bool {
    Socket::open(Protocol::Netfilter)
        .is_ok_and(|socket| ruleset::forward_hook::is_needed(&socket).unwrap_or(false))
}

fn show(places: &Places, runtime: &Runtime, list: &NetworkList) -> Outcome {
    let a = TemporaryNetns::create(places, "demo-a")?;
    let b = TemporaryNetns::create(places, "demo-b")?;
    let port = free_port()?;
    let mut container_a = Container::new(&a.id, a.path());
    let mapping = json!([{ "hostPort": port, "containerPort": SERVER_PORT, "protocol": "tcp" }]);
    container_a.capability_args.insert("portMappings".into(), mapping);
    let container_b = Container::new(&b.id, b.path());
    let cleanup = Cleanup { runtime, list, containers: [&container_a, &container_b] };

    let result_a = add(runtime, list, "a", &container_a)?;
    let result_b = add(runtime, list, "b", &container_b)?;
    for (of_a, of_b) in result_a.ips.iter().zip(&result_b.ips) {
        let (ip_a, ip_b) = (of_a.address.addr(), of_b.address.addr());
        if let Some(gateway) = of_a.gateway {
            pings("a", &a.netns, "the host", gateway)?;
        }
        pings("a", &a.netns, "b", ip_b)?;
        pings("b", &b.netns, "a", ip_a)?;
    }
    let host_address = result_a.ips.iter().find_map(|ip| ip.gateway).filter(IpAddr::is_ipv4);
    published(&a.netns, &b.netns, port, host_address)?;
    for (name, container) in [("a", &container_a), ("b", &container_b)] {
        step(&format!("CHECK {name}"), || {
            Ok(((), runtime.check(list, container).map(|()| "matches the result of ADD".into())?))
        })?;
    }
    cleanup.run()
}

fn add(runtime: &Runtime, list: &NetworkList, name: &str, container: &Container) -> Outcome<Success> {
    step(&format!("ADD {name}"), || {
        let result = runtime.add(list, container)?.into_current();
        let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.addr().to_string()).collect();
        let text = addresses.join(", ");
        Ok((result, text))
    })
}

fn pings(name: &str, netns: &Netns, other: &str, to: IpAddr) -> Outcome {
    step(&format!("{name} pings {other}"), || {
        netns
            .run(|| ping(to, LIMIT))?
            .map_err(|error| Failure::new(format!("no answer from {to}: {error}")))?;
        Ok(((), to.to_string()))
    })
}

/// Connects to the server in `a` on the published port: from the host, from `b` and from `a` itself.
fn published(a: &Netns, b: &Netns, port: u16, host_address: Option<IpAddr>) -> Outcome {
    let listener = a.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, SERVER_PORT)))??;
    let server = thread::spawn(move || {
        // The first connection that sends nothing ends the server; the end of this function opens one.
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut line = [0; 5];
            if stream.read_exact(&mut line).is_err() || stream.write_all(b"hello from a").is_err() {
                return;
            }
        }
    });
    let own = Netns::own()?;
    let mut callers = vec![("the host", &own, IpAddr::from(Ipv4Addr::LOCALHOST))];
    if let Some(address) = host_address {
        callers.push(("the host", &own, address));
        callers.push(("b", b, address));
        callers.push(("a itself", a, address));
    }
    let mut outcome = Ok(());
    for (caller, netns, address) in callers {
        outcome = step(&format!("published port, from {caller}"), || {
            let to = SocketAddr::new(address, port);
            let answer = netns.run(|| request(to))?.map_err(|error| {
                Failure::new(format!("no answer from {to}: {error}"))
                    .hint("see which rule drops the packet: `nft monitor trace`, or the counters of `iptables -vnL`")
            })?;
            Ok(((), format!("{to} says {answer:?}")))
        });
        if outcome.is_err() {
            break;
        }
    }
    // A connection that sends nothing ends the server.
    if a.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, SERVER_PORT))).is_ok() {
        drop(server.join());
    }
    outcome
}

fn request(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"hello")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Detaches the containers when dropped, so that a failed step leaves no attachment.
struct Cleanup<'a> {
    runtime: &'a Runtime,
    list: &'a NetworkList,
    containers: [&'a Container; 2],
}

impl Cleanup<'_> {
    fn run(self) -> Outcome {
        for (name, container) in ["a", "b"].into_iter().zip(self.containers) {
            final_step(&format!("DEL {name}"), || {
                Ok(((), self.runtime.del(self.list, container).map(|()| "detached".into())?))
            })?;
        }
        Ok(())
    }
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        for container in self.containers {
            // DEL is idempotent: after `run` this has no effect.
            drop(self.runtime.del(self.list, container));
        }
    }
}

/// Performs one step and prints its outcome and duration, unless a signal has asked this process to end.
fn step<T>(what: &str, work: impl FnOnce() -> Outcome<(T, String)>) -> Outcome<T> {
    stop_if_asked()?;
    final_step(what, work)
}

fn stop_if_asked() -> Outcome {
    match ENDING.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Failure::new(format!("ended by signal {signal}"))
            .or_code(u8::try_from(128 + signal).unwrap_or(1))),
    }
}

/// Performs one step of the clean-up, which no signal skips.
fn final_step<T>(what: &str, work: impl FnOnce() -> Outcome<(T, String)>) -> Outcome<T> {
    let started = Instant::now();
    let outcome = work();
    let took = format!("{:.1} ms", started.elapsed().as_secs_f64() * 1000.0);
    match outcome {
        Ok((value, text)) => {
            say(format!("  ok    {took:>9}  {what:<32}  {text}"));
            Ok(value)
        }
        Err(failure) => {
            say(format!("  FAIL  {took:>9}  {what:<32}  {}", failure.message()));
            Err(failure)
        }
    }
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port())
}

/// The host objects that an attachment creates.
#[derive(Debug, PartialEq, Eq)]
struct HostObjects {
    links: BTreeSet<String>,
    elements: BTreeSet<String>,
    reservations: BTreeSet<String>,
    bridge: String,
}

fn ruleset_text(error: &ruleset::RulesetError) -> String {
    match error {
        ruleset::RulesetError::Kernel(error) => error.to_string(),
        ruleset::RulesetError::Taken { owner, .. } => format!("an element belongs to {owner}"),
    }
}

impl HostObjects {
    fn collect(list: &NetworkList) -> Outcome<Self> {
        let host = Socket::open(Protocol::Route)?;
        let links = link::list(&host)?.into_iter().map(|link| link.name).collect();
        let netfilter = Socket::open(Protocol::Netfilter)?;
        let elements = match ruleset::owners(&netfilter) {
            Ok(owners) => owners.into_iter().collect(),
            Err(error) => {
                return Err(Failure::new(format!(
                    "cannot read the nftables ruleset: {}",
                    ruleset_text(&error)
                )));
            }
        };
        let bridge = list.plugins.iter().find_map(|plugin| plugin.object().get("bridge")?.as_str());
        let ipam = list.plugins.iter().find_map(|plugin| plugin.object().get("ipam"));
        let dir = ipam.and_then(|ipam| ipam.get("dataDir")?.as_str()).unwrap_or("/var/lib/cni/networks");
        let dir = Path::new(dir).join(&list.name);
        let reservations = fs::read_dir(dir).into_iter().flatten().flatten();
        let reservations = reservations
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect();
        Ok(Self { links, elements, reservations, bridge: bridge.unwrap_or_default().to_owned() })
    }

    fn require_same(&self, before: &Self) -> Outcome {
        for (what, now, then) in [
            ("link", &self.links, &before.links),
            ("nftables element", &self.elements, &before.elements),
            ("reservation", &self.reservations, &before.reservations),
        ] {
            if let Some(left) = now.difference(then).next() {
                return Err(Failure::new(format!("{what} `{left}` was not removed")));
            }
        }
        Ok(())
    }
}

/// Removes the network's bridge if the demo created it. DEL keeps a bridge for the next container.
fn remove_bridge(before: &HostObjects) -> Outcome {
    if before.links.contains(&before.bridge) {
        return Ok(());
    }
    let host = Socket::open(Protocol::Route)?;
    let Some(bridge) = link::find(&host, &before.bridge)? else { return Ok(()) };
    let in_use = link::list(&host)?.iter().any(|link| link.master == Some(bridge.index));
    if in_use { Ok(()) } else { Ok(link::remove(&host, &bridge)?) }
}
