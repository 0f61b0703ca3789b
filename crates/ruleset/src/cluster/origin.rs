//! What this host accepts from tunnels: packets from nodes, and packets of pods from the node that has their block alone.
//!
//! The check is at the input hook, where a tunnelled packet still has its outer source. It reads the packet in the tunnel by its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kernel::{
    IpFamily,
    nft::{self, Batch, Element, Expr, Field, Hook, Place, Reg},
};

use super::{Cluster, FILTER, INPUT, REG, bytes, guard::to_port, load, nodes_of, number_of};
use crate::octets;

/// What a tunnel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// Ethernet frames (RFC 7348).
    Vxlan {
        /// The network identifier, 24 bits. Others on the same port belong to other programs.
        vni: u32,
    },
    /// Packets without Ethernet header (VXLAN-GPE).
    Gpe,
}

impl Tunnel {
    /// Returns the expressions that match tunnelled packets which carry a family.
    fn carries(self, family: IpFamily) -> [Expr<'static>; 2] {
        let (offset, kind): (_, &[u8]) = match (self, family) {
            (Self::Vxlan { .. }, IpFamily::V4) => (28, &[0x08, 0x00]),
            (Self::Vxlan { .. }, IpFamily::V6) => (28, &[0x86, 0xdd]),
            (Self::Gpe, IpFamily::V4) => (11, &[1]),
            (Self::Gpe, IpFamily::V6) => (11, &[2]),
        };
        let length = if self == Self::Gpe { 1 } else { 2 };
        [Expr::Payload { base: 2, offset, length, to: REG }, Expr::Equal(REG, kind)]
    }

    /// Returns the place of the carried packet's source from the outer transport header on: offset and length.
    fn place(self, family: IpFamily) -> (u32, u32) {
        // After the headers of UDP and VXLAN, and the frame's.
        let packet = if self == Self::Gpe { 16 } else { 30 };
        match family {
            IpFamily::V4 => (packet + 12, 4),
            IpFamily::V6 => (packet + 8, 16),
        }
    }

    /// Returns the expression that loads the carried packet's source.
    fn source(self, family: IpFamily, to: Reg) -> Expr<'static> {
        let (offset, length) = self.place(family);
        Expr::Payload { base: 2, offset, length, to }
    }
}

/// A set of nodes' addresses with their blocks: those of one family each, and of one length, so that one lookup finds both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    outer: IpFamily,
    inner: IpFamily,
    length: u8,
}

impl Origin {
    fn of(node: IpAddr, block: IpNet) -> Self {
        Self { outer: IpFamily::of(node), inner: IpFamily::of(block.addr()), length: block.prefix_len() }
    }

    /// Returns the set's name.
    pub(super) fn name(self) -> String {
        let digit = |family| if family == IpFamily::V4 { 4 } else { 6 };
        format!("nodes{}_blocks{}_{}", digit(self.outer), digit(self.inner), self.length)
    }

    /// Returns the mask that makes the block's address of a pod's.
    fn mask(self) -> Vec<u8> {
        IpNet::new(self.inner.unspecified(), self.length).map(|net| octets(net.netmask())).unwrap_or_default()
    }
}

/// Returns the sets of nodes' addresses with their blocks, and the elements.
pub(super) fn origins<'a>(
    blocks: impl Iterator<Item = &'a (IpAddr, IpNet)>,
) -> BTreeMap<Origin, Vec<Element>> {
    let mut origins: BTreeMap<Origin, Vec<Element>> = BTreeMap::new();
    for (node, block) in blocks {
        let key = [octets(*node), octets(block.network())].concat();
        let element = Element { key, ..Element::default() };
        origins.entry(Origin::of(*node, *block)).or_default().push(element);
    }
    origins
}

impl Cluster {
    /// Returns the sets of nodes' addresses with their blocks, if there are tunnels.
    pub(super) fn origins(&self) -> impl Iterator<Item = Origin> {
        let of = self.blocks.iter().filter(|_| self.tunnel.is_some());
        of.map(|(node, block)| Origin::of(*node, *block)).collect::<BTreeSet<_>>().into_iter()
    }

