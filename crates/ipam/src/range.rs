//! Ranges of addresses, checked and filled with their defaults.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// The addresses of one subnet that may be assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The subnet, without host bits.
    pub subnet: IpNet,
    /// The first address, inclusive.
    pub start: IpAddr,
    /// The last address, inclusive.
    pub end: IpAddr,
    /// The gateway, which is never assigned.
    pub gateway: IpAddr,
}

/// Ranges of one family, from which one address is assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// The reason a range is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// A prefix with fewer than two addresses beside network and broadcast.
    #[error("network {0} is too small to allocate from; use a /30 or larger (IPv6: /126)")]
    TooSmall(IpNet),
    /// The subnet has bits set behind its prefix.
    #[error("network {0} has host bits set; the network address is {1}")]
    HostBits(IpNet, IpAddr),
    /// An address of the other family, or outside.
    #[error("{key} {ip} is not in network {subnet}")]
    Outside {
        /// `rangeStart`, `rangeEnd`.
        key: &'static str,
        /// What it says.
        ip: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The gateway has the other family.
    #[error("gateway {0} and subnet {1} are of different families")]
    GatewayFamily(IpAddr, IpNet),
    /// The first address is behind the last.
    #[error("rangeStart {0} is behind rangeEnd {1}")]
    Backwards(IpAddr, IpAddr),
    /// A set without ranges.
    #[error("an empty range set has no addresses")]
    Empty,
    /// IPv4 and IPv6 in one set.
    #[error("mixed address families in one range set; make two sets")]
    MixedFamilies,
    /// Two ranges have an address in common.
    #[error("{0} overlaps with {1}")]
    Overlap(String, String),
}

impl Range {
    /// Checks a range and fills in what is left out: the gateway is the subnet's first address, the range goes
    /// from there to the last one before the broadcast address.
    ///
    /// # Errors
    /// If the parts do not fit together.
    pub fn new(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, RangeError> {
        if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
            return Err(RangeError::TooSmall(subnet));
        }
        if subnet.addr() != subnet.network() {
            return Err(RangeError::HostBits(subnet, subnet.network()));
        }
        let inside = |key, ip: Option<IpAddr>| match ip {
            Some(ip) if !subnet.contains(&ip) => Err(RangeError::Outside { key, ip, subnet }),
            other => Ok(other),
        };
        let first = next(subnet.network()).unwrap_or(subnet.network());
        let last = match subnet {
            IpNet::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4.broadcast()) - 1)),
            IpNet::V6(v6) => IpAddr::V6(v6.broadcast()),
        };
        let (start, end) = (inside("rangeStart", start)?, inside("rangeEnd", end)?);
        if let Some(gateway) = gateway
            && gateway.is_ipv4() != subnet.addr().is_ipv4()
        {
            return Err(RangeError::GatewayFamily(gateway, subnet));
        }
        let (start, end) = (start.unwrap_or(first), end.unwrap_or(last));
        if start > end {
            return Err(RangeError::Backwards(start, end));
        }
        Ok(Self { subnet, start, end, gateway: gateway.unwrap_or(first) })
    }

    /// Returns whether an address is between first and last.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && self.start <= ip && ip <= self.end
    }

    /// Returns an address with the subnet's prefix length.
    pub fn with_prefix(&self, ip: IpAddr) -> IpNet {
        IpNet::new(ip, self.subnet.prefix_len()).unwrap_or(self.subnet)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4() && self.start <= other.end && other.start <= self.end
    }
}

impl fmt::Display for Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.start, self.end)
    }
}

impl RangeSet {
    /// Creates a set of ranges of one family that have no address in common.
    ///
    /// # Errors
    /// If there are none, families differ, or two overlap.
    pub fn new(ranges: Vec<Range>) -> Result<Self, RangeError> {
        let Some(first) = ranges.first() else { return Err(RangeError::Empty) };
        if ranges.iter().any(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(RangeError::MixedFamilies);
        }
        for (index, one) in ranges.iter().enumerate() {
            if let Some(other) = ranges[index + 1..].iter().find(|other| one.overlaps(other)) {
                return Err(RangeError::Overlap(one.to_string(), other.to_string()));
            }
        }
        Ok(Self(ranges))
    }

    /// Lists the ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// Returns whether the addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.0.iter().any(|range| range.start.is_ipv4())
    }

    /// Finds the range that an address is in.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Finds a range of this set and one of another that have an address in common.
    pub fn overlap<'a>(&'a self, other: &'a Self) -> Option<(&'a Range, &'a Range)> {
        self.0.iter().find_map(|a| other.0.iter().find(|b| a.overlaps(b)).map(|b| (a, b)))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(out, "{}{range}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Returns the address that follows; none after the last of the family.
pub(crate) fn next(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}
