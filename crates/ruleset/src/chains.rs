//! Chains that are the target of elements. The first element that needs a chain creates it; the last one removes it.

use kernel::{
    Kind, Socket,
    nft::{self, Batch, Table},
};

use crate::error::RulesetError;

/// The prefixes of such chains' names.
pub(crate) const MASQUERADE: &str = "masq-";
pub(crate) const CONDITION: &str = "if-";

/// Removes the chains of a table that are no longer the target of any element.
pub(crate) fn remove_unused(socket: &Socket, table: Table<'_>) -> Result<(), RulesetError> {
    for chain in nft::chains(socket, table)? {
        if !chain.starts_with(MASQUERADE) && !chain.starts_with(CONDITION) {
            continue;
        }
        let mut batch = Batch::new();
        batch.remove_chain(table, &chain);
        match nft::commit(socket, batch, None) {
            // The kernel counts the references to a chain and refuses to remove one in use.
            Err(error) if matches!(error.kind(), Kind::Busy | Kind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}
