//! The cause of a fault: one sentence, and one remedy.

use super::super::Failure;

/// Why a path does not work, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) sentence: String,
    pub(crate) remedy: String,
}

impl Cause {
    pub(crate) fn new(sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), remedy: remedy.into() }
    }
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::new(cause.sentence).hint(cause.remedy)
    }
}
