//! Results of 1.0.0 and 1.1.0, the format that plugins work with.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Dns, ResultError, Route};
use crate::address;

/// A success result (SPEC, "ADD Success"). Keys are printed in alphabetical order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Success {
    /// DNS settings, omitted if empty.
    #[serde(skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// Interfaces of the host and of the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// The interface's hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The interface's MTU in bytes; 0 is unset. Since 1.1.0.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub mtu: u32,
    /// The interface's name.
    pub name: String,
    /// The interface's PCI address, such as `0000:04:00.5`. Since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
    /// The path of the interface's namespace (`CNI_NETNS`); empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The absolute path of the interface's socket, for user-space data paths. Since 1.1.0.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address with its prefix length.
    #[serde(with = "address::cidr")]
    pub address: IpNet,
    /// The gateway of the subnet.
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`; −1 and `None` both mean unspecified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
}

impl Success {
    /// Returns the interface of an address.
    pub fn interface_of(&self, ip: &IpConfig) -> Option<&Interface> {
        self.interfaces.get(usize::try_from(ip.interface?).ok()?)
    }

    /// Refuses addresses with an index outside `interfaces`. An index of −1 is accepted.
    ///
    /// # Errors
    /// If there is such an address; the error names the first one.
    pub fn require_valid_indices(&self) -> Result<(), ResultError> {
        for (entry, ip) in self.ips.iter().enumerate() {
            if let Some(index) = ip.interface
                && index != -1
                && self.interface_of(ip).is_none()
            {
                return Err(ResultError::InterfaceIndex { entry, index });
            }
        }
        Ok(())
    }
}
