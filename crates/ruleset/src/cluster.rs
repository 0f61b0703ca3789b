//! The ruleset of a node in a cluster. Packets between pods pass even if a foreign firewall drops forwarded packets,
//! packets out of the cluster get the node's address, and tunnelled packets are accepted only from nodes.
//!
//! Each of three families has a table `netloom-cluster`. Its rules follow from the cluster's configuration
//! and are replaced in one transaction when that changes. The nodes and their blocks are elements of sets.

mod guard;
mod origin;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kernel::{
    IpFamily, Socket,
    hash::fnv1a,
    nft::{self, Batch, Element, Expr, Family, Field, Hook, Place, Reg, Table},
};

use crate::{
    error::RulesetError,
    forward_hook::{self, Wanted},
    octets,
    tables::{self, CLUSTER_FILTER as FILTER, MARK, Set},
};

pub use guard::POD_GROUP;
pub use origin::Tunnel;

/// The part of a cluster's configuration that its rules follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The prefixes of pods, of both families.
    pub pods: Vec<IpNet>,
    /// Prefixes of pods on the segment of the host's uplink. Their packets pass unchanged in both directions.
    pub bridged: Vec<IpNet>,
    /// Destinations outside the pods' prefixes that pods reach with their own address.
    pub unmasqueraded: Vec<IpNet>,
    /// Whether other packets of pods leave with the node's address.
    pub masquerade: bool,
    /// The UDP port of tunnelled packets.
    pub tunnel_port: u16,
    /// What this host's tunnels carry; `None` if it has none.
    pub tunnel: Option<Tunnel>,
    /// The addresses of the nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// The blocks of the other nodes, each with an address of the node.
    pub blocks: BTreeSet<(IpAddr, IpNet)>,
}

/// The name of the cluster's tables.
pub const NAME: &str = tables::CLUSTER;
const NAT4: Table<'_> = Table { family: Family::Ip, name: NAME };
const NAT6: Table<'_> = Table { family: Family::Ip6, name: NAME };
const ALL: [Table<'_>; 3] = [NAT4, NAT6, FILTER];

const NODES4: Set = Set { name: "nodes4", key: &[Field::Ipv4], data: None, comment: "the nodes" };
const NODES6: Set = Set { name: "nodes6", key: &[Field::Ipv6], data: None, comment: "the nodes" };

/// The administrator's chain in iptables, as the reference plugins have it.
const WANTED: Wanted<'_> = Wanted { admin_chain: "CNI-ADMIN", always: false };
const ROUNDS: usize = 16;

/// What is known of the tables from earlier calls.
#[derive(Debug, Default)]
pub struct Known {
    /// The chains as the daemon has created them, as a hash of whether each drops by default, and of its rules' numbers. The kernel
    /// gives every new rule a new number, so changes of other programs are recognized.
    pub chains: Option<u64>,
    settled: Option<Settled>,
}

/// The tables when they were last as they should be.
#[derive(Debug)]
struct Settled {
    /// The generation of the whole ruleset. While it is the same, nothing has changed.
    generation: u32,
    comment: String,
    cluster: Cluster,
}

impl Known {
    /// Starts with the hash of the chains that an earlier process created.
    pub fn new(chains: Option<u64>) -> Self {
        Self { chains, settled: None }
    }
}

/// Applies the cluster's rules and returns whether anything changed. Tables that are not known to be as the daemon has created them
/// are created again, in one transaction.
///
/// # Errors
/// If the kernel refuses; then nothing has changed.
pub fn ensure(socket: &Socket, cluster: &Cluster, known: &mut Known) -> Result<bool, RulesetError> {
    // If no foreign chain could drop forwarded packets, they need no mark.
    let guarded = forward_hook::is_needed(socket)?;
    let comment = cluster.fingerprint(guarded);
    let mut changed = false;
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let generation = nft::generation(socket)?;
        let mut batch = Batch::new();
        let mut is_created = false;
        if let Some(settled) =
            known.settled.as_ref().filter(|it| it.generation == generation && it.comment == comment)
        {
            let there: BTreeMap<String, Vec<Element>> = settled.cluster.elements().into_iter().collect();
            cluster.change_elements(|set| Ok(there.get(set).cloned().unwrap_or_default()), &mut batch)?;
        } else {
            is_created = cluster.create(socket, &comment, guarded, known.chains, &mut batch)?;
            if !is_created {
                cluster.change_elements(|set| Ok(nft::elements(socket, FILTER, set)?), &mut batch)?;
            }
        }
        let settled = |generation| {
            let (comment, cluster) = (comment.clone(), cluster.clone());
            Some(Settled { generation, comment, cluster })
        };
        if batch.is_empty() {
            if known.settled.as_ref().is_none_or(|settled| settled.generation != generation) {
                known.settled = settled(generation);
            }
            break;
        }
        outcome = nft::commit(socket, batch, Some(generation));
        match &outcome {
            Ok(()) => {
                changed = true;
                let next = generation.wrapping_add(1);
                if is_created {
                    let created = chains(socket)?;
                    // If another process has changed the ruleset meanwhile, what was read may be its work.
                    let is_own = nft::generation(socket)? == next;
                    known.chains = is_own.then_some(created);
                }
                known.settled = known.chains.and_then(|_| settled(next));
                break;
            }
            // Another process changed an unrelated part of the ruleset: try again.
            Err(error) if error.kind() == kernel::Kind::Stale => {}
            Err(_) => break,
        }
    }
    outcome?;
    if guarded {
        forward_hook::open(socket, WANTED)?;
    }
    Ok(changed)
}

