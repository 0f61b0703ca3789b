//! Access to the Linux kernel: network namespaces, links, addresses, routes, bridge ports, sysctls, nftables and link events.
//!
//! Requests go over netlink, `/proc/sys` or (iptables-legacy) `setsockopt`; no program is run. A [`Socket`] belongs to the
//! namespace in which it was opened, so one socket for the host and one for the container are enough. This crate does not
//! depend on CNI, JSON or pods. It is the only crate of the workspace with `unsafe`: for `setsockopt`, `ioctl`, `unshare`,
//! `fork`, `_exit`, packet sockets, the tables of iptables-legacy, and the heap.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the C library's constants are wider than the fields of messages"
)]

pub mod addr;
pub mod bridge;
pub mod conntrack;
pub mod decode;
pub mod deferred;
pub mod echo;
mod error;
pub mod events;
mod family;
pub mod file;
pub mod hash;
pub mod heap;
pub mod inject;
mod ioctl;
pub mod link;
mod message;
pub mod neigh;
pub mod netns;
pub mod nft;
pub mod offload;
pub mod packet;
mod printable;
pub mod process;
pub mod qdisc;
pub mod route;
pub mod rule;
mod socket;
pub mod sysctl;
pub mod tun;
pub mod waiting;
pub mod xtables;

pub use error::{Error, Kind, Result};
pub use family::IpFamily;
pub use netns::Netns;
pub use printable::{printable, printable_json, printable_lines};
pub use rustix::io::Errno;
pub use socket::{Protocol, Request, Socket};
