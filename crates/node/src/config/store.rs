//! Which store the daemon uses, and how it connects to it.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Deserialize;

/// The kind of store through which nodes learn of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A directory that all nodes share, or that is distributed to them.
    File,
    /// etcd v3.
    Etcd,
    /// The API of the Kubernetes cluster that this host belongs to.
    Kubernetes,
}

/// The store, with how to reach it.
#[derive(Debug, Clone)]
pub enum Store {
    /// A directory.
    File(PathBuf),
    /// etcd.
    Etcd(Etcd),
    /// The Kubernetes API.
    Kubernetes(Kubernetes),
}

impl Store {
    /// Returns the name of the store's kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Etcd(_) => "etcd",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// How to reach the Kubernetes API.
#[derive(Debug, Clone, Default)]
pub struct Kubernetes {
    /// The kubeconfig file, or `None` for a pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A URL that replaces the configured one.
    pub server: Option<String>,
}

/// How to reach etcd.
#[derive(Debug, Clone, Default)]
pub struct Etcd {
    /// The endpoints' URLs.
    pub endpoints: Vec<String>,
    /// The prefix of the cluster's keys, without a trailing slash.
    pub prefix: String,
    /// The certificate authority, in PEM.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// User and password.
    pub user: Option<(String, String)>,
}

/// How to reach flannel's nodes.
#[derive(Debug, Clone)]
pub struct Flannel {
    /// The prefix of flannel's keys in etcd, without a trailing slash, or of its annotations in Kubernetes.
    pub place: String,
    /// The VXLAN network identifier, the same for both.
    pub vni: u32,
    /// The UDP port, the same for both.
    pub port: u16,
    /// The file in which flannel records this host's subnet.
    pub subnet_file: PathBuf,
}

impl Flannel {
    /// Returns the name of flannel's tunnel of a family, which this daemon's tunnel replaces.
    pub fn device(&self, v4: bool) -> String {
        format!("flannel{}.{}", if v4 { "" } else { "-v6" }, self.vni)
    }
}
