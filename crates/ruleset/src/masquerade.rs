//! Masquerade: packets that leave a container's subnet get the host's address.

use ipnet::IpNet;
use kernel::{
    Socket,
    nft::{Batch, Element, Expr, Place, Reg},
};

use crate::{
    chains,
    elements::{self, Conflict, Placed, Share},
    error::RulesetError,
    octets,
    tables::{NAT4, NAT6, Nat},
};

const PURPOSE: char = 'm';

/// Masquerades packets from these addresses to destinations outside their prefix.
///
/// # Errors
/// If the kernel refuses the request.
pub fn add(socket: &Socket, owner: &str, addresses: &[IpNet]) -> Result<(), RulesetError> {
    let share = Share { purpose: PURPOSE, owner };
    elements::put(socket, share, &placed(owner, addresses), &|table, there, batch| {
        let mut there = there.to_vec();
        for net in addresses.iter().filter(|net| Nat::of(net.addr()).table == table) {
            let chain = chain(*net);
            if !there.contains(&chain) {
                create_chain(batch, &chain, *net);
                there.push(chain);
            }
        }
    })
}

/// Returns the addresses that are not masqueraded as [`add`] does it.
///
/// # Errors
/// If the kernel refuses the request.
pub fn absent(socket: &Socket, owner: &str, addresses: &[IpNet]) -> Result<Vec<IpNet>, RulesetError> {
    let absent = elements::absent(socket, &placed(owner, addresses))?;
    Ok(absent.into_iter().map(|index| addresses[index]).collect())
}

/// Removes an owner's masquerade. Succeeds if there is none.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove(socket: &Socket, owner: &str) -> Result<(), RulesetError> {
    elements::remove(socket, Share { purpose: PURPOSE, owner }, &[NAT4, NAT6]).map(drop)
}

fn placed(owner: &str, addresses: &[IpNet]) -> Vec<Placed> {
    let place = |net: &IpNet| {
        let nat = Nat::of(net.addr());
        Placed {
            table: nat.table,
            set: nat.masquerade,
            element: Element {
                key: octets(net.addr()),
                goto: Some(chain(*net)),
                comment: Some(owner.to_owned()),
                ..Element::default()
            },
            conflict: Conflict::TakeOver,
        }
    };
    addresses.iter().map(place).collect()
}

/// Returns the name of a subnet's chain, in characters that nft accepts.
fn chain(net: IpNet) -> String {
    format!("{}{}-{}", chains::MASQUERADE, net.network(), net.prefix_len()).replace(':', "_")
}

fn create_chain(batch: &mut Batch, name: &str, net: IpNet) {
    let table = Nat::of(net.addr()).table;
    let (offset, length) = if net.addr().is_ipv4() { (16, 4) } else { (24, 16) };
    let (network, mask) = (octets(net.network()), octets(net.netmask()));
    batch.create_chain(table, name, None, "what leaves this subnet");
    let rule = [
        Expr::Payload { base: 1, offset, length, to: Reg(0) },
        Expr::Mask { reg: Reg(0), mask: &mask },
        Expr::NotEqual(Reg(0), &network),
        Expr::Masquerade,
    ];
    batch.add_rule(table, name, Place::Last, &rule, "");
}
