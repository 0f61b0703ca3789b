//! Lists the elements of all owners, for people to read.

use kernel::{Socket, nft};

use crate::{elements::generation, error::RulesetError, portmap::mapping_of, tables};

/// An element of one of our tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The owner.
    pub owner: String,
    /// What the element is, in words. An owner's elements of one set may have the same.
    pub what: String,
}

/// Lists all elements in our tables, without those that record the others. Changes nothing.
///
/// # Errors
/// If the kernel refuses the request.
pub fn list(socket: &Socket) -> Result<Vec<Listed>, RulesetError> {
    let mut listed = Vec::new();
    if generation(socket)?.is_none() {
        return Ok(listed);
    }
    for table in tables::ALL {
        for set in tables::sets(table).iter().filter(|set| set.name != tables::owners()) {
            for element in nft::elements(socket, table, set.name)? {
                let what = match mapping_of(set, &element) {
                    Some(mapping) => format!("published port {mapping}"),
                    None => {
                        format!(
                            "element of `{}` in table `{} {}`",
                            set.name,
                            table.family.as_str(),
                            table.name
                        )
                    }
                };
                listed.extend(element.comment.map(|owner| Listed { owner, what }));
            }
        }
    }
    Ok(listed)
}
