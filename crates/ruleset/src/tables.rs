//! The fixed part of the ruleset: tables, chains and empty sets.

use kernel::{
    Result, Socket,
    nft::{self, Batch, Data, Expr, Family, Field, Hook, Place, Reg, Table},
};

use Field::{Ether, IfName, Ipv4, Ipv6, Port, Protocol};

/// A set or map of a table's fixed part.
pub(crate) type Set = nft::Set<'static>;

/// The NAT tables: masquerade and published ports, one table a family.
pub(crate) const NAT4: Table<'_> = Table { family: Family::Ip, name: "netloom" };
pub(crate) const NAT6: Table<'_> = Table { family: Family::Ip6, name: "netloom" };
/// The table of packets that the firewall accepts.
pub(crate) const FILTER: Table<'_> = Table { family: Family::Inet, name: "netloom" };
/// The table of frames between bridge ports: the MAC spoof check, and isolation.
pub(crate) const BRIDGE: Table<'_> = Table { family: Family::Bridge, name: "netloom" };

/// The name of a cluster's tables.
pub(crate) const CLUSTER: &str = "netloom-cluster";
/// The table of a cluster with the packets that its nodes accept.
pub(crate) const CLUSTER_FILTER: Table<'static> = Table { family: Family::Inet, name: CLUSTER };
/// All tables.
pub(crate) const ALL: [Table<'_>; 4] = [NAT4, NAT6, FILTER, BRIDGE];

const fn set(name: &'static str, key: &'static [Field], comment: &'static str) -> Set {
    Set { name, key, data: None, comment }
}

const fn map(name: &'static str, key: &'static [Field], data: Data, comment: &'static str) -> Set {
    Set { name, key, data: Some(data), comment }
}

/// The sets of a family's NAT table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nat {
    pub(crate) table: Table<'static>,
    /// 2 for IPv4, 10 for IPv6.
    family: u32,
    pub(crate) ports: Set,
    pub(crate) ports_on: Set,
    pub(crate) conditional: Set,
    pub(crate) hairpin: Set,
    pub(crate) masquerade_to: Set,
    pub(crate) masquerade: Set,
    multicast: (&'static [u8], &'static [u8]),
}

const PORTS: &str = "published ports of all addresses of the host";
const PORTS_ON: &str = "published ports of one address of the host";
const CONDITIONAL: &str = "ports that are published under conditions";
const HAIRPIN: &str = "containers that come back to themselves by the host";
const MASQUERADE_TO: &str = "containers that see the host as everybody's address";
const MASQUERADE: &str = "containers whose packets leave with the host's address";
const OWNERS: Set = set("owners", &[IfName], "what belongs to whom, for removal");

pub(crate) const V4: Nat = Nat {
    table: NAT4,
    family: 2,
    ports: map("ports", &[Protocol, Port], Data::Fields(&[Ipv4, Port]), PORTS),
    ports_on: map("ports_on", &[Ipv4, Protocol, Port], Data::Fields(&[Ipv4, Port]), PORTS_ON),
    conditional: map("conditional", &[Protocol, Port], Data::Verdict, CONDITIONAL),
    hairpin: set("hairpin", &[Ipv4, Ipv4], HAIRPIN),
    masquerade_to: set("masquerade_to", &[Ipv4], MASQUERADE_TO),
    masquerade: map("masqueraded", &[Ipv4], Data::Verdict, MASQUERADE),
    multicast: (&[0xe0, 0, 0, 0], &[0xf0, 0, 0, 0]),
};

