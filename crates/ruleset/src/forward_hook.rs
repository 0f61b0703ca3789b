//! Rules in foreign tables that accept marked packets.
//!
//! An `accept` in Netloom's table does not override a `drop` in another. So each chain at the forward hook that would drop
//! packets marked by the chain `admit` gets one fixed rule that accepts them, regardless of the number of containers. In
//! iptables' chains the rule is where the reference plugins put theirs, after the chain in which an administrator can override
//! it. In other chains it is directly before the rule that drops the rest.

use kernel::{
    Kind, Socket,
    nft::{self, Batch, Chain, Expr, Family, Hook, Place, Reg, Rule, Table},
    xtables::{self, Target},
};

use crate::{
    error::RulesetError,
    tables::{self, MARK},
};

/// The desired layout of iptables' chains.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The chain in which an administrator can override the plugin's rules.
    pub admin_chain: &'a str,
    /// Whether to create the chain even if iptables is not in use.
    pub always: bool,
}

/// The chain of the reference plugins at the forward hook, and its comment.
const FORWARD: &str = "FORWARD";
const OF_PLUGINS: &str = "CNI-FORWARD";
const FORWARD_COMMENT: &str = "CNI firewall plugin rules";
const ADMIN_COMMENT: &str = "CNI firewall plugin admin overrides";
/// The comment that identifies our rules.
const COMMENT: &str = "Netloom: containers' traffic";
/// The table of firewalld, which manages its own chains and is configured over D-Bus.
const FIREWALLD: &str = "firewalld";
const ROUNDS: usize = 64;
const FORWARD_HOOK: u32 = 2;

/// Adds an accepting rule to every chain at the forward hook that would drop containers' traffic.
///
/// # Errors
/// If the kernel refuses the request.
pub fn open(socket: &Socket, wanted: Wanted<'_>) -> Result<(), RulesetError> {
    for family in xtables::Family::ALL {
        xtables::edit(family, "filter", |table| open_legacy(table, family, wanted))?;
    }
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let generation = nft::generation(socket)?;
        let batch = missing(socket, wanted)?;
        outcome = nft::commit(socket, batch, Some(generation));
        match &outcome {
            Err(error) if matches!(error.kind(), Kind::Stale | Kind::NotFound | Kind::Exists) => {}
            _ => break,
        }
    }
    Ok(outcome?)
}

/// Returns whether [`open`] has nothing to do.
///
/// # Errors
/// If the kernel refuses the request.
pub fn is_open(socket: &Socket, wanted: Wanted<'_>) -> Result<bool, RulesetError> {
    for family in xtables::Family::ALL {
        if let Some(mut table) = xtables::read(family, "filter")?
            && open_legacy(&mut table, family, wanted)
        {
            return Ok(false);
        }
    }
    Ok(missing(socket, wanted)?.is_empty())
}

/// Returns whether a foreign chain at the forward hook may drop packets that must pass.
///
/// # Errors
/// If the kernel refuses the request.
pub fn is_needed(socket: &Socket) -> Result<bool, RulesetError> {
    let used = xtables::Family::ALL.into_iter().any(|family| xtables::is_used(family, "filter"));
    let others = |chain: &Chain| {
        chain.hook == Some(FORWARD_HOOK)
            && chain.kind.as_deref() == Some("filter")
            && chain.family != Family::Bridge
            && !tables::ALL.contains(&chain.table())
            && chain.table() != tables::CLUSTER_FILTER
    };
    Ok(used || nft::all_chains(socket)?.iter().any(others))
}

/// Returns whether a chain of nftables at the forward hook drops IPv4 packets that no rule accepts, as Docker and ufw make it.
///
/// # Errors
/// If the kernel refuses the request.
pub fn drops_by_default(socket: &Socket) -> Result<bool, RulesetError> {
    let drops = |chain: &Chain| {
        chain.drops
            && chain.hook == Some(FORWARD_HOOK)
            && chain.kind.as_deref() == Some("filter")
            && [Family::Ip, Family::Inet].contains(&chain.family)
    };
    Ok(nft::all_chains(socket)?.iter().any(drops))
}

