//! All kinds of fault.

mod files;
mod network;
mod objects;
mod processes;
mod store;

use super::fault::Fault;

/// Returns all kinds that a mode can have.
pub(super) fn of_mode(mode: &str) -> Vec<&'static Fault> {
    let tunnels: &[Fault] = if mode == "routing" { &[] } else { objects::TUNNELS };
    [processes::KINDS, objects::KINDS, tunnels, files::KINDS, network::KINDS, store::KINDS]
        .into_iter()
        .flatten()
        .collect()
}
