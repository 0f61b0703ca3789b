//! Results of ADD in the format of every version, and their conversion.
//!
//! Three formats cover the seven versions: [`v020`] (0.1.0, 0.2.0), [`v040`] (0.3.0 to 0.4.0) and [`v100`] (1.0.0, 1.1.0).
//! Plugins work with [`v100`] only. [`CniResult`] parses and renders all of them.

mod convert;
pub mod v020;
pub mod v040;
pub mod v100;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    address,
    json::{self, JsonError, Object},
    version::SpecVersion,
};

/// A result in the format of its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CniResult {
    /// 0.1.0 or 0.2.0.
    V020(SpecVersion, v020::Success),
    /// 0.3.0, 0.3.1 or 0.4.0.
    V040(SpecVersion, v040::Success),
    /// 1.0.0 or 1.1.0.
    V100(SpecVersion, v100::Success),
}

/// The reason a text is not a result, or a result cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// Not a JSON object, or a value of the wrong type.
    #[error("{0}")]
    Json(#[from] JsonError),
    /// A version that does not exist.
    #[error("unsupported CNI result version `{0}`")]
    Version(String),
    /// No address: versions before 0.3.0 cannot express a result without one.
    #[error("cannot convert: no valid IP addresses")]
    NoAddresses,
    /// `ips[].interface` is not an index of `interfaces`.
    #[error("`ips[{entry}].interface`: there is no interface {index} in this result")]
    InterfaceIndex {
        /// The index of the entry in `ips`.
        entry: usize,
        /// The value of `interface`.
        index: i64,
    },
}

