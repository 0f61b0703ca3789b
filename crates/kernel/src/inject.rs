//! Fault injection for tests: makes the n-th kernel change of this thread fail.
//!
//! A test makes an ADD fail after each of its steps in turn, and checks that the undo restores the previous state. The cost is
//! one thread-local read per change. Only tests set it.

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

/// Disables the injection, and returns whether the failure is still pending.
pub fn reset() -> bool {
    REMAINING.replace(None).is_some()
}

/// Fails if the injected failure is due. Called before every change.
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
