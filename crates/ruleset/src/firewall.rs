//! Packets that the firewall accepts: traffic of containers and the answers to it. Isolation of bridges.

use std::net::IpAddr;

use kernel::{Socket, nft::Element};

use crate::{
    address,
    elements::{self, Conflict, Placed, Share},
    error::RulesetError,
    octets, port_name,
    tables::{ADMITTED4, ADMITTED6, BRIDGE, FILTER, GUARDED, ISOLATED, TOGETHER},
};

const PURPOSE: char = 'f';
const PURPOSE_OF_BRIDGE: char = 'b';

/// The traffic that a container is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The container's addresses, whose traffic is accepted.
    pub addresses: Vec<IpAddr>,
    /// Bridge ports that are isolated from each other.
    pub isolated: Vec<String>,
}

/// Accepts a container's traffic.
///
/// # Errors
/// If the kernel refuses the request.
pub fn add(socket: &Socket, owner: &str, admission: &Admission) -> Result<(), RulesetError> {
    let share = Share { purpose: PURPOSE, owner };
    elements::put(socket, share, &placed(owner, admission), &|_, _, _| ())
}

/// Returns whether the ruleset matches the result of [`add`].
///
/// # Errors
/// If the kernel refuses the request.
pub fn is_set(socket: &Socket, owner: &str, admission: &Admission) -> Result<bool, RulesetError> {
    Ok(elements::absent(socket, &placed(owner, admission))?.is_empty())
}

/// Removes a container's accepted traffic, and returns its addresses. Succeeds if there is none.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove(socket: &Socket, owner: &str) -> Result<Vec<IpAddr>, RulesetError> {
    let removed = elements::remove(socket, Share { purpose: PURPOSE, owner }, &[FILTER, BRIDGE])?;
    let addresses = removed.iter().filter(|(set, _)| [ADMITTED4, ADMITTED6].contains(set));
    Ok(addresses.filter_map(|(_, element)| address(&element.key)).collect())
}

/// Isolates a bridge from all other isolated bridges and, unless `together` is set, its containers from each other.
/// The network owns the isolation, so it outlives single containers.
///
/// # Errors
/// If the kernel refuses the request.
pub fn guard(socket: &Socket, network: &str, bridge: &str, together: bool) -> Result<(), RulesetError> {
    let placed = guarding(network, bridge, together);
    // The first container of the network isolated the bridge.
    if elements::absent(socket, &placed)?.is_empty() {
        return Ok(());
    }
    elements::put(socket, Share { purpose: PURPOSE_OF_BRIDGE, owner: network }, &placed, &|_, _, _| ())
}

/// Returns whether a bridge is isolated as [`guard`] does it.
///
/// # Errors
/// If the kernel refuses the request.
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
