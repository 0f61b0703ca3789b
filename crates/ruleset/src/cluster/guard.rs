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
        batch.create_chain(FILTER, GUARD, None, "what pods must not send is dropped");
        batch.create_chain(FILTER, "pods", Some(hook), "packets from pods' links");
        let enter = [&of_pod[..], &[Expr::Jump(GUARD)]].concat();
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
            let rule = [&of_pod[..], &to_port(&port), &to_node].concat();
            batch.add_rule(FILTER, "leave", Place::Last, &rule, "");
        }
    }
}

/// Fills the chain of packets from pods' links.
fn guard(batch: &mut Batch) {
    let mut add = |rule: &[&[Expr<'_>]]| batch.add_rule(FILTER, GUARD, Place::Last, &rule.concat(), "");
    let [v4, v6] = IpFamily::ALL.map(number_of);
    let v4 = [Expr::Family(REG), Expr::Equal(REG, &v4)];
    let v6 = [Expr::Family(REG), Expr::Equal(REG, &v6)];
    for (family, protocol, kind) in
        [(&v4, ICMP, REDIRECT), (&v6, ICMPV6, ADVERTISEMENT6), (&v6, ICMPV6, REDIRECT6)]
    {
        let (protocol, kind) = ([protocol], [kind]);
        let message = [
            Expr::Protocol(REG),
            Expr::Equal(REG, &protocol),
            Expr::Payload { base: 2, offset: 0, length: 1, to: REG },
            Expr::Equal(REG, &kind),
        ];
        add(&[family, &message, &[Expr::Drop]]);
    }
    for (family, port) in [(&v4, CLIENT), (&v6, CLIENT6)] {
        add(&[family, &to_port(&port.to_be_bytes()), &[Expr::Drop]]);
    }
    // Neighbours are found, and group memberships reported, with a link-local source or none. The host forwards no such packet.
    let source = load(IpFamily::V6, true);
    let (net, mask) = LINK_LOCAL;
    add(&[&v6, &[source, Expr::Mask { reg: REG, mask: &mask }, Expr::Equal(REG, &net), Expr::Return]]);
    let icmp = [Expr::Protocol(REG), Expr::Equal(REG, &[ICMPV6])];
    add(&[&v6, &icmp, &[source, Expr::Equal(REG, &[0; 16]), Expr::Return]]);
    // Without a source in IPv4, too, if it is for the link alone (`nft_fib4_eval`).
    add(&[&[Expr::LeadsBack(REG), Expr::Equal(REG, &[0]), Expr::Drop]]);
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