    pub(super) fn create_origins(&self, batch: &mut Batch) {
        let Some(tunnel) = self.tunnel else { return };
        for origin in self.origins() {
            let (offset, length) = tunnel.place(origin.inner);
            let node = if origin.outer == IpFamily::V4 { Field::Ipv4 } else { Field::Ipv6 };
            let key = &[node, Field::Transport { offset, length }];
            let comment = "the nodes' addresses, and their blocks as sources in tunnels";
            batch.create_set(FILTER, &nft::Set { name: &origin.name(), key, data: None, comment });
        }
    }

    pub(super) fn hear_nodes_alone(&self, batch: &mut Batch) {
        let hook = Hook { kind: "filter", number: INPUT, priority: -11 };
        batch.create_chain(
            FILTER,
            HEARD,
            None,
            "from nodes, and packets of pods from the node that has their block",
        );
        batch.create_chain(FILTER, "tunnel", Some(hook), "tunnelled packets");
        let port = self.tunnel_port.to_be_bytes();
        add(batch, "tunnel", &[&to_port(&port), &[Expr::Goto(HEARD)]]);
        if let Some(tunnel) = self.tunnel {
            self.hear_owners(batch, tunnel);
        }
        for family in IpFamily::ALL {
            let foreign = [load(family, true), Expr::NotInSet(REG, nodes_of(family).name), Expr::Drop];
            add(batch, HEARD, &[&is(&number_of(family)), &foreign]);
        }
        if let Some(tunnel) = self.tunnel {
            self.hear_no_others(batch, tunnel);
        }
    }

    /// Accepts packets of pods from the node that has their block. This comes first: it is one lookup for most packets.
    fn hear_owners(&self, batch: &mut Batch, tunnel: Tunnel) {
        for origin in self.origins() {
            // The key's second field follows the address of the node.
            let second = Reg(if origin.outer == IpFamily::V4 { 1 } else { 4 });
            let (mask, name) = (origin.mask(), origin.name());
            let owner = [
                load(origin.outer, true),
                tunnel.source(origin.inner, second),
                Expr::Mask { reg: second, mask: &mask },
                Expr::InSet(REG, &name),
                Expr::Return,
            ];
            add(batch, HEARD, &[&is(&number_of(origin.outer)), &tunnel.carries(origin.inner), &owner]);
        }
    }

    /// Drops other packets of pods. Other sources are accepted: a node may forward for hosts outside the cluster.
    fn hear_no_others(&self, batch: &mut Batch, tunnel: Tunnel) {
        if let Tunnel::Vxlan { vni } = tunnel {
            let [_, vni @ ..] = vni.to_be_bytes();
            let other =
                [Expr::Payload { base: 2, offset: 12, length: 3, to: REG }, Expr::NotEqual(REG, &vni)];
            add(batch, HEARD, &[&other, &[Expr::Return]]);
        }
        for net in &self.pods {
            let family = IpFamily::of(net.addr());
            let (net, mask) = bytes(net);
            let of_pod =
                [tunnel.source(family, REG), Expr::Mask { reg: REG, mask: &mask }, Expr::Equal(REG, &net)];
            add(batch, HEARD, &[&tunnel.carries(family), &of_pod, &[Expr::Drop]]);
        }
        for family in IpFamily::ALL {
            add(batch, HEARD, &[&tunnel.carries(family), &[Expr::Return]]);
        }
        // These tunnels carry nothing else: neighbours are known.
        add(batch, HEARD, &[&[Expr::Drop]]);
    }
}

const HEARD: &str = "heard";

fn add(batch: &mut Batch, chain: &str, rule: &[&[Expr<'_>]]) {
    batch.add_rule(FILTER, chain, Place::Last, &rule.concat(), "");
}

/// Returns the expressions that match the packets of a family.
fn is(number: &[u8; 1]) -> [Expr<'_>; 2] {
    [Expr::Family(REG), Expr::Equal(REG, number)]
}
