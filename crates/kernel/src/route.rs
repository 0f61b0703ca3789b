//! Routes.

use std::{fmt, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::{
    addr::family,
    error::{Error, Result, absent_is_none},
    message::{Attrs, Message, Received, read_ip, read_u32},
    socket::{CREATE, DUMP, EXCL, REQUEST, Request, Socket},
};

/// The scope of routes to other networks (`RT_SCOPE_UNIVERSE`).
pub const SCOPE_UNIVERSE: u8 = libc::RT_SCOPE_UNIVERSE;
/// The scope of routes to destinations on the link itself (`RT_SCOPE_LINK`).
pub const SCOPE_LINK: u8 = libc::RT_SCOPE_LINK;
/// The scope of routes to addresses of this host (`RT_SCOPE_HOST`).
pub const SCOPE_HOST: u8 = libc::RT_SCOPE_HOST;
/// The main routing table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// The tables that every host has: default, main and local (`RT_TABLE_DEFAULT` to `RT_TABLE_LOCAL`).
pub const TABLES_RESERVED: RangeInclusive<u32> = libc::RT_TABLE_DEFAULT as u32..=libc::RT_TABLE_LOCAL as u32;

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The next hop; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The link's index; 0 only in what [`list`] returns of routes without link.
    pub link: u32,
    /// Metric; 0 for the kernel's default (0 in IPv4, 1024 in IPv6).
    pub priority: u32,
    /// The routing table; 0 for the main one.
    pub table: u32,
    /// The scope ([`SCOPE_UNIVERSE`], [`SCOPE_LINK`], [`SCOPE_HOST`]).
    pub scope: u8,
    /// Path MTU in bytes; 0 for the link's.
    pub mtu: u32,
    /// Maximum segment size to announce in bytes; 0 for the one that follows from the MTU.
    pub advmss: u32,
    /// The source address to prefer.
    pub source: Option<IpAddr>,
    /// The origin of the route (`RTPROT_*`); 0 for a route set by hand.
    pub protocol: u8,
    /// Whether packets are dropped silently (`RTN_BLACKHOLE`). Such a route has no link.
    pub blackhole: bool,
    /// The tunnel destination, for links that take it from their routes; `None` for other links.
    pub carried: Option<Carried>,
}

/// The encapsulation of a route's packets (`LWTUNNEL_ENCAP_IP`, `LWTUNNEL_ENCAP_IP6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Carried {
    /// The network identifier.
    pub vni: u32,
    /// The outer source, an address of this host.
    pub from: IpAddr,
    /// The outer destination, of the same family.
    pub to: IpAddr,
}

impl Carried {
    fn write(self, message: &mut Message) {
        let kind = if self.to.is_ipv4() { LWTUNNEL_ENCAP_IP } else { LWTUNNEL_ENCAP_IP6 };
        message.nest(RTA_ENCAP, |encap| {
            encap.attr(LWTUNNEL_IP_ID, &u64::from(self.vni).to_be_bytes());
            encap.ip(LWTUNNEL_IP_DST, self.to).ip(LWTUNNEL_IP_SRC, self.from);
            // With checksums, as in other tunnels: without them the receiver drops IPv6 and does not aggregate IPv4.
            encap.attr(LWTUNNEL_IP_FLAGS, &TUNNEL_CSUM.to_be_bytes());
        });
        message.attr(RTA_ENCAP_TYPE, &kind.to_ne_bytes());
    }

    fn read(data: &[u8]) -> Option<Self> {
        let id = Attrs(data).find(LWTUNNEL_IP_ID)?;
        Some(Self {
            vni: u32::try_from(u64::from_be_bytes(*id.first_chunk()?)).ok()?,
            from: Attrs(data).find(LWTUNNEL_IP_SRC).and_then(read_ip)?,
            to: Attrs(data).find(LWTUNNEL_IP_DST).and_then(read_ip)?,
        })
    }
}