/// Reads the chains of the cluster's tables, and returns their hash.
fn chains(socket: &Socket) -> Result<u64, RulesetError> {
    let mut chains = BTreeMap::new();
    for chain in nft::all_chains(socket)? {
        if let Some(table) = ALL.iter().find(|table| **table == chain.table()) {
            let rules = nft::rules(socket, *table, &chain.name)?;
            let handles: Vec<u64> = rules.iter().map(|rule| rule.handle).collect();
            chains.insert((table.family.as_str(), chain.name), (chain.drops, handles));
        }
    }
    Ok(fnv1a(format!("{chains:?}").bytes()))
}

/// Removes the cluster's tables. Succeeds if there are none.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove(socket: &Socket) -> Result<(), RulesetError> {
    let mut batch = Batch::new();
    for table in ALL {
        if nft::table_comment(socket, table)?.is_some() {
            batch.remove_table(table);
        }
    }
    nft::commit(socket, batch, None)?;
    if nft::table_comment(socket, tables::FILTER)?.is_none() {
        forward_hook::close(socket)?;
    }
    Ok(())
}

impl Cluster {
    /// Returns the table's comment, which identifies the configuration that its rules were made from.
    fn fingerprint(&self, guarded: bool) -> String {
        let list = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let text = format!(
            "{}|{}|{}|{}|{}|{guarded}|{:?}|{:?}",
            list(&self.pods),
            list(&self.bridged),
            list(&self.unmasqueraded),
            self.masquerade,
            self.tunnel_port,
            self.tunnel,
            self.origins().keys(),
        );
        let hash = fnv1a(text.bytes());
        format!("netloomd, ruleset 2, {hash:016x}")
    }

    fn fill(&self, table: Table<'static>, batch: &mut Batch, guarded: bool) {
        match table.family {
            Family::Ip => self.masquerade(table, batch, IpFamily::V4),
            Family::Ip6 => self.masquerade(table, batch, IpFamily::V6),
            Family::Inet | Family::Bridge => {
                batch.create_set(table, &NODES4);
                batch.create_set(table, &NODES6);
                self.create_origins(batch);
                for (set, elements) in self.elements() {
                    batch.add_elements(table, &set, &elements);
                }
                if guarded {
                    self.forward(batch);
                }
                self.guard_pods(batch);
                self.hear_nodes_alone(batch);
            }
        }
    }

    fn of_family(nets: &[IpNet], family: IpFamily) -> impl Iterator<Item = &IpNet> {
        nets.iter().filter(move |net| family.has(net.addr()))
    }

