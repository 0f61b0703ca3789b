//! What pods must not send. Their links are known by their group, which they have before the first packet.

use kernel::{
    IpFamily,
    nft::{Batch, Expr, Hook, Place},
};

use super::{Cluster, FILTER, FORWARD, ICMPV6, PREROUTING, REG, UDP, load, nodes_of, number_of};

/// The group of the host ends of pods' links: `netl` as a number. Administrators use small numbers, and other plugins of Netloom the upper
/// half.
pub const POD_GROUP: u32 = u32::from_be_bytes(*b"netl");

const GUARD: &str = "guard";
const SOURCE: &str = "source";
const UNROUTED: &str = "unrouted";
const TCP: u8 = 6;
const ICMP: u8 = 1;
/// Types of ICMP and ICMPv6 messages that only routers send (RFC 792, RFC 4861).
const REDIRECT: u8 = 5;
const ADVERTISEMENT6: u8 = 134;
const REDIRECT6: u8 = 137;
/// The ports of DHCP clients (RFC 2131, RFC 8415).
const CLIENT: u16 = 68;
const CLIENT6: u16 = 546;
/// `fe80::/10`
const LINK_LOCAL: ([u8; 16], [u8; 16]) = (first(0xfe, 0x80), first(0xff, 0xc0));

const fn first(a: u8, b: u8) -> [u8; 16] {
    [a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

impl Cluster {
    /// Drops what pods send with addresses that the host does not route to them, what only routers and DHCP servers send, and
    /// tunnelled packets to nodes.
    pub(super) fn guard_pods(&self, batch: &mut Batch) {
        if self.pods.is_empty() {
            return;
        }
        let group = POD_GROUP.to_ne_bytes();
        let of_pod = [Expr::InGroup(REG), Expr::Equal(REG, &group)];
        // Before conntrack, so that forged packets create no connections. Fragments are already reassembled.
        let hook = Hook { kind: "filter", number: PREROUTING, priority: -300 };
        batch.create_chain(FILTER, UNROUTED, None, "sources without a route to the pod");
        batch.create_chain(FILTER, SOURCE, None, "pods' own sources alone");
        batch.create_chain(FILTER, GUARD, None, "what only routers and DHCP servers send");
        batch.create_chain(FILTER, "pods", Some(hook), "packets from pods' links");
        let enter = [&of_pod[..], &[Expr::Goto(GUARD)]].concat();
        batch.add_rule(FILTER, "pods", Place::Last, &enter, "");
        guard(batch);

        // After the translation of destinations, which could otherwise lead to a node.
        let hook = Hook { kind: "filter", number: FORWARD, priority: -11 };
        batch.create_chain(FILTER, "leave", Some(hook), "pods do not send into the nodes' tunnels");
        let port = self.tunnel_port.to_be_bytes();
        for family in IpFamily::ALL {
            let number = number_of(family);
            let to_node = [
                Expr::Family(REG),
                Expr::Equal(REG, &number),
                load(family, false),
                Expr::InSet(REG, nodes_of(family).name),
                Expr::Drop,
            ];
            let rule = [&to_port(&port)[..], &of_pod, &to_node].concat();
            batch.add_rule(FILTER, "leave", Place::Last, &rule, "");
        }
    }
}

/// Fills the chains of packets from pods' links. Most packets pass few rules: those of TCP go to the last check at once, and only sources
/// that fail it are looked at further.
fn guard(batch: &mut Batch) {
    let mut add =
        |chain: &str, rule: &[&[Expr<'_>]]| batch.add_rule(FILTER, chain, Place::Last, &rule.concat(), "");
    let [v4, v6] = IpFamily::ALL.map(number_of);
    let v4 = [Expr::Family(REG), Expr::Equal(REG, &v4)];
    let v6 = [Expr::Family(REG), Expr::Equal(REG, &v6)];
    add(GUARD, &[&[Expr::Protocol(REG), Expr::Equal(REG, &[TCP]), Expr::Goto(SOURCE)]]);
    for (family, port) in [(&v4, CLIENT), (&v6, CLIENT6)] {
        add(GUARD, &[&to_port(&port.to_be_bytes()), family, &[Expr::Drop]]);
    }
    for (protocol, kind) in [(ICMP, REDIRECT), (ICMPV6, ADVERTISEMENT6), (ICMPV6, REDIRECT6)] {
        let (protocol, kind) = ([protocol], [kind]);
        let message = [
            Expr::Protocol(REG),
            Expr::Equal(REG, &protocol),
            Expr::Payload { base: 2, offset: 0, length: 1, to: REG },
            Expr::Equal(REG, &kind),
            Expr::Drop,
        ];
        add(GUARD, &[if protocol == [ICMP] { &v4 } else { &v6 }, &message]);
    }
    add(GUARD, &[&[Expr::Goto(SOURCE)]]);
    add(SOURCE, &[&[Expr::LeadsBack(REG), Expr::Equal(REG, &[0; 4]), Expr::Goto(UNROUTED)]]);
    // Neighbours are found, and group memberships reported, with a link-local source or none; the kernel's check knows some of these
    // (`nft_fib6_eval`, and for IPv4 `nft_fib4_eval`). The host forwards no such packet.
    let source = load(IpFamily::V6, true);
    let (net, mask) = LINK_LOCAL;
    let local = [source, Expr::Mask { reg: REG, mask: &mask }, Expr::Equal(REG, &net), Expr::Return];
    add(UNROUTED, &[&v6, &local]);
    let icmp = [Expr::Protocol(REG), Expr::Equal(REG, &[ICMPV6])];
    add(UNROUTED, &[&v6, &icmp, &[source, Expr::Equal(REG, &[0; 16]), Expr::Return]]);
    add(UNROUTED, &[&[Expr::Drop]]);
}

/// Returns the expressions that match UDP to a port.
pub(super) fn to_port(port: &[u8; 2]) -> [Expr<'_>; 4] {
    [
        Expr::Protocol(REG),
        Expr::Equal(REG, &[UDP]),
        Expr::Payload { base: 2, offset: 2, length: 2, to: REG },
        Expr::Equal(REG, port),
    ]
}