pub(crate) const V6: Nat = Nat {
    table: NAT6,
    family: 10,
    ports: map("ports", &[Protocol, Port], Data::Fields(&[Ipv6, Port]), PORTS),
    ports_on: map("ports_on", &[Ipv6, Protocol, Port], Data::Fields(&[Ipv6, Port]), PORTS_ON),
    conditional: map("conditional", &[Protocol, Port], Data::Verdict, CONDITIONAL),
    hairpin: set("hairpin", &[Ipv6, Ipv6], HAIRPIN),
    masquerade_to: set("masquerade_to", &[Ipv6], MASQUERADE_TO),
    masquerade: map("masqueraded", &[Ipv6], Data::Verdict, MASQUERADE),
    multicast: (
        &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
};

impl Nat {
    /// Returns the one for an address's family.
    pub(crate) fn of(ip: std::net::IpAddr) -> Self {
        if ip.is_ipv4() { V4 } else { V6 }
    }

    /// Changes the destination to what a map has for the key.
    fn translate(&self, map: &'static str) -> [Expr<'static>; 2] {
        let (_, _, length) = self.addresses();
        let (address, port) = (Reg(8), Reg(8 + u8::try_from(length / 4).unwrap_or(1)));
        [Expr::Map { map, key: Reg(0), to: address }, Expr::Dnat { family: self.family, address, port }]
    }

    /// Matches packets to an address of this host in a chain of [`PUBLISHING`].
    ///
    /// From `::1` the kernel routes no packet to another link (`ip6_route_output` has no `route_localnet`), so the destination of
    /// such a packet must stay: a program of the host answers it, or the kernel refuses it.
    fn local_destination(&self, chain: &str) -> Vec<Expr<'static>> {
        let (offset, _, length) = self.addresses();
        let source = Expr::Payload { base: NETWORK, offset, length, to: Reg(0) };
        let not_from_loopback = [source, Expr::NotEqual(Reg(0), &LOOPBACK6)];
        let is_lost = self.family == V6.family && chain == OUTPUT;
        let from: &[Expr<'static>] = if is_lost { &not_from_loopback } else { &[] };
        [from, &TO_THIS_HOST[..]].concat()
    }

    /// Returns offset and length of the source and of the destination in the network header.
    fn addresses(&self) -> (u32, u32, u32) {
        if self.family == V4.family { (12, 16, 4) } else { (8, 24, 16) }
    }
}

pub(crate) const ADMITTED4: Set = set("admitted4", &[Ipv4], "containers whose traffic is let through");
pub(crate) const ADMITTED6: Set = set("admitted6", &[Ipv6], "containers whose traffic is let through");
pub(crate) const GUARDED: Set = set("guarded", &[IfName], "bridges that others of these do not reach");
pub(crate) const TOGETHER: Set = set("together", &[IfName, IfName], "guarded bridges, open in themselves");

pub(crate) const SPOOF_GUARDED: Set = set("spoof_guarded", &[IfName], "ports whose senders are checked");
pub(crate) const SPOOF_ALLOWED: Set = set("spoof_allowed", &[IfName, Ether], "who sends by which port");
pub(crate) const SENDER4: Set = set("sender4", &[IfName, Ipv4], "which addresses a port sends from");
pub(crate) const SENDER6: Set = set("sender6", &[IfName, Ipv6], "which addresses a port sends from");
pub(crate) const ADDRESS_GUARDED: Set =
    set("address_guarded", &[IfName], "ports whose senders' addresses are checked");
pub(crate) const ISOLATED: Set = set("isolated", &[IfName], "ports that do not reach each other");

/// Sets that are created with their first element, and the chain that looks each one up.
const OPTIONAL: [(&str, &str); 6] = [
    (V4.ports_on.name, "published_on"),
    (V4.conditional.name, "conditions"),
    (V4.masquerade_to.name, "masquerade_all"),
    (SENDER4.name, ADDRESSES),
    (SENDER6.name, ADDRESSES),
    (ADDRESS_GUARDED.name, ADDRESSES),
];
const ADDRESSES: &str = "addresses";

fn is_optional(set: &Set) -> bool {
    OPTIONAL.iter().any(|(name, _)| *name == set.name)
}

const NAT4_SETS: [Set; 7] =
    [V4.ports, V4.ports_on, V4.conditional, V4.hairpin, V4.masquerade_to, V4.masquerade, OWNERS];
const NAT6_SETS: [Set; 7] =
    [V6.ports, V6.ports_on, V6.conditional, V6.hairpin, V6.masquerade_to, V6.masquerade, OWNERS];
const FILTER_SETS: [Set; 5] = [ADMITTED4, ADMITTED6, GUARDED, TOGETHER, OWNERS];
const BRIDGE_SETS: [Set; 7] =
    [SPOOF_GUARDED, SPOOF_ALLOWED, ISOLATED, SENDER4, SENDER6, ADDRESS_GUARDED, OWNERS];

/// Lists the sets of a table, `owners` last.
pub(crate) fn sets(table: Table<'_>) -> &'static [Set] {
    match table.family {
        Family::Ip => &NAT4_SETS,
        Family::Ip6 => &NAT6_SETS,
        Family::Inet => &FILTER_SETS,
        Family::Bridge => &BRIDGE_SETS,
    }
}

/// The set that maps owners to their elements.
pub(crate) const fn owners() -> &'static str {
    OWNERS.name
}

/// Adds the table and its fixed part to a batch, unless the table exists.
///
/// The batch then fails with [`kernel::Kind::Exists`] if another process creates the table first.
pub(crate) fn ensure(socket: &Socket, table: Table<'_>, batch: &mut Batch) -> Result<()> {
    if nft::table_comment(socket, table)?.is_some() {
        return Ok(());
    }
    batch.create_table(table, "Netloom, ruleset 1: chains are fixed, elements carry their owner");
    for set in sets(table).iter().filter(|set| !is_optional(set)) {
        batch.create_set(table, set);
    }
    match table.family {
        Family::Ip => nat_chains(batch, &V4),
        Family::Ip6 => nat_chains(batch, &V6),
        Family::Inet => filter_chains(batch),
        Family::Bridge => bridge_chains(batch),
    }
    Ok(())
}

/// Puts what an element's set needs into a batch, if that is an optional one and not among the chains `there`.
pub(crate) fn ensure_set(table: Table<'_>, set: &Set, there: &mut Vec<String>, batch: &mut Batch) {
    let Some((_, chain)) = OPTIONAL.iter().find(|(name, _)| *name == set.name) else { return };
    if there.iter().any(|it| it == chain) {
        return;
    }
    there.push((*chain).to_owned());
    let nat = match table.family {
        Family::Ip => V4,
        Family::Ip6 => V6,
        Family::Inet | Family::Bridge => return address_chain(batch),
    };
    batch.create_set(table, set);
    let (_, destination, length) = nat.addresses();
    let words = u8::try_from(length / 4).unwrap_or(1);
    let to = |to| Expr::Payload { base: NETWORK, offset: destination, length, to };
    let (comment, rule, callers, call): (_, _, &[&str], _) = if set == &nat.ports_on {
        let key = [to(Reg(0)), Expr::Protocol(Reg(words)), destination_port(Reg(words + 1))];
        let rule = [&key[..], &nat.translate(nat.ports_on.name)[..]].concat();
        ("one address of the host comes before all", rule, &[PUBLISHED], vec![Expr::Jump(chain)])
    } else if set == &nat.conditional {
        let rule = vec![Expr::Protocol(Reg(0)), destination_port(Reg(1)), Expr::VerdictMap(Reg(0), set.name)];
        // Not to come back: what does not fulfil its port's conditions must not meet the port behind them.
        ("ports with conditions go by these", rule, &PUBLISHING, vec![Expr::Goto(chain)])
    } else {
        let rule = vec![to(Reg(0)), Expr::InSet(Reg(0), set.name), Expr::Masquerade];
        ("masqAll: whoever calls these containers", rule, &["postrouting"], vec![Expr::Jump(chain)])
    };
    batch.create_chain(table, chain, None, comment);
    batch.add_rule(table, chain, Place::Last, &rule, "");
    if set == &nat.conditional {
        batch.add_rule(table, chain, Place::Last, &[Expr::Goto(PUBLISHED)], "");
    }
    for caller in callers {
        let to_host = if PUBLISHING.contains(caller) { nat.local_destination(caller) } else { Vec::new() };
        batch.add_rule(table, caller, Place::First, &[to_host, call.clone()].concat(), "");
    }
}

fn destination_port(to: Reg) -> Expr<'static> {
    Expr::Payload { base: TRANSPORT, offset: 2, length: 2, to }
}

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
pub(crate) const PUBLISHED: &str = "published";
/// The chains that send to [`PUBLISHED`] what is for the host itself (an address of kind `local`).
const PUBLISHING: [&str; 2] = ["prerouting", OUTPUT];
const OUTPUT: &str = "output";
const LOOPBACK6: [u8; 16] = std::net::Ipv6Addr::LOCALHOST.octets();
const TO_THIS_HOST: [Expr<'_>; 2] = [Expr::DestinationKind(Reg(0)), Expr::Equal(Reg(0), &2u32.to_ne_bytes())];

fn hook(kind: &'static str, number: u32, priority: i32) -> Hook {
    Hook { kind, number, priority }
}

fn nat_chains(batch: &mut Batch, nat: &Nat) {
    let table = nat.table;
    let add = |batch: &mut Batch, chain: &str, rule: &[Expr<'_>]| {
        batch.add_rule(table, chain, Place::Last, rule, "");
    };
    let (source, destination, length) = nat.addresses();
    let words = u8::try_from(length / 4).unwrap_or(1);
    let load = |offset, to| Expr::Payload { base: NETWORK, offset, length, to };

    // Before the routing decision (priority of dstnat), for packets from outside and from the host itself.
    batch.create_chain(table, PUBLISHED, None, "to the container");
    let on_all = [Expr::Protocol(Reg(0)), destination_port(Reg(1))];
    add(batch, PUBLISHED, &[&on_all[..], &nat.translate(nat.ports.name)[..]].concat());
    let comments = ["from outside to the host", "from the host to itself"];
    for ((name, number), from) in PUBLISHING.into_iter().zip([0, 3]).zip(comments) {
        batch.create_chain(table, name, Some(hook("nat", number, -100)), from);
        add(batch, name, &[nat.local_destination(name), vec![Expr::Jump(PUBLISHED)]].concat());
    }

    // To itself by a published port, and from the host's loopback: the answer must come back this way.
    batch.create_chain(table, "postrouting", Some(hook("nat", 4, 100)), "whose source becomes the host's");
    let both = [load(source, Reg(0)), load(destination, Reg(words))];
    let hairpin = [Expr::InSet(Reg(0), nat.hairpin.name), Expr::Masquerade];
    add(batch, "postrouting", &[&both[..], &hairpin[..]].concat());
    let (multicast, mask) = nat.multicast;
    let multicast = [Expr::Mask { reg: Reg(0), mask }, Expr::Equal(Reg(0), multicast), Expr::Return];
    add(batch, "postrouting", &[&[load(destination, Reg(0))], &multicast[..]].concat());
    add(batch, "postrouting", &[load(source, Reg(0)), Expr::VerdictMap(Reg(0), nat.masquerade.name)]);
}

/// The bit of the packet mark that tells foreign tables to accept a packet. It is set only between two chains at the forward hook. The
/// registry of fwmark bits assigns it to CNI plugins.
pub(crate) const MARK: u32 = 1 << 13;
/// Priorities of the two chains. Foreign filters are between them: at `filter`, or up to 10 later as firewalld's.
const BEFORE: i32 = -10;
const AFTER: i32 = 250;

fn filter_chains(batch: &mut Batch) {
    let add = |batch: &mut Batch, chain: &str, rule: &[Expr<'_>]| {
        batch.add_rule(FILTER, chain, Place::Last, rule, "");
    };
    batch.create_chain(FILTER, "isolate", None, "ingressPolicy: what other bridges send is dropped");
    let bridges = [Expr::InName(Reg(0)), Expr::OutName(Reg(4))];
    let together = [Expr::InSet(Reg(0), TOGETHER.name), Expr::Return];
    add(batch, "isolate", &[&bridges[..], &together[..]].concat());
    let guarded =
        |name: Expr<'static>| [name, Expr::InSet(Reg(0), GUARDED.name)].into_iter().collect::<Vec<_>>();
    let both = [guarded(Expr::InName(Reg(0))), guarded(Expr::OutName(Reg(0))), vec![Expr::Drop]].concat();
    add(batch, "isolate", &both);

    let mark = [
        Expr::Mark(Reg(0)),
        Expr::Bits { reg: Reg(0), keep: &(!MARK).to_ne_bytes(), flip: &MARK.to_ne_bytes() },
        Expr::SetMark(Reg(0)),
    ];
    let forget =
        [Expr::Mark(Reg(0)), Expr::Mask { reg: Reg(0), mask: &(!MARK).to_ne_bytes() }, Expr::SetMark(Reg(0))];
    let before = "marks what other tables let through by that mark";
    batch.create_chain(FILTER, "admit", Some(hook("filter", 2, BEFORE)), before);
    batch.create_chain(FILTER, "forget", Some(hook("filter", 2, AFTER)), "takes the mark away again");
    add(batch, "admit", &[Expr::Jump("isolate")]);
    let bits = |load: Expr<'static>, bits: u32| {
        let bits = bits.to_ne_bytes();
        (load, bits)
    };
    for (number, admitted, source, destination, length) in
        [(2_u8, ADMITTED4.name, 12, 16, 4), (10, ADMITTED6.name, 8, 24, 16)]
    {
        let family = [number];
        let of_family = [Expr::Family(Reg(0)), Expr::Equal(Reg(0), &family)];
        let member = |offset| {
            [Expr::Payload { base: NETWORK, offset, length, to: Reg(0) }, Expr::InSet(Reg(0), admitted)]
        };
        add(batch, "admit", &[&of_family[..], &member(source)[..], &mark[..]].concat());
        add(batch, "forget", &[&of_family[..], &member(source)[..], &forget[..]].concat());
        // Answers (established, related), and what was sent to a published port.
        for (load, bits) in
            [bits(Expr::ConnectionState(Reg(0)), 2 | 4), bits(Expr::ConnectionStatus(Reg(0)), 1 << 5)]
        {
            let some = [load, Expr::Mask { reg: Reg(0), mask: &bits }, Expr::NotEqual(Reg(0), &[0; 4])];
            add(batch, "admit", &[&of_family[..], &member(destination)[..], &some[..], &mark[..]].concat());
        }
        add(batch, "forget", &[&of_family[..], &member(destination)[..], &forget[..]].concat());
    }
}

