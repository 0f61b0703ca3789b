//! The store through which nodes learn of each other.
//!
//! [`Store`] is what every store can do; [`Worker`] runs one in a thread of its own. A store reports every node's records and blocks
//! through a callback: first everything, then each change. While the store cannot be reached, nothing changes anywhere.

mod api;
mod etcd;
mod folder;
mod kubernetes;
mod remote;
mod update;
mod worker;

pub use api::{Store, StoreError};
pub use update::{Contents, OnUpdate, Update};
pub use worker::{Answer, Command, Outcome, Worker};

use crate::config::{self, Config};

/// Opens the configured store. It calls `on_update` from a thread of its own, as soon as it can be reached.
///
/// # Errors
/// If the store can never be reached, for example because its directory cannot be created.
pub fn open(config: &Config, on_update: OnUpdate) -> Result<Box<dyn Store>, StoreError> {
    match &config.store {
        config::Store::File(dir) => Ok(Box::new(folder::Folder::open(dir, on_update)?)),
        config::Store::Etcd(etcd) => Ok(Box::new(etcd::Etcd::open(etcd, config, on_update)?)),
        config::Store::Kubernetes(how) => Ok(Box::new(kubernetes::Kubernetes::open(how, config, on_update)?)),
    }
}
