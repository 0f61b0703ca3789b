//! `netloom gc`: removes what belongs to no existing container.

use std::path::Path;

use clap::Args;
use kernel::{Netns, netns::is_gone};
use netloom_runtime::{Runtime, cache::Entry, load, types::NetworkList};

use super::{Failure, Outcome, Places, networks, temporary_netns};

/// Which network.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Name of the network; all of them without it.
    pub(crate) network: Option<String>,
}

/// Keeps the attachments that are cached and whose namespace exists, whichever runtime made them, and removes everything else of
/// the network.
pub(crate) fn gc(places: &Places, options: &Options) -> Outcome {
    temporary_netns::remove_dead(places)?;
    let runtime = places.runtime_with_own_plugins()?;
    let embedded = networks::embedded()?;
    let mut lists: Vec<NetworkList> = match &options.network {
        Some(name) => vec![places.network(Some(name))?.0],
        None => load::networks(&places.conf_dir)?.into_iter().filter_map(|(_, list)| list.ok()).collect(),
    };
    if options.network.is_none() && !lists.iter().any(|list| list.name == embedded.name) {
        lists.push(embedded);
    }
    let mut failures = Vec::new();
    for list in lists {
        failures.extend(gc_network(&runtime, &list).err().map(|failure| failure.message));
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(failures.join("\n"))) }
}

fn gc_network(runtime: &Runtime, list: &NetworkList) -> Outcome {
    // Older runtimes do not record the namespace. Whether theirs exists is not known, so the attachment stays.
    let is_alive = |entry: &Entry| {
        entry.netns.is_empty()
            || !matches!(Netns::open(Path::new(&entry.netns)), Err(error) if is_gone(&error))
    };
    Ok(runtime.gc(list, is_alive)?)
}
