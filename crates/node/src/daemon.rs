//! The reconcile loop: reacts to store updates and kernel events, compares desired with actual state, and applies the difference.
//!
//! One thread does all of this and never waits: the store's calls, probes and HTTP run beside it and send it events. Nothing is written
//! before the first complete view of the cluster: the store's, or, if the store cannot be reached, the one remembered on disk.

mod addresses;
mod answers;
mod blocks;
mod event;
mod history;
mod inquiries;
mod memory;
mod network_files;
mod reconcile;
mod requests;
mod segment;
mod show;
mod start;
mod state;
mod uninstall;
mod watch_host;

pub use event::Event;
pub use start::run;
pub use uninstall::uninstall;
