//! The path to a peer.

use super::{inputs::Inputs, model::PeerPath};
use crate::{
    config::{Mode, Network},
    record::{Record, Tunnel},
};

/// Chooses the path to a peer in a network, or returns why there is none. Two nodes choose the same path to each other.
pub(super) fn choose(inputs: &Inputs<'_>, network: &Network, node: &Record) -> Result<PeerPath, String> {
    let config = inputs.config;
    let common =
        [true, false].into_iter().find(|v4| node.address(*v4).is_some() && inputs.uplink(*v4).is_some());
    let Some(v4) = common else {
        return Err("the node and this host have no address family in common".into());
    };
    let mut on_link =
        [true, false].into_iter().filter_map(|v4| Some((inputs.uplink(v4)?, node.address(v4)?)));
    // In every common family: otherwise packets of one family would be lost.
    let direct = on_link.all(|(uplink, ip)| uplink.on_link.iter().any(|net| net.contains(&ip)));
    let is_tunnelled = node.overlay.contains(&network.name) && node.tunnel == Some(Tunnel::of(config));
    match (network.mode, direct && !(node.flannel && node.tunnel.is_some())) {
        (Mode::Bgp, _) => Ok(PeerPath::Learnt),
        (Mode::Underlay, true) => Ok(PeerPath::Segment),
        (Mode::Underlay, false) => {
            Err(format!("node {} is not on this L2 segment, which pods of mode underlay share", node.name))
        }
        (Mode::Routing, true) => Ok(PeerPath::Direct),
        (Mode::Auto, true) if !is_tunnelled => Ok(PeerPath::Direct),
        (Mode::Routing, false) if node.flannel => Err(format!(
            "flannel's node {} uses tunnels, or is not on this L2 segment: use mode overlay or auto",
            node.name
        )),
        (Mode::Routing, false) => {
            Err(format!("node {} is not on this L2 segment: use mode overlay, auto or bgp", node.name))
        }
        (Mode::Overlay | Mode::Auto, _) => match node.tunnel {
            Some(tunnel) if tunnel == Tunnel::of(config) => Ok(PeerPath::Tunnel { v4 }),
            // The cluster is changing from one tunnel format to another.
            Some(_) if direct && !node.flannel => Ok(PeerPath::Direct),
            Some(tunnel) => Err(format!(
                "the node accepts {tunnel}, this host {}: set `tunnel`, `vni` and `port` to the same values",
                Tunnel::of(config)
            )),
            // The cluster is changing from one mode to another: both nodes can route.
            None if direct => Ok(PeerPath::Direct),
            None => Err("the node has no tunnel: its mode is routing".into()),
        },
    }
}
