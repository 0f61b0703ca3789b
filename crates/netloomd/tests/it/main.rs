//! Clusters of three hosts made of namespaces, with real daemons, stores, and pods by the CNI path.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

mod cluster;
mod configuration;
mod faults;
mod flannel;
mod kubernetes;
mod lab;
mod manifests;
mod other_kernel;
mod streams;
mod underlay;
