//! Errors: the operation, its object, and the kernel's answer.

use std::fmt;

use rustix::io::Errno;

/// A failed operation: its object, and the kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The operation, as the rest of "cannot …": `create bridge`.
    pub doing: &'static str,
    /// The object: a name, address or path.
    pub object: String,
    /// The kernel's error number.
    pub errno: Errno,
    /// The kernel's explanation (extended ack), if it sent one.
    pub extack: Option<String>,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of errors, by what a caller can do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The object does not exist.
    NotFound,
    /// An object of that name or address exists already.
    Exists,
    /// The object is in use.
    Busy,
    /// Root or a capability is missing.
    Denied,
    /// The ruleset changed since it was read: read it again and retry.
    Stale,
    /// The kernel lacks a feature.
    Unsupported,
    /// A signal ended the wait.
    Interrupted,
    /// A deadline passed.
    TimedOut,
    /// The request itself was refused.
    Invalid,
}

impl Error {
    /// Creates an error without the kernel's explanation.
    pub fn new(doing: &'static str, object: impl fmt::Display, errno: Errno) -> Self {
        Self { doing, object: object.to_string(), errno, extack: None }
    }

    /// Creates an error from an error of the standard library.
    pub fn from_io(doing: &'static str, object: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(doing, object, error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> Kind {
        match self.errno {
            Errno::NOENT | Errno::NODEV | Errno::SRCH | Errno::ADDRNOTAVAIL | Errno::NXIO => Kind::NotFound,
            Errno::EXIST => Kind::Exists,
            Errno::BUSY => Kind::Busy,
            Errno::PERM | Errno::ACCESS => Kind::Denied,
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => Kind::Unsupported,
            Errno::INTR => Kind::Interrupted,
            Errno::TIMEDOUT | Errno::TIME => Kind::TimedOut,
            // ERESTART: the ruleset's generation changed after the batch was built.
            errno if errno.raw_os_error() == libc::ERESTART => Kind::Stale,
            _ => Kind::Invalid,
        }
    }

    /// Returns a hint at what to try, if there is one.
    pub fn hint(&self) -> Option<&'static str> {
        match self.kind() {
            _ if self.errno == Errno::ROFS => {
                Some("mount the file system writable, or make the setting on the host beforehand")
            }
            Kind::Denied if rustix::process::geteuid().is_root() => Some(
                "root lacks a capability here (CAP_NET_ADMIN, CAP_SYS_ADMIN), or a security module refuses it: see `dmesg`",
            ),
            Kind::Denied => Some("run it as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN"),
            Kind::Unsupported => {
                Some("the kernel lacks this feature: load the module or use a kernel that has it")
            }
            Kind::NotFound
            | Kind::Exists
            | Kind::Busy
            | Kind::Stale
            | Kind::Interrupted
            | Kind::TimedOut
            | Kind::Invalid => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "cannot {} {}: ", self.doing, self.object)?;
        if self.errno.raw_os_error() == libc::ERESTART {
            out.write_str("the ruleset changed meanwhile")?;
        } else {
            let text = std::io::Error::from_raw_os_error(self.errno.raw_os_error()).to_string();
            out.write_str(text.split(" (os error").next().unwrap_or(&text))?;
        }
        match &self.extack {
            Some(text) => write!(out, " ({text})"),
            None => Ok(()),
        }
    }
}

/// Returns the result of a C library call, or `errno` if the result is negative.
pub(crate) fn checked<N: Default + PartialOrd>(answer: N) -> Result<N, Errno> {
    if answer < N::default() {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(answer)
}

/// Converts [`Kind::NotFound`] to `None`, for lookups and for removals that may be repeated.
pub(crate) fn absent_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
