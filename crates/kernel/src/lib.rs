//! The only door to Linux: network namespaces, links, addresses, routes, bridge ports, sysctls, nftables and
//! link events.
//!
//! Everything is asked over netlink or `/proc/sys`; no program is run. A [`Socket`] belongs to the namespace
//! in which it was opened, so one socket for the host and one for the container are enough. Nothing here knows
//! CNI, JSON or pods. This is the only crate of the workspace with `unsafe`, and its only use is `setsockopt`
//! and `unshare`.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the C library's constants are wider than the fields of messages"
)]

pub mod addr;
pub mod bridge;
mod error;
pub mod events;
pub mod fault;
pub mod link;
mod message;
pub mod neigh;
pub mod netns;
pub mod nft;
pub mod route;
mod socket;
pub mod sysctl;

pub use error::{Error, Kind, Result};
pub use netns::Netns;
pub use rustix::io::Errno;
pub use socket::{Protocol, Socket};