/// Removes our rules from foreign tables, for when no container needs them.
///
/// # Errors
/// If the kernel refuses the request.
pub fn close(socket: &Socket) -> Result<(), RulesetError> {
    for family in xtables::Family::ALL {
        xtables::edit(family, "filter", |table| {
            let removed = table.remove_rules(|_, rule| rule.comment().as_deref() == Some(COMMENT));
            let of_plugins = table.rules(OF_PLUGINS);
            let admin = of_plugins.first().and_then(|rule| match rule.target() {
                Target::Jump(to) if rule.comment().as_deref() == Some(ADMIN_COMMENT) => Some(to.clone()),
                _ => None,
            });
            // Only the jump to the administrator's chain is left.
            if removed && of_plugins.len() == 1 && admin.is_some() {
                table.remove_chains(|chain| chain == OF_PLUGINS);
                if let Some(admin) = admin.filter(|admin| table.rules(admin).is_empty()) {
                    table.remove_chains(|chain| chain == admin);
                }
            }
            removed
        })?;
    }
    for _ in 0..ROUNDS {
        let generation = match nft::generation(socket) {
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Unsupported) => return Ok(()),
            other => other?,
        };
        let batch = closing(socket)?;
        match nft::commit(socket, batch, Some(generation)) {
            Err(error) if matches!(error.kind(), Kind::Stale | Kind::NotFound | Kind::Busy) => {}
            other => return Ok(other?),
        }
    }
    Ok(())
}

/// Returns a batch that adds the missing rules.
fn missing(socket: &Socket, wanted: Wanted<'_>) -> Result<Batch, RulesetError> {
    let chains = nft::all_chains(socket)?;
    let mut batch = Batch::new();
    for (family, legacy) in [(Family::Ip, xtables::Family::V4), (Family::Ip6, xtables::Family::V6)] {
        let table = Table { family, name: "filter" };
        let of_iptables: Vec<&Chain> = chains.iter().filter(|chain| chain.table() == table).collect();
        let there = of_iptables.iter().any(|chain| chain.name == FORWARD && chain.hook.is_some());
        if !there {
            if !wanted.always || xtables::is_used(legacy, "filter") {
                continue;
            }
            if of_iptables.is_empty() && !nft::tables(socket)?.contains(&(family, "filter".to_owned())) {
                batch.create_table(table, "");
            }
            let hook = Hook { kind: "filter", number: FORWARD_HOOK, priority: 0 };
            batch.create_chain(table, FORWARD, Some(hook), "");
        }
        let has = |name: &str| of_iptables.iter().any(|chain| chain.name == name);
        open_iptables(socket, table, wanted, &has, &mut batch)?;
    }
    for chain in chains.iter().filter(|chain| may_drop(chain)) {
        let rules = nft::rules(socket, chain.table(), &chain.name)?;
        if rules.iter().any(|rule| rule.comment.as_deref() == Some(COMMENT)) {
            continue;
        }
        let place = match rules.last() {
            Some(last) if is_for_all(last) => Place::Before(last.handle),
            _ if chain.drops => Place::Last,
            _ => continue,
        };
        admit(&mut batch, chain.table(), &chain.name, place);
    }
    Ok(batch)
}

/// Returns whether a foreign chain may drop containers' packets. Excludes firewalld's table and iptables' `FORWARD`.
fn may_drop(chain: &Chain) -> bool {
    chain.hook == Some(FORWARD_HOOK)
        && chain.kind.as_deref() == Some("filter")
        && chain.family != Family::Bridge
        && !tables::ALL.contains(&chain.table())
        && chain.table != FIREWALLD
        && !(chain.name == FORWARD && chain.table == "filter" && chain.family != Family::Inet)
}

/// Returns whether a rule drops or rejects every packet.
fn is_for_all(rule: &Rule) -> bool {
    const NO_CONDITION: [&str; 5] = ["counter", "log", "limit", "immediate", "reject"];
    rule.drops && rule.expressions.iter().all(|name| NO_CONDITION.contains(&name.as_str()))
}

fn admit(batch: &mut Batch, table: Table<'_>, chain: &str, place: Place) {
    let mark = MARK.to_ne_bytes();
    let rule = [
        Expr::Mark(Reg(0)),
        Expr::Mask { reg: Reg(0), mask: &mark },
        Expr::Equal(Reg(0), &mark),
        Expr::Counter,
        Expr::Accept,
    ];
    batch.add_rule(table, chain, place, &rule, COMMENT);
}

