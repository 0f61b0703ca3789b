//! `cargo xtask chaos`: three hosts with daemons and pods, a store of three members, and faults at random, several at once. Pods reach
//! each other all the time, except as a fault allows; no block changes its owner; repairs come in time; and nothing is left.
//!
//! The choices of a run follow from its seed: which faults, where, when and for how long. What the kernel makes of them varies.

mod act;
mod fault;
mod kinds;
mod oracle;
mod place;
mod repairs;
mod rounds;
mod servers;
mod streams;
mod traffic;

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use self::{
    oracle::Oracle,
    place::Place,
    rounds::{Deck, Run},
    traffic::Traffic,
};
use crate::{
    Outcome,
    cluster::{built, fresh_dir},
    say,
};

/// The modes from which the seed selects one.
const MODES: [&str; 3] = ["overlay", "auto", "routing"];

/// The arguments of the chore.
struct Options {
    seed: u64,
    time: Duration,
    hosts: usize,
    mode: Option<String>,
    /// Only faults with this text in their names.
    only: String,
    repairs: bool,
    binaries: Option<PathBuf>,
    other: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        let mut options = Self {
            seed: now.as_secs(),
            time: Duration::from_mins(1),
            hosts: 3,
            mode: None,
            only: String::new(),
            repairs: false,
            binaries: None,
            other: None,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--repairs" {
                options.repairs = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?;
            let wrong = || format!("`{argument} {value}` is not a number");
            let seconds = || value.parse::<f64>().ok().filter(|it| (0.0..1e6).contains(it)).ok_or_else(wrong);
            match argument.as_str() {
                "--seed" => options.seed = value.parse().map_err(|_| wrong())?,
                "--minutes" => options.time = Duration::from_secs_f64(seconds()? * 60.0),
                "--seconds" => options.time = Duration::from_secs_f64(seconds()?),
                "--hosts" => options.hosts = value.parse().map_err(|_| wrong())?,
                "--mode" => options.mode = Some(value.clone()),
                "--only" => options.only.clone_from(value),
                "--binaries" => options.binaries = Some(value.into()),
                "--other" => options.other = Some(value.into()),
                other => return Err(format!("unknown option `{other}`")),
            }
        }
        if !(2..=9).contains(&options.hosts) {
            return Err("`--hosts` must be between 2 and 9".into());
        }
        Ok(options)
    }

    /// Returns the mode: the one that is asked for, or that of the seed.
    fn mode(&self) -> String {
        let usual = MODES[usize::try_from(self.seed % 3).unwrap_or_default()];
        self.mode.clone().unwrap_or_else(|| if self.repairs { "overlay" } else { usual }.to_owned())
    }
}

/// Runs `cargo xtask chaos`.
pub(crate) fn chaos(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    let built =
        options.binaries.clone().map_or_else(built, Ok)?.canonicalize().map_err(|error| error.to_string())?;
    let other = options.other.clone().unwrap_or_else(|| built.clone());
    let mode = options.mode();
    let mut kinds = kinds::of_mode(&mode);
    kinds.retain(|kind| kind.name.contains(&options.only));
    if kinds.is_empty() {
        return Err(format!("no fault of mode {mode} has `{}` in its name", options.only));
    }
    say(&format!(
        "seed {}, mode {mode}, {} hosts, {} kinds of fault, {:.0} s",
        options.seed,
        options.hosts,
        kinds.len(),
        options.time.as_secs_f64()
    ));
    let dir = fresh_dir(&format!("chaos-{}", std::process::id()))?;
    let place = Place::new(options.hosts, &mode, built, other, dir.clone())?;
    let empty: Vec<String> = (0..=place.count()).map(|index| place.state(index)).collect();
    place.start_all()?;
    let mut pods = Vec::new();
    for host in 0..place.count() {
        for letter in ["a", "b"] {
            pods.push(place.add_pod(host, &format!("{letter}{}", host + 1))?);
        }
    }
    if options.repairs {
        repairs::repairs(&place, &kinds)?;
        return std::fs::remove_dir_all(&dir).map_err(|error| error.to_string());
    }
    let run = Run {
        traffic: Traffic::new(&place, &pods)?,
        streams: streams::open(&place, &pods)?,
        oracle: Oracle::new(&place, &pods)?,
        before: (0..place.count()).map(|index| place.dump(index)).collect(),
        place,
        pods,
    };
    let deck = Deck::new(kinds, options.seed, options.hosts);
    let outcome = rage(&run, deck, Instant::now() + options.time);
    for pod in &run.pods {
        run.place.delete_pod(pod.host, &pod.name)?;
    }
    run.place.uninstall()?;
    for (index, empty) in empty.iter().enumerate() {
        let left = rounds::difference(empty, &run.place.state(index));
        if !left.is_empty() {
            run.oracle.violation(&format!("left on host{}{left}", index + 1));
        }
    }
    say(&format!("{:>8}  packets between {} pods", run.traffic.sent(), run.pods.len()));
    run.oracle.print();
    for stream in &run.streams {
        run.oracle.tally.count(&format!("stream {}: {} messages", stream.name, stream.progress().1));
    }
    let violations = run.oracle.tally.violations();
    if violations > 0 || outcome.is_err() {
        return Err(format!(
            "{}{violations} violations; logs are in {}; repeat with --seed {} --mode {mode}",
            outcome.err().map(|error| format!("{error}; ")).unwrap_or_default(),
            dir.display(),
            options.seed
        ));
    }
    say("sound: no promise was broken and nothing is left");
    std::fs::remove_dir_all(&dir).map_err(|error| error.to_string())
}

/// Runs traffic and faults until the time is over.
fn rage(run: &Run, mut deck: Deck, ends: Instant) -> Outcome {
    std::thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| {
            run.traffic.ask();
            Ok(())
        })];
        threads.extend((0..run.pods.len()).map(|pod| {
            scope.spawn(move || {
                run.traffic.hear(pod);
                Ok(())
            })
        }));
        for stream in &run.streams {
            let broken = |end: &str, outcome: Outcome| {
                if let Err(why) = &outcome
                    && !run.traffic.is_over()
                {
                    run.oracle.violation(&format!("stream {} broke ({end}): {why}", stream.name));
                }
                Ok(())
            };
            threads.push(scope.spawn(move || broken("client", stream.send(&run.traffic))));
            threads.push(scope.spawn(move || broken("server", stream.send_back(&run.traffic))));
        }
        let outcome = rounds::converge(run, Instant::now())
            .and_then(|()| rounds::rounds(run, &mut deck, ends))
            .map(|()| std::thread::sleep(traffic::GRACE));
        run.oracle.judge(&run.traffic, &run.pods);
        run.traffic.end();
        let panicked = |_| Err("a thread panicked".to_owned());
        let ended = threads.into_iter().try_for_each(|it| it.join().unwrap_or_else(panicked));
        outcome.and(ended)
    })
}
