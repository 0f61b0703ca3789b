//! Picks and remembers addresses, in host-local's own layout on disk.
//!
//! [`range`] says which addresses there are, [`pick`] in which order they are tried, [`store`] who has which.
//! Nothing here knows interfaces, CNI verbs or JSON.
#![forbid(unsafe_code)]

mod cooldown;
mod index;
pub mod pick;
pub mod range;
pub mod store;

pub use cooldown::Cooldown;
pub use pick::Candidates;
pub use range::{Range, RangeError, RangeSet};
pub use store::{Locked, Owner, Store, StoreError};
