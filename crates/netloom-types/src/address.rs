//! Addresses and prefixes as the specification writes them.
//!
//! An IPv4 address in IPv6 clothes (`::ffff:10.0.0.1`) is IPv4 here, as in every other implementation; host
//! bits of a prefix are kept, since `10.0.0.5/24` is an address *with* its prefix length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The error for a text that is not an address or not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No address with a prefix length.
    #[error("invalid CIDR address: {0} (write it like 10.1.2.3/24 or fd00::3/64)")]
    Cidr(String),
    /// No address.
    #[error("invalid IP address: {0}")]
    Ip(String),
}

/// Parses an address without prefix length.
///
/// # Errors
/// If the text is no address; leading zeros (`10.0.0.01`) are refused, since programs differ on what they mean.
pub fn parse_ip(text: &str) -> Result<IpAddr, AddressError> {
    text.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| AddressError::Ip(text.to_owned()))
}

/// Parses an address with its prefix length, keeping the host bits.
///
/// # Errors
/// If the address or the length is missing or invalid.
pub fn parse_cidr(text: &str) -> Result<IpNet, AddressError> {
    let refused = || AddressError::Cidr(text.to_owned());
    let (ip, length) = text.split_once('/').ok_or_else(refused)?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused());
    }
    let (ip, length): (IpAddr, u8) =
        (ip.parse().map_err(|_| refused())?, length.parse().map_err(|_| refused())?);
    let folded = ip.to_canonical();
    let length =
        if folded.is_ipv4() && ip.is_ipv6() { length.checked_sub(96).ok_or_else(refused)? } else { length };
    IpNet::new(folded, length).map_err(|_| refused())
}

/// Parses `ADDRESS` or `ADDRESS/LENGTH`, as the `ips` capability allows both.
///
/// # Errors
/// If it is neither.
pub fn parse_ip_maybe_cidr(text: &str) -> Result<(IpAddr, Option<u8>), AddressError> {
    if text.contains('/') {
        parse_cidr(text).map(|net| (net.addr(), Some(net.prefix_len())))
    } else {
        parse_ip(text).map(|ip| (ip, None))
    }
}

/// Returns the prefix that holds every address of the family of `ip`.
pub fn default_route(ip: IpAddr) -> IpNet {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNet::new_assert(any, 0)
}

/// Reads and writes an [`IpNet`] by [`parse_cidr`], for `#[serde(with = …)]`.
pub mod cidr {
    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Reads a prefix from a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<IpNet, D::Error> {
        super::parse_cidr(&String::deserialize(from)?).map_err(D::Error::custom)
    }

    /// Writes a prefix as a string.
    pub fn serialize<S: Serializer>(net: &IpNet, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(net)
    }
}

/// Reads and writes an optional address, for `#[serde(with = …)]`; the empty text is none.
pub mod optional_ip {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Reads an address from a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
        match String::deserialize(from)?.as_str() {
            "" => Ok(None),
            text => super::parse_ip(text).map(Some).map_err(D::Error::custom),
        }
    }

    /// Writes an address as a string.
    pub fn serialize<S: Serializer>(ip: &Option<IpAddr>, to: S) -> Result<S::Ok, S::Error> {
        match ip {
            Some(ip) => to.collect_str(ip),
            None => to.serialize_str(""),
        }
    }
}