impl Route {
    /// Creates a route with only destination, next hop and link.
    pub fn new(dst: IpNet, gateway: Option<IpAddr>, link: u32) -> Self {
        Self {
            dst,
            gateway,
            link,
            priority: 0,
            table: 0,
            scope: SCOPE_UNIVERSE,
            mtu: 0,
            advmss: 0,
            source: None,
            protocol: 0,
            blackhole: false,
            carried: None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(out, " via {gateway}")?;
        }
        Ok(())
    }
}

/// Adds a route. Routes to the same destination via different next hops coexist.
///
/// # Errors
/// [`crate::Kind::Exists`] if the identical route exists.
#[doc(alias = "RTM_NEWROUTE")]
pub fn add(socket: &Socket, route: &Route) -> Result<()> {
    socket.make([addition(route)])
}

/// Returns the request of [`add`], to send together with others.
pub fn addition(route: &Route) -> Request {
    request(libc::RTM_NEWROUTE, CREATE, "add route", route)
}

/// Adds a route, or replaces the one to the same destination with the same metric.
///
/// # Errors
/// If the kernel refuses the request.
pub fn replace(socket: &Socket, route: &Route) -> Result<()> {
    socket.make([request(libc::RTM_NEWROUTE, CREATE | REPLACE, "add route", route)])
}

/// Removes exactly this route. Succeeds if it is already gone.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove_exact(socket: &Socket, route: &Route) -> Result<()> {
    absent_is_none(socket.make([request(libc::RTM_DELROUTE, 0, "remove route", route)])).map(drop)
}

/// A change of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Adds the route. Refused if there is one to the same destination with the same metric.
    Add(Route),
    /// Adds the route, and replaces another one to the same destination with the same metric.
    Put(Route),
    /// Removes exactly this route.
    Remove(Route),
}

/// Changes many routes, in as few sends as the socket's receive buffer allows, and returns the refusals, each with
/// its place in `fates`.
pub fn change_all<'a>(socket: &Socket, fates: impl IntoIterator<Item = &'a Fate>) -> Vec<(usize, Error)> {
    let changes = fates.into_iter().map(|fate| match fate {
        Fate::Add(route) => request(libc::RTM_NEWROUTE, CREATE | EXCL, "add route", route),
        Fate::Put(route) => request(libc::RTM_NEWROUTE, CREATE | REPLACE, "add route", route),
        Fate::Remove(route) => request(libc::RTM_DELROUTE, 0, "remove route", route),
    });
    socket.change_all(changes)
}

fn request(kind: u16, flags: u16, doing: &'static str, route: &Route) -> Request {
    Request { message: message(kind, flags, route), doing, object: route.to_string() }
}

fn message(kind: u16, flags: u16, route: &Route) -> Message {
    let mut fixed = [0; RTMSG];
    fixed[0] = family(route.dst.addr());
    fixed[1] = route.dst.prefix_len();
    fixed[4] = u8::try_from(route.table).ok().filter(|table| *table != 0).unwrap_or(libc::RT_TABLE_MAIN);
    fixed[5] = if route.protocol == 0 { libc::RTPROT_BOOT } else { route.protocol };
    fixed[6] = route.scope;
    fixed[7] = if route.blackhole { libc::RTN_BLACKHOLE } else { libc::RTN_UNICAST };
    let mut message = Message::new(kind, REQUEST | flags, &fixed);
    if route.dst.prefix_len() > 0 {
        message.ip(libc::RTA_DST, route.dst.addr());
    }
    if let Some(gateway) = route.gateway {
        if gateway.is_ipv6() && route.dst.addr().is_ipv4() {
            // An IPv4 route via an IPv6 next hop (RFC 5549) names the family of the hop.
            let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
            if let IpAddr::V6(ip) = gateway {
                via.extend_from_slice(&ip.octets());
            }
            message.attr(RTA_VIA, &via);
        } else {
            message.ip(libc::RTA_GATEWAY, gateway);
        }
    }
    if route.link != 0 {
        message.u32(libc::RTA_OIF, route.link);
    }
    if let Some(source) = route.source {
        message.ip(libc::RTA_PREFSRC, source);
    }
    if route.priority != 0 {
        message.u32(libc::RTA_PRIORITY, route.priority);
    }
    if route.table > 255 {
        message.u32(libc::RTA_TABLE, route.table);
    }
    if let Some(carried) = route.carried {
        carried.write(&mut message);
    }
    if route.mtu != 0 || route.advmss != 0 {
        message.nest(libc::RTA_METRICS, |metrics| {
            for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
                if value != 0 {
                    metrics.u32(kind, value);
                }
            }
        });
    }
    message
}

