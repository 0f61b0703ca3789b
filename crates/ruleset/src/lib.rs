//! What packets may do: masquerade, published ports, MAC spoof check.
//!
//! One table of ours per family, made once in one transaction: its chains never change, and what belongs to a
//! container is elements of sets and maps, each with a comment that names its owner. So a lookup costs the
//! same with one container and with ten thousand, an ADD or DEL is one batch, and whatever a process that was
//! killed left can be told by the comment.
//!
//! Nothing here opens a socket or a file: a [`kernel::Socket`] of netfilter is handed in.
#![forbid(unsafe_code)]

mod elements;
pub mod masquerade;
pub mod portmap;
pub mod spoof;
mod tables;

pub use elements::{RulesetError, owners, retain};
