//! What many daemons cost the store that start at once, and that lose it at once.

use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    time::{Duration, Instant},
};

use super::{
    LIMIT,
    daemons::{Daemon, attach},
    store::Store,
};
use crate::{
    Outcome,
    cluster::{Running, etcd, wait},
    host::Host,
    say,
};

/// The pause between the writes that measure the store's latency.
const EVERY: Duration = Duration::from_millis(50);
/// How long the latency without a herd is measured.
const QUIET: Duration = Duration::from_secs(5);
/// How long the daemons have used little of a processor until they are considered to rest.
const SETTLED: Duration = Duration::from_secs(3);
/// The watches of a daemon.
const WATCHES: f64 = 2.0;

/// Starts daemons, kills and starts all of them, then restarts the store.
pub(super) fn herd(wire: &Host, server: Running, count: usize, binaries: &Path, dir: &Path) -> Outcome {
    let number = f64::from(u32::try_from(count).map_err(|error| error.to_string())?);
    let store = Store(wire);
    let hosts = (0..count).map(|_| Host::bare()).collect::<Result<Vec<_>, _>>()?;
    let mut daemons = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        attach(wire, host, index + 2)?;
        daemons.push(Daemon::new(host, &format!("herd{index}"), false, binaries, dir));
    }
    for daemon in &mut daemons {
        daemon.start()?;
    }
    let all_watch = || wait("all daemons watch", LIMIT, || Ok(store.load()?.watches >= WATCHES * number));
    all_watch()?;
    // Until the daemons have read each other's records.
    let used = || daemons.iter().map(Daemon::used).sum::<Result<f64, String>>();
    wait("the daemons rest", LIMIT, || {
        let before = used()?;
        std::thread::sleep(SETTLED);
        Ok(used()? - before < SETTLED.as_secs_f64() / 10.0)
    })?;
    say(&format!(
        "a write, while {count} daemons watch: {}",
        latency(store, || {
            std::thread::sleep(QUIET);
            Ok(())
        })?
    ));
    let (before, mut took) = (store.load()?, Duration::ZERO);
    let during = latency(store, || {
        daemons.iter_mut().for_each(Daemon::kill);
        wait("no daemon watches", LIMIT, || Ok(store.load()?.watches < 1.0))?;
        for daemon in &mut daemons {
            daemon.start()?;
        }
        took = all_watch()?;
        Ok(())
    })?;
    say(&format!(
        "a write, while they all restart: {during}; all of them watch again after {:.2} s",
        took.as_secs_f64()
    ));
    say(&format!("store, for a daemon: {}", store.load()?.since(&before).per(number)));
    drop(server);
    let started = Instant::now();
    let _server = etcd(wire, dir)?;
    say(&format!("the store restarts, and answers after {:.2} s", started.elapsed().as_secs_f64()));
    let during = latency(store, || {
        took = all_watch()?;
        Ok(())
    })?;
    say(&format!(
        "a write from then on: {during}; all daemons watch again after {:.2} s",
        took.as_secs_f64()
    ));
    say(&format!("store, for a daemon: {}", store.load()?.per(number)));
    Ok(())
}

/// Writes to the store every [`EVERY`] while something happens, and describes how long the writes take.
fn latency(store: Store<'_>, meanwhile: impl FnOnce() -> Outcome) -> Result<String, String> {
    let (over, (sender, times)) = (AtomicBool::new(false), channel());
    let over = &over;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let took = store.put("/probe", "1")?;
                sender.send(took.as_secs_f64() * 1e3).map_err(|error| error.to_string())?;
                std::thread::sleep(EVERY.saturating_sub(took));
            }
            Ok::<_, String>(())
        });
        let done = meanwhile();
        over.store(true, Ordering::Relaxed);
        done?;
        writer.join().map_err(|_| "the writer panicked")?
    })?;
    let mut times: Vec<f64> = times.iter().collect();
    times.sort_by(f64::total_cmp);
    let part =
        |percent: usize| times.get(times.len() * percent / 100).or(times.last()).copied().unwrap_or_default();
    Ok(format!(
        "{:.1} ms (median), {:.1} ms (99 of 100), {:.1} ms at most, of {}",
        part(50),
        part(99),
        part(100),
        times.len()
    ))
}
