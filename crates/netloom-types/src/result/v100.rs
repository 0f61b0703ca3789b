//! Results of 1.0.0 and 1.1.0, the shape that plugins work with.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Dns, ResultError, Route};
use crate::address;

/// A success result (SPEC, "ADD Success"). Keys are printed in alphabetical order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Success {
    /// DNS settings, left out when empty.
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

/// An interface of the host or of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes; 0 is unset. Since 1.1.0.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub mtu: u32,
    /// Its name.
    pub name: String,
    /// Its PCI address, such as `0000:04:00.5`. Since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
    /// The namespace that it is in (`CNI_NETNS`); empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Absolute path of a socket of this interface, for user-space data paths. Since 1.1.0.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
}

/// An address with its gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address with prefix length.
    #[serde(with = "address::cidr")]
    pub address: IpNet,
    /// The gateway of the subnet.
    #[serde(default, with = "address::optional_ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`; −1 and none both mean that it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
}

impl Success {
    /// Finds the interface that an address is on.
    pub fn interface_of(&self, ip: &IpConfig) -> Option<&Interface> {
        self.interfaces.get(usize::try_from(ip.interface?).ok()?)
    }

    /// Refuses addresses that name an interface which is not there (an index of −1 is none).
    ///
    /// # Errors
    /// Returns the first such entry.
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