    fn masquerade(&self, table: Table<'_>, batch: &mut Batch, family: IpFamily) {
        if !self.masquerade {
            return;
        }
        batch.create_chain(
            table,
            "from_pods",
            None,
            "to pods, and to what is configured, with their own address",
        );
        let multicast = match family {
            IpFamily::V4 => MULTICAST4,
            IpFamily::V6 => MULTICAST6,
        };
        let kept = Self::of_family(&self.pods, family).chain(Self::of_family(&self.unmasqueraded, family));
        for net in kept.chain([&multicast]) {
            let (octets, mask) = bytes(net);
            let rule = [
                load(family, false),
                Expr::Mask { reg: REG, mask: &mask },
                Expr::Equal(REG, &octets),
                Expr::Return,
            ];
            batch.add_rule(table, "from_pods", Place::Last, &rule, "");
        }
        batch.add_rule(table, "from_pods", Place::Last, &[Expr::Masquerade], "");
        let hook = Hook { kind: "nat", number: POSTROUTING, priority: 100 };
        batch.create_chain(table, "postrouting", Some(hook), "what pods send out of the cluster");
        for net in Self::of_family(&self.pods, family) {
            let (octets, mask) = bytes(net);
            let rule = [
                load(family, true),
                Expr::Mask { reg: REG, mask: &mask },
                Expr::Equal(REG, &octets),
                Expr::Jump("from_pods"),
            ];
            batch.add_rule(table, "postrouting", Place::Last, &rule, "");
        }
    }

