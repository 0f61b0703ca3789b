//! Adding, finding and removing the elements of an owner.

use kernel::{
    Error, Kind, Socket,
    nft::{self, Batch, Element, Set, Table},
};

use crate::tables;

/// Says why the ruleset could not be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesetError {
    /// The kernel refused.
    Kernel(Error),
    /// Somebody else has the element: the comment of its owner.
    Taken {
        /// What was to be added, by its place in the list.
        index: usize,
        /// Who has it.
        owner: String,
    },
}

impl From<Error> for RulesetError {
    fn from(error: Error) -> Self {
        Self::Kernel(error)
    }
}

/// Says what to do when somebody else has a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Leave it and fail.
    Refuse,
    /// Take it over: the older owner's DEL leaves it alone then.
    TakeOver,
}

/// Holds an element and the set that it goes to.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) set: Set,
    pub(crate) element: Element,
    pub(crate) conflict: Conflict,
}

/// Others change the ruleset at the same time; each round means that one of them got something done.
const ROUNDS: usize = 64;

/// Adds elements in one transaction. `missing` adds chains that the elements lead to and that are not there.
pub(crate) fn put(
    socket: &Socket,
    table: Table,
    placed: &[Placed],
    missing: &dyn Fn(&[String], &mut Batch),
) -> Result<(), RulesetError> {
    if placed.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    let mut generation = None;
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        for Placed { set, element, .. } in placed {
            batch.add_elements(table, set.name, std::slice::from_ref(element));
        }
        outcome = nft::commit(socket, batch, generation);
        let kind = match &outcome {
            Ok(()) => return Ok(()),
            Err(error) => error.kind(),
        };
        batch = Batch::new();
        match kind {
            // The first container of the host or of a subnet, a key in use, or a race with one of these.
            Kind::NotFound | Kind::Exists | Kind::Stale => {
                generation = Some(nft::generation(socket)?);
                tables::ensure(socket, table, &mut batch)?;
                missing(&nft::chains(socket, table)?, &mut batch);
                clear_the_way(socket, table, placed, &mut batch)?;
            }
            Kind::Busy
            | Kind::Denied
            | Kind::Unsupported
            | Kind::Interrupted
            | Kind::TimedOut
            | Kind::Invalid => {
                break;
            }
        }
    }
    outcome.map_err(RulesetError::from)
}

/// Removes what stands where an element is to go, or fails if that is somebody else's and to be left.
fn clear_the_way(
    socket: &Socket,
    table: Table,
    placed: &[Placed],
    batch: &mut Batch,
) -> Result<(), RulesetError> {
    for (index, Placed { set, element, conflict }) in placed.iter().enumerate() {
        let Some(there) = nft::element(socket, table, set.name, &element.key)? else { continue };
        if *conflict == Conflict::Refuse && there.comment != element.comment {
            return Err(RulesetError::Taken { index, owner: there.comment.unwrap_or_default() });
        }
        batch.remove_elements(table, set.name, &[there]);
    }
    Ok(())
}

/// Finds which of the elements are not there, or lead elsewhere, or belong to somebody else.
pub(crate) fn absent(socket: &Socket, table: Table, placed: &[Placed]) -> Result<Vec<usize>, RulesetError> {
    let mut absent = Vec::new();
    for (index, Placed { set, element, .. }) in placed.iter().enumerate() {
        if nft::element(socket, table, set.name, &element.key)?.as_ref() != Some(element) {
            absent.push(index);
        }
    }
    Ok(absent)
}

/// Removes the elements of some sets of a table whose owner `stale` picks.
///
/// What is removed is exactly what was read: if anything changes in between, the kernel refuses the batch and
/// it is read again. So an element that changed hands is never taken from its new owner.
pub(crate) fn remove(
    socket: &Socket,
    table: Table,
    sets: &[Set],
    stale: &dyn Fn(&str) -> bool,
) -> Result<(), RulesetError> {
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let generation = match nft::generation(socket) {
            // A kernel whose netfilter has no nftables has nothing to remove.
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Unsupported) => return Ok(()),
            other => other?,
        };
        let mut batch = Batch::new();
        for set in sets {
            let elements = nft::elements(socket, table, set.name)?;
            let of_owner = elements.into_iter().filter(|e| e.comment.as_deref().is_some_and(stale));
            batch.remove_elements(table, set.name, &of_owner.collect::<Vec<_>>());
        }
        outcome = nft::commit(socket, batch, Some(generation));
        match &outcome {
            Err(error) if matches!(error.kind(), Kind::Stale | Kind::NotFound) => {}
            _ => break,
        }
    }
    outcome.map_err(RulesetError::from)
}

/// Removes everything in our tables whose owner `stale` picks, and the chains that nothing leads to any more.
///
/// # Errors
/// When the kernel refuses.
pub fn retain(socket: &Socket, stale: &dyn Fn(&str) -> bool) -> Result<(), RulesetError> {
    for table in [tables::INET, tables::BRIDGE] {
        remove(socket, table, tables::sets(table), stale)?;
    }
    crate::masquerade::remove_unused_chains(socket)
}

/// Lists the owners of all elements in our tables, one for each element.
///
/// # Errors
/// When the kernel refuses.
pub fn owners(socket: &Socket) -> Result<Vec<String>, RulesetError> {
    let mut owners = Vec::new();
    for table in [tables::INET, tables::BRIDGE] {
        for set in tables::sets(table) {
            owners.extend(nft::elements(socket, table, set.name)?.into_iter().filter_map(|e| e.comment));
        }
    }
    Ok(owners)
}
