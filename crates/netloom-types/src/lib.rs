//! The CNI specification as Rust values.
//!
//! Network configurations, the results of every specification version and their conversion, error codes,
//! `CNI_ARGS`, names and the conventional capabilities. Nothing here opens a file, starts a process or asks
//! the kernel: text comes in, values go out, and the other way round.
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
//! "SPEC" in these pages is `SPEC.md` of containernetworking/cni at version 1.1.0.
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