    /// Marks accepted packets between two chains at the hook, so that foreign tables accept them.
    fn forward(&self, batch: &mut Batch) {
        let mark = [
            Expr::Mark(REG),
            Expr::Bits { reg: REG, keep: &(!MARK).to_ne_bytes(), flip: &MARK.to_ne_bytes() },
            Expr::SetMark(REG),
        ];
        let forget =
            [Expr::Mark(REG), Expr::Mask { reg: REG, mask: &(!MARK).to_ne_bytes() }, Expr::SetMark(REG)];
        let hook = |priority| Some(Hook { kind: "filter", number: FORWARD, priority });
        batch.create_chain(
            FILTER,
            "admit",
            hook(-11),
            "pods' traffic, answers to it, and what nodes send to pods",
        );
        batch.create_chain(FILTER, "forget", hook(11), "takes the mark away again");
        let add = |batch: &mut Batch, chain: &str, parts: &[&[Expr<'_>]]| {
            batch.add_rule(FILTER, chain, Place::Last, &parts.concat(), "");
        };
        let bridged = self.bridged.iter().map(|net| (net, true));
        for (net, bridged) in self.pods.iter().map(|net| (net, false)).chain(bridged) {
            let family = IpFamily::of(net.addr());
            let number = number_of(family);
            let of_family = [Expr::Family(REG), Expr::Equal(REG, &number)];
            let (octets, mask) = bytes(net);
            let is_pod = |source| {
                [load(family, source), Expr::Mask { reg: REG, mask: &mask }, Expr::Equal(REG, &octets)]
            };
            add(batch, "admit", &[&of_family, &is_pod(true), &mark]);
            for source in [true, false] {
                add(batch, "forget", &[&of_family, &is_pod(source), &forget]);
            }
            if bridged {
                add(batch, "admit", &[&of_family, &is_pod(false), &mark]);
                // Neighbour solicitations go to a multicast group, not to the pod (RFC 4861, section 4.3 and 4.4).
                for kind in [135, 136].into_iter().filter(|_| family == IpFamily::V6) {
                    let asks = [
                        Expr::Protocol(REG),
                        Expr::Equal(REG, &[ICMPV6]),
                        Expr::Payload { base: 2, offset: 0, length: 1, to: REG },
                        Expr::Equal(REG, &[kind]),
                    ];
                    add(batch, "admit", &[&of_family, &asks, &mark]);
                    add(batch, "forget", &[&of_family, &asks, &forget]);
                }
                continue;
            }
            let related = (2_u32 | 4).to_ne_bytes();
            let answers = [
                Expr::ConnectionState(REG),
                Expr::Mask { reg: REG, mask: &related },
                Expr::NotEqual(REG, &[0; 4]),
            ];
            add(batch, "admit", &[&of_family, &is_pod(false), &answers, &mark]);
            let nodes = nodes_of(family);
            let from_node = [load(family, true), Expr::InSet(REG, nodes.name)];
            add(batch, "admit", &[&of_family, &from_node, &is_pod(false), &mark]);
        }
    }

    /// Adds the tables to a batch that are not there as the daemon has created them. Returns whether there are any.
    fn create(
        &self,
        socket: &Socket,
        comment: &str,
        guarded: bool,
        known: Option<u64>,
        batch: &mut Batch,
    ) -> Result<bool, RulesetError> {
        let is_known = known == Some(chains(socket)?);
        for table in ALL {
            match nft::table_comment(socket, table)? {
                Some(there) if is_known && there == comment => continue,
                Some(_) => batch.remove_table(table),
                None => {}
            }
            batch.create_table(table, comment);
            self.fill(table, batch, guarded);
        }
        Ok(!batch.is_empty())
    }

    /// Returns the elements of all sets, by the set's name.
    fn elements(&self) -> Vec<(String, Vec<Element>)> {
        let nodes = IpFamily::ALL.map(|family| {
            let of_family = self.nodes.iter().filter(|ip| family.has(**ip));
            let elements = of_family.map(|ip| Element { key: octets(*ip), ..Element::default() });
            (nodes_of(family).name.to_owned(), elements.collect())
        });
        let origins = self.origins().into_iter().map(|(origin, elements)| (origin.name(), elements));
        nodes.into_iter().chain(origins).collect()
    }

    /// Changes the elements of the sets from what is `there`.
    fn change_elements(
        &self,
        there: impl Fn(&str) -> Result<Vec<Element>, RulesetError>,
        batch: &mut Batch,
    ) -> Result<(), RulesetError> {
        for (set, wanted) in self.elements() {
            let there = there(&set)?;
            let keys = |elements: &[Element]| -> BTreeSet<Vec<u8>> {
                elements.iter().map(|element| element.key.clone()).collect()
            };
            let (old, new) = (keys(&there), keys(&wanted));
            let gone: Vec<Element> = there.into_iter().filter(|it| !new.contains(&it.key)).collect();
            let new: Vec<Element> = wanted.into_iter().filter(|it| !old.contains(&it.key)).collect();
            if !gone.is_empty() {
                batch.remove_elements(FILTER, &set, &gone);
            }
            if !new.is_empty() {
                batch.add_elements(FILTER, &set, &new);
            }
        }
        Ok(())
    }
}

const REG: Reg = Reg(0);
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
const MULTICAST4: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(224, 0, 0, 0), 4));
const MULTICAST6: IpNet =
    IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8));

/// Returns the set of node addresses of a family.
fn nodes_of(family: IpFamily) -> Set {
    match family {
        IpFamily::V4 => NODES4,
        IpFamily::V6 => NODES6,
    }
}

/// Returns a family's number as `meta nfproto` has it (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
fn number_of(family: IpFamily) -> [u8; 1] {
    match family {
        IpFamily::V4 => [2],
        IpFamily::V6 => [10],
    }
}

/// Returns the expression that loads the source or the destination address.
fn load(family: IpFamily, source: bool) -> Expr<'static> {
    let (offset, length) = match (family, source) {
        (IpFamily::V4, true) => (12, 4),
        (IpFamily::V4, false) => (16, 4),
        (IpFamily::V6, true) => (8, 16),
        (IpFamily::V6, false) => (24, 16),
    };
    Expr::Payload { base: 1, offset, length, to: REG }
}

/// Returns a prefix as the kernel compares it: the network's address and its mask.
fn bytes(net: &IpNet) -> (Vec<u8>, Vec<u8>) {
    (octets(net.network()), octets(net.netmask()))
}
