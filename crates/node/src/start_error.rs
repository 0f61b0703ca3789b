//! The error of starting or uninstalling the daemon.

use std::io;

/// The reason the daemon could not start, or could not remove everything.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {why}")]
pub struct StartError {
    doing: String,
    why: String,
}

impl StartError {
    pub(crate) fn new(doing: impl Into<String>, why: impl ToString) -> Self {
        Self { doing: doing.into(), why: why.to_string() }
    }

    /// Returns a closure for `map_err` on I/O errors.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |error| Self { doing, why: error.to_string() }
    }
}
