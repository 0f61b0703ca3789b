//! What the ruleset follows from.

use std::net::IpAddr;

use ipnet::IpNet;
use ruleset::cluster::{Cluster, Tunnel};

use super::{
    inputs::Inputs,
    model::{Device, Kind},
};
use crate::record::Record;

/// Returns what the ruleset follows from, or `None` if pods' packets do not pass through the host.
pub(super) fn rules(inputs: &Inputs<'_>, devices: &[Device]) -> Option<Cluster> {
    let &Inputs { config, own, nodes, uplinks, .. } = inputs;
    let bridged: Vec<IpNet> = config
        .networks
        .iter()
        .filter(|network| !network.mode.routes() && uplinks.of_network(network).is_some_and(|it| it.bridge))
        .flat_map(|network| network.pods.iter().copied())
        .collect();
    let others = nodes.values().filter(|node| node.name != own.name);
    let tunnel = devices.iter().find_map(|device| match device.kind {
        Kind::Tunnel { vni, .. } => Some(Tunnel::Vxlan { vni }),
        Kind::Gpe { .. } => Some(Tunnel::Gpe),
        Kind::Beside { .. } => None,
    });
    (config.routed().next().is_some() || !bridged.is_empty()).then(|| Cluster {
        bridged,
        pods: config.routed_pods().collect(),
        unmasqueraded: config.unmasqueraded.clone(),
        masquerade: config.masquerade,
        tunnel_port: config.port,
        tunnel,
        nodes: nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        blocks: others
            .flat_map(sources)
            .filter(|(_, block)| config.routed().any(|network| network.has(block)))
            .collect(),
    })
}

/// Returns each of a node's addresses with each of its blocks: the node chooses the family of outer packets itself.
fn sources(node: &Record) -> impl Iterator<Item = (IpAddr, IpNet)> {
    node.addresses.iter().flat_map(|ip| node.blocks.iter().map(move |block| (*ip, block.trunc())))
}
