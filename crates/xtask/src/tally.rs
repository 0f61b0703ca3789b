//! Counts what happened in a random run, and keeps the broken promises.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::say;

/// Broken promises that are printed; the others are only counted.
const PRINTED: u64 = 40;

/// The figures of a run.
#[derive(Default)]
pub(crate) struct Tally {
    counts: Mutex<BTreeMap<String, u64>>,
    violations: AtomicU64,
}

impl Tally {
    /// Counts one occurrence.
    pub(crate) fn count(&self, what: &str) {
        if let Ok(mut counts) = self.counts.lock() {
            *counts.entry(what.to_owned()).or_default() += 1;
        }
    }

    /// Records a broken promise.
    pub(crate) fn violation(&self, what: &str) {
        if self.violations.fetch_add(1, Ordering::Relaxed) < PRINTED {
            say(&format!("VIOLATION: {what}"));
        }
    }

    /// Returns the number of broken promises.
    pub(crate) fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// Prints all counts.
    pub(crate) fn print(&self) {
        for (what, count) in self.counts.lock().iter().flat_map(|counts| counts.iter()) {
            say(&format!("{count:>8}  {what}"));
        }
    }
}
