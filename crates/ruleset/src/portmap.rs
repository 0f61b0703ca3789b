//! Published ports: packets to a port of the host are forwarded to a port of a container.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use kernel::{
    IpFamily, Socket,
    nft::{Batch, Element, Expr, Place, Table},
};

use crate::{
    address,
    condition::{self, Condition},
    elements::{self, Conflict, Placed, Share},
    error::RulesetError,
    octets,
    tables::{NAT4, NAT6, Nat, PUBLISHED, Set},
};

const PURPOSE: char = 'p';

/// A transport protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Parses the name, in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            _ => return None,
        })
    }

    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Returns the number in the network header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// One published port. All addresses are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address; `None` for all.
    pub host: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's address.
    pub container: IpAddr,
    /// The container's port.
    pub container_port: u16,
}

impl fmt::Display for Mapping {
    /// Writes `8080/tcp to 10.88.0.2:80`, or `192.0.2.1:8080/tcp to …` if only one address of the host has the port.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(host) => write!(out, "{}", SocketAddr::new(host, self.host_port))?,
            None => write!(out, "{}", self.host_port)?,
        }
        write!(out, "/{} to {}", self.protocol.as_str(), SocketAddr::new(self.container, self.container_port))
    }
}

/// The traffic to a published port whose source address becomes the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// None.
    Nobody,
    /// Traffic of the container itself and of 127.0.0.1, whose answers would otherwise not reach the sender.
    Hairpin,
    /// All traffic.
    Everybody,
}

/// The way ports are published, the same for all containers of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The traffic to masquerade.
    pub masquerade: Masquerade,
    /// Conditions on packets to IPv4 ports.
    pub conditions_v4: Vec<Condition>,
    /// Conditions on packets to IPv6 ports.
    pub conditions_v6: Vec<Condition>,
}

impl Terms {
    fn conditions(&self, family: IpFamily) -> &[Condition] {
        match family {
            IpFamily::V4 => &self.conditions_v4,
            IpFamily::V6 => &self.conditions_v6,
        }
    }
}

/// Publishes all of the ports, or none.
///
/// # Errors
/// [`RulesetError::Taken`] with the index in `mappings` and the owner if another owner has published the port. Otherwise if the
/// kernel refuses the request.
pub fn add(socket: &Socket, owner: &str, mappings: &[Mapping], terms: &Terms) -> Result<(), RulesetError> {
    let share = Share { purpose: PURPOSE, owner };
    elements::put(socket, share, &placed(owner, mappings, terms), &|table, there, batch| {
        let conditions = terms.conditions(if table == NAT4 { IpFamily::V4 } else { IpFamily::V6 });
        let chain = condition::chain(conditions);
        if !conditions.is_empty() && !there.contains(&chain) {
            create_chain(batch, table, &chain, conditions);
        }
    })
}

/// Lists the places in `mappings` that are not published as [`add`] would have it; a place behind them stands for what
/// goes with all of them.
///
/// # Errors
/// If the kernel refuses the request.
pub fn absent(
    socket: &Socket,
    owner: &str,
    mappings: &[Mapping],
    terms: &Terms,
) -> Result<Vec<usize>, RulesetError> {
    elements::absent(socket, &placed(owner, mappings, terms))
}

/// Removes an owner's published ports, and returns them. Succeeds if there are none.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove(socket: &Socket, owner: &str) -> Result<Vec<Mapping>, RulesetError> {
    let removed = elements::remove(socket, Share { purpose: PURPOSE, owner }, &[NAT4, NAT6])?;
    Ok(removed.iter().filter_map(|(set, element)| mapping_of(set, element)).collect())
}

/// Places the mappings first and in order, so that their index is the mapping's.
fn placed(owner: &str, mappings: &[Mapping], terms: &Terms) -> Vec<Placed> {
    let comment = Some(owner.to_owned());
    let place = |table, set, key, data, conflict| Placed {
        table,
        set,
        element: Element { key, data, comment: comment.clone(), ..Element::default() },
        conflict,
    };
    let mut placed: Vec<Placed> = Vec::new();
    for mapping in mappings {
        let nat = Nat::of(mapping.container);
        let mut key = mapping.host.map(octets).unwrap_or_default();
        key.extend(protocol_and_port(mapping));
        let data = [octets(mapping.container), padded(mapping.container_port).to_vec()].concat();
        let set = if mapping.host.is_some() { nat.ports_on } else { nat.ports };
        placed.push(place(nat.table, set, key, data, Conflict::Refuse));
    }
    for mapping in mappings {
        let nat = Nat::of(mapping.container);
        let conditions = terms.conditions(IpFamily::of(mapping.container));
        let key = protocol_and_port(mapping);
        let same = |other: &Placed| other.set == nat.conditional && other.element.key == key;
        if conditions.is_empty() || placed.iter().any(same) {
            continue;
        }
        let mut conditional = place(nat.table, nat.conditional, key, Vec::new(), Conflict::Refuse);
        conditional.element.goto = Some(condition::chain(conditions));
        placed.push(conditional);
    }
    let mut containers: Vec<IpAddr> = mappings.iter().map(|mapping| mapping.container).collect();
    containers.sort_unstable();
    containers.dedup();
    for container in containers {
        let nat = Nat::of(container);
        let to = octets(container);
        let take_over = |set, key| place(nat.table, set, key, Vec::new(), Conflict::TakeOver);
        match terms.masquerade {
            Masquerade::Nobody => {}
            Masquerade::Everybody => placed.push(take_over(nat.masquerade_to, to)),
            Masquerade::Hairpin => {
                let pair = |from: Vec<u8>| [from, to.clone()].concat();
                placed.push(take_over(nat.hairpin, pair(to.clone())));
                if container.is_ipv4() {
                    placed.push(take_over(nat.hairpin, pair(octets(Ipv4Addr::LOCALHOST.into()))));
                }
            }
        }
    }
    placed
}

/// Creates the chain that sends packets which meet the conditions to the ports.
fn create_chain(batch: &mut Batch, table: Table<'_>, name: &str, conditions: &[Condition]) {
    batch.create_chain(table, name, None, "conditions under which ports are published");
    let matching: Vec<Expr<'_>> = conditions.iter().flat_map(Condition::expressions).collect();
    let rule = [matching, vec![Expr::Goto(PUBLISHED)]].concat();
    batch.add_rule(table, name, Place::Last, &rule, "");
}

/// Parses an element, or returns `None` if it is not a published port.
pub(crate) fn mapping_of(set: &Set, element: &Element) -> Option<Mapping> {
    let v4 = [Nat::of(Ipv4Addr::LOCALHOST.into()).ports, Nat::of(Ipv4Addr::LOCALHOST.into()).ports_on];
    if !set.name.starts_with("ports") {
        return None;
    }
    let length = if v4.contains(set) { 4 } else { 16 };
    let (host, key) = element.key.split_at_checked(element.key.len().checked_sub(8)?)?;
    let (container, port) = element.data.split_at_checked(length)?;
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| key.first() == Some(&protocol.number()))?;
    Some(Mapping {
        protocol,
        host: address(host),
        host_port: u16::from_be_bytes(*key.get(4..)?.first_chunk()?),
        container: address(container)?,
        container_port: u16::from_be_bytes(*port.first_chunk()?),
    })
}

fn protocol_and_port(mapping: &Mapping) -> Vec<u8> {
    [[mapping.protocol.number(), 0, 0, 0], padded(mapping.host_port)].concat()
}

fn padded(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}