/// Removes the route to a destination on a link, regardless of its other properties. Succeeds if it is already gone.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "RTM_DELROUTE")]
pub fn remove(socket: &Socket, dst: IpNet, link: u32) -> Result<()> {
    let mut fixed = [0; RTMSG];
    fixed[0] = family(dst.addr());
    fixed[1] = dst.prefix_len();
    fixed[4] = libc::RT_TABLE_MAIN;
    // Any scope.
    fixed[6] = libc::RT_SCOPE_NOWHERE;
    let mut message = Message::new(libc::RTM_DELROUTE, REQUEST, &fixed);
    message.ip(libc::RTA_DST, dst.network()).u32(libc::RTA_OIF, link);
    absent_is_none(socket.change(message, "remove route", &dst)).map(drop)
}

/// Lists the unicast and blackhole routes of all tables, of one family (that of `like`).
///
/// # Errors
/// If the kernel refuses the request.
pub fn list(socket: &Socket, like: IpAddr) -> Result<Vec<Route>> {
    let mut fixed = [0; RTMSG];
    fixed[0] = family(like);
    let message = Message::new(libc::RTM_GETROUTE, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list", &"routes", |received| read(&received))
}

/// Lists the unicast and blackhole routes of all tables with one origin (`RTPROT_*`), of one family. Kernels since 5.0 filter
/// by origin themselves.
///
/// # Errors
/// If the kernel refuses the request.
pub fn list_of(socket: &Socket, like: IpAddr, protocol: u8) -> Result<Vec<Route>> {
    let mut fixed = [0; RTMSG];
    fixed[0] = family(like);
    fixed[5] = protocol;
    let message = Message::new(libc::RTM_GETROUTE, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list", &"routes", |received| {
        read(&received).filter(|route| route.protocol == protocol)
    })
}

/// The path of a packet to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The link's index.
    pub link: u32,
    /// The next hop, or `None` if the address is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that the host would use.
    pub source: Option<IpAddr>,
    /// Whether the address belongs to this host.
    pub local: bool,
}

/// Returns the path to an address, or `None` if there is no route.
///
/// # Errors
/// If the kernel refuses the request.
pub fn way_to(socket: &Socket, ip: IpAddr) -> Result<Option<Way>> {
    match way_of(socket, &Packet { to: ip, from: None, enters: None }) {
        Err(error) if UNREACHABLE.contains(&error.errno) => Ok(None),
        other => other,
    }
}

/// A packet to look up the path of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The destination.
    pub to: IpAddr,
    /// The source; `None` for the one that the kernel selects.
    pub from: Option<IpAddr>,
    /// The index of the link on which the packet enters the host; `None` for a packet that the host sends.
    pub enters: Option<u32>,
}

