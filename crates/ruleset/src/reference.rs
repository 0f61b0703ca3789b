//! Removal of what the reference plugins created for a container, in iptables and in tables of their own.
//!
//! A container may have been added by them before the node was migrated. Names and comments are as
//! `github.com/containernetworking/plugins` makes them.

use std::net::IpAddr;

use kernel::{
    Kind, Socket,
    nft::{self, Batch, Family, Rule, Table},
    xtables,
};

use crate::{error::RulesetError, octets};

const NAT: [(Table<'_>, xtables::Family); 2] = [
    (Table { family: Family::Ip, name: "nat" }, xtables::Family::V4),
    (Table { family: Family::Ip6, name: "nat" }, xtables::Family::V6),
];
const HOST_PORT: [Table<'_>; 2] =
    [Table { family: Family::Ip, name: "cni_hostport" }, Table { family: Family::Ip6, name: "cni_hostport" }];
const HOST_PORT_CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];
const MASQUERADE: Table<'_> = Table { family: Family::Inet, name: "cni_plugins_masquerade" };
const MASQUERADE_CHAIN: &str = "masq_checks";
/// The chains that jump to a container's chain.
const PARENTS: [&str; 3] = ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SNAT", "POSTROUTING"];
const ROUNDS: usize = 16;

/// Removes a container's chains in iptables' NAT tables and the rules that lead to them.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove_nat_chains(socket: &Socket, names: &[String]) -> Result<(), RulesetError> {
    let there = tables(socket)?;
    for (table, legacy) in NAT {
        xtables::edit(legacy, "nat", |table| {
            table.remove_chains(|chain| names.iter().any(|it| it == chain))
        })?;
        for name in names {
            if has(&there, table) && nft::has_chain(socket, table, name)? {
                remove_chain(socket, table, name)?;
            }
        }
    }
    Ok(())
}

/// Removes a container's published ports from the tables of the reference's nftables backend.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove_host_ports(socket: &Socket, container: &str) -> Result<(), RulesetError> {
    let there = tables(socket)?;
    for table in HOST_PORT.into_iter().filter(|table| has(&there, *table)) {
        for chain in HOST_PORT_CHAINS {
            remove_rules(socket, table, chain, &|rule| rule.comment.as_deref() == Some(container))?;
        }
    }
    Ok(())
}

/// Removes the masquerade rules of the reference's nftables backend whose comment `stale` picks.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove_masquerade(socket: &Socket, stale: &dyn Fn(&str) -> bool) -> Result<(), RulesetError> {
    remove_rules(socket, MASQUERADE, MASQUERADE_CHAIN, &|rule| rule.comment.as_deref().is_some_and(stale))
}

/// Lists the comments of the masquerade rules of the reference's nftables backend.
///
/// # Errors
/// If the kernel refuses the request.
pub fn masquerade_comments(socket: &Socket) -> Result<Vec<String>, RulesetError> {
    let rules = nft::rules(socket, MASQUERADE, MASQUERADE_CHAIN)?;
    Ok(rules.into_iter().filter_map(|rule| rule.comment).collect())
}

/// Removes the rules of the chain `CNI-FORWARD` that accept these addresses.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove_forward_rules(socket: &Socket, addresses: &[IpAddr]) -> Result<(), RulesetError> {
    const CHAIN: &str = "CNI-FORWARD";
    let keys: Vec<Vec<u8>> = addresses.iter().copied().map(octets).collect();
    for (family, legacy) in [(Family::Ip, xtables::Family::V4), (Family::Ip6, xtables::Family::V6)] {
        if addresses.is_empty() {
            return Ok(());
        }
        let of = |ip: Option<IpAddr>| ip.is_some_and(|ip| addresses.contains(&ip));
        xtables::edit(legacy, "filter", |table| {
            table.remove_rules(|chain, rule| chain == CHAIN && (of(rule.source()) || of(rule.destination())))
        })?;
        let table = Table { family, name: "filter" };
        remove_rules(socket, table, CHAIN, &|rule| rule.compared.iter().any(|value| keys.contains(value)))?;
    }
    Ok(())
}

/// Lists the containers of a network that have chains in iptables' NAT tables, by the comments of the rules that lead
/// to them.
///
/// # Errors
/// If the kernel refuses the request.
pub fn containers_with_nat_chains(socket: &Socket, network: &str) -> Result<Vec<String>, RulesetError> {
    let mut containers = Vec::new();
    for (table, legacy) in NAT {
        let old = xtables::read(legacy, "nat")?;
        for parent in PARENTS {
            let of_old = old.iter().flat_map(|table| table.rules(parent)).filter_map(xtables::Rule::comment);
            let of_new = nft::rules(socket, table, parent)?.into_iter().filter_map(|rule| rule.comment);
            containers.extend(of_old.chain(of_new).filter_map(|comment| container_of(&comment, network)));
        }
    }
    containers.sort_unstable();
    containers.dedup();
    Ok(containers)
}

/// Reads `name: "NETWORK" id: "CONTAINER"`.
fn container_of(comment: &str, network: &str) -> Option<String> {
    let rest = comment.split_once(&format!("name: \"{network}\" id: \""))?.1;
    rest.strip_suffix('"').map(str::to_owned)
}

/// Lists the tables there are; none on a kernel whose netfilter has no nftables.
fn tables(socket: &Socket) -> Result<Vec<(Family, String)>, RulesetError> {
    match nft::tables(socket) {
        Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Unsupported) => Ok(Vec::new()),
        other => Ok(other?),
    }
}

fn has(there: &[(Family, String)], table: Table<'_>) -> bool {
    there.iter().any(|(family, name)| *family == table.family && name == table.name)
}

fn remove_chain(socket: &Socket, table: Table<'_>, chain: &str) -> Result<(), RulesetError> {
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let mut batch = Batch::new();
        for parent in PARENTS {
            for rule in nft::rules(socket, table, parent)? {
                if rule.target.as_deref() == Some(chain) {
                    batch.remove_rule(table, parent, rule.handle);
                }
            }
        }
        batch.remove_chain(table, chain);
        outcome = nft::commit(socket, batch, None);
        match &outcome {
            Err(error) if error.kind() == Kind::NotFound && !nft::has_chain(socket, table, chain)? => {
                return Ok(());
            }
            // Another process changed the same rules.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Busy | Kind::Stale) => {}
            _ => break,
        }
    }
    Ok(outcome?)
}

fn remove_rules(
    socket: &Socket,
    table: Table<'_>,
    chain: &str,
    stale: &dyn Fn(&Rule) -> bool,
) -> Result<(), RulesetError> {
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let rules = match nft::rules(socket, table, chain) {
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Unsupported) => return Ok(()),
            other => other?,
        };
        let mut batch = Batch::new();
        for rule in rules.iter().filter(|rule| stale(rule)) {
            batch.remove_rule(table, chain, rule.handle);
        }
        outcome = nft::commit(socket, batch, None);
        match &outcome {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => {}
            _ => break,
        }
    }
    Ok(outcome?)
}