/// Makes the check of senders' addresses: their sets, the chain, and the call of it before all else.
fn address_chain(batch: &mut Batch) {
    for set in [SENDER4, SENDER6, ADDRESS_GUARDED] {
        batch.create_set(BRIDGE, &set);
    }
    batch.create_chain(BRIDGE, ADDRESSES, None, "address spoof check: what is not a sender's own is dropped");
    let of_type = |kind: &'static [u8; 2]| [Expr::EtherType(Reg(0)), Expr::Equal(Reg(0), kind)];
    let load = |base, offset, length| Expr::Payload { base, offset, length, to: Reg(4) };
    let own = |from: Expr<'static>, set| [Expr::InName(Reg(0)), from, Expr::InSet(Reg(0), set), Expr::Return];
    let (ip, arp, ip6) = (&[0x08, 0x00], &[0x08, 0x06], &[0x86, 0xdd]);
    let ip_source = own(load(NETWORK, 12, 4), SENDER4.name);
    // The sender in ARP, and the target of a neighbour advertisement, claim an address.
    let arp_sender = own(load(NETWORK, 14, 4), SENDER4.name);
    let advertisement = [
        Expr::Protocol(Reg(0)),
        Expr::Equal(Reg(0), &[58]),
        Expr::Payload { base: TRANSPORT, offset: 0, length: 1, to: Reg(0) },
        Expr::Equal(Reg(0), &[136]),
        Expr::InName(Reg(0)),
        load(TRANSPORT, 8, 16),
        Expr::NotInSet(Reg(0), SENDER6.name),
        Expr::Drop,
    ];
    let ip6_source = own(load(NETWORK, 8, 16), SENDER6.name);
    let rules: [(_, &[Expr<'_>]); 4] =
        [(ip, &ip_source), (arp, &arp_sender), (ip6, &advertisement), (ip6, &ip6_source)];
    for (kind, rule) in rules {
        batch.add_rule(BRIDGE, ADDRESSES, Place::Last, &[&of_type(kind)[..], rule].concat(), "");
    }
    batch.add_rule(BRIDGE, ADDRESSES, Place::Last, &[Expr::Drop], "");
    let guarded = [Expr::InName(Reg(0)), Expr::InSet(Reg(0), ADDRESS_GUARDED.name), Expr::Jump(ADDRESSES)];
    batch.add_rule(BRIDGE, "prerouting", Place::First, &guarded, "");
}

fn bridge_chains(batch: &mut Batch) {
    let add = |batch: &mut Batch, chain: &str, rule: &[Expr<'_>]| {
        batch.add_rule(BRIDGE, chain, Place::Last, rule, "");
    };
    batch.create_chain(BRIDGE, "prerouting", Some(hook("filter", 0, -300)), "spoof check");
    let sender = Expr::Payload { base: 0, offset: 6, length: 6, to: Reg(4) };
    let allowed = [Expr::InName(Reg(0)), sender, Expr::InSet(Reg(0), SPOOF_ALLOWED.name), Expr::Accept];
    add(batch, "prerouting", &allowed);
    let guarded = [Expr::InName(Reg(0)), Expr::InSet(Reg(0), SPOOF_GUARDED.name), Expr::Drop];
    add(batch, "prerouting", &guarded);
    batch.create_chain(BRIDGE, "forward", Some(hook("filter", 2, -200)), "ingressPolicy isolated");
    let isolated = [
        Expr::InName(Reg(0)),
        Expr::InSet(Reg(0), ISOLATED.name),
        Expr::OutName(Reg(0)),
        Expr::InSet(Reg(0), ISOLATED.name),
        Expr::Drop,
    ];
    add(batch, "forward", &isolated);
}
