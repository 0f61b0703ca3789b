//! Selects and reserves addresses, in host-local's layout on disk.
//!
//! [`range`] holds the addresses of a network, [`pick`] the order in which they are tried, [`store`] the reservations.
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
pub use store::{Locked, Owner, Reservation, Store, StoreError};
