//! Counts calls and learns their usual durations.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::call::{Ended, Fault, Verb};
use crate::{say, tally};

/// The figures of a storm.
#[derive(Default)]
pub(super) struct Tally {
    figures: tally::Tally,
    /// The usual duration of each verb in microseconds.
    usual: [AtomicU64; 4],
}

impl Tally {
    /// Counts one occurrence.
    pub(super) fn count(&self, what: &str) {
        self.figures.count(what);
    }

    /// Counts a call by verb, fault and end.
    pub(super) fn call(&self, verb: Verb, fault: Fault, ended: Ended, disk_was_full: bool) {
        let with = match fault {
            Fault::None if disk_was_full => ", disk full",
            Fault::None => "",
            Fault::Kill { .. } => ", to be killed",
            Fault::KillRuntime { .. } => ", netloom alone to be killed",
            Fault::Memory { .. } => ", little memory",
        };
        let ended = match ended {
            Ended::Succeeded => "succeeded",
            Ended::Failed => "failed",
            Ended::Killed => "killed",
        };
        self.count(&format!("{}{with}: {ended}", verb.name()));
    }

    /// Learns how long an undisturbed call took.
    pub(super) fn learn(&self, verb: Verb, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let usual = &self.usual[verb as usize];
        let before = usual.load(Ordering::Relaxed);
        let after = if before == 0 { took } else { before - before / 16 + took / 16 };
        usual.store(after, Ordering::Relaxed);
    }

    /// Returns a part of a verb's usual duration.
    pub(super) fn part_of(&self, verb: Verb, permille: u64) -> Duration {
        const FIRST_GUESS: u64 = 20_000;
        let usual = match self.usual[verb as usize].load(Ordering::Relaxed) {
            0 => FIRST_GUESS,
            usual => usual,
        };
        Duration::from_micros(usual * permille / 1000)
    }

    /// Records a broken promise.
    pub(super) fn violation(&self, what: &str) {
        self.figures.violation(what);
    }

    /// Returns the number of broken promises.
    pub(super) fn violations(&self) -> u64 {
        self.figures.violations()
    }

    /// Prints all figures.
    pub(super) fn print(&self) {
        self.figures.print();
        for verb in [Verb::Add, Verb::Check, Verb::Del, Verb::Gc] {
            say(&format!(
                "{:>6} ms  usual duration of {}",
                self.part_of(verb, 1000).as_millis(),
                verb.name()
            ));
        }
    }
}
