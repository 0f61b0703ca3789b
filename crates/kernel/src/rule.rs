//! Rules that choose a routing table by a packet's source (`ip rule`).

use std::net::IpAddr;

use crate::{
    addr::family,
    error::{Result, absent_is_none},
    message::{Attrs, Message, Received, read_ip, read_u32},
    socket::{CREATE, DUMP, EXCL, REQUEST, Socket},
};

/// A rule, with only the fields that Netloom uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The single source address that it matches; `None` for a prefix or for all sources.
    pub source: Option<IpAddr>,
    /// The table.
    pub table: u32,
    /// The priority; lower values are evaluated first.
    pub priority: u32,
}

/// Adds a rule for one source address. The kernel assigns a priority number below those of existing rules.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "RTM_NEWRULE")]
pub fn add(socket: &Socket, source: IpAddr, table: u32) -> Result<()> {
    let message = change(libc::RTM_NEWRULE, REQUEST | CREATE | EXCL, source, table);
    socket.change(message, "add rule", &format_args!("from {source} lookup {table}"))
}

/// Removes a rule. Succeeds if it is already gone.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "RTM_DELRULE")]
pub fn remove(socket: &Socket, source: IpAddr, table: u32) -> Result<()> {
    let message = change(libc::RTM_DELRULE, REQUEST, source, table);
    let done = socket.change(message, "remove rule", &format_args!("from {source} lookup {table}"));
    absent_is_none(done).map(drop)
}

/// Lists the rules of one family (that of `like`).
///
/// # Errors
/// If the kernel refuses the request.
pub fn list(socket: &Socket, like: IpAddr) -> Result<Vec<Rule>> {
    let mut fixed = [0; FIB_RULE];
    fixed[0] = family(like);
    let message = Message::new(libc::RTM_GETRULE, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list", &"routing rules", |received| read(&received))
}

fn change(kind: u16, flags: u16, source: IpAddr, table: u32) -> Message {
    let mut fixed = [0; FIB_RULE];
    fixed[0] = family(source);
    fixed[2] = if source.is_ipv4() { 32 } else { 128 };
    fixed[7] = TO_TABLE;
    let mut message = Message::new(kind, flags, &fixed);
    message.ip(FRA_SRC, source).u32(FRA_TABLE, table);
    message
}

pub(crate) fn read(received: &Received<'_>) -> Option<Rule> {
    let fixed = received.payload.first_chunk::<FIB_RULE>()?;
    if received.kind != libc::RTM_NEWRULE {
        return None;
    }
    let mut rule = Rule { source: None, table: u32::from(fixed[4]), priority: 0 };
    let whole = if i32::from(fixed[0]) == libc::AF_INET { 32 } else { 128 };
    for (kind, data) in Attrs::after(received.payload, FIB_RULE) {
        match kind {
            FRA_SRC if fixed[2] == whole => rule.source = read_ip(data),
            FRA_TABLE => rule.table = read_u32(data)?,
            FRA_PRIORITY => rule.priority = read_u32(data)?,
            _ => {}
        }
    }
    Some(rule)
}

const FIB_RULE: usize = 12;
const TO_TABLE: u8 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
