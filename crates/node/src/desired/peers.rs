//! The routes to other nodes' pods, and to this node's own on a shared segment.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use kernel::route::Carried;

use super::{
    inputs::Inputs,
    model::{BESIDE, DEVICE4, DEVICE6, Desired, GPE, Peer, PeerPath, Route, Target},
    path,
};
use crate::{
    blocks,
    config::{Form, Network},
    record::{Record, Tunnel, hop_of},
};

/// Adds the routes to a peer's blocks, and returns its paths.
pub(super) fn add(desired: &mut Desired, inputs: &Inputs<'_>, node: &Record) -> Peer {
    let config = inputs.config;
    let mut problems = Vec::new();
    let mut paths = BTreeMap::new();
    for network in &config.networks {
        match path::choose(inputs, network, node) {
            Ok(path) => drop(paths.insert(network.name.clone(), path)),
            // Several networks may have the same problem.
            Err(problem) if problems.contains(&problem) => {}
            Err(problem) => problems.push(problem),
        }
    }
    for block in &node.blocks {
        let Some(network) = config.network_of(block) else { continue };
        let v4 = block.addr().is_ipv4();
        let route = match paths.get(&network.name) {
            None | Some(PeerPath::Learnt | PeerPath::Segment) => continue,
            Some(PeerPath::Direct) => match (node.address(v4), inputs.uplink(v4)) {
                (Some(gateway), Some(uplink)) => {
                    Ok(Route::new(*block, Target::Link(uplink.link), Some(gateway), None))
                }
                // The hosts have addresses of the other family only, over which a tunnel carries both.
                _ if network.mode.tunnels() && node.tunnel == Some(Tunnel::of(config)) => {
                    tunnelled(desired, inputs, network, node, *block, !v4)
                }
                _ => Err(format!(
                    "block {block}: the node and this host do not both have an address of that family"
                )),
            },
            Some(PeerPath::Tunnel { v4: outer }) => {
                let outer = if node.flannel { v4 } else { *outer };
                tunnelled(desired, inputs, network, node, *block, outer)
            }
        };
        match route {
            Ok(route) => drop(desired.routes.insert(*block, route)),
            Err(problem) => problems.push(problem),
        }
    }
    Peer { paths: Arc::new(paths), problem: Some(problems.join("; ")).filter(|text| !text.is_empty()) }
}

/// Returns the route to a block over a tunnel of an outer family, and adds the remote host to the tunnel.
fn tunnelled(
    desired: &mut Desired,
    inputs: &Inputs<'_>,
    network: &Network,
    node: &Record,
    block: IpNet,
    outer: bool,
) -> Result<Route, String> {
    let &Inputs { config, own, uplinks, .. } = inputs;
    let (Some(address), Some(uplink)) = (node.address(outer), uplinks.of(outer)) else {
        return Err(format!(
            "block {block}: flannel's tunnel is of the block's family, in which the node and this host do not both have an address"
        ));
    };
    let mut of_network = own.blocks.iter().filter(|own| network.has(own));
    let source = of_network.find(|own| own.addr().is_ipv4() == block.addr().is_ipv4());
    let source = source.map(|block| blocks::own_address(*block));
    if config.tunnel == Form::VxlanGpe {
        let carried = Carried { vni: config.vni, from: uplink.address, to: address };
        return Ok(Route { carried: Some(carried), ..Route::new(block, Target::Device(GPE), None, source) });
    }
    let (device, mac) = (if outer { DEVICE4 } else { DEVICE6 }, node.mac(outer));
    desired.remotes.insert((device, mac, address));
    Ok(Route::new(block, Target::Device(device), Some(hop_of(mac).into()), source))
}

/// Adds the host's own routes to its pods on a shared segment.
pub(super) fn reach_own_pods(desired: &mut Desired, inputs: &Inputs<'_>) {
    let &Inputs { config, own, uplinks, .. } = inputs;
    if desired.devices.iter().all(|device| device.name != BESIDE) {
        return;
    }
    let on_segment = own
        .blocks
        .iter()
        .filter(|block| config.network_of(block).is_some_and(|network| !network.mode.routes()));
    for block in on_segment {
        let source = uplinks.of(block.addr().is_ipv4()).map(|uplink| uplink.address);
        desired.routes.insert(*block, Route::new(*block, Target::Device(BESIDE), None, source));
    }
}
