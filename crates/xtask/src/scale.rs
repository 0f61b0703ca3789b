//! `cargo xtask scale`: measures one daemon in clusters of thousands of nodes, whose records are in an etcd server, what the daemon
//! costs that server, and what many daemons cost it that start at once.

mod daemons;
mod herd;
mod store;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use self::{
    daemons::{Daemon, attach},
    store::{Store, block4, record},
};
use crate::{
    Outcome,
    cluster::{Running, built, etcd, fresh_dir, wait},
    host::Host,
    say,
};

/// The numbers of nodes.
const COUNTS: [u32; 3] = [5_000, 10_000, 20_000];
/// How long the daemon is left alone.
const IDLE: Duration = Duration::from_mins(1);
/// Time limit for states that are reached.
const LIMIT: Duration = Duration::from_mins(2);

/// The arguments of the chore.
struct Options {
    counts: Vec<u32>,
    daemons: usize,
    binaries: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self { counts: Vec::new(), daemons: 20, binaries: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("`{argument}` needs a value"));
            match argument.as_str() {
                "--daemons" => options.daemons = value()?.parse().map_err(|_| "--daemons needs a number")?,
                "--binaries" => options.binaries = Some(value()?.into()),
                count => {
                    options.counts.push(count.parse().map_err(|_| format!("`{count}` is not a number"))?)
                }
            }
        }
        if options.counts.is_empty() {
            options.counts = COUNTS.to_vec();
        }
        Ok(options)
    }
}

/// Runs `cargo xtask scale`.
pub(crate) fn scale(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    let binaries = options.binaries.clone().map_or_else(built, Ok)?;
    let binaries = binaries.canonicalize().map_err(|error| error.to_string())?;
    for count in &options.counts {
        measure(*count, options.daemons, &binaries)?;
    }
    Ok(())
}