/// Returns the path of a packet. `None` if the kernel answers without a link.
///
/// # Errors
/// What the kernel does with the packet if it has no path: `ENETUNREACH` without a route, `EHOSTUNREACH` (also if the link that it
/// enters does not forward), `EACCES` and `EINVAL` for prohibiting and blackhole routes, `EXDEV` if reverse path filtering drops it.
#[doc(alias = "RTM_GETROUTE")]
pub fn way_of(socket: &Socket, packet: &Packet) -> Result<Option<Way>> {
    let bits = if packet.to.is_ipv4() { 32 } else { 128 };
    let mut fixed = [0; RTMSG];
    fixed[0] = family(packet.to);
    fixed[1] = bits;
    fixed[2] = packet.from.map_or(0, |_| bits);
    let mut message = Message::new(libc::RTM_GETROUTE, REQUEST, &fixed);
    message.ip(libc::RTA_DST, packet.to);
    if let Some(from) = packet.from {
        message.ip(libc::RTA_SRC, from);
    }
    if let Some(link) = packet.enters {
        message.u32(libc::RTA_IIF, link);
    }
    let mut way = None;
    let mut error = None;
    socket.ask(message, "find the route to", &packet.to, |received| {
        let attrs = Attrs::after(received.payload, RTMSG);
        let gateway = attrs.find(libc::RTA_GATEWAY).or(attrs.find(RTA_VIA).and_then(|via| via.get(2..)));
        let kind = received.payload.get(7).copied().unwrap_or_default();
        // IPv6 answers with a route that refuses, where IPv4 answers with the error.
        error = match kind {
            libc::RTN_BLACKHOLE => Some(Errno::INVAL),
            libc::RTN_PROHIBIT => Some(Errno::ACCESS),
            libc::RTN_UNREACHABLE => Some(Errno::HOSTUNREACH),
            _ => None,
        };
        way = attrs.find(libc::RTA_OIF).and_then(read_u32).map(|link| Way {
            link,
            gateway: gateway.and_then(read_ip),
            source: attrs.find(libc::RTA_PREFSRC).and_then(read_ip),
            local: kind == libc::RTN_LOCAL,
        });
    })?;
    match error {
        Some(errno) => Err(Error::new("find the route to", packet.to, errno)),
        None => Ok(way),
    }
}

/// The errors of a missing route. A blackhole answers `EINVAL`, an unreachable route `EHOSTUNREACH`.
const UNREACHABLE: [Errno; 3] = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::INVAL];

/// Returns the link via which the host reaches an address, or `None` if there is no route.
///
/// # Errors
/// If the kernel refuses the request.
pub fn link_towards(socket: &Socket, ip: IpAddr) -> Result<Option<u32>> {
    Ok(way_to(socket, ip)?.map(|way| way.link))
}

/// Reads only the length of the destination's prefix and the protocol.
pub(crate) fn announced(received: &Received<'_>) -> Option<(u8, u8)> {
    Some((*received.payload.get(1)?, *received.payload.get(5)?))
}

pub(crate) fn read(received: &Received<'_>) -> Option<Route> {
    let fixed = received.payload.first_chunk::<RTMSG>()?;
    if received.kind != libc::RTM_NEWROUTE || ![libc::RTN_UNICAST, libc::RTN_BLACKHOLE].contains(&fixed[7]) {
        return None;
    }
    let any: IpAddr = if i32::from(fixed[0]) == libc::AF_INET {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let mut route = Route::new(IpNet::new(any, fixed[1]).ok()?, None, 0);
    route.table = u32::from(fixed[4]);
    route.scope = fixed[6];
    route.protocol = fixed[5];
    route.blackhole = fixed[7] == libc::RTN_BLACKHOLE;
    for (kind, data) in Attrs::after(received.payload, RTMSG) {
        match kind {
            libc::RTA_DST => route.dst = IpNet::new(read_ip(data)?, fixed[1]).ok()?,
            libc::RTA_GATEWAY => route.gateway = read_ip(data),
            RTA_VIA => route.gateway = read_ip(data.get(2..)?),
            libc::RTA_OIF => route.link = read_u32(data)?,
            libc::RTA_PREFSRC => route.source = read_ip(data),
            libc::RTA_PRIORITY => route.priority = read_u32(data)?,
            libc::RTA_TABLE => route.table = read_u32(data)?,
            RTA_ENCAP => route.carried = Carried::read(data),
            libc::RTA_METRICS => {
                for (kind, data) in Attrs(data) {
                    match kind {
                        RTAX_MTU => route.mtu = read_u32(data)?,
                        RTAX_ADVMSS => route.advmss = read_u32(data)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}

const RTMSG: usize = 12;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const LWTUNNEL_ENCAP_IP: u16 = 2;
const LWTUNNEL_ENCAP_IP6: u16 = 4;
/// The same numbers in both families (`LWTUNNEL_IP_*`, `LWTUNNEL_IP6_*`).
const LWTUNNEL_IP_ID: u16 = 1;
const LWTUNNEL_IP_DST: u16 = 2;
const LWTUNNEL_IP_SRC: u16 = 3;
const LWTUNNEL_IP_FLAGS: u16 = 6;
const TUNNEL_CSUM: u16 = 1;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
