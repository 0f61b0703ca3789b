//! The specification's error object and its well-known codes (SPEC, "Error").

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    json::{self, JsonError},
    version::SpecVersion,
};

/// An error code: one that the specification reserves (0 to 99), one of the two that Go's libcni adds, or a plugin's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// 0: an error without a code.
    Unknown,
    /// 1: incompatible CNI version.
    IncompatibleVersion,
    /// 2: unsupported field in the network configuration; the message contains key and value.
    UnsupportedField,
    /// 3: the container is unknown or does not exist; no cleanup is needed.
    UnknownContainer,
    /// 4: a necessary environment variable is missing or invalid; the message contains its name.
    InvalidEnvironment,
    /// 5: I/O failure.
    Io,
    /// 6: content could not be decoded.
    Decode,
    /// 7: invalid network configuration.
    InvalidNetworkConfig,
    /// 8: the network namespace cannot be used (libcni; not in the specification).
    InvalidNetns,
    /// 11: a transient condition; try again later.
    TryAgainLater,
    /// 50: the plugin is not available: it cannot service ADD.
    NotAvailable,
    /// 51: the plugin is not available, and containers may have limited connectivity.
    LimitedConnectivity,
    /// 999: any other failure of the plugin (libcni's ErrInternal).
    Internal,
    /// Any other number; 100 and above belong to plugins.
    Other(u32),
}

impl Code {
    /// Returns the number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidNetworkConfig => 7,
            Self::InvalidNetns => 8,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Internal => 999,
            Self::Other(number) => number,
        }
    }
}

impl From<u32> for Code {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidNetworkConfig,
            8 => Self::InvalidNetns,
            11 => Self::TryAgainLater,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            999 => Self::Internal,
            other => Self::Other(other),
        }
    }
}

/// The error object that a plugin prints on standard output when it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// The protocol version of the configuration, once it is known.
    pub cni_version: Option<SpecVersion>,
    /// The kind of failure.
    pub code: Code,
    /// A message of one line.
    pub msg: String,
    /// Details: the attempted operation, the kernel's answer, a hint. May be empty.
    pub details: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cni_version: Option<&'static str>,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireIn {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl CniError {
    /// Creates an error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { cni_version: None, code, msg: msg.into(), details: String::new() }
    }

    /// Sets the details.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Renders the error object with an indent of four spaces and no newline at the end.
    pub fn to_json(&self) -> String {
        json::render(&WireOut {
            cni_version: self.cni_version.map(SpecVersion::as_str),
            code: self.code.number(),
            msg: &self.msg,
            details: &self.details,
        })
    }

    /// Parses an error object. An object with neither code nor message is refused: it is the result of a plugin that failed
    /// after it had printed the result, and would become an error without a message.
    ///
    /// # Errors
    /// If the text is not a JSON object, a key has the wrong type, or both `code` and `msg` are absent.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        let wire: WireIn = json::from_object(&json::parse_object(bytes)?)?;
        if wire.code == 0 && wire.msg.is_empty() {
            return Err(JsonError::new("an object with neither `code` nor `msg` is not an error object"));
        }
        Ok(Self {
            cni_version: SpecVersion::parse(&wire.cni_version).filter(|_| !wire.cni_version.is_empty()),
            code: wire.code.into(),
            msg: wire.msg,
            details: wire.details,
        })
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(out, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for CniError {}
