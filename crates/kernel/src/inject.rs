//! A seam for tests: makes the n-th change that this thread asks of the kernel fail.
//!
//! With it a test walks through an ADD and lets it fail after each of its steps in turn, to see that the undo
//! leaves everything as it was. Costs one thread-local read per change; nothing sets it outside tests.

use std::cell::Cell;

use rustix::io::Errno;

use crate::error::{Error, Result};

thread_local! {
    static REMAINING: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Lets `count` changes of this thread pass and makes the next one fail with `EIO`, once.
pub fn fail_after(count: u32) {
    REMAINING.set(Some(count));
}

/// Ends the seam, and returns whether the failure is still to come.
pub fn reset() -> bool {
    REMAINING.replace(None).is_some()
}

/// Stands before every change.
pub(crate) fn point(doing: &'static str, object: &str) -> Result<()> {
    match REMAINING.get() {
        None => Ok(()),
        Some(0) => {
            REMAINING.set(None);
            Err(Error { extack: Some("injected by a test".into()), ..Error::new(doing, object, Errno::IO) })
        }
        Some(count) => {
            REMAINING.set(Some(count - 1));
            Ok(())
        }
    }
}
