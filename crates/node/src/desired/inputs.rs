//! Everything that the desired state depends on.

use std::collections::BTreeMap;

use super::model::{Uplink, Uplinks};
use crate::{config::Config, record::Record};

/// Everything that the desired state depends on.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// This node's record.
    pub own: &'a Record,
    /// The families in which the others know an address of this node, IPv4 first. Until the store has reported this node's record, all.
    pub known: (bool, bool),
    /// All nodes' records by name, this node's included, with the blocks that are honoured ([`crate::ownership`]).
    pub nodes: &'a BTreeMap<String, Record>,
    /// How this host is connected.
    pub uplinks: &'a Uplinks,
    /// Whether the network card computes the checksums of tunnelled packets.
    pub checksum_offload: bool,
}

impl Inputs<'_> {
    /// Returns the uplink of a family if the others know its address: both ends of a path must choose the same one.
    pub(super) fn uplink(&self, v4: bool) -> Option<&Uplink> {
        let is_known = if v4 { self.known.0 } else { self.known.1 };
        self.uplinks.of(v4).filter(|_| is_known)
    }
}
