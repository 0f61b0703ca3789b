//! Rounds: some faults at once, each for a while, and then everything must be as before.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use testkit::Random;

use super::{
    act::{Target, act},
    fault::{Act, Allows, At, Fault, Hinders},
    oracle::Oracle,
    place::{Place, Pod},
    streams::Stream,
    traffic::Traffic,
};
use crate::{Outcome, say};

/// The most faults of a round.
const AT_ONCE: u64 = 3;
/// How long a fault lasts at most, in milliseconds.
const LONGEST: u64 = 3000;
/// The time in which a daemon repairs a foreign change. The goal is a second; comparing takes some tenths of it when all programs of
/// the cluster share two processors.
const REPAIR: Duration = Duration::from_secs(2);
/// The time after which a repair is not waited for any longer.
const GIVE_UP: Duration = Duration::from_secs(10);
/// The time after the last fault in which everything must be as before. Daemons connect to the store again after up to 6 s, renew
/// leases every 3.3 s, and resolve neighbours again.
const CONVERGE: Duration = Duration::from_secs(30);
/// The time in which a stream continues that lost packets for long: TCP doubles the pause between its attempts.
const CONTINUE: Duration = Duration::from_mins(1);

/// What all threads of a run share.
pub(super) struct Run {
    pub(super) place: Place,
    pub(super) pods: Vec<Pod>,
    pub(super) traffic: Traffic,
    pub(super) streams: Vec<Stream>,
    pub(super) oracle: Oracle,
    /// The hosts' objects at the beginning.
    pub(super) before: Vec<String>,
}

/// A fault that has been drawn.
struct Planned {
    fault: &'static Fault,
    target: Target,
    after: Duration,
    lasts: Duration,
}

/// The kinds in a random order, each once before any comes twice.
pub(super) struct Deck {
    kinds: Vec<&'static Fault>,
    next: Vec<&'static Fault>,
    random: Random,
    hosts: usize,
}

impl Deck {
    pub(super) fn new(kinds: Vec<&'static Fault>, seed: u64, hosts: usize) -> Self {
        Self { kinds, next: Vec::new(), random: Random::of_thread(seed, 0), hosts }
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.random.below(limit as u64)).unwrap_or_default()
    }

    /// Draws the faults of a round.
    fn draw(&mut self) -> Vec<Planned> {
        let count = 1 + self.random.below(AT_ONCE);
        let mut round: Vec<Planned> = Vec::new();
        for _ in 0..count {
            if self.next.is_empty() {
                self.next.clone_from(&self.kinds);
                for last in (1..self.next.len()).rev() {
                    let other = self.index(last + 1);
                    self.next.swap(last, other);
                }
            }
            let host = self.index(self.hosts);
            let target = Target {
                host,
                other: (host + 1 + self.index(self.hosts - 1)) % self.hosts,
                member: self.index(super::servers::MEMBERS),
                device: ["netloom4", "netloom6"][self.index(2)],
            };
            let after = Duration::from_millis(self.random.below(1000));
            let lasts = Duration::from_millis(200 + self.random.below(LONGEST));
            let fits = |fault: &Fault| {
                round.iter().all(|other| {
                    let is_elsewhere =
                        fault.at != other.fault.at || (!fault.at.is_shared() && other.target.host != host);
                    let hinders =
                        |one: &Fault, two: &Fault| one.needs_daemon && two.hinders != Hinders::Nobody;
                    is_elsewhere && !hinders(fault, other.fault) && !hinders(other.fault, fault)
                })
            };
            // A fault that does not fit stays for a later round.
            if let Some(at) = self.next.iter().rposition(|fault| fits(fault)) {
                let fault = self.next.remove(at);
                round.push(Planned { fault, target, after, lasts });
            }
        }
        round
    }
}

/// Runs rounds until the time is over.
pub(super) fn rounds(run: &Run, deck: &mut Deck, ends: Instant) -> Outcome {
    let (mut number, mut random) = (0, Random::of_thread(deck.random.below(u64::from(u32::MAX)), 1));
    while Instant::now() < ends {
        number += 1;
        let round = deck.draw();
        let names: Vec<String> = round
            .iter()
            .map(|it| {
                format!("{} (host{}, {:.1} s)", it.fault.name, it.target.host + 1, it.lasts.as_secs_f64())
            })
            .collect();
        say(&format!("{:>6.1} s  {number}: {}", run.oracle.seconds(Instant::now()), names.join(" + ")));
        one(run, &round, &mut random)?;
        run.oracle.judge(&run.traffic, &run.pods);
        run.oracle.check_blocks(&run.place);
        run.oracle.tally.count("rounds");
    }
    Ok(())
}

