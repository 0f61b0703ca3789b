//! Spoof check: a bridge port may send only from its container's hardware address, and from its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel::{Socket, link::Mac, nft::Element};

use crate::{
    address,
    elements::{self, Conflict, Placed, Share},
    error::RulesetError,
    octets, port_name,
    tables::{ADDRESS_GUARDED, BRIDGE, SENDER4, SENDER6, SPOOF_ALLOWED, SPOOF_GUARDED},
};

const PURPOSE: char = 's';

/// The addresses that a bridge port may send from.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    /// The port's name.
    pub port: &'a str,
    /// The container's hardware address.
    pub mac: Mac,
    /// Whether frames from other hardware addresses are dropped.
    pub check_mac: bool,
    /// Packets and claims (ARP, neighbour advertisements) of other addresses than these are dropped; `None` for no check.
    pub addresses: &'a [IpAddr],
}

/// Restricts a port to its container's addresses.
///
/// # Errors
/// If the kernel refuses, as without the nftables bridge family.
pub fn add(socket: &Socket, owner: &str, sender: &Sender<'_>) -> Result<(), RulesetError> {
    let share = Share { purpose: PURPOSE, owner };
    elements::put(socket, share, &placed(owner, sender), &|_, _, _| ())
}

/// Changes the hardware address of an owner's checks to the new one of its interface. Succeeds if there are no checks.
///
/// # Errors
/// If the kernel refuses the request.
pub fn follow(socket: &Socket, owner: &str, mac: Mac) -> Result<(), RulesetError> {
    const NAME: usize = 16;
    let claims = elements::claimed(socket, Share { purpose: PURPOSE, owner }, BRIDGE)?;
    let Some(port) = claims.first().and_then(|(_, key)| key.get(..NAME)) else { return Ok(()) };
    let port = String::from_utf8_lossy(port).trim_end_matches('\0').to_owned();
    let check_mac = claims.iter().any(|(set, _)| *set == SPOOF_GUARDED);
    let of_senders = claims.iter().filter(|(set, _)| [SENDER4, SENDER6].contains(set));
    // What is not a container's own but follows from its hardware address, or is none, is worked out again.
    let addresses: Vec<IpAddr> = of_senders
        .filter_map(|(_, key)| address(key.get(NAME..)?))
        .filter(|ip| !ip.is_unspecified() && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
        .collect();
    add(socket, owner, &Sender { port: &port, mac, check_mac, addresses: &addresses })
}

/// Returns whether the check is as [`add`] would have it.
///
/// # Errors
/// If the kernel refuses the request.
pub fn is_set(socket: &Socket, owner: &str, sender: &Sender<'_>) -> Result<bool, RulesetError> {
    elements::absent(socket, &placed(owner, sender)).map(|absent| absent.is_empty())
}

/// Removes an owner's checks. Succeeds if there is nothing to remove.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove(socket: &Socket, owner: &str) -> Result<(), RulesetError> {
    elements::remove(socket, Share { purpose: PURPOSE, owner }, &[BRIDGE]).map(drop)
}

fn placed(owner: &str, sender: &Sender<'_>) -> Vec<Placed> {
    let name = port_name(sender.port);
    let mut keys = Vec::new();
    if sender.check_mac {
        keys.push((SPOOF_ALLOWED, [&name[..], &sender.mac.0, &[0; 2]].concat()));
        keys.push((SPOOF_GUARDED, name.clone()));
    }
    if !sender.addresses.is_empty() {
        // Without an address of its own yet it asks for one, and whether one is another's; neighbours are found by the
        // address of the link.
        let own = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(link_local(sender.mac)),
        ];
        for ip in sender.addresses.iter().chain(&own) {
            let set = if ip.is_ipv4() { SENDER4 } else { SENDER6 };
            keys.push((set, [&name[..], &octets(*ip)].concat()));
        }
        keys.push((ADDRESS_GUARDED, name));
    }
    let place = |(set, key)| Placed {
        table: BRIDGE,
        set,
        element: Element { key, comment: Some(owner.to_owned()), ..Element::default() },
        conflict: Conflict::TakeOver,
    };
    keys.into_iter().map(place).collect()
}

/// Returns the link-local address that the kernel makes of a hardware address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
