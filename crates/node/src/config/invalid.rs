//! The error of a wrong value.

/// A configuration value that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {why}")]
pub struct InvalidValue {
    /// The value's key in the file.
    pub key: &'static str,
    /// What is wrong with the value.
    pub why: String,
}

impl InvalidValue {
    pub(super) fn new(key: &'static str, why: impl Into<String>) -> Self {
        Self { key, why: why.into() }
    }
}
