//! Clusters of three hosts made of namespaces, with real daemons and stores, and pods that the plugins attach.
#![expect(clippy::unwrap_used, reason = "a test fails if this fails")]

mod changes;
mod cluster;
mod configuration;
mod faults;
mod flannel;
mod frames;
mod isolation;
mod kubernetes;
mod lab;
mod manifests;
mod other_kernel;
mod page;
mod streams;
mod underlay;
