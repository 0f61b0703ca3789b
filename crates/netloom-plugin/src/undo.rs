//! The undo steps of an ADD.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use netloom_types::{CniError, Code};

/// The undo steps of an ADD, which run in reverse order if the ADD fails.
///
/// They exist in memory only: a killed process runs none. DEL and GC can remove its objects if each object carries the name or
/// mark of its owner.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(String, Step)>,
    interrupted: Arc<AtomicBool>,
}

type Step = Box<dyn FnOnce() -> Result<(), CniError>>;

impl Undo {
    /// Creates an empty list. Once a signal handler has set `interrupted`, the ADD stops at its next step.
    pub fn new(interrupted: Arc<AtomicBool>) -> Self {
        Self { steps: Vec::new(), interrupted }
    }

    /// Registers the undo step of the step that was completed last.
    ///
    /// # Errors
    /// Code 11 if a signal has arrived; the undo step is registered first.
    pub fn push(
        &mut self,
        what: impl Into<String>,
        step: impl FnOnce() -> Result<(), CniError> + 'static,
    ) -> Result<(), CniError> {
        self.steps.push((what.into(), Box::new(step)));
        self.stop_if_interrupted()
    }

    /// Checks that no signal has arrived.
    ///
    /// # Errors
    /// Code 11 if a signal has arrived.
    pub fn stop_if_interrupted(&self) -> Result<(), CniError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(CniError::new(Code::TryAgainLater, "interrupted by a signal"));
        }
        Ok(())
    }

    /// Drops all undo steps after a successful ADD.
    pub fn keep(mut self) {
        self.steps.clear();
    }

    /// Runs the undo steps in reverse order and returns the errors of those that failed.
    pub fn run(mut self) -> Vec<String> {
        let mut failed = Vec::new();
        while let Some((what, step)) = self.steps.pop() {
            match catch_unwind(AssertUnwindSafe(step)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed.push(format!("{what}: {error}")),
                Err(_) => failed.push(format!("{what}: panicked")),
            }
        }
        failed
    }
}

impl fmt::Debug for Undo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self.steps.iter().map(|(what, _)| what)).finish()
    }
}
