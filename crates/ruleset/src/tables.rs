//! The fixed part of the ruleset: tables, chains and empty sets.

use kernel::{
    Result, Socket,
    nft::{self, Batch, Data, Expr, Family, Field, Hook, Reg, Set, Table},
};

/// Holds masquerade and published ports.
pub(crate) const INET: Table = Table { family: Family::Inet, name: "netloom" };
/// Holds the MAC spoof check.
pub(crate) const BRIDGE: Table = Table { family: Family::Bridge, name: "netloom" };

const COMMENT: &str = "Netloom, ruleset 1; elements carry their owner";

use Field::{Ether, IfName, Ipv4, Ipv6, Port, Protocol};

pub(crate) const MASQ4: Set = Set { name: "masq4", key: &[Ipv4], data: Some(Data::Verdict) };
pub(crate) const MASQ6: Set = Set { name: "masq6", key: &[Ipv6], data: Some(Data::Verdict) };
pub(crate) const PORTS4: Set =
    Set { name: "ports4", key: &[Protocol, Port], data: Some(Data::Fields(&[Ipv4, Port])) };
pub(crate) const PORTS6: Set =
    Set { name: "ports6", key: &[Protocol, Port], data: Some(Data::Fields(&[Ipv6, Port])) };
pub(crate) const PORTS4_ON: Set =
    Set { name: "ports4_on", key: &[Ipv4, Protocol, Port], data: Some(Data::Fields(&[Ipv4, Port])) };
pub(crate) const PORTS6_ON: Set =
    Set { name: "ports6_on", key: &[Ipv6, Protocol, Port], data: Some(Data::Fields(&[Ipv6, Port])) };
pub(crate) const HAIRPIN4: Set = Set { name: "hairpin4", key: &[Ipv4, Ipv4], data: None };
pub(crate) const HAIRPIN6: Set = Set { name: "hairpin6", key: &[Ipv6, Ipv6], data: None };
pub(crate) const MASQ_TO4: Set = Set { name: "masq_to4", key: &[Ipv4], data: None };
pub(crate) const MASQ_TO6: Set = Set { name: "masq_to6", key: &[Ipv6], data: None };
pub(crate) const SPOOF_GUARDED: Set = Set { name: "spoof_guarded", key: &[IfName], data: None };
pub(crate) const SPOOF_ALLOWED: Set = Set { name: "spoof_allowed", key: &[IfName, Ether], data: None };

const INET_SETS: [Set; 10] =
    [MASQ4, MASQ6, PORTS4, PORTS6, PORTS4_ON, PORTS6_ON, HAIRPIN4, HAIRPIN6, MASQ_TO4, MASQ_TO6];
const BRIDGE_SETS: [Set; 2] = [SPOOF_GUARDED, SPOOF_ALLOWED];

/// Lists the sets of a table.
pub(crate) fn sets(table: Table) -> &'static [Set] {
    if table == INET { &INET_SETS } else { &BRIDGE_SETS }
}

/// Puts the table and its fixed part into a batch, unless it is there.
///
/// The batch then fails with [`kernel::Kind::Exists`] if somebody else was faster.
pub(crate) fn ensure(socket: &Socket, table: Table, batch: &mut Batch) -> Result<()> {
    if nft::table_comment(socket, table)?.is_some() {
        return Ok(());
    }
    batch.create_table(table, COMMENT);
    for set in sets(table) {
        batch.create_set(table, set);
    }
    if table == INET {
        inet_chains(batch)
    } else {
        bridge_chains(batch)
    }
    Ok(())
}

const V4: u32 = 2;
const V6: u32 = 10;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

fn inet_chains(batch: &mut Batch) {
    // Before the routing decision (priority of dstnat), for packets from outside and from the host itself.
    batch.create_chain(INET, "publish", None);
    for (name, number) in [("prerouting", 0), ("output", 3)] {
        batch.create_chain(INET, name, Some(Hook { kind: "nat", number, priority: -100 }));
        let to_this_host = [Expr::DestinationKind(Reg(0)), Expr::Equal(Reg(0), &2u32.to_ne_bytes())];
        batch.add_rule(INET, name, &[&to_this_host[..], &[Expr::Jump("publish")]].concat());
    }
    // A port of one address of the host comes before the same port of all of them.
    published(batch, V4, Some(PORTS4_ON.name), PORTS4.name);
    published(batch, V6, Some(PORTS6_ON.name), PORTS6.name);

    batch.create_chain(INET, "postrouting", Some(Hook { kind: "nat", number: 4, priority: 100 }));
    for (family, chain) in [(V4, "snat4"), (V6, "snat6")] {
        batch.create_chain(INET, chain, None);
        let rule = [Expr::Family(Reg(0)), Expr::Equal(Reg(0), &family.to_ne_bytes()[..1]), Expr::Jump(chain)];
        batch.add_rule(INET, "postrouting", &rule);
    }
    source(
        batch,
        &Source {
            chain: "snat4",
            offsets: (12, 16),
            length: 4,
            hairpin: HAIRPIN4.name,
            masquerade_to: MASQ_TO4.name,
            masquerade: MASQ4.name,
            multicast: &[0xe0, 0, 0, 0],
            multicast_mask: &[0xf0, 0, 0, 0],
        },
    );
    source(
        batch,
        &Source {
            chain: "snat6",
            offsets: (8, 24),
            length: 16,
            hairpin: HAIRPIN6.name,
            masquerade_to: MASQ_TO6.name,
            masquerade: MASQ6.name,
            multicast: &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            multicast_mask: &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        },
    );
}

