//! The node daemon's library: keeps this host's routes and tunnels to the other nodes in line with the cluster.
//!
//! [`store`] reports which nodes exist, [`desired`] computes what the kernel should hold (a pure function), [`actual`] reads what it
//! holds, and [`apply`] makes the difference. [`blocks`] are the prefixes that a node owns, [`conflist`] publishes them to the
//! container runtime. [`daemon`] is the reconcile loop, `serve` shows its status.
//!
//! Starting a pod waits for none of this: the plugins use what is on disk and in the kernel.
#![forbid(unsafe_code)]

pub mod actual;
pub mod apply;
mod block_name;
pub mod blocks;
mod cluster_view;
pub mod config;
pub mod conflist;
pub mod daemon;
pub mod desired;
mod file;
mod flannel;
mod metrics;
mod name;
mod probe;
pub mod record;
mod serve;
mod start_error;
pub mod status;
pub mod store;

pub use kernel::{printable, printable_json, printable_lines};
pub use start_error::StartError;
