//! Published ports: what arrives at a port of the host goes to a port of a container.

use std::net::{IpAddr, Ipv4Addr};

use kernel::{Socket, nft::Element};

use crate::{
    elements::{self, Conflict, Placed, RulesetError},
    masquerade::octets,
    tables::{HAIRPIN4, HAIRPIN6, INET, MASQ_TO4, MASQ_TO6, PORTS4, PORTS4_ON, PORTS6, PORTS6_ON},
};

/// Names a transport protocol that has ports.
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
    /// Parses the name, in lower case as everybody writes it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            _ => return None,
        })
    }

    /// Gives the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Describes one published port. All addresses are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address; none for all.
    pub host: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's address.
    pub container: IpAddr,
    /// The container's port.
    pub container_port: u16,
}

/// Says whose traffic to a published port gets the host's address as its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// Nobody's.
    Nobody,
    /// The container's own, and the host's from 127.0.0.1: without it their answers would go astray.
    Hairpin,
    /// Everybody's.
    Everybody,
}

/// Publishes ports; all or none.
///
/// # Errors
/// [`RulesetError::Taken`] with the place in `mappings` and the owner when somebody else has published the
/// port, or when the kernel refuses.
pub fn add(
    socket: &Socket,
    owner: &str,
    mappings: &[Mapping],
    masquerade: Masquerade,
) -> Result<(), RulesetError> {
    elements::put(socket, INET, &placed(owner, mappings, masquerade), &|_, _| ())
}

/// Lists the places in `mappings` that are not published as [`add`] would have it.
///
/// # Errors
/// When the kernel refuses.
pub fn absent(
    socket: &Socket,
    owner: &str,
    mappings: &[Mapping],
    masquerade: Masquerade,
) -> Result<Vec<usize>, RulesetError> {
    elements::absent(socket, INET, &placed(owner, mappings, masquerade))
}

/// Removes what an owner has published. None is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(socket: &Socket, owner: &str) -> Result<(), RulesetError> {
    let sets = [PORTS4, PORTS6, PORTS4_ON, PORTS6_ON, HAIRPIN4, HAIRPIN6, MASQ_TO4, MASQ_TO6];
    elements::remove(socket, INET, &sets, &|comment| comment == owner)
}

/// Places the mappings first and in order, so that their index is the mapping's.
fn placed(owner: &str, mappings: &[Mapping], masquerade: Masquerade) -> Vec<Placed> {
    let comment = Some(owner.to_owned());
    let place = |set, key, data, conflict| Placed {
        set,
        element: Element { key, data, comment: comment.clone(), ..Element::default() },
        conflict,
    };
    let mut placed: Vec<Placed> = Vec::new();
    for mapping in mappings {
        let v4 = mapping.container.is_ipv4();
        let mut key = mapping.host.map(octets).unwrap_or_default();
        key.extend([mapping.protocol.number(), 0, 0, 0]);
        key.extend(padded(mapping.host_port));
        let mut data = octets(mapping.container);
        data.extend(padded(mapping.container_port));
        let set = match (v4, mapping.host.is_some()) {
            (true, false) => PORTS4,
            (true, true) => PORTS4_ON,
            (false, false) => PORTS6,
            (false, true) => PORTS6_ON,
        };
        placed.push(place(set, key, data, Conflict::Refuse));
    }
    let mut containers: Vec<IpAddr> = mappings.iter().map(|mapping| mapping.container).collect();
    containers.sort_unstable();
    containers.dedup();
    for container in containers {
        let v4 = container.is_ipv4();
        let to = octets(container);
        match masquerade {
            Masquerade::Nobody => {}
            Masquerade::Everybody => {
                let set = if v4 { MASQ_TO4 } else { MASQ_TO6 };
                placed.push(place(set, to, Vec::new(), Conflict::TakeOver));
            }
            Masquerade::Hairpin => {
                let set = if v4 { HAIRPIN4 } else { HAIRPIN6 };
                let pair = |from: Vec<u8>| [from, to.clone()].concat();
                placed.push(place(set, pair(to.clone()), Vec::new(), Conflict::TakeOver));
                if v4 {
                    let loopback = pair(octets(Ipv4Addr::LOCALHOST.into()));
                    placed.push(place(set, loopback, Vec::new(), Conflict::TakeOver));
                }
            }
        }
    }
    placed
}

fn padded(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}
