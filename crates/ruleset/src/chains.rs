//! Chains that elements lead to: made with the first element that needs them, gone when nothing leads to them.

use kernel::{
    Kind, Socket,
    nft::{self, Batch, Table},
};

use crate::elements::RulesetError;

/// What the names of such chains begin with.
pub(crate) const MASQUERADE: &str = "masq-";
pub(crate) const CONDITION: &str = "if-";

/// Removes the chains of a table that no element leads to any more.
pub(crate) fn remove_unused(socket: &Socket, table: Table<'_>) -> Result<(), RulesetError> {
    for chain in nft::chains(socket, table)? {
        if !chain.starts_with(MASQUERADE) && !chain.starts_with(CONDITION) {
            continue;
        }
        let mut batch = Batch::new();
        batch.remove_chain(table, &chain);
        match nft::commit(socket, batch, None) {
            // The kernel counts who leads to a chain, so it is the one to ask.
            Err(error) if matches!(error.kind(), Kind::Busy | Kind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}
