//! Taking back what a failed ADD has done.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use netloom_types::{CniError, Code};

/// Collects how to take back each step of an ADD, and does so in reverse unless the ADD succeeds.
///
/// It lives in memory: a process that is killed runs none of it. What makes DEL and GC whole after that is that
/// every object carries a name or mark of its owner.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(String, Step)>,
    interrupted: Arc<AtomicBool>,
}

type Step = Box<dyn FnOnce() -> Result<(), CniError>>;

impl Undo {
    /// Creates an empty one that stops the ADD once `interrupted` is set, as a signal handler does.
    pub fn new(interrupted: Arc<AtomicBool>) -> Self {
        Self { steps: Vec::new(), interrupted }
    }

    /// Adds how to take back the step just done, and says if the ADD is to stop here.
    ///
    /// # Errors
    /// Code 11 when a signal has come; the step is registered all the same.
    pub fn push(
        &mut self,
        what: impl Into<String>,
        step: impl FnOnce() -> Result<(), CniError> + 'static,
    ) -> Result<(), CniError> {
        self.steps.push((what.into(), Box::new(step)));
        self.stop_if_interrupted()
    }

    /// Returns an error if a signal has come and the ADD must stop.
    ///
    /// # Errors
    /// Code 11 then.
    pub fn stop_if_interrupted(&self) -> Result<(), CniError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(CniError::new(Code::TryAgainLater, "interrupted by a signal"));
        }
        Ok(())
    }

    /// Forgets all steps: the ADD has succeeded.
    pub fn keep(mut self) {
        self.steps.clear();
    }

    /// Runs the undo steps in reverse order, and returns the errors of those that failed.
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