/// Adds the rules that change the destination of what comes in for a published port.
fn published(batch: &mut Batch, family: u32, on_address: Option<&'static str>, on_all: &'static str) {
    let (offset, words) = if family == V4 { (16, 1) } else { (24, 4) };
    let families = family.to_ne_bytes();
    let of_family = [Expr::Family(Reg(0)), Expr::Equal(Reg(0), &families[..1])];
    let port = |to| Expr::Payload { base: TRANSPORT, offset: 2, length: 2, to };
    let translate = |map, first: u8| {
        [
            Expr::Map { map, key: Reg(0), to: Reg(first) },
            Expr::Dnat { family, address: Reg(first), port: Reg(first + words) },
        ]
    };
    if let Some(map) = on_address {
        let length = u32::from(words) * 4;
        let key = [
            Expr::Payload { base: NETWORK, offset, length, to: Reg(0) },
            Expr::Protocol(Reg(words)),
            port(Reg(words + 1)),
        ];
        batch.add_rule(INET, "publish", &[&of_family[..], &key[..], &translate(map, 8)[..]].concat());
    }
    let key = [Expr::Protocol(Reg(0)), port(Reg(1))];
    batch.add_rule(INET, "publish", &[&of_family[..], &key[..], &translate(on_all, 8)[..]].concat());
}

struct Source {
    chain: &'static str,
    offsets: (u32, u32),
    length: u32,
    hairpin: &'static str,
    masquerade_to: &'static str,
    masquerade: &'static str,
    multicast: &'static [u8],
    multicast_mask: &'static [u8],
}

/// Adds the rules that change the source of what leaves.
fn source(batch: &mut Batch, source: &Source) {
    let words = u8::try_from(source.length / 4).unwrap_or(1);
    let (from, to) = source.offsets;
    let load = |offset, to| Expr::Payload { base: NETWORK, offset, length: source.length, to };
    // The chain is entered by this family alone; said again, it makes `nft list` print names and not offsets.
    let family = if source.length == 4 { V4 } else { V6 }.to_ne_bytes();
    let of_family = [Expr::Family(Reg(0)), Expr::Equal(Reg(0), &family[..1])];
    let mut add = |rule: &[Expr<'_>]| batch.add_rule(INET, source.chain, &[&of_family[..], rule].concat());
    // To itself by a published port, and from the host's loopback: the answer must come back this way.
    add(&[load(from, Reg(0)), load(to, Reg(words)), Expr::InSet(Reg(0), source.hairpin), Expr::Masquerade]);
    add(&[load(to, Reg(0)), Expr::InSet(Reg(0), source.masquerade_to), Expr::Masquerade]);
    add(&[
        load(to, Reg(0)),
        Expr::Mask { reg: Reg(0), mask: source.multicast_mask },
        Expr::Equal(Reg(0), source.multicast),
        Expr::Return,
    ]);
    add(&[load(from, Reg(0)), Expr::VerdictMap(Reg(0), source.masquerade)]);
}

fn bridge_chains(batch: &mut Batch) {
    batch.create_chain(BRIDGE, "prerouting", Some(Hook { kind: "filter", number: 0, priority: -300 }));
    let sender = Expr::Payload { base: 0, offset: 6, length: 6, to: Reg(4) };
    let allowed = [Expr::InName(Reg(0)), sender, Expr::InSet(Reg(0), SPOOF_ALLOWED.name), Expr::Accept];
    batch.add_rule(BRIDGE, "prerouting", &allowed);
    let guarded = [Expr::InName(Reg(0)), Expr::InSet(Reg(0), SPOOF_GUARDED.name), Expr::Drop];
    batch.add_rule(BRIDGE, "prerouting", &guarded);
}
