//! Tracked connections, read and removed over netlink.
//!
//! Source: the kernel's `include/uapi/linux/netfilter/nfnetlink_conntrack.h` and `net/netfilter/nf_conntrack_netlink.c`.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    addr::family,
    error::{Result, absent_is_none},
    family::IpFamily,
    message::{Attrs, Message, Received, read_ip},
    socket::{DUMP, REQUEST, Socket},
    sysctl::{self, Setting},
};

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The number of the transport protocol.
    pub protocol: u8,
    /// Address and port that the first packet was sent to.
    pub destination: (IpAddr, u16),
    /// The source address of replies: the destination after translation.
    pub answers_from: IpAddr,
    /// The whole original tuple as the kernel wrote it; identifies the connection.
    tuple: Vec<u8>,
}

/// Lists the connections of a protocol to ports of a family, in the calling thread's namespace, which must be the socket's too.
///
/// The kernel has no index by port: it walks all buckets of its table (262,144 on a large host, some 9 ms) and all connections
/// in them, once per call. It filters by one family alone, so that ports of both cost two walks, unless the namespace has so few
/// connections that reading all of them costs less than the second one.
///
/// # Errors
/// If the kernel has no connection tracking.
pub fn to_ports(socket: &Socket, protocol: u8, ports: &BTreeSet<(IpFamily, u16)>) -> Result<Vec<Connection>> {
    const FEW: u64 = 256;
    let count = sysctl::read(Setting::Net("netfilter/nf_conntrack_count")).ok().flatten();
    let count = count.and_then(|count| count.parse::<u64>().ok());
    let families: BTreeSet<IpFamily> = ports.iter().map(|(family, _)| *family).collect();
    let fits = |received: &Received<'_>| {
        let endpoint = read_endpoint(received)?;
        let is_wanted = |family| ports.contains(&(family, endpoint.port));
        if endpoint.protocol != protocol || !IpFamily::ALL.into_iter().any(is_wanted) {
            return None;
        }
        let connection = read(received)?;
        let (address, port) = connection.destination;
        ports.contains(&(IpFamily::of(address), port)).then_some(connection)
    };
    let list =
        |message: &Message| socket.dump(message, "list", &"tracked connections", |received| fits(&received));
    match count {
        Some(0) => Ok(Vec::new()),
        Some(count) if count <= FEW && families.len() > 1 => {
            list(&Message::new(kind(GET), REQUEST | DUMP, &[libc::AF_UNSPEC as u8, 0, 0, 0]))
        }
        _ => {
            let mut found = Vec::new();
            for family in families {
                let of_family = ports.iter().filter(|(of, _)| *of == family).map(|(_, port)| *port);
                found.extend(list(&filtered(family, protocol, &of_family.collect::<Vec<_>>()))?);
            }
            Ok(found)
        }
    }
}

/// Returns the request for the connections of one family and protocol, and to one port if there is one only. Kernels before 5.8
/// list all connections of the family.
fn filtered(of: IpFamily, protocol: u8, ports: &[u16]) -> Message {
    let mut message = Message::new(kind(GET), REQUEST | DUMP, &[family(of.unspecified()), 0, 0, 0]);
    let only = ports.first().filter(|_| ports.len() == 1);
    message.nest(CTA_TUPLE_ORIG, |tuple| {
        tuple.nest(CTA_TUPLE_PROTO, |proto| {
            proto.u8(CTA_PROTO_NUM, protocol);
            if let Some(port) = only {
                proto.attr(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    message.nest(CTA_FILTER, |filter| {
        let port = if only.is_some() { FILTER_PROTO_DST_PORT } else { 0 };
        filter.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTO_NUM | port).u32(CTA_FILTER_REPLY_FLAGS, 0);
    });
    message
}

/// Removes a connection from the table, so that its next packet is translated anew. Succeeds if it is already gone.
///
/// # Errors
/// If the kernel refuses the request.
pub fn forget(socket: &Socket, connection: &Connection) -> Result<()> {
    let family = family(connection.destination.0);
    let mut message = Message::new(kind(DELETE), REQUEST, &[family, 0, 0, 0]);
    message.attr(CTA_TUPLE_ORIG | NESTED, &connection.tuple);
    let (address, port) = connection.destination;
    let done = socket.change(message, "forget the connection to", &format_args!("{address} port {port}"));
    absent_is_none(done).map(drop)
}

pub(crate) fn read(received: &Received<'_>) -> Option<Connection> {
    let endpoint = read_endpoint(received)?;
    let destination = address(endpoint.tuple, [CTA_IP_V4_DST, CTA_IP_V6_DST])?;
    let reply = Attrs::after(received.payload, 4).find(CTA_TUPLE_REPLY)?;
    Some(Connection {
        protocol: endpoint.protocol,
        destination: (destination, endpoint.port),
        answers_from: address(reply, [CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        tuple: endpoint.tuple.to_vec(),
    })
}

/// The fields that select a connection, borrowed from the message.
struct Endpoint<'a> {
    protocol: u8,
    port: u16,
    tuple: &'a [u8],
}

fn read_endpoint<'a>(received: &Received<'a>) -> Option<Endpoint<'a>> {
    if received.kind != kind(NEW) {
        return None;
    }
    let tuple = Attrs::after(received.payload, 4).find(CTA_TUPLE_ORIG)?;
    let proto = Attrs(Attrs(tuple).find(CTA_TUPLE_PROTO)?);
    let protocol = *proto.find(CTA_PROTO_NUM)?.first()?;
    let port = u16::from_be_bytes(*proto.find(CTA_PROTO_DST_PORT)?.first_chunk()?);
    Some(Endpoint { protocol, port, tuple })
}

fn address(tuple: &[u8], kinds: [u16; 2]) -> Option<IpAddr> {
    let ip = Attrs(Attrs(tuple).find(CTA_TUPLE_IP)?);
    kinds.into_iter().find_map(|kind| ip.find(kind)).and_then(read_ip)
}

/// `NFNL_SUBSYS_CTNETLINK` in the upper half.
fn kind(message: u16) -> u16 {
    1 << 8 | message
}

const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
const NESTED: u16 = 0x8000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
