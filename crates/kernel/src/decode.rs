//! Runs every parser of kernel messages on arbitrary bytes, for tests and fuzzing.

use std::hint::black_box;

use crate::{
    addr, conntrack, link,
    message::{Messages, Received},
    neigh, nft, qdisc, route, rule,
    socket::Refusal,
};

/// Parses a netlink datagram with every parser, whatever its message type. Returns the number of messages.
pub fn datagram(bytes: &[u8]) -> usize {
    Messages(bytes).map(|received| message(&received)).count()
}

fn message(received: &Received<'_>) {
    black_box(link::read(received));
    black_box(addr::read(received));
    black_box(route::read(received));
    black_box(rule::read(received));
    black_box(conntrack::read(received));
    black_box(neigh::read(received));
    black_box(neigh::read_forward(received));
    black_box(nft::list::read(received));
    black_box(nft::list::read_rule(received));
    black_box(nft::read_comment(received.payload));
    black_box(qdisc::read_bucket(received.payload));
    black_box(Refusal::read(received));
}
