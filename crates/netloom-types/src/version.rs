//! Specification versions: the seven published ones, the loose form that plugins may advertise, and the answer to VERSION.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};

/// A published version of the specification. Versions are ordered from old to new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// 0.1.0, also the meaning of an empty or absent `cniVersion`.
    V0_1_0,
    /// 0.2.0: VERSION.
    V0_2_0,
    /// 0.3.0: lists, chaining, several addresses.
    V0_3_0,
    /// 0.3.1: `ip` renamed to `ips`.
    V0_3_1,
    /// 0.4.0: CHECK, `prevResult` at DEL.
    V0_4_0,
    /// 1.0.0: lists only, without `ips[].version`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, `cniVersions`.
    V1_1_0,
}

impl SpecVersion {
    /// Every version, old to new.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version that this crate implements.
    pub const NEWEST: Self = Self::V1_1_0;

    /// Parses by exact match, as plugins compare versions. The empty string means 0.1.0.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// Returns the version as three numbers with dots.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Returns a version and all newer ones, for a plugin's list of supported versions.
    pub fn from_on(oldest: Self) -> &'static [Self] {
        static ALL: [SpecVersion; 7] = SpecVersion::ALL;
        &ALL[ALL.iter().position(|version| *version == oldest).unwrap_or_default()..]
    }

    /// Iterates over every published version from `oldest` on.
    pub fn starting_from(oldest: Self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |version| *version >= oldest)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// A version with one to three numbers. Missing numbers are zero.
///
/// Unlike [`SpecVersion`] it can be a version that this crate does not know: the version checks of CHECK, STATUS and GC compare
/// such versions too. Numbers may be negative, since Go's parser accepts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SemVer(pub i64, pub i64, pub i64);

/// The reason a string is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SemVerError {
    /// More than three parts.
    #[error("invalid version `{0}`: too many parts")]
    TooManyParts(String),
    /// A part that is not a number.
    #[error("failed to convert {part} version part `{text}` to a number")]
    NotANumber {
        /// `major`, `minor` or `micro`.
        part: &'static str,
        /// The part as written.
        text: String,
    },
}

impl SemVer {
    /// Parses `1`, `1.1` or `1.1.0`. The empty string means 0.1.0.
    ///
    /// # Errors
    /// If there are more than three parts or a part is not a number.
    pub fn parse(text: &str) -> Result<Self, SemVerError> {
        if text.is_empty() {
            return Ok(Self(0, 1, 0));
        }
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() > 3 {
            return Err(SemVerError::TooManyParts(text.to_owned()));
        }
        let number = |index: usize, part: &'static str| match parts.get(index) {
            None => Ok(0),
            Some(text) => {
                text.parse::<i64>().map_err(|_| SemVerError::NotANumber { part, text: (*text).to_owned() })
            }
        };
        Ok(Self(number(0, "major")?, number(1, "minor")?, number(2, "micro")?))
    }
}

impl From<SpecVersion> for SemVer {
    fn from(version: SpecVersion) -> Self {
        match version {
            SpecVersion::V0_1_0 => Self(0, 1, 0),
            SpecVersion::V0_2_0 => Self(0, 2, 0),
            SpecVersion::V0_3_0 => Self(0, 3, 0),
            SpecVersion::V0_3_1 => Self(0, 3, 1),
            SpecVersion::V0_4_0 => Self(0, 4, 0),
            SpecVersion::V1_0_0 => Self(1, 0, 0),
            SpecVersion::V1_1_0 => Self(1, 1, 0),
        }
    }
}

/// The answer to VERSION (SPEC, "VERSION: probe plugin version support").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    /// The protocol version of this answer.
    pub cni_version: String,
    /// The configuration versions that the plugin supports.
    pub supported_versions: Vec<String>,
}

/// The reason an answer to VERSION cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionInfoError {
    /// Not a JSON object.
    #[error("decoding version info: {0}")]
    Json(#[from] JsonError),
    /// `cniVersion` is absent or empty.
    #[error("decoding version info: missing field cniVersion")]
    NoVersion,
    /// `supportedVersions` is absent or empty, in an answer newer than 0.2.0.
    #[error("decoding version info: missing field supportedVersions")]
    NoSupported,
}

impl VersionInfo {
    /// Creates the answer of a plugin that supports `versions`.
    pub fn new(versions: &[SpecVersion]) -> Self {
        Self {
            cni_version: SpecVersion::NEWEST.to_string(),
            supported_versions: versions.iter().map(ToString::to_string).collect(),
        }
    }

    /// Parses a plugin's answer. A bare `{"cniVersion":"0.2.0"}` means 0.1.0 and 0.2.0.
    ///
    /// # Errors
    /// If the text is not a JSON object or lacks one of the two keys.
    pub fn parse(bytes: &[u8]) -> Result<Self, VersionInfoError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            #[serde(default)]
            cni_version: String,
            #[serde(default)]
            supported_versions: Vec<String>,
        }
        let wire: Wire = json::from_object(&json::parse_object(bytes)?)?;
        if wire.cni_version.is_empty() {
            return Err(VersionInfoError::NoVersion);
        }
        let supported_versions = match (wire.supported_versions.is_empty(), wire.cni_version.as_str()) {
            (false, _) => wire.supported_versions,
            (true, "0.2.0") => vec!["0.1.0".to_owned(), "0.2.0".to_owned()],
            (true, _) => return Err(VersionInfoError::NoSupported),
        };
        Ok(Self { cni_version: wire.cni_version, supported_versions })
    }
}
