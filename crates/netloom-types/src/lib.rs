//! The CNI specification as Rust values.
//!
//! The crate parses and renders network configurations, results of every specification version, error objects, `CNI_ARGS`, names
//! and the conventional capabilities. It does not open files, start processes or call the kernel.
//!
//! ```
//! use netloom_types::{NetworkList, result::CniResult, SpecVersion};
//!
//! let list = NetworkList::parse(br#"{"cniVersion":"1.1.0","name":"lab","plugins":[{"type":"bridge"}]}"#)?;
//! assert_eq!(list.plugins[0].kind(), "bridge");
//!
//! let old = CniResult::parse(br#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}"#, SpecVersion::V0_2_0)?;
//! let new = old.convert(SpecVersion::V1_1_0)?;
//! assert!(new.to_json().contains("\"address\": \"10.0.0.2/24\""));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! "SPEC" in this documentation is `SPEC.md` of containernetworking/cni at version 1.1.0.
#![forbid(unsafe_code)]

pub mod address;
pub mod args;
pub mod capability;
pub mod config;
pub mod error;
pub mod json;
pub mod name;
pub mod result;
pub mod version;

pub use args::CniArgs;
pub use capability::RuntimeConfig;
pub use config::{Attachment, NetworkList, PluginConfig, RequestConfig};
pub use error::{CniError, Code};
pub use json::Object;
pub use result::CniResult;
pub use version::{SemVer, SpecVersion, VersionInfo};
