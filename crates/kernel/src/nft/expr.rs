//! The expressions of rules.

use super::attr::{DATA_VALUE, DATA_VERDICT};
use crate::message::Message;

/// A 32-bit register, 0 to 15. A value of several words also occupies the following registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    fn number(self) -> u32 {
        // NFT_REG32_00 is 8.
        8 + u32::from(self.0)
    }
}

/// An expression. The evaluation of a rule ends at the first expression that does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expr<'a> {
    /// Loads the packet's family (`meta nfproto`): 2 for IPv4, 10 for IPv6.
    Family(Reg),
    /// Loads the packet's EtherType in network byte order (`meta protocol`), after the VLAN tags that the kernel removed.
    EtherType(Reg),
    /// Loads the transport protocol (`meta l4proto`).
    Protocol(Reg),
    /// Loads the name of the input interface (`meta iifname`), 4 words.
    InName(Reg),
    /// Loads the name of the output interface (`meta oifname`), 4 words.
    OutName(Reg),
    /// Loads the group of the input interface (`meta iifgroup`).
    InGroup(Reg),
    /// Loads the packet's mark.
    Mark(Reg),
    /// Sets the packet's mark.
    SetMark(Reg),
    /// Traces the packet from here on (`meta nftrace set 1`), if the first byte of the register is not zero.
    Trace(Reg),
    /// Loads the packet's connection tracking state (`ct state`) as bits: 2 established, 4 related.
    ConnectionState(Reg),
    /// Loads the connection's status (`ct status`) as bits: 32 if its destination was translated.
    ConnectionStatus(Reg),
    /// Loads the kind of the destination address (`fib daddr type`); 2 is local.
    DestinationKind(Reg),
    /// Loads one word, 1 or 0: whether the route back to the source leads to the input interface (`fib saddr . iif oif exists`).
    LeadsBack(Reg),
    /// Loads bytes of the packet.
    Payload {
        /// 0 link layer, 1 network layer, 2 transport.
        base: u32,
        /// The offset from there, in bytes.
        offset: u32,
        /// The number of bytes.
        length: u32,
        /// The destination.
        to: Reg,
    },
    /// Keeps only the bits of the mask.
    Mask {
        /// The register, changed in place.
        reg: Reg,
        /// A mask of the same length as the value.
        mask: &'a [u8],
    },
    /// Sets the bits of the second value that are not in the first: `(reg & keep) ^ flip`.
    Bits {
        /// The register, changed in place.
        reg: Reg,
        /// A mask of the same length as the value.
        keep: &'a [u8],
        /// A mask of the same length as the value.
        flip: &'a [u8],
    },
    /// Matches if the register has these bytes.
    Equal(Reg, &'a [u8]),
    /// Matches if the register does not have these bytes.
    NotEqual(Reg, &'a [u8]),
    /// Matches if the set has the key.
    InSet(Reg, &'a str),
    /// Matches if the set does not have the key.
    NotInSet(Reg, &'a str),
    /// Counts packets and bytes, as every iptables rule does.
    Counter,
    /// Matches if the map has the key, and loads its data.
    Map {
        /// The map.
        map: &'a str,
        /// Its key.
        key: Reg,
        /// The destination.
        to: Reg,
    },
    /// Applies the map's verdict for the key.
    VerdictMap(Reg, &'a str),
    /// Changes the destination.
    Dnat {
        /// 2 for IPv4, 10 for IPv6.
        family: u32,
        /// The register with the new address.
        address: Reg,
        /// The register with the new port.
        port: Reg,
    },
    /// Changes the source to the address of the output interface.
    Masquerade,
    /// Calls a chain.
    Jump(&'a str),
    /// Continues in a chain without returning.
    Goto(&'a str),
    /// Returns to the calling chain.
    Return,
    /// The packet passes this hook.
    Accept,
    /// Drops the packet.
    Drop,
}

pub(super) fn write(out: &mut Message, expression: &Expr<'_>) {
    match *expression {
        Expr::Family(reg) => meta(out, 15, reg),
        Expr::EtherType(reg) => meta(out, 1, reg),
        Expr::Protocol(reg) => meta(out, 16, reg),
        Expr::InName(reg) => meta(out, 6, reg),
        Expr::OutName(reg) => meta(out, 7, reg),
        Expr::InGroup(reg) => meta(out, 21, reg),
        Expr::Mark(reg) => meta(out, MARK, reg),
        Expr::SetMark(reg) => named(out, "meta", |data| {
            data.be32(2, MARK).be32(3, reg.number());
        }),
        Expr::Trace(reg) => named(out, "meta", |data| {
            data.be32(2, NFTRACE).be32(3, reg.number());
        }),
        Expr::ConnectionState(reg) => connection(out, 0, reg),
        Expr::ConnectionStatus(reg) => connection(out, 2, reg),
        Expr::Counter => named(out, "counter", |_| ()),
        Expr::DestinationKind(reg) => named(out, "fib", |data| {
            // DREG, RESULT = address type, FLAGS = of the destination.
            data.be32(1, reg.number()).be32(2, 3).be32(3, 2);
        }),
        Expr::LeadsBack(reg) => named(out, "fib", |data| {
            // DREG, RESULT = output interface, FLAGS = of the source, the input interface, only whether there is one.
            data.be32(1, reg.number()).be32(2, 1).be32(3, 1 | 8 | 32);
        }),
        Expr::Payload { base, offset, length, to } => named(out, "payload", |data| {
            data.be32(1, to.number()).be32(2, base).be32(3, offset).be32(4, length);
        }),
        Expr::Mask { reg, mask } => bits(out, reg, mask, &vec![0; mask.len()]),
        Expr::Bits { reg, keep, flip } => bits(out, reg, keep, flip),
        Expr::Equal(reg, bytes) => compare(out, 0, reg, bytes),
        Expr::NotEqual(reg, bytes) => compare(out, 1, reg, bytes),
        Expr::InSet(reg, set) => named(out, "lookup", |data| {
            data.text(1, set).be32(2, reg.number());
        }),
        Expr::NotInSet(reg, set) => named(out, "lookup", |data| {
            data.text(1, set).be32(2, reg.number()).be32(5, 1);
        }),
        Expr::Map { map, key, to } => named(out, "lookup", |data| {
            data.text(1, map).be32(2, key.number()).be32(3, to.number());
        }),
        Expr::VerdictMap(reg, map) => named(out, "lookup", |data| {
            data.text(1, map).be32(2, reg.number()).be32(3, VERDICT_REGISTER);
        }),
        Expr::Dnat { family, address, port } => named(out, "nat", |data| {
            // TYPE = destination, FAMILY, first and last address, first and last port.
            data.be32(1, 1).be32(2, family).be32(3, address.number()).be32(4, address.number());
            data.be32(5, port.number()).be32(6, port.number());
        }),
        Expr::Masquerade => named(out, "masq", |_| ()),
        Expr::Jump(chain) => verdict(out, JUMP, Some(chain)),
        Expr::Goto(chain) => verdict(out, GOTO, Some(chain)),
        Expr::Return => verdict(out, RETURN, None),
        Expr::Accept => verdict(out, ACCEPT, None),
        Expr::Drop => verdict(out, DROP, None),
    }
}

/// Writes a verdict as data: of an element or of an immediate expression.
pub(super) fn write_verdict(out: &mut Message, code: i32, chain: Option<&str>) {
    out.nest(DATA_VERDICT, |verdict| {
        verdict.be32(1, code.cast_unsigned());
        if let Some(chain) = chain {
            verdict.text(2, chain);
        }
    });
}

fn named(out: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    out.text(1, name).nest(2, fill);
}

fn meta(out: &mut Message, key: u32, reg: Reg) {
    named(out, "meta", |data| {
        data.be32(1, reg.number()).be32(2, key);
    });
}

fn connection(out: &mut Message, key: u32, reg: Reg) {
    named(out, "ct", |data| {
        data.be32(1, reg.number()).be32(2, key);
    });
}

fn bits(out: &mut Message, reg: Reg, keep: &[u8], flip: &[u8]) {
    named(out, "bitwise", |data| {
        let length = u32::try_from(keep.len()).unwrap_or_default();
        data.be32(1, reg.number()).be32(2, reg.number()).be32(3, length);
        value(data, 4, keep);
        value(data, 5, flip);
    });
}

fn compare(out: &mut Message, operation: u32, reg: Reg, bytes: &[u8]) {
    named(out, "cmp", |data| {
        data.be32(1, reg.number()).be32(2, operation);
        value(data, 3, bytes);
    });
}

fn value(out: &mut Message, kind: u16, bytes: &[u8]) {
    out.nest(kind, |data| {
        data.attr(DATA_VALUE, bytes);
    });
}

fn verdict(out: &mut Message, code: i32, chain: Option<&str>) {
    named(out, "immediate", |data| {
        data.be32(1, VERDICT_REGISTER).nest(2, |nested| write_verdict(nested, code, chain));
    });
}

const MARK: u32 = 3;
const NFTRACE: u32 = 12;
const VERDICT_REGISTER: u32 = 0;
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
pub(super) const GOTO: i32 = -4;
const RETURN: i32 = -5;
