//! MAC spoof check: a bridge port may send only from its container's hardware address.

use kernel::{Socket, link::Mac, nft::Element};

use crate::{
    elements::{self, Conflict, Placed, RulesetError, Share},
    port_name,
    tables::{BRIDGE, SPOOF_ALLOWED, SPOOF_GUARDED},
};

const PURPOSE: char = 's';

/// Lets a port send only from one hardware address.
///
/// # Errors
/// When the kernel refuses, as without the nftables bridge family.
pub fn add(socket: &Socket, owner: &str, port: &str, mac: Mac) -> Result<(), RulesetError> {
    let share = Share { purpose: PURPOSE, owner };
    elements::put(socket, share, &placed(owner, port, mac), &|_, _, _| ())
}

/// Tells whether the check is as [`add`] would have it.
///
/// # Errors
/// When the kernel refuses.
pub fn is_set(socket: &Socket, owner: &str, port: &str, mac: Mac) -> Result<bool, RulesetError> {
    elements::absent(socket, &placed(owner, port, mac)).map(|absent| absent.is_empty())
}

/// Removes an owner's checks, and tells whether there were any.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(socket: &Socket, owner: &str) -> Result<bool, RulesetError> {
    let share = Share { purpose: PURPOSE, owner };
    elements::remove(socket, share, &[BRIDGE]).map(|removed| !removed.is_empty())
}

fn placed(owner: &str, port: &str, mac: Mac) -> [Placed; 2] {
    let name = port_name(port);
    let pair = [&name[..], &mac.0, &[0; 2]].concat();
    [(SPOOF_ALLOWED, pair), (SPOOF_GUARDED, name)].map(|(set, key)| Placed {
        table: BRIDGE,
        set,
        element: Element { key, comment: Some(owner.to_owned()), ..Element::default() },
        conflict: Conflict::TakeOver,
    })
}
