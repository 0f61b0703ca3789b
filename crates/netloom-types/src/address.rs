//! Addresses and prefixes in the specification's notation.
//!
//! An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is parsed as IPv4, as in the other implementations. Host bits of a prefix are
//! kept, since `10.0.0.5/24` is an address *with* its prefix length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A string that is not an address or not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an address with a prefix length.
    #[error("invalid CIDR address: {0} (write it as 10.1.2.3/24 or fd00::3/64)")]
    Cidr(String),
    /// Not an address.
    #[error("invalid IP address: {0}")]
    Ip(String),
}

/// Parses an address without prefix length.
///
/// # Errors
/// If the string is not an address. Leading zeros (`10.0.0.01`) are refused, since programs disagree on their meaning.
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

/// Parses `ADDRESS` or `ADDRESS/LENGTH`. The `ips` capability allows both forms.
///
/// # Errors
/// If the string is neither.
pub fn parse_ip_maybe_cidr(text: &str) -> Result<(IpAddr, Option<u8>), AddressError> {
    if text.contains('/') {
        parse_cidr(text).map(|net| (net.addr(), Some(net.prefix_len())))
    } else {
        parse_ip(text).map(|ip| (ip, None))
    }
}

/// Returns the prefix that contains every address of the family of `ip`: `0.0.0.0/0` or `::/0`.
pub fn default_route(ip: IpAddr) -> IpNet {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNet::new_assert(any, 0)
}

/// Serializes an [`IpNet`] and deserializes it with [`parse_cidr`], for `#[serde(with = …)]`.
pub mod cidr {
    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Deserializes a prefix from a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<IpNet, D::Error> {
        super::parse_cidr(&String::deserialize(from)?).map_err(D::Error::custom)
    }

    /// Serializes a prefix as a string.
    pub fn serialize<S: Serializer>(net: &IpNet, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(net)
    }
}

/// Serializes and deserializes an optional address, for `#[serde(with = …)]`. The empty string is `None`.
pub mod optional_ip {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Deserializes an address from a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
        match String::deserialize(from)?.as_str() {
            "" => Ok(None),
            text => super::parse_ip(text).map(Some).map_err(D::Error::custom),
        }
    }

    /// Serializes an address as a string.
    pub fn serialize<S: Serializer>(ip: &Option<IpAddr>, to: S) -> Result<S::Ok, S::Error> {
        match ip {
            Some(ip) => to.collect_str(ip),
            None => to.serialize_str(""),
        }
    }
}
