//! Maps errors of the kernel, the ruleset and the address store to the specification's error object.
//!
//! Every error that a plugin returns has `details` that say what to try next.

use kernel::Kind;
use netloom_plugin::{Code, Error};
use ruleset::RulesetError;

/// Converts a lower layer's result into a plugin's.
pub(crate) trait Explain<T> {
    /// Returns the value, or the error with its code and hint.
    fn explain(self) -> Result<T, Error>;
}

impl<T> Explain<T> for kernel::Result<T> {
    fn explain(self) -> Result<T, Error> {
        self.map_err(|error| kernel_error(&error))
    }
}

impl<T> Explain<T> for Result<T, RulesetError> {
    fn explain(self) -> Result<T, Error> {
        self.map_err(|error| match error {
            RulesetError::Kernel(error) => kernel_error(&error),
            RulesetError::Taken { owner, .. } => Error::new(
                Code::Internal,
                format!("the nftables element belongs to another attachment: {owner}"),
            )
            .details("delete that attachment; `netloom gc` removes what stale attachments left behind"),
        })
    }
}

impl<T> Explain<T> for Result<T, ipam::StoreError> {
    fn explain(self) -> Result<T, Error> {
        self.map_err(|error| {
            let hint = match error.source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    "free space on that file system, or set `ipam.dataDir` to another folder"
                }
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    "make the folder writable, or set `ipam.dataDir` to one that is"
                }
                _ => "check the folder of reservations, which `ipam.dataDir` names",
            };
            Error::new(Code::Io, error.to_string()).details(hint)
        })
    }
}

/// Creates the error for an invalid configuration. Where there is something better to try, the caller replaces the details.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidNetworkConfig, message)
        .details("correct the network configuration: `netloom schema PLUGIN` describes every key")
}

/// Creates the error of a CHECK that found the container different from what ADD configured.
pub(crate) fn check_failed(message: impl Into<String>) -> Error {
    Error::new(Code::Internal, message)
        .details("the container does not match the result of ADD: delete and add it again")
}

/// Creates the error of an IPAM plugin that returned no address.
pub(crate) fn no_addresses(ipam: &str) -> Error {
    Error::new(Code::Internal, format!("IPAM plugin {ipam:?} returned missing IP config"))
        .details("configure addresses under `ipam`; the plugin succeeded without assigning one")
}

/// Collects the errors of a DEL or GC, which continues after each of them.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<Error>);

impl Errors {
    /// Records the error of a step, if it failed.
    pub(crate) fn note(&mut self, outcome: Result<(), Error>) {
        self.0.extend(outcome.err());
    }

    /// Returns the first error, with the others appended to its message.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        let mut errors = self.0.into_iter();
        let Some(mut first) = errors.next() else { return Ok(()) };
        for other in errors {
            first.msg = format!("{}; and {other}", first.msg);
        }
        Err(first)
    }
}

/// Converts an error of the kernel.
pub(crate) fn kernel_error(error: &kernel::Error) -> Error {
    let code = match error.kind() {
        Kind::Interrupted => Code::TryAgainLater,
        _ => Code::Internal,
    };
    let hint = error.hint().unwrap_or(match error.kind() {
        Kind::NotFound => "if the object was removed while the plugin ran, run it again",
        Kind::Exists => "remove the existing object if nothing uses it, then run the plugin again",
        Kind::Busy => "stop what uses the object, then run the plugin again",
        Kind::Stale | Kind::Interrupted => "another process changes the same objects: run the plugin again",
        Kind::TimedOut => {
            "the kernel did not finish in time: run the plugin again when the host is less busy"
        }
        Kind::Denied | Kind::Unsupported | Kind::Invalid => {
            "compare the values of the configuration with what this kernel supports; `dmesg` may say more"
        }
    });
    Error::new(code, error.to_string()).details(hint)
}
