//! `cargo xtask chaos --repairs`: measures the time to repair each object of the daemon that another program deletes, changes or
//! duplicates.

use std::time::{Duration, Instant};

use super::{
    act::{Target, act},
    fault::{Act, Fault},
    place::Place,
    rounds::difference,
};
use crate::{Outcome, cluster::until, say};

/// The number of measurements of each kind.
const SAMPLES: usize = 5;
/// The time after which a repair is not waited for any longer.
const GIVE_UP: Duration = Duration::from_secs(70);

/// Measures all kinds, and prints a table for `docs/cluster.md`.
pub(super) fn repairs(place: &Place, kinds: &[&'static Fault]) -> Outcome {
    let target = Target { host: 0, other: 1, member: 0, device: "netloom4" };
    let before = place.dump(0);
    say("| object | what another program does | repaired after (median) | at most |\n|---|---|---|---|");
    let (mut slow, mut without) = (Vec::new(), Vec::new());
    for fault in kinds.iter().filter(|fault| fault.is_repaired()) {
        // With a daemon that stands still, what the fault does can be seen.
        act(place, target, &[Act::Freeze])?;
        act(place, target, fault.inject)?;
        let is_seen = place.dump(0) != before;
        act(place, target, &[Act::Thaw])?;
        if !is_seen {
            without.push(fault.name);
        }
        let mut times = vec![repair(place, &before)];
        for _ in 0..SAMPLES {
            // A daemon leaves a setting alone that changes for the third time in a minute.
            if fault.name.starts_with("settings") {
                restart(place)?;
            }
            let started = Instant::now();
            act(place, target, fault.inject)?;
            let injected = started.elapsed();
            times.push(repair(place, &before).map(|took| took + injected));
        }
        let (object, what) = fault.name.split_once(": ").unwrap_or((fault.name, ""));
        let Ok(mut times) = times.drain(1..).collect::<Result<Vec<Duration>, String>>().inspect_err(|why| {
            say(&format!("| {object} | {what} | never |{why} |"));
            slow.push(fault.name);
        }) else {
            restart(place)?;
            continue;
        };
        times.sort_unstable();
        let (median, most) = (times[SAMPLES / 2].as_secs_f64(), times[SAMPLES - 1].as_secs_f64());
        say(&format!("| {object} | {what} | {median:.2} s | {most:.2} s |"));
        if most > 1.0 {
            slow.push(fault.name);
        }
    }
    if !without.is_empty() {
        return Err(format!("faults that changed nothing: {}", without.join(", ")));
    }
    say(&format!("{} kinds take more than 1 s: {}", slow.len(), slow.join(", ")));
    Ok(())
}

fn restart(place: &Place) -> Outcome {
    place.nodes[0].kill();
    place.start_usual(0)?;
    until("host1 is ready", || place.unwell(0).is_none())
}

/// Waits until the host is as before, and returns how long that took, or what differs.
fn repair(place: &Place, before: &str) -> Result<Duration, String> {
    let began = Instant::now();
    loop {
        let now = place.dump(0);
        if now == before {
            return Ok(began.elapsed());
        }
        if began.elapsed() > GIVE_UP {
            return Err(difference(before, &now));
        }
    }
}
