//! Tests of the binary in network namespaces of the real kernel, with real peers.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

mod attach;
mod bad_input;
mod chained;
mod chains;
mod churn;
mod cli;
mod clients;
mod counts;
mod crash;
mod del;
mod dhcp;
mod existing_links;
mod firewall;
mod first;
mod gc_race;
mod host_device;
mod install;
mod lab;
mod links;
mod model;
mod other_kernel;
mod parity;
mod ports;
mod real_runtimes;
mod removal;
mod run;
mod schema;
mod security;
mod shared;
mod undo;
mod vrf;