/// Causes the faults of a round, ends them, and waits until everything is as before.
fn one(run: &Run, round: &[Planned], random: &mut Random) -> Outcome {
    let over = AtomicBool::new(false);
    let blocked: Vec<usize> =
        round.iter().filter(|it| it.fault.blocks_pods).map(|it| it.target.host).collect();
    let (allowances, undeleted) = std::thread::scope(|scope| {
        let pods = scope.spawn(|| come_and_go(run, &blocked, random, &over));
        let faults: Vec<_> = round.iter().map(|planned| scope.spawn(|| cause(run, planned, round))).collect();
        let caused: Result<Vec<Option<usize>>, String> = faults
            .into_iter()
            .map(|fault| fault.join().unwrap_or_else(|_| Err("a thread panicked".into())))
            .collect();
        over.store(true, Ordering::Relaxed);
        let undeleted = pods.join().map_err(|_| "a thread panicked".to_owned())?;
        caused.map(|allowances| (allowances, undeleted))
    })?;
    let ended = Instant::now();
    let converged = converge(run, ended);
    // A runtime calls DEL again until it succeeds.
    for (host, name) in undeleted {
        if let Err(error) = run.place.delete_pod(host, &name) {
            run.oracle.violation(&format!("pod {name} does not end on host{}: {}", host + 1, error.trim()));
        }
    }
    for allowance in allowances.into_iter().flatten() {
        run.oracle.disallow(allowance, Duration::ZERO);
    }
    converged
}

/// Causes a fault, and ends it. Returns the number of an allowance that lasts until everything is as before.
fn cause(run: &Run, planned: &Planned, round: &[Planned]) -> Result<Option<usize>, String> {
    let Planned { fault, target, after, lasts } = planned;
    std::thread::sleep(*after);
    let scope = match fault.allows {
        Allows::Nothing => None,
        Allows::UntilRepaired(scope) | Allows::WhileItLasts(scope, _) => Some(scope),
    };
    let allowance = scope.map(|scope| run.oracle.allow(fault.name, scope, *target));
    run.oracle.tally.count(&format!("fault: {}", fault.name));
    steps(run, fault, *target, fault.inject)?;
    if !fault.is_repaired() {
        // The duration is random by design; there is no event to wait for.
        std::thread::sleep(*lasts);
        heal(run, fault, *target)?;
        if let (Some(number), Allows::WhileItLasts(_, more)) = (allowance, fault.allows) {
            run.oracle.disallow(number, Duration::from_millis(more));
        }
        return Ok(None);
    }
    let hinders = |other: &Planned| match other.fault.hinders {
        Hinders::Nobody => false,
        Hinders::Host => other.target.host == target.host,
        Hinders::All => true,
    };
    if round.iter().any(hinders) {
        return Ok(allowance);
    }
    let began = Instant::now();
    while run.place.dump(target.host) != run.before[target.host] {
        if began.elapsed() > GIVE_UP {
            break;
        }
    }
    let took = began.elapsed();
    if let Some(number) = allowance {
        run.oracle.disallow(number, Duration::ZERO);
    }
    run.oracle.repaired(fault.name, took);
    if took > REPAIR {
        let now = run.place.dump(target.host);
        run.oracle.violation(&format!(
            "{}: host{} was repaired after {:.1} s{}",
            fault.name,
            target.host + 1,
            took.as_secs_f64(),
            difference(&run.before[target.host], &now)
        ));
    }
    Ok(None)
}

/// Ends a fault. What another fault prevents is tried again: the store may stand still for longer than its contents are junk.
fn heal(run: &Run, fault: &Fault, target: Target) -> Outcome {
    let began = Instant::now();
    while fault.at == At::Contents && began.elapsed() < GIVE_UP {
        if act(&run.place, target, fault.heal)?.is_empty() {
            return Ok(());
        }
    }
    steps(run, fault, target, fault.heal)
}

