//! The cause of a fault: one sentence, and one remedy.

use super::super::Failure;

/// What a cause lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A station of the path: a link, an address, a route, a setting, a connection.
    Station,
    /// A rule of the host.
    HostRule,
    /// A rule of the container, which its owner may have wanted.
    ContainerRule,
    /// The destination takes the packet and does not answer.
    Silent,
    /// Nothing listens on the port.
    NoListener,
}

/// Why a path does not work, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) kind: Kind,
    pub(crate) sentence: String,
    pub(crate) remedy: String,
}

impl Cause {
    pub(crate) fn new(sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind: Kind::Station, sentence: sentence.into(), remedy: remedy.into() }
    }

    pub(crate) fn of(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::new(cause.sentence).hint(cause.remedy)
    }
}