/// Creates the chains and rules of the reference plugins, with Netloom's rule among them.
fn open_iptables(
    socket: &Socket,
    table: Table<'_>,
    wanted: Wanted<'_>,
    has: &dyn Fn(&str) -> bool,
    batch: &mut Batch,
) -> Result<(), RulesetError> {
    for chain in [OF_PLUGINS, wanted.admin_chain] {
        if !has(chain) {
            batch.create_chain(table, chain, None, "");
        }
    }
    let rules = |chain: &str| if has(chain) { nft::rules(socket, table, chain) } else { Ok(Vec::new()) };
    let leads_to = |rules: &[Rule], to: &str| rules.iter().any(|rule| rule.target.as_deref() == Some(to));
    if !leads_to(&rules(FORWARD)?, OF_PLUGINS) {
        let jump = [Expr::Counter, Expr::Jump(OF_PLUGINS)];
        batch.add_rule(table, FORWARD, Place::First, &jump, FORWARD_COMMENT);
    }
    let of_plugins = rules(OF_PLUGINS)?;
    if !leads_to(&of_plugins, wanted.admin_chain) {
        let jump = [Expr::Counter, Expr::Jump(wanted.admin_chain)];
        batch.add_rule(table, OF_PLUGINS, Place::First, &jump, ADMIN_COMMENT);
    }
    if !of_plugins.iter().any(|rule| rule.comment.as_deref() == Some(COMMENT)) {
        admit(batch, table, OF_PLUGINS, Place::Last);
    }
    Ok(())
}

fn open_legacy(table: &mut xtables::Table, family: xtables::Family, wanted: Wanted<'_>) -> bool {
    let jump = |to: &str, comment: &str| {
        xtables::Rule::of(family, Target::Jump(to.to_owned())).with_comment(comment)
    };
    let leads_to = |table: &xtables::Table, chain: &str, to: &str| {
        table.rules(chain).iter().any(|rule| *rule.target() == Target::Jump(to.to_owned()))
    };
    let mut changed = table.ensure_chain(OF_PLUGINS) | table.ensure_chain(wanted.admin_chain);
    if !leads_to(table, FORWARD, OF_PLUGINS) {
        table.insert(FORWARD, jump(OF_PLUGINS, FORWARD_COMMENT));
        changed = true;
    }
    if !leads_to(table, OF_PLUGINS, wanted.admin_chain) {
        table.insert(OF_PLUGINS, jump(wanted.admin_chain, ADMIN_COMMENT));
        changed = true;
    }
    if !table.rules(OF_PLUGINS).iter().any(|rule| rule.comment().as_deref() == Some(COMMENT)) {
        let rule = xtables::Rule::of(family, Target::Accept).with_comment(COMMENT).with_mark(MARK);
        table.append(OF_PLUGINS, rule);
        changed = true;
    }
    changed
}

fn closing(socket: &Socket) -> Result<Batch, RulesetError> {
    let mut batch = Batch::new();
    let chains = nft::all_chains(socket)?;
    for chain in &chains {
        let table = chain.table();
        let is_plugins = chain.name == OF_PLUGINS && chain.table == "filter";
        if !(is_plugins || may_drop(chain)) {
            continue;
        }
        let rules = nft::rules(socket, table, &chain.name)?;
        let (ours, others): (Vec<&Rule>, Vec<&Rule>) =
            rules.iter().partition(|rule| rule.comment.as_deref() == Some(COMMENT));
        for rule in &ours {
            batch.remove_rule(table, &chain.name, rule.handle);
        }
        // Only the jump to the administrator's chain is left.
        if let [only] = &others[..]
            && is_plugins
            && !ours.is_empty()
            && only.comment.as_deref() == Some(ADMIN_COMMENT)
            && let Some(admin) = &only.target
        {
            for rule in nft::rules(socket, table, FORWARD)? {
                if rule.target.as_deref() == Some(OF_PLUGINS) {
                    batch.remove_rule(table, FORWARD, rule.handle);
                }
            }
            batch.remove_rule(table, OF_PLUGINS, only.handle);
            batch.remove_chain(table, OF_PLUGINS);
            if nft::rules(socket, table, admin)?.is_empty() {
                batch.remove_chain(table, admin);
            }
        }
    }
    Ok(batch)
}
