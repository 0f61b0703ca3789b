//! `cargo xtask storm`: many threads attach, check, detach and collect at random, while calls are killed, run out of memory and
//! find the disk full. What a living attachment was promised must hold at every moment, and at the end nothing is left.
//!
//! The choices of a run follow from its seed: which attachment, which verb, which fault, and the moment as a part of the verb's
//! usual duration. What the kernel makes of them varies.

mod call;
mod disk;
mod oracle;
mod place;
mod tally;
mod worker;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use self::{
    call::Groups,
    disk::Disk,
    oracle::Given,
    place::{NETWORKS, Place},
    tally::Tally,
    worker::{State, Worker},
};
use crate::{Outcome, bench, say};

/// The arguments of the chore.
#[derive(Clone, Copy)]
struct Options {
    seed: u64,
    minutes: f64,
    threads: usize,
    /// Without it no call is killed, the disk does not fill up, and nine of ten attachments are checked, not deleted.
    faults: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        let mut options = Self { seed: now.as_secs(), minutes: 1.0, threads: 64, faults: true };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--no-faults" {
                options.faults = false;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?;
            let wrong = || format!("`{argument} {value}` is not a number");
            match argument.as_str() {
                "--seed" => options.seed = value.parse().map_err(|_| wrong())?,
                "--minutes" => options.minutes = value.parse().map_err(|_| wrong())?,
                "--threads" => options.threads = value.parse().map_err(|_| wrong())?,
                other => return Err(format!("unknown option `{other}`")),
            }
        }
        Ok(options)
    }
}

/// What all threads share.
struct Storm {
    options: Options,
    place: Place,
    disk: Disk,
    groups: Groups,
    attachments: Vec<Mutex<State>>,
    given: Given,
    tally: Tally,
    ends: Instant,
    /// Set by a thread that panics or cannot go on, so that the others end.
    stopped: AtomicBool,
}

impl Storm {
    fn is_over(&self) -> bool {
        Instant::now() >= self.ends || self.stopped.load(Ordering::Relaxed)
    }
}

/// Runs `cargo xtask storm`.
pub(crate) fn storm(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    // A folder of its own, so that another chore may run meanwhile.
    let bin = bench::links_to(&bench::measured()?, "storm-bin")?;
    let place = Place::new(bin, options.threads)?;
    let groups = Groups::find(&place)?;
    say(&format!(
        "seed {}, {} threads, {} containers, {} minutes; out of memory: {}",
        options.seed,
        options.threads,
        place.containers,
        options.minutes,
        groups.describe()
    ));
    let before = place.settled()?;
    let storm = Storm {
        attachments: (0..place.containers * NETWORKS.len()).map(|_| Mutex::default()).collect(),
        ends: Instant::now() + Duration::from_secs_f64(options.minutes * 60.0),
        disk: Disk::of(&place),
        given: Given::default(),
        tally: Tally::default(),
        stopped: AtomicBool::new(false),
        options,
        place,
        groups,
    };
    let worked = rage(&storm);
    let finished = worked.and_then(|()| worker::end(&storm));
    storm.groups.remove();
    finished?;
    let left = storm.place.compare(&before)?;
    storm.tally.print();
    for line in &left {
        say(&format!("LEFT: {line}"));
    }
    let violations = storm.tally.violations();
    if violations == 0 && left.is_empty() {
        say("sound: no promise was broken and nothing is left");
        return Ok(());
    }
    Err(format!(
        "{violations} violations, {} kinds of leftovers; repeat with --seed {}",
        left.len(),
        options.seed
    ))
}

/// Runs the threads until the time is over.
fn rage(storm: &Storm) -> Outcome {
    std::thread::scope(|scope| {
        let disk =
            scope.spawn(|| if storm.options.faults { storm.disk.fill_at_random(storm) } else { Ok(()) });
        let workers: Vec<_> = (0..storm.options.threads)
            .map(|number| {
                scope.spawn(move || {
                    let worked = storm.place.host.inside(|| Worker::new(storm, number).work()).flatten();
                    if worked.is_err() {
                        storm.stopped.store(true, Ordering::Relaxed);
                    }
                    worked
                })
            })
            .collect();
        let panicked = |_| Err("a thread panicked".to_owned());
        let mut outcomes: Vec<Outcome> =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).collect();
        outcomes.push(disk.join().unwrap_or_else(panicked));
        outcomes.into_iter().collect()
    })
}