fn steps(run: &Run, fault: &Fault, target: Target, steps: &[Act]) -> Outcome {
    for script in act(&run.place, target, steps)? {
        run.oracle.tally.count(&format!("failed step of {}: {script}", fault.name));
        if script.contains("has made") {
            run.oracle.violation(&script);
        }
    }
    Ok(())
}

/// Starts and ends pods while faults last. Where no fault prevents it, both must succeed.
/// Returns the pods whose DEL failed, as a fault allows.
fn come_and_go(run: &Run, blocked: &[usize], random: &mut Random, over: &AtomicBool) -> Vec<(usize, String)> {
    let (mut number, mut undeleted) = (0, Vec::new());
    while !over.load(Ordering::Relaxed) {
        let host = usize::try_from(random.below(run.place.count() as u64)).unwrap_or_default();
        let name = format!("c{number}");
        number += 1;
        let added = run.place.add_pod(host, &name);
        match &added {
            Ok(pod) => {
                run.oracle.give(pod);
                run.oracle.tally.count("pods that came and went");
            }
            Err(error) if !blocked.contains(&host) => {
                run.oracle.violation(&format!("a pod does not start on host{}: {}", host + 1, error.trim()));
            }
            Err(_) => run.oracle.tally.count("pods that could not start, as the fault allows"),
        }
        std::thread::sleep(Duration::from_millis(100 + random.below(300)));
        if let Ok(pod) = &added {
            run.oracle.take(pod);
        }
        if let Err(error) = run.place.delete_pod(host, &name) {
            if !blocked.contains(&host) {
                run.oracle.violation(&format!("a pod does not end on host{}: {}", host + 1, error.trim()));
            }
            undeleted.push((host, name));
        }
    }
    undeleted
}

/// Waits until everything is as before the first fault.
pub(super) fn converge(run: &Run, since: Instant) -> Outcome {
    loop {
        let wrong = wrong(run, since);
        if wrong.is_empty() {
            run.oracle.tally.count(match since.elapsed().as_secs() {
                0..1 => "rounds after which all was well within 1 s",
                1..3 => "rounds after which all was well within 3 s",
                3..10 => "rounds after which all was well within 10 s",
                _ => "rounds after which all was well later than 10 s",
            });
            return Ok(());
        }
        let only_streams = wrong.iter().all(|(host, _)| host.is_none());
        if since.elapsed() > if only_streams { CONTINUE } else { CONVERGE } {
            for (host, what) in &wrong {
                run.oracle
                    .violation(&format!("{} s after the last fault: {what}", since.elapsed().as_secs()));
                if let Some(host) = host {
                    run.place.print_log(*host);
                }
            }
            return Err("the cluster does not recover".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns what is not as before, and on which host.
fn wrong(run: &Run, since: Instant) -> Vec<(Option<usize>, String)> {
    let mut wrong = Vec::new();
    for host in 0..run.place.count() {
        if let Some(why) = run.place.unwell(host) {
            wrong.push((Some(host), format!("host{}: {why}", host + 1)));
        }
        let now = run.place.dump(host);
        if now != run.before[host] {
            wrong.push((Some(host), format!("host{}:{}", host + 1, difference(&run.before[host], &now))));
        }
    }
    let silent = run.traffic.silent_since(since);
    if let Some(pair) = silent.first() {
        let (from, to) = (&run.pods[pair.from], &run.pods[pair.to]);
        wrong.push((
            Some(from.host),
            format!("{} pairs do not reach each other: {} to {}, {pair:?}", silent.len(), from.name, to.name),
        ));
    }
    for stream in &run.streams {
        if stream.progress().0 < since {
            wrong.push((None, format!("stream {} does not continue", stream.name)));
        }
    }
    wrong
}

/// Describes how two dumps differ.
pub(super) fn difference(before: &str, now: &str) -> String {
    let only = |one: &str, other: &str| -> Vec<String> {
        one.lines()
            .filter(|line| !other.lines().any(|it| it == *line))
            .map(|line| line.trim().to_owned())
            .collect()
    };
    let (less, more) = (only(before, now), only(now, before));
    if less.is_empty() && more.is_empty() {
        return if before == now { String::new() } else { "; lines in another order or number".into() };
    }
    format!("; missing {less:?}, too much {more:?}")
}
