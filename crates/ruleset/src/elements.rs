//! Adding, finding and removing the elements of an owner.
//!
//! The set `owners` of each table lists what an owner has in that table: one element for each purpose of each owner,
//! with the keys of the owner's other elements in its user data. So the cost of a removal does not depend on the number of
//! containers, and a removal needs only the owner's name.

use std::collections::BTreeSet;

use kernel::{
    Kind, Socket,
    hash::fnv1a,
    nft::{self, Batch, Element, Table},
};

use crate::{
    error::RulesetError,
    tables::{self, Set},
};

/// What to do if another owner has the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Leave the element and fail.
    Refuse,
    /// Take the element over. When the new owner is removed, the older one gets the element back.
    TakeOver,
}

/// An element, and the set and table that it goes to.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) table: Table<'static>,
    pub(crate) set: Set,
    pub(crate) element: Element,
    pub(crate) conflict: Conflict,
}

/// An owner's elements of one purpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share<'a> {
    /// A letter for the purpose.
    pub(crate) purpose: char,
    pub(crate) owner: &'a str,
}

/// An element as recorded in an owner's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    set: Set,
    key: Vec<u8>,
    goto: Option<String>,
}

/// The limit of attempts. Each failed attempt means that another process changed the ruleset.
const ROUNDS: usize = 64;
/// Set in an element's user data if more than one owner claims it.
const SHARED: &[u8] = &[1];

