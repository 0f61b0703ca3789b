//! What the kernel should hold: a pure function of the nodes' records and of how this host is connected.

mod attach;
mod devices;
mod inputs;
mod model;
mod path;
mod peers;
mod rules;

use std::sync::Arc;

pub use inputs::Inputs;
pub use model::{
    Attach, BESIDE, DEVICE4, DEVICE6, Desired, Device, GPE, Kind, LAST, MAIN, Peer, PeerPath, Route, Segment,
    Target, Uplink, Uplinks,
};

/// Computes what the kernel should hold.
pub fn desired(inputs: &Inputs<'_>) -> Desired {
    let &Inputs { config, own, nodes, .. } = inputs;
    let devices = devices::devices(inputs);
    let mut desired = Desired {
        ruleset: rules::rules(inputs, &devices),
        takes_over_routes: config.flannel.is_some(),
        attach: config.networks.iter().map(|network| attach::attach(inputs, network, &devices)).collect(),
        devices,
        ..Desired::default()
    };
    let mut paths = Arc::default();
    for (name, node) in nodes.iter().filter(|(name, _)| **name != own.name) {
        let mut peer = peers::add(&mut desired, inputs, node);
        if peer.paths == paths {
            peer.paths = Arc::clone(&paths);
        } else {
            paths = Arc::clone(&peer.paths);
        }
        desired.peers.insert(name.clone(), peer);
    }
    // Packets to addresses of no node must not leave via the default route.
    for prefix in config.routed_pods() {
        let last = Route { priority: LAST, ..Route::new(prefix, Target::Blackhole, None, None) };
        desired.routes.entry(prefix).or_insert(last);
    }
    peers::reach_own_pods(&mut desired, inputs);
    // Exported routes only announce the blocks: no rule looks up their table.
    let behind = own.blocks.iter().filter(|block| config.routed().any(|network| network.has(block)));
    let exported = behind.filter_map(|block| Some((*block, config.export_table?)));
    desired.exported = exported
        .map(|(dst, table)| Route { table, ..Route::new(dst, Target::Blackhole, None, None) })
        .collect();
    desired
}
