//! The ruleset as values: masquerade, published ports, firewall, MAC spoof check.
//!
//! Netloom has one table per family, created in one transaction. Its chains never change. A container's part is elements of
//! sets and maps, each with a comment that names its owner. So a lookup costs the same with one container and with ten
//! thousand, an ADD or DEL is one batch, and the comment identifies stale elements of a killed process.
//!
//! This crate opens no socket and no file: the caller passes a netfilter [`kernel::Socket`].
#![forbid(unsafe_code)]

mod chains;
pub mod cluster;
pub mod condition;
mod elements;
mod error;
pub mod firewall;
pub mod forward_hook;
mod list;
pub mod masquerade;
pub mod portmap;
pub mod reference;
pub mod spoof;
mod tables;

pub use elements::{owners, retain};
pub use error::RulesetError;
pub use list::{Listed, list};

/// Returns an address in network byte order.
pub fn octets(ip: std::net::IpAddr) -> Vec<u8> {
    match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Returns the name of a link as the kernel compares it.
fn port_name(name: &str) -> Vec<u8> {
    let mut name = name.as_bytes().to_vec();
    name.resize(16, 0);
    name
}

/// Parses an address, or returns `None` if its length is invalid.
fn address(octets: &[u8]) -> Option<std::net::IpAddr> {
    match octets.len() {
        4 => octets.first_chunk::<4>().map(|octets| (*octets).into()),
        16 => octets.first_chunk::<16>().map(|octets| (*octets).into()),
        _ => None,
    }
}
