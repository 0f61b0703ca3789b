//! MAC spoof check: a bridge port may send only from its container's hardware address.

use kernel::{Socket, link::Mac, nft::Element};

use crate::{
    elements::{self, Conflict, Placed, RulesetError},
    tables::{BRIDGE, SPOOF_ALLOWED, SPOOF_GUARDED},
};

/// Lets a port send only from one hardware address.
///
/// # Errors
/// When the kernel refuses, as without the nftables bridge family.
pub fn add(socket: &Socket, owner: &str, port: &str, mac: Mac) -> Result<(), RulesetError> {
    elements::put(socket, BRIDGE, &placed(owner, port, mac), &|_, _| ())
}

/// Tells whether the check is as [`add`] would have it.
///
/// # Errors
/// When the kernel refuses.
pub fn is_set(socket: &Socket, owner: &str, port: &str, mac: Mac) -> Result<bool, RulesetError> {
    elements::absent(socket, BRIDGE, &placed(owner, port, mac)).map(|absent| absent.is_empty())
}

/// Removes an owner's checks. None is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(socket: &Socket, owner: &str) -> Result<(), RulesetError> {
    elements::remove(socket, BRIDGE, &[SPOOF_GUARDED, SPOOF_ALLOWED], &|comment| comment == owner)
}

fn placed(owner: &str, port: &str, mac: Mac) -> [Placed; 2] {
    let mut name = port.as_bytes().to_vec();
    name.resize(16, 0);
    let pair = [&name[..], &mac.0, &[0; 2]].concat();
    [(SPOOF_ALLOWED, pair), (SPOOF_GUARDED, name)].map(|(set, key)| Placed {
        set,
        element: Element { key, comment: Some(owner.to_owned()), ..Element::default() },
        conflict: Conflict::TakeOver,
    })
}
