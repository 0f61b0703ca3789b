//! nftables over netlink: atomic batches of changes, and reading of the ruleset.
//!
//! Source: the kernel's `include/uapi/linux/netfilter/nf_tables.h`; the numbers below are from there.

mod batch;
mod expr;
pub(crate) mod list;
mod set_udata;
pub mod trace;

pub use batch::{Batch, Place, commit};
pub use expr::{Expr, Reg};
pub(crate) use list::is_elsewhere;
pub use list::{
    Chain, Element, Rule, all_chains, chains, element, elements, generation, has_chain, rules, table_comment,
    tables,
};
use set_udata::set_udata;

/// A table, identified by family and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// The family, which selects the packets that the table sees.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

/// The family of a table: the packets that it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames that pass a bridge.
    Bridge,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    /// Returns the name that `nft` has for the family.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip, Self::Bridge, Self::Ip6].into_iter().find(|family| family.number() == number)
    }
}

/// The hook and priority of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// The priority; lower values are evaluated first.
    pub priority: i32,
}

/// A field of an element's key or data, as `nft` names it. Each is padded to a multiple of four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `ipv4_addr`
    Ipv4,
    /// `ipv6_addr`
    Ipv6,
    /// `ether_addr`
    Ether,
    /// `inet_proto`
    Protocol,
    /// `inet_service`
    Port,
    /// `ifname`
    IfName,
    /// Bytes from the transport header on, which nft prints as a number (`@th,OFFSET,LENGTH`, in bits). The other fields of such a key are
    /// [`Self::Ipv4`] or [`Self::Ipv6`], the packet's source.
    Transport {
        /// The offset in bytes.
        offset: u32,
        /// The number of bytes.
        length: u32,
    },
}

impl Field {
    /// Returns nft's number for the type, and the length in bytes.
    fn number_and_length(self) -> (u32, u32) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Ether => (9, 6),
            Self::Protocol => (12, 1),
            Self::Port => (13, 2),
            Self::IfName => (41, 16),
            Self::Transport { length, .. } => (4, length),
        }
    }
}

/// The type of a map's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// A value of these fields.
    Fields(&'static [Field]),
    /// A verdict.
    Verdict,
}

/// A set, or a map if it has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// Its name.
    pub name: &'a str,
    /// The fields of its keys.
    pub key: &'a [Field],
    /// The type of the data; `None` for a set.
    pub data: Option<Data>,
    /// The comment that states its purpose.
    pub comment: &'a str,
}

/// Returns nft's type number and the length in bytes. Each field is padded to four bytes unless it is the only one.
fn layout(fields: &[Field]) -> (u32, u32) {
    if let [field] = fields {
        return field.number_and_length();
    }
    fields.iter().fold((0, 0), |(number, total), field| {
        let (kind, length) = field.number_and_length();
        (number << 6 | kind, total + length.next_multiple_of(4))
    })
}

const SUBSYSTEM: u16 = 10;
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// Message types.
mod msg {
    pub(super) const NEWTABLE: u16 = 0;
    pub(super) const GETTABLE: u16 = 1;
    pub(super) const DELTABLE: u16 = 2;
    pub(super) const NEWCHAIN: u16 = 3;
    pub(super) const GETCHAIN: u16 = 4;
    pub(super) const DELCHAIN: u16 = 5;
    pub(super) const NEWRULE: u16 = 6;
    pub(super) const GETRULE: u16 = 7;
    pub(super) const DELRULE: u16 = 8;
    pub(super) const NEWSET: u16 = 9;
    pub(super) const NEWSETELEM: u16 = 12;
    pub(super) const GETSETELEM: u16 = 13;
    pub(super) const DELSETELEM: u16 = 14;
    pub(super) const NEWGEN: u16 = 15;
    pub(super) const GETGEN: u16 = 16;
    pub(super) const TRACE: u16 = 17;
}

/// Numbers of attributes that are both written and read.
mod attr {
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const TABLE_USERDATA: u16 = 6;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_POLICY: u16 = 5;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_NUM: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const RULE_USERDATA: u16 = 7;
    pub(super) const ELEM_TABLE: u16 = 1;
    pub(super) const ELEM_SET: u16 = 2;
    pub(super) const ELEM_ELEMENTS: u16 = 3;
    pub(super) const ELEM_KEY: u16 = 1;
    pub(super) const ELEM_DATA: u16 = 2;
    pub(super) const ELEM_USERDATA: u16 = 6;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
}

fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// Builds `struct nfgenmsg`.
fn nfgen(family: u8, resource: u16) -> [u8; NFGEN] {
    let [a, b] = resource.to_be_bytes();
    [family, 0, a, b]
}

const NFGEN: usize = 4;
/// User data of chains, rules and elements: a comment, and for elements the caller's extra bytes.
const COMMENT_UDATA: u8 = 0;
const EXTRA_UDATA: u8 = 128;
/// The kernel's limit of user data for tables, chains, rules and elements.
const UDATA_MAX: usize = 256;

/// Encodes a comment as nft's user data: type, length, zero-terminated text. At most 127 bytes.
fn comment_udata(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(127);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let mut data = vec![COMMENT_UDATA, u8::try_from(end + 1).unwrap_or(u8::MAX)];
    data.extend_from_slice(&comment.as_bytes()[..end]);
    data.push(0);
    data
}

/// Returns the number of extra bytes that fit beside this comment ([`Element::extra`]).
pub fn room_beside(comment: &str) -> usize {
    UDATA_MAX - comment_udata(comment).len() - 2
}

/// Finds the comment in nft's user data.
pub(crate) fn read_comment(data: &[u8]) -> Option<String> {
    read_udata(data, COMMENT_UDATA).map(crate::message::read_text)
}

fn read_udata(mut data: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, length, rest @ ..] = data {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        data = next;
    }
    None
}
