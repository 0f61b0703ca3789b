//! The binary on real kernels' namespaces, with real peers.

mod attach;
mod bad_input;
mod cli;
mod clients;
mod lab;
mod parity;
mod ports;
mod shared;
mod undo;
