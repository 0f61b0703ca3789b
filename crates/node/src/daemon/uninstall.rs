//! Removes everything that the daemon created.

use kernel::{Protocol, Socket};
use ruleset::cluster;

use super::memory::{self, BLOCKS, INCARNATION, LOCK, RULES};
use crate::{
    actual, apply, cluster_view, config::Config, conflist, file, flannel::subnet_file,
    start_error::StartError, store,
};

/// Removes everything that the daemon created on this host, and this node from the store. Pods keep their interfaces, but lose the
/// path to other nodes. Returns the number of removed objects.
///
/// # Errors
/// If the kernel or the file system refuses; the rest is removed all the same.
pub fn uninstall(config: &Config) -> Result<usize, StartError> {
    let _lock = memory::lock(&config.state_dir)?;
    let refused = |why: String| StartError::new("remove everything", why);
    let socket = Socket::open(Protocol::Route).map_err(|error| refused(error.to_string()))?;
    conflist::remove(config).map_err(StartError::io("remove the network's configuration"))?;
    let current = actual::read(&socket).map_err(|error| refused(error.to_string()))?;
    let done = apply::remove(&socket, &current);
    let netfilter = Socket::open(Protocol::Netfilter).map_err(|error| refused(error.to_string()))?;
    cluster::remove(&netfilter).map_err(|error| refused(format!("ruleset: {error:?}")))?;
    // A store that cannot be reached does not keep the host from being cleaned up.
    if let Ok(mut store) = store::open(config, Box::new(|_| false)) {
        for block in memory::blocks(&config.state_dir) {
            drop(store.release(block, &config.node));
        }
        drop(store.withdraw(&config.node));
    }
    if let Some(flannel) = &config.flannel {
        subnet_file::remove(flannel).map_err(StartError::io("remove the file for flannel's plugin"))?;
    }
    // The lock comes last: until then no other daemon starts.
    let state =
        [cluster_view::FILE, BLOCKS, INCARNATION, RULES, LOCK].map(|name| config.state_dir.join(name));
    for path in [&config.socket].into_iter().chain(&state) {
        file::remove(path).map_err(StartError::io(format!("remove {}", path.display())))?;
    }
    // Folders that hold other files stay.
    for folder in [config.socket.parent(), Some(config.state_dir.as_path())].into_iter().flatten() {
        drop(std::fs::remove_dir(folder));
    }
    if done.refused.is_empty() { Ok(done.changes.sum()) } else { Err(refused(done.refused.join("; "))) }
}