/// Adds elements in one transaction. `missing` adds chains that the elements lead to and that are not there.
pub(crate) fn put(
    socket: &Socket,
    share: Share<'_>,
    placed: &[Placed],
    missing: &dyn Fn(Table<'static>, &[String], &mut Batch),
) -> Result<(), RulesetError> {
    let in_use: Vec<Table<'static>> =
        tables::ALL.into_iter().filter(|table| placed.iter().any(|it| it.table == *table)).collect();
    if placed.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    let mut generation = None;
    let mut shared = BTreeSet::new();
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        for (index, Placed { table, set, element, .. }) in placed.iter().enumerate() {
            let mut element = element.clone();
            if shared.contains(&index) {
                element.extra = SHARED.to_vec();
            }
            batch.add_elements(*table, set.name, &[element]);
        }
        for table in &in_use {
            batch.add_elements(*table, tables::owners(), &share.entries(*table, placed));
        }
        outcome = nft::commit(socket, batch, generation);
        let kind = match &outcome {
            Ok(()) => return Ok(()),
            Err(error) => error.kind(),
        };
        batch = Batch::new();
        match kind {
            // The table or chain does not exist yet, a key is in use, or another process was faster.
            Kind::NotFound | Kind::Exists | Kind::Stale => {
                generation = Some(nft::generation(socket)?);
                for table in &in_use {
                    tables::ensure(socket, *table, &mut batch)?;
                    let mut there = nft::chains(socket, *table)?;
                    for Placed { set, .. } in placed.iter().filter(|it| it.table == *table) {
                        tables::ensure_set(*table, set, &mut there, &mut batch);
                    }
                    missing(*table, &there, &mut batch);
                }
                shared = clear_the_way(socket, share, placed, &in_use, &mut batch)?;
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

/// Removes the owner's previous elements, and elements with the keys to add. Fails if another owner has a key and must keep it.
/// Returns the positions that another owner claims too.
fn clear_the_way(
    socket: &Socket,
    share: Share<'_>,
    placed: &[Placed],
    in_use: &[Table<'static>],
    batch: &mut Batch,
) -> Result<BTreeSet<usize>, RulesetError> {
    let mut shared = BTreeSet::new();
    let mut away = BTreeSet::new();
    for (index, Placed { table, set, element, conflict }) in placed.iter().enumerate() {
        let Some(there) = nft::element(socket, *table, set.name, &element.key)? else { continue };
        let mine = there.comment.as_deref() == Some(share.owner);
        if *conflict == Conflict::Refuse && !mine {
            return Err(RulesetError::Taken { index, owner: there.comment.unwrap_or_default() });
        }
        if !mine || there.extra == SHARED {
            shared.insert(index);
        }
        away.insert((table.family as u8, set.name, there.key.clone()));
        batch.remove_elements(*table, set.name, &[there]);
    }
    for table in in_use {
        let (entries, claims) = share.read(socket, *table)?;
        for claim in claims {
            let Some(there) = nft::element(socket, *table, claim.set.name, &claim.key)? else { continue };
            let gone = away.contains(&(table.family as u8, claim.set.name, claim.key));
            if there.comment.as_deref() == Some(share.owner) && !gone {
                batch.remove_elements(*table, claim.set.name, &[there]);
            }
        }
        batch.remove_elements(*table, tables::owners(), &entries);
    }
    Ok(shared)
}

/// Returns the positions of elements that do not exist or have another target. An element that another owner took over
/// counts as present if its target is the same.
pub(crate) fn absent(socket: &Socket, placed: &[Placed]) -> Result<Vec<usize>, RulesetError> {
    let mut absent = Vec::new();
    for (index, Placed { table, set, element, .. }) in placed.iter().enumerate() {
        let there = nft::element(socket, *table, set.name, &element.key)?;
        let same = there.is_some_and(|there| {
            (there.comment == element.comment || there.extra == SHARED)
                && there.data == element.data
                && there.goto == element.goto
        });
        if !same {
            absent.push(index);
        }
    }
    Ok(absent)
}

/// Removes an owner's elements of one purpose from the given tables, and returns them. Succeeds if there are none.
///
/// Only elements that were read are removed: if anything changes in between, the kernel refuses the batch and the elements
/// are read again. So an element is never taken from a new owner.
pub(crate) fn remove(
    socket: &Socket,
    share: Share<'_>,
    from: &[Table<'static>],
) -> Result<Vec<(Set, Element)>, RulesetError> {
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let Some(generation) = generation(socket)? else { return Ok(Vec::new()) };
        let (mut batch, mut removed) = (Batch::new(), Vec::new());
        for table in from {
            let (entries, claims) = share.read(socket, *table)?;
            let mut mine = Vec::new();
            for claim in claims {
                if let Some(there) = nft::element(socket, *table, claim.set.name, &claim.key)?
                    && there.comment.as_deref() == Some(share.owner)
                {
                    mine.push((claim.set, there));
                }
            }
            batch.remove_elements(*table, tables::owners(), &entries);
            take_away(socket, *table, &mine, &|owner| owner == share.owner, &mut batch)?;
            removed.extend(mine);
        }
        outcome = nft::commit(socket, batch, Some(generation));
        match &outcome {
            Ok(()) => return Ok(removed),
            Err(error) if matches!(error.kind(), Kind::Stale | Kind::NotFound) => {}
            Err(_) => break,
        }
    }
    outcome.map_err(RulesetError::from).map(|()| Vec::new())
}

/// Adds the removal of elements to a batch. An element that other owners claim too goes to the first of them.
fn take_away(
    socket: &Socket,
    table: Table<'static>,
    elements: &[(Set, Element)],
    leaving: &dyn Fn(&str) -> bool,
    batch: &mut Batch,
) -> Result<(), RulesetError> {
    let others = if elements.iter().any(|(_, element)| element.extra == SHARED) {
        nft::elements(socket, table, tables::owners())?
    } else {
        Vec::new()
    };
    for (set, element) in elements {
        batch.remove_elements(table, set.name, std::slice::from_ref(element));
        let heirs = others.iter().filter(|other| !other.comment.as_deref().is_some_and(leaving));
        let mut claims = heirs.flat_map(|heir| {
            read_claims(table, &heir.extra).into_iter().map(move |claim| (heir.comment.clone(), claim))
        });
        let claim = claims.find(|(_, claim)| claim.set == *set && claim.key == element.key);
        if let Some((comment, claim)) = claim {
            let element = Element {
                key: claim.key,
                goto: claim.goto,
                data: element.data.clone(),
                comment,
                extra: SHARED.to_vec(),
            };
            batch.add_elements(table, set.name, &[element]);
        }
    }
    Ok(())
}

/// Removes all elements in Netloom's tables whose owner `stale` selects, then unused chains and empty tables.
///
/// # Errors
/// If the kernel refuses the request.
pub fn retain(socket: &Socket, stale: &dyn Fn(&str) -> bool) -> Result<(), RulesetError> {
    for table in tables::ALL {
        remove_stale(socket, table, stale)?;
        crate::chains::remove_unused(socket, table)?;
        remove_if_empty(socket, table)?;
    }
    let needed = [tables::FILTER, tables::CLUSTER_FILTER];
    let mut there = needed.into_iter().map(|table| nft::table_comment(socket, table));
    if there.try_fold(true, |none, comment| comment.map(|comment| none && comment.is_none()))? {
        crate::forward_hook::close(socket)?;
    }
    Ok(())
}

fn remove_stale(
    socket: &Socket,
    table: Table<'static>,
    stale: &dyn Fn(&str) -> bool,
) -> Result<(), RulesetError> {
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let Some(generation) = generation(socket)? else { return Ok(()) };
        let mut found = Vec::new();
        let mut entries = Vec::new();
        for set in tables::sets(table) {
            let elements = nft::elements(socket, table, set.name)?;
            let stale = elements.into_iter().filter(|e| e.comment.as_deref().is_some_and(stale));
            if set.name == tables::owners() {
                entries = stale.collect();
            } else {
                found.extend(stale.map(|element| (*set, element)));
            }
        }
        let mut batch = Batch::new();
        batch.remove_elements(table, tables::owners(), &entries);
        take_away(socket, table, &found, stale, &mut batch)?;
        outcome = nft::commit(socket, batch, Some(generation));
        match &outcome {
            Err(error) if matches!(error.kind(), Kind::Stale | Kind::NotFound) => {}
            _ => break,
        }
    }
    outcome.map_err(RulesetError::from)
}

/// Removes an empty table of ours. The next ADD that needs it creates it again.
fn remove_if_empty(socket: &Socket, table: Table<'static>) -> Result<(), RulesetError> {
    for _ in 0..ROUNDS {
        let Some(generation) = generation(socket)? else { return Ok(()) };
        if nft::table_comment(socket, table)?.is_none() {
            return Ok(());
        }
        for set in tables::sets(table) {
            if !nft::elements(socket, table, set.name)?.is_empty() {
                return Ok(());
            }
        }
        let mut batch = Batch::new();
        batch.remove_table(table);
        match nft::commit(socket, batch, Some(generation)) {
            Err(error) if matches!(error.kind(), Kind::Stale | Kind::NotFound) => {}
            other => return Ok(other?),
        }
    }
    // Another process is adding to the table: it is not empty.
    Ok(())
}

/// Reads the generation. Returns `None` if the kernel lacks nftables, so there is nothing to remove.
pub(crate) fn generation(socket: &Socket) -> Result<Option<u32>, RulesetError> {
    match nft::generation(socket) {
        Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Unsupported) => Ok(None),
        other => Ok(other.map(Some)?),
    }
}

/// Lists an owner's elements of one purpose in a table: the sets and their keys.
pub(crate) fn claimed(
    socket: &Socket,
    share: Share<'_>,
    table: Table<'static>,
) -> Result<Vec<(Set, Vec<u8>)>, RulesetError> {
    let (_, claims) = share.read(socket, table)?;
    Ok(claims.into_iter().map(|claim| (claim.set, claim.key)).collect())
}

/// Lists the owners of all elements in our tables, one for each element.
///
/// # Errors
/// If the kernel refuses the request.
pub fn owners(socket: &Socket) -> Result<Vec<String>, RulesetError> {
    let mut owners = Vec::new();
    for table in tables::ALL {
        for set in tables::sets(table) {
            owners.extend(nft::elements(socket, table, set.name)?.into_iter().filter_map(|e| e.comment));
        }
    }
    Ok(owners)
}

impl Share<'_> {
    /// Returns the key of the n-th entry in `owners`: a text of 15 letters.
    fn key(&self, number: usize) -> Vec<u8> {
        // 48 bits of the hash suffice: the comment identifies the owner exactly.
        let hash = fnv1a(self.owner.bytes());
        let mut key = format!("{}{:012x}{number:02x}", self.purpose, hash >> 16).into_bytes();
        key.resize(16, 0);
        key
    }

    /// Returns the entries in `owners` for the placed elements.
    fn entries(&self, table: Table<'static>, placed: &[Placed]) -> Vec<Element> {
        let room = nft::room_beside(self.owner);
        let mut entries: Vec<Element> = Vec::new();
        for Placed { set, element, .. } in placed.iter().filter(|it| it.table == table) {
            let number = tables::sets(table).iter().position(|it| it == set).unwrap_or_default();
            let goto = element.goto.as_deref().unwrap_or_default();
            let mut claim = vec![byte(number), byte(element.key.len())];
            claim.extend_from_slice(&element.key);
            claim.push(byte(goto.len()));
            claim.extend_from_slice(goto.as_bytes());
            match entries.last_mut() {
                Some(last) if last.extra.len() + claim.len() <= room => last.extra.extend(claim),
                _ => entries.push(Element {
                    key: self.key(entries.len()),
                    comment: Some(self.owner.to_owned()),
                    extra: claim,
                    ..Element::default()
                }),
            }
        }
        entries
    }

    /// Reads the owner's entries and the elements they record.
    fn read(
        &self,
        socket: &Socket,
        table: Table<'static>,
    ) -> Result<(Vec<Element>, Vec<Claim>), RulesetError> {
        let (mut entries, mut claims) = (Vec::new(), Vec::new());
        while let Some(entry) = nft::element(socket, table, tables::owners(), &self.key(entries.len()))?
            && entry.comment.as_deref() == Some(self.owner)
        {
            claims.extend(read_claims(table, &entry.extra));
            entries.push(entry);
        }
        Ok((entries, claims))
    }
}

fn read_claims(table: Table<'_>, mut extra: &[u8]) -> Vec<Claim> {
    let mut claims = Vec::new();
    while let Some((claim, rest)) = read_claim(table, extra) {
        claims.push(claim);
        extra = rest;
    }
    claims
}

fn read_claim<'a>(table: Table<'_>, extra: &'a [u8]) -> Option<(Claim, &'a [u8])> {
    let [number, length, rest @ ..] = extra else { return None };
    let set = *tables::sets(table).get(usize::from(*number))?;
    let (key, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first()?;
    let (goto, rest) = rest.split_at_checked(usize::from(*length))?;
    let goto = Some(String::from_utf8_lossy(goto).into_owned()).filter(|goto| !goto.is_empty());
    Some((Claim { set, key: key.to_vec(), goto }, rest))
}

fn byte(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}
