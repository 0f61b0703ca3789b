//! Traces of packets: what each rule and chain of nftables did with them.
//!
//! The kernel traces packets for which a rule has set `meta nftrace` ([`super::Expr::Trace`]), and announces each verdict to
//! [`Events::of_traces`]. Source: `net/netfilter/nf_tables_trace.c`.

use std::time::Duration;

use super::{Family, NFGEN, kind, msg};
use crate::{
    error::Result,
    events::Events,
    message::{Attrs, Received, read_be32, read_text},
};

/// What a rule or a chain's policy did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The family of the table; `None` for one that [`Family`] lacks, such as netdev.
    pub family: Option<Family>,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The handle of the rule; `None` for the policy of a chain.
    pub rule: Option<u64>,
    /// Whether the packet ended there.
    pub drops: bool,
    /// The packet from its network header on, as far as the kernel copied it; the first message of a hook has it.
    pub network: Vec<u8>,
}

/// Waits for verdicts until `enough` returns true, or until `limit`.
///
/// # Errors
/// If the socket is broken.
pub fn wait(events: &Events, limit: Duration, mut enough: impl FnMut(Verdict) -> bool) -> Result<()> {
    let waited = events
        .wait(limit, "wait for", "traces of packets", |received| read(received).is_some_and(&mut enough));
    match waited {
        Err(error) if error.kind() == crate::Kind::TimedOut => Ok(()),
        other => other,
    }
}

fn read(received: &Received<'_>) -> Option<Verdict> {
    if received.kind != kind(msg::TRACE) {
        return None;
    }
    let attrs = Attrs::after(received.payload, NFGEN);
    let verdict =
        attrs.find(TRACE_VERDICT).and_then(|data| Attrs(data).find(VERDICT_CODE)).and_then(read_be32);
    let policy = attrs.find(TRACE_POLICY).and_then(read_be32);
    let handle = attrs.find(TRACE_RULE_HANDLE).and_then(|data| data.first_chunk());
    let end = if attrs.find(TRACE_TYPE).and_then(read_be32) == Some(TYPE_POLICY) { policy } else { verdict };
    Some(Verdict {
        family: Family::of_number(*received.payload.first()?),
        table: attrs.find(TRACE_TABLE).map(read_text).unwrap_or_default(),
        chain: attrs.find(TRACE_CHAIN).map(read_text).unwrap_or_default(),
        rule: handle.map(|bytes| u64::from_be_bytes(*bytes)),
        drops: end == Some(DROP),
        network: attrs.find(TRACE_NETWORK_HEADER).unwrap_or_default().to_vec(),
    })
}

const TRACE_TABLE: u16 = 1;
const TRACE_CHAIN: u16 = 2;
const TRACE_RULE_HANDLE: u16 = 3;
const TRACE_TYPE: u16 = 4;
const TRACE_VERDICT: u16 = 5;
const TRACE_NETWORK_HEADER: u16 = 8;
const TRACE_POLICY: u16 = 16;
const TYPE_POLICY: u32 = 1;
const VERDICT_CODE: u16 = 1;
const DROP: u32 = 0;
