//! What a firewall lets through: containers' own traffic and its answers, and bridges that are kept apart.

use std::net::IpAddr;

use kernel::{Socket, nft::Element};

use crate::{
    address,
    elements::{self, Conflict, Placed, RulesetError, Share},
    octets, port_name,
    tables::{ADMITTED4, ADMITTED6, BRIDGE, FILTER, GUARDED, ISOLATED, TOGETHER},
};

const PURPOSE: char = 'f';
const PURPOSE_OF_BRIDGE: char = 'b';

/// Describes what a container is let do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Its addresses, whose traffic passes.
    pub addresses: Vec<IpAddr>,
    /// Ports of its bridge that do not reach other such ports.
    pub isolated: Vec<String>,
}

/// Lets a container's traffic through.
///
/// # Errors
/// When the kernel refuses.
pub fn add(socket: &Socket, owner: &str, admission: &Admission) -> Result<(), RulesetError> {
    let share = Share { purpose: PURPOSE, owner };
    elements::put(socket, share, &placed(owner, admission), &|_, _, _| ())
}

/// Returns whether all is as [`add`] would have it.
///
/// # Errors
/// When the kernel refuses.
pub fn is_set(socket: &Socket, owner: &str, admission: &Admission) -> Result<bool, RulesetError> {
    Ok(elements::absent(socket, &placed(owner, admission))?.is_empty())
}

/// Removes what a container is let do, and gives its addresses. None is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(socket: &Socket, owner: &str) -> Result<Vec<IpAddr>, RulesetError> {
    let removed = elements::remove(socket, Share { purpose: PURPOSE, owner }, &[FILTER, BRIDGE])?;
    let addresses = removed.iter().filter(|(set, _)| [ADMITTED4, ADMITTED6].contains(set));
    Ok(addresses.filter_map(|(_, element)| address(&element.key)).collect())
}

/// Keeps a bridge apart from all others that are kept apart, and (unless `together`) its containers from each other.
/// `network` is whose bridge it is: it stays when containers go.
///
/// # Errors
/// When the kernel refuses.
pub fn guard(socket: &Socket, network: &str, bridge: &str, together: bool) -> Result<(), RulesetError> {
    let placed = guarding(network, bridge, together);
    // The first container of the network did it.
    if elements::absent(socket, &placed)?.is_empty() {
        return Ok(());
    }
    elements::put(socket, Share { purpose: PURPOSE_OF_BRIDGE, owner: network }, &placed, &|_, _, _| ())
}

/// Returns whether a bridge is kept apart as [`guard`] would have it.
///
/// # Errors
/// When the kernel refuses.
pub fn is_guarded(
    socket: &Socket,
    network: &str,
    bridge: &str,
    together: bool,
) -> Result<bool, RulesetError> {
    Ok(elements::absent(socket, &guarding(network, bridge, together))?.is_empty())
}

fn placed(owner: &str, admission: &Admission) -> Vec<Placed> {
    let place = |table, set, key| Placed {
        table,
        set,
        element: Element { key, comment: Some(owner.to_owned()), ..Element::default() },
        conflict: Conflict::TakeOver,
    };
    let addresses = admission
        .addresses
        .iter()
        .map(|ip| place(FILTER, if ip.is_ipv4() { ADMITTED4 } else { ADMITTED6 }, octets(*ip)));
    addresses.chain(admission.isolated.iter().map(|port| place(BRIDGE, ISOLATED, port_name(port)))).collect()
}

fn guarding(network: &str, bridge: &str, together: bool) -> Vec<Placed> {
    let place = |set, key| Placed {
        table: FILTER,
        set,
        element: Element { key, comment: Some(network.to_owned()), ..Element::default() },
        conflict: Conflict::TakeOver,
    };
    let name = port_name(bridge);
    let mut placed = vec![place(GUARDED, name.clone())];
    if together {
        placed.push(place(TOGETHER, [&name[..], &name[..]].concat()));
    }
    placed
}
