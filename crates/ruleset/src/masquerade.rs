//! Masquerade: what leaves a container's subnet gets the address of the host.

use ipnet::IpNet;
use kernel::{
    Kind, Socket,
    nft::{self, Batch, Element, Expr, Reg},
};

use crate::{
    elements::{self, Conflict, Placed, RulesetError},
    tables::{INET, MASQ4, MASQ6},
};

const PREFIX: &str = "masq-";

/// Masquerades what comes from these addresses and goes outside their prefix.
///
/// # Errors
/// When the kernel refuses.
pub fn add(socket: &Socket, owner: &str, addresses: &[IpNet]) -> Result<(), RulesetError> {
    elements::put(socket, INET, &placed(owner, addresses), &|there, batch| {
        let mut there = there.to_vec();
        for net in addresses {
            let chain = chain(*net);
            if !there.contains(&chain) {
                create_chain(batch, &chain, *net);
                there.push(chain);
            }
        }
    })
}

/// Lists the addresses that are not masqueraded as [`add`] would have it.
///
/// # Errors
/// When the kernel refuses.
pub fn absent(socket: &Socket, owner: &str, addresses: &[IpNet]) -> Result<Vec<IpNet>, RulesetError> {
    let absent = elements::absent(socket, INET, &placed(owner, addresses))?;
    Ok(absent.into_iter().map(|index| addresses[index]).collect())
}

/// Removes what an owner has. None is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(socket: &Socket, owner: &str) -> Result<(), RulesetError> {
    elements::remove(socket, INET, &[MASQ4, MASQ6], &|comment| comment == owner)
}

/// Removes the chains of subnets that no container is in any more.
pub(crate) fn remove_unused_chains(socket: &Socket) -> Result<(), RulesetError> {
    for chain in nft::chains(socket, INET)?.into_iter().filter(|chain| chain.starts_with(PREFIX)) {
        let mut batch = Batch::new();
        batch.remove_chain(INET, &chain);
        match nft::commit(socket, batch, None) {
            // The kernel counts who leads to a chain, so it is the one to ask.
            Err(error) if matches!(error.kind(), Kind::Busy | Kind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}

fn placed(owner: &str, addresses: &[IpNet]) -> Vec<Placed> {
    let place = |net: &IpNet| Placed {
        set: if net.addr().is_ipv4() { MASQ4 } else { MASQ6 },
        element: Element {
            key: octets(net.addr()),
            goto: Some(chain(*net)),
            comment: Some(owner.to_owned()),
            ..Element::default()
        },
        conflict: Conflict::TakeOver,
    };
    addresses.iter().map(place).collect()
}

/// Names the chain of a subnet, in the letters that nft takes for a name.
fn chain(net: IpNet) -> String {
    format!("{PREFIX}{}-{}", net.network(), net.prefix_len()).replace(':', "_")
}

fn create_chain(batch: &mut Batch, name: &str, net: IpNet) {
    let (offset, length) = if net.addr().is_ipv4() { (16, 4) } else { (24, 16) };
    let (network, mask) = (octets(net.network()), octets(net.netmask()));
    batch.create_chain(INET, name, None);
    let family: u8 = if net.addr().is_ipv4() { 2 } else { 10 };
    let rule = [
        Expr::Family(Reg(0)),
        Expr::Equal(Reg(0), &[family]),
        Expr::Payload { base: 1, offset, length, to: Reg(0) },
        Expr::Mask { reg: Reg(0), mask: &mask },
        Expr::NotEqual(Reg(0), &network),
        Expr::Masquerade,
    ];
    batch.add_rule(INET, name, &rule);
}

pub(crate) fn octets(ip: std::net::IpAddr) -> Vec<u8> {
    match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
