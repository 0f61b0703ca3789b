//! Names that follow the specification's rules: container IDs, network names, interface names and plugin types.

use std::fmt;

use crate::error::{CniError, Code};

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Returns the name as a string slice.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// A valid container ID: alphanumeric first, then alphanumeric, `_`, `.` or `-` (SPEC, "Parameters").
    ContainerId
}
name_type! {
    /// A valid network name, with the same rule as container IDs (SPEC, "Configuration format").
    NetworkName
}
name_type! {
    /// An interface name that Linux accepts: 1 to 15 bytes, not `.` or `..`, no `/`, `:` or white space.
    IfName
}

impl ContainerId {
    /// Parses a container ID.
    ///
    /// # Errors
    /// Code 3 if the ID is empty, code 4 if it contains other characters; `details` is the ID.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        if text.is_empty() {
            return Err(CniError::new(Code::UnknownContainer, "missing containerID"));
        }
        if !is_identifier(text) {
            return Err(CniError::new(Code::InvalidEnvironment, "invalid characters in containerID")
                .details(text.escape_debug().to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl NetworkName {
    /// Parses a network name. It has at most 255 bytes, since it becomes the name of files and folders.
    ///
    /// # Errors
    /// Code 7 if the name is invalid; `details` is the name.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let refuse = |msg: &str| {
            Err(CniError::new(Code::InvalidNetworkConfig, msg).details(text.escape_debug().to_string()))
        };
        if text.is_empty() {
            return Err(CniError::new(Code::InvalidNetworkConfig, "missing network name"));
        }
        if !is_identifier(text) {
            return refuse("invalid characters found in network name");
        }
        if text.len() > 255 {
            return refuse("network name is longer than 255 bytes");
        }
        Ok(Self(text.to_owned()))
    }
}

impl IfName {
    /// Parses an interface name.
    ///
    /// # Errors
    /// Code 4 if the name is invalid.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let error = |msg: &str| CniError::new(Code::InvalidEnvironment, msg);
        if text.is_empty() {
            return Err(error("interface name is empty"));
        }
        if text.len() > 15 {
            return Err(error("interface name is too long")
                .details("interface name should be less than 16 characters".to_owned()));
        }
        if text == "." || text == ".." {
            return Err(error("interface name is . or .."));
        }
        if text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c == '\0') {
            return Err(error("interface name contains / or : or whitespace characters")
                .details(text.escape_debug().to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Returns whether a plugin `type` is a file name without any path (SPEC, "Plugin configuration objects").
pub fn is_plugin_type(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\\', '\0'])
}

fn is_identifier(text: &str) -> bool {
    text.bytes().enumerate().all(|(index, byte)| {
        byte.is_ascii_alphanumeric() || (index > 0 && matches!(byte, b'_' | b'.' | b'-'))
    })
}