/// One route of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Route {
    /// Destination prefix
    #[cfg_attr(feature = "schema", schemars(with = "String", example = &"0.0.0.0/0"))]
    #[serde(with = "address::cidr")]
    pub dst: IpNet,
    /// The next hop; without it, the gateway of the address, or a route on the link
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>", example = &"10.1.0.1"))]
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes; 0 is unset. Since 1.1.0
    #[cfg_attr(feature = "schema", schemars(example = 1400))]
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Maximum segment size to announce, in bytes; 0 is unset. Since 1.1.0
    #[cfg_attr(feature = "schema", schemars(example = 1360))]
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// Metric, lower wins; 0 is unset. Since 1.1.0
    #[cfg_attr(feature = "schema", schemars(example = 100))]
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// Routing table; 0 is a value of its own. Since 1.1.0
    #[cfg_attr(feature = "schema", schemars(example = 200))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope: 0 global, 253 link, 254 host. Since 1.1.0
    #[cfg_attr(feature = "schema", schemars(example = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// Creates a route with only a destination and a next hop.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// The DNS settings of a result or of a network configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Dns {
    /// Servers in order of preference
    #[cfg_attr(feature = "schema", schemars(example = serde_json::json!(["10.1.0.1"])))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain
    #[cfg_attr(feature = "schema", schemars(example = &"example.org"))]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains
    #[cfg_attr(feature = "schema", schemars(example = serde_json::json!(["example.org"])))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options
    #[cfg_attr(feature = "schema", schemars(example = serde_json::json!(["ndots:2"])))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Returns whether no setting is present.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CniResult {
    /// Parses a result of any version. A result without `cniVersion` has the version `assumed`, the version of the configuration
    /// that the plugin received. SPEC requires the key, but older plugins omit it.
    ///
    /// # Errors
    /// If the text is not a JSON object, or contains an unknown version or a value of the wrong type.
    pub fn parse(bytes: &[u8], assumed: SpecVersion) -> Result<Self, ResultError> {
        match json::parse_value(bytes)? {
            serde_json::Value::Null => Self::from_object(&Object::new(), assumed),
            serde_json::Value::Object(object) => Self::from_object(&object, assumed),
            other => {
                Err(JsonError::new(format!("expected a result object, found {}", json::kind_of(&other))))?
            }
        }
    }

    /// Deserializes a result of any version from an object, like [`Self::parse`].
    ///
    /// # Errors
    /// The errors of [`Self::parse`].
    pub fn from_object(object: &Object, assumed: SpecVersion) -> Result<Self, ResultError> {
        let version = match json::lookup(object, "cniVersion").and_then(serde_json::Value::as_str) {
            None | Some("") => assumed,
            Some(text) => SpecVersion::parse(text).ok_or_else(|| ResultError::Version(text.to_owned()))?,
        };
        Ok(match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => Self::V020(version, json::from_object(object)?),
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => {
                Self::V040(version, json::from_object(object)?)
            }
            SpecVersion::V1_0_0 | SpecVersion::V1_1_0 => Self::V100(version, json::from_object(object)?),
        })
    }

    /// Returns the version of the result.
    pub fn version(&self) -> SpecVersion {
        match self {
            Self::V020(version, _) | Self::V040(version, _) | Self::V100(version, _) => *version,
        }
    }

    /// Converts to another version. Fields that the target version does not have are lost:
    ///
    /// | from, to | lost |
    /// |---|---|
    /// | 1.x to 0.3.0–0.4.0 | `mtu`, `socketPath`, `pciID` of interfaces |
    /// | 0.3.0 or later to 0.1.0–0.2.0 | interfaces; the second and later addresses of a family; routes of a family without an address; every key of a route except `dst` and `gw` |
    /// | 0.3.0–0.4.0 to 1.x | `ips[].version`, which follows from the address |
    ///
    /// # Errors
    /// If the target is 0.1.0 or 0.2.0 and the result contains no address.
    pub fn convert(self, to: SpecVersion) -> Result<Self, ResultError> {
        Ok(match (self, to) {
            (Self::V020(_, result), SpecVersion::V0_1_0 | SpecVersion::V0_2_0) => Self::V020(to, result),
            (Self::V040(_, result), SpecVersion::V0_1_0 | SpecVersion::V0_2_0) => {
                Self::V020(to, result.try_into()?)
            }
            (Self::V100(_, result), SpecVersion::V0_1_0 | SpecVersion::V0_2_0) => {
                Self::V020(to, v040::Success::from(result).try_into()?)
            }
            (Self::V020(_, result), SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0) => {
                Self::V040(to, result.into())
            }
            (Self::V040(_, result), SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0) => {
                Self::V040(to, result)
            }
            (Self::V100(_, result), SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0) => {
                Self::V040(to, result.into())
            }
            (Self::V020(_, result), SpecVersion::V1_0_0 | SpecVersion::V1_1_0) => {
                Self::V100(to, v040::Success::from(result).into())
            }
            (Self::V040(_, result), SpecVersion::V1_0_0 | SpecVersion::V1_1_0) => {
                Self::V100(to, result.into())
            }
            (Self::V100(_, result), SpecVersion::V1_0_0 | SpecVersion::V1_1_0) => Self::V100(to, result),
        })
    }

    /// Converts to the newest format, which every plugin of this project works with.
    pub fn into_current(self) -> v100::Success {
        match self {
            Self::V020(_, result) => v040::Success::from(result).into(),
            Self::V040(_, result) => result.into(),
            Self::V100(_, result) => result,
        }
    }

    /// Renders with an indent of four spaces and no newline at the end.
    pub fn to_json(&self) -> String {
        json::render(&self.to_value())
    }

    /// Renders as a JSON value.
    pub fn to_value(&self) -> serde_json::Value {
        let (version, body) = match self {
            Self::V020(version, result) => (version, serde_json::to_value(result)),
            Self::V040(version, result) => (version, serde_json::to_value(result)),
            Self::V100(version, result) => (version, serde_json::to_value(result)),
        };
        let mut object = Object::new();
        object.insert("cniVersion".to_owned(), version.as_str().into());
        // The three formats are structs, which always become objects.
        if let Ok(serde_json::Value::Object(body)) = body {
            object.extend(body);
        }
        object.into()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
