//! The one place where errors of the kernel and of the ruleset become the specification's.

use netloom_plugin::{Code, Error};
use ruleset::RulesetError;

/// Turns a lower layer's result into a plugin's.
pub(crate) trait Explain<T> {
    /// Keeps the value, or gives the error its code and hint.
    fn explain(self) -> Result<T, Error>;
}

impl<T> Explain<T> for kernel::Result<T> {
    fn explain(self) -> Result<T, Error> {
        self.map_err(|error| explained(&error))
    }
}

impl<T> Explain<T> for Result<T, RulesetError> {
    fn explain(self) -> Result<T, Error> {
        self.map_err(|error| match error {
            RulesetError::Kernel(error) => explained(&error),
            RulesetError::Taken { owner, .. } => {
                Error::new(Code::Internal, format!("the nftables element belongs to somebody else: {owner}"))
            }
        })
    }
}

impl<T> Explain<T> for Result<T, ipam::StoreError> {
    fn explain(self) -> Result<T, Error> {
        self.map_err(|error| {
            let hint = match error.source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    "free some space there, or set `ipam.dataDir` to a folder elsewhere"
                }
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    "make the folder writable, or set `ipam.dataDir` to one that is"
                }
                _ => "`ipam.dataDir` says where reservations are kept",
            };
            Error::new(Code::Io, error.to_string()).details(hint)
        })
    }
}

/// Makes the error of a configuration that says something impossible.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidNetworkConfig, message)
}

/// Makes the error of a container that is not as ADD left it.
pub(crate) fn differs(message: impl Into<String>) -> Error {
    Error::new(Code::Internal, message)
        .details("the container is not as ADD left it: delete and add it again")
}

/// Collects errors of a DEL or GC, which goes on after each.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<Error>);

impl Errors {
    pub(crate) fn note(&mut self, outcome: Result<(), Error>) {
        self.0.extend(outcome.err());
    }

    pub(crate) fn into_result(self) -> Result<(), Error> {
        let mut errors = self.0.into_iter();
        let Some(mut first) = errors.next() else { return Ok(()) };
        for other in errors {
            first.msg = format!("{}; and {other}", first.msg);
        }
        Err(first)
    }
}

/// Returns a kernel's error its code and hint.
pub(crate) fn explained(error: &kernel::Error) -> Error {
    let code = match error.kind() {
        kernel::Kind::Interrupted => Code::TryAgainLater,
        _ => Code::Internal,
    };
    Error::new(code, error.to_string()).details(error.hint().unwrap_or_default())
}
