//! The node daemon's library: peers in, routes and tunnels out.
//!
//! The walk: [`store`] says which nodes there are, [`desired`] what the kernel should hold (a pure function), [`actual`]
//! what it holds, [`apply`] makes the difference. [`blocks`] are the addresses that a node owns, [`conflist`] tells the
//! container runtime of them. [`daemon`] turns the wheel, `serve` shows it.
//!
//! Nothing of a pod's start waits for any of it: the plugins use what is on disk and in the kernel.
#![forbid(unsafe_code)]

pub mod actual;
pub mod apply;
pub mod blocks;
pub mod config;
pub mod conflist;
pub mod daemon;
pub mod desired;
mod file;
mod flannel;
mod metrics;
mod probe;
pub mod record;
mod serve;
pub mod status;
pub mod store;
mod view;