/// Measures in a cluster with a number of nodes.
fn measure(count: u32, daemons: usize, binaries: &Path) -> Outcome {
    let dir = fresh_dir("scale")?;
    let wire = Host::new()?;
    wire.sh("ip link add seg type bridge; ip link set seg up; ip addr add 192.0.2.254/20 dev seg
             ip addr add 192.0.15.254/20 dev seg; ip -6 addr add 2001:db8:a::fffe/64 dev seg nodad")?;
    let server = etcd(&wire, &dir)?;
    let store = Store(&wire);
    store.add_nodes(1..=count)?;
    say(&format!("\n{count} nodes with a block of each family in etcd, mode overlay"));
    one_daemon(&wire, count, binaries, &dir)?;
    if daemons > 0 {
        herd::herd(&wire, server, daemons, binaries, &dir)?;
    }
    Ok(())
}

/// Measures one daemon.
fn one_daemon(wire: &Host, count: u32, binaries: &Path, dir: &Path) -> Outcome {
    let (store, host) = (Store(wire), Host::bare()?);
    attach(wire, &host, 1)?;
    let mut daemon = Daemon::new(&host, "own", true, binaries, dir);
    let (before, wanted) = (store.load()?, daemon.routes() + count as usize);
    daemon.start()?;
    let took = wait("all routes exist", LIMIT, || Ok(daemon.routes() >= wanted))?;
    say(&format!("first complete state: {:.2} s after start", took.as_secs_f64()));
    let left = |family: &str| host.output(&format!("ip {family} route show proto 95 | wc -l"));
    let there = [left("-4")?, left("-6")?].map(|text| text.trim().parse::<u32>().unwrap_or_default());
    if there.iter().any(|there| *there < count) {
        return Err(format!("routes are missing: {there:?}"));
    }
    wait("the daemon reports ready", LIMIT, || Ok(daemon.status(".ready")? == "true"))?;
    say(&format!("store, for the start: {}", store.load()?.since(&before).per(1.0)));
    let objects = daemon.status(".counters.changes")?.parse::<f64>().unwrap_or_default();
    let longest = daemon.status(".counters.longestMicros")?.parse::<f64>().unwrap_or_default() / 1e6;
    say(&format!(
        "programming: {objects:.0} objects, the longest pass {longest:.2} s, {:.2} s of a core in all",
        daemon.used()?
    ));
    // The events of the start settle.
    std::thread::sleep(Duration::from_secs(5));
    let (before, used, passes) = (store.load()?, daemon.used()?, daemon.status(".counters.comparisons")?);
    std::thread::sleep(IDLE);
    say(&format!(
        "idle: {:.2} % of a core, over {} s",
        (daemon.used()? - used) * 100.0 / IDLE.as_secs_f64(),
        IDLE.as_secs()
    ));
    say(&format!("comparisons meanwhile: {passes} to {}", daemon.status(".counters.comparisons")?));
    say(&format!("store, for a minute: {}", store.load()?.since(&before).per(IDLE.as_secs_f64() / 60.0)));
    remember(&daemon)?;
    let mut times = Vec::new();
    for number in count + 1..=count + 10 {
        times.push(one_more(&host, store, number)?);
        // Until the daemon has compared again, and paused.
        std::thread::sleep(Duration::from_millis(2500));
    }
    times.sort_by(f64::total_cmp);
    let (median, most) = (times[5], times[9]);
    say(&format!("one more node: route after {median:.1} ms (median), {:.1} to {most:.1} ms", times[0]));
    churn(&daemon, store, count + 10)?;
    remember(&daemon)
}

fn remember(daemon: &Daemon<'_>) -> Outcome {
    let (now, peak) = daemon.memory()?;
    say(&format!("memory: {now:.1} MiB now, {peak:.1} MiB at most"));
    Ok(())
}

/// Writes the keys of one more node, and returns the milliseconds until the kernel announces the route.
fn one_more(host: &Host, store: Store<'_>, number: u32) -> Result<f64, String> {
    let mut monitor = host.command("ip");
    monitor.args(["-o", "monitor", "route"]).stdout(Stdio::piped());
    let mut monitor = Running(monitor.spawn().map_err(|error| error.to_string())?);
    let lines = BufReader::new(monitor.0.stdout.take().ok_or("no output")?).lines();
    std::thread::sleep(Duration::from_millis(300));
    let (started, prefix) = (Instant::now(), block4(number));
    store.add_nodes(number..=number)?;
    let mut lines = lines.map_while(Result::ok);
    lines.find(|line| line.contains(&prefix)).ok_or("`ip monitor` ended")?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// Adds a hundred nodes a second for ten seconds, then waits for the route to the last one.
fn churn(daemon: &Daemon<'_>, store: Store<'_>, count: u32) -> Outcome {
    const CHANGES: u32 = 1000;
    const EVERY: Duration = Duration::from_millis(10);
    let (before, used, routes) = (store.load()?, daemon.used()?, daemon.routes());
    let started = Instant::now();
    for change in 0..CHANGES {
        store.add_nodes(count + 1 + change..=count + 1 + change)?;
        std::thread::sleep((EVERY * (change + 1)).saturating_sub(started.elapsed()));
    }
    let (all, wanted) = (started.elapsed(), routes + CHANGES as usize);
    let late = wait("the last node's route", LIMIT, || Ok(daemon.routes() >= wanted))?;
    say(&format!(
        "{CHANGES} more nodes in {:.1} s: the last route {:.0} ms later, {:.1} % of a core",
        all.as_secs_f64(),
        late.as_secs_f64() * 1e3,
        (daemon.used()? - used) * 100.0 / (all + late).as_secs_f64()
    ));
    say(&format!(
        "store, for a change: {} (this program's writes included)",
        store.load()?.since(&before).per(CHANGES.into())
    ));
    let example = record(1).1.len();
    say(&format!("a record has {example} bytes"));
    Ok(())
}
