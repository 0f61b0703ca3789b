//! The error of every change of the ruleset.

use kernel::Error;

/// The reason the ruleset could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesetError {
    /// The kernel refused the change.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The element belongs to another owner.
    #[error("the element belongs to `{owner}`")]
    Taken {
        /// The position in the list of elements to add.
        index: usize,
        /// The current owner, as the element's comment names it.
        owner: String,
    },
}
