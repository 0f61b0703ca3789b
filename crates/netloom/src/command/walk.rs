//! The path of a container's packets: probes that show whether it works, and the cause if it does not.
//!
//! A probe that is answered ends the walk: nothing is blamed on a path that works. Only for a path that fails does [`explain`]
//! compare each station with what the packet needs, and send the probe again with nftables' trace and iptables' counters.

mod capture;
pub(crate) mod cause;
mod explain;
mod filters;
mod forward;
mod inside;
mod listen;
pub(crate) mod names;
pub(crate) mod path;
pub(crate) mod place;
mod published;
pub(crate) mod shot;
pub(crate) mod single;
pub(crate) mod steps;
mod wire;
