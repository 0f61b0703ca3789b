//! The daemon's configuration: as written in a TOML file, the environment and flags, and as meant.

mod invalid;
mod meant;
mod network;
mod store;
mod written;

pub use invalid::InvalidValue;
pub use meant::{Config, Form, LogFormat, Underlay};
pub use network::{Mode, Network, WrittenNetwork};
pub use store::{Etcd, Flannel, Kubernetes, Store, StoreKind};
pub use written::{DEFAULT, Written};
