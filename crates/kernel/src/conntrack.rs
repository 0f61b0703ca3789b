//! Connections that connection tracking knows, over netlink.
//!
//! Source: the kernel's `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use crate::{
    addr::family,
    error::{Result, absent_is_none},
    message::{Attrs, Message, Received, read_ip},
    socket::{DUMP, REQUEST, Socket},
    sysctl::{self, Setting},
};

/// Describes a tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The transport protocol's number.
    pub protocol: u8,
    /// Where the first packet was sent to.
    pub destination: (IpAddr, u16),
    /// Where answers come from: the address behind a change of the destination.
    pub answers_from: IpAddr,
    /// The whole original tuple as the kernel wrote it, which names the connection.
    tuple: Vec<u8>,
}

/// Returns whether any connection is tracked in the calling thread's namespace. Listing them looks at each bucket of a
/// large table, which takes some 15 ms however few there are.
pub fn is_any() -> bool {
    sysctl::read(Setting::Net("netfilter/nf_conntrack_count")).ok().flatten().is_none_or(|count| count != "0")
}

/// Lists the connections of a protocol to a port, of one family (that of `like`).
///
/// # Errors
/// When the kernel has no connection tracking.
pub fn to_port(socket: &Socket, like: IpAddr, protocol: u8, port: u16) -> Result<Vec<Connection>> {
    let mut message = Message::new(kind(GET), REQUEST | DUMP, &[family(like), 0, 0, 0]);
    // Kernels from 5.8 on look for these themselves; older ones list all.
    message.nest(CTA_TUPLE_ORIG, |tuple| {
        tuple.nest(CTA_TUPLE_PROTO, |proto| {
            proto.u8(CTA_PROTO_NUM, protocol).attr(CTA_PROTO_DST_PORT, &port.to_be_bytes());
        });
    });
    message.nest(CTA_FILTER, |filter| {
        filter
            .u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT)
            .u32(CTA_FILTER_REPLY_FLAGS, 0);
    });
    let found = socket.dump(&message, "list", &"tracked connections", |received| read(&received))?;
    Ok(found.into_iter().filter(|it| it.protocol == protocol && it.destination.1 == port).collect())
}

/// Forgets a connection, so that its next packet is looked at anew. Absent is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn forget(socket: &Socket, connection: &Connection) -> Result<()> {
    let family = family(connection.destination.0);
    let mut message = Message::new(kind(DELETE), REQUEST, &[family, 0, 0, 0]);
    message.attr(CTA_TUPLE_ORIG | NESTED, &connection.tuple);
    let (address, port) = connection.destination;
    let done = socket.change(message, "forget the connection to", &format_args!("{address} port {port}"));
    absent_is_none(done).map(drop)
}

pub(crate) fn read(received: &Received<'_>) -> Option<Connection> {
    if received.kind != kind(NEW) {
        return None;
    }
    let attrs = Attrs::after(received.payload, 4);
    let tuple = attrs.find(CTA_TUPLE_ORIG)?;
    let proto = Attrs(Attrs(tuple).find(CTA_TUPLE_PROTO)?);
    let destination = address(tuple, [CTA_IP_V4_DST, CTA_IP_V6_DST])?;
    Some(Connection {
        protocol: *proto.find(CTA_PROTO_NUM)?.first()?,
        destination: (destination, u16::from_be_bytes(*proto.find(CTA_PROTO_DST_PORT)?.first_chunk()?)),
        answers_from: address(attrs.find(CTA_TUPLE_REPLY)?, [CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        tuple: tuple.to_vec(),
    })
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
