//! Everything that the desired state depends on.

use std::collections::BTreeMap;

use super::model::Uplinks;
use crate::{config::Config, record::Record};

/// Everything that the desired state depends on.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// This node's record.
    pub own: &'a Record,
    /// All nodes' records by name, this node's included, with the blocks that are honoured ([`crate::ownership`]).
    pub nodes: &'a BTreeMap<String, Record>,
    /// How this host is connected.
    pub uplinks: &'a Uplinks,
    /// Whether the network card computes the checksums of tunnelled packets.
    pub checksum_offload: bool,
}
