//! What the kernel should hold: a pure function of the nodes' records and of how this host is connected.

mod attach;
mod devices;
mod inputs;
mod model;
mod path;
mod peers;

use std::sync::Arc;

use ipnet::IpNet;
use ruleset::cluster::Cluster;

pub use inputs::Inputs;
pub use model::{
    Attach, BESIDE, DEVICE4, DEVICE6, Desired, Device, GPE, Kind, LAST, MAIN, Peer, PeerPath, Route, Segment,
    Target, Uplink, Uplinks,
};

/// Computes what the kernel should hold.
pub fn desired(inputs: &Inputs<'_>) -> Desired {
    let &Inputs { config, own, nodes, uplinks, .. } = inputs;
    let devices = devices::devices(inputs);
    let bridged: Vec<IpNet> = config
        .networks
        .iter()
        .filter(|network| !network.mode.routes() && uplinks.of_network(network).is_some_and(|it| it.bridge))
        .flat_map(|network| network.pods.iter().copied())
        .collect();
    let routed = || config.networks.iter().filter(|network| network.mode.routes());
    let mut desired = Desired {
        ruleset: (routed().next().is_some() || !bridged.is_empty()).then(|| Cluster {
            bridged,
            pods: routed().flat_map(|network| network.pods.iter().copied()).collect(),
            unmasqueraded: config.unmasqueraded.clone(),
            masquerade: config.masquerade,
            tunnel_port: config.port,
            nodes: nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        }),
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
    for prefix in routed().flat_map(|network| &network.pods) {
        let last = Route { priority: LAST, ..Route::new(*prefix, Target::Blackhole, None, None) };
        desired.routes.entry(*prefix).or_insert(last);
    }
    peers::reach_own_pods(&mut desired, inputs);
    // Exported routes only announce the blocks: no rule looks up their table.
    let behind = own.blocks.iter().filter(|block| routed().any(|network| network.has(block)));
    let exported = behind.filter_map(|block| Some((*block, config.export_table?)));
    desired.exported = exported
        .map(|(dst, table)| Route { table, ..Route::new(dst, Target::Blackhole, None, None) })
        .collect();
    desired
}
