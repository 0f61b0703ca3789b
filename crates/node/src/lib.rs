//! The node daemon's library: keeps this host's routes and tunnels to the other nodes in line with the cluster.
//!
//! [`store`] reports which nodes exist, [`ownership`] decides whose blocks they are, [`desired`] computes
//! what the kernel should hold (both are pure functions), [`actual`] reads what it
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
mod folder_watch;
mod metrics;
mod name;
pub mod ownership;
mod pod_links;
mod probe;
pub mod record;
mod refusals;
mod serve;
mod settings;
mod start_error;
pub mod status;
pub mod store;
pub mod takeover;

pub use kernel::{printable, printable_json, printable_lines};
pub use start_error::StartError;
