//! How pods are attached to a network.

use std::collections::BTreeMap;

use super::{
    devices::{beside_mac, overhead},
    inputs::Inputs,
    model::{Attach, BESIDE, Device, Segment},
};
use crate::{config::Network, record::hop_of};

/// Returns how pods are attached to a network, or why they cannot be.
pub(super) fn attach(inputs: &Inputs<'_>, network: &Network, devices: &[Device]) -> Result<Attach, String> {
    let &Inputs { config, own, nodes, uplinks, .. } = inputs;
    let name = network.name.clone();
    let uplink_mtu = uplinks.all().map(|uplink| uplink.mtu).min().unwrap_or(1500);
    if network.mode.routes() {
        let families = [true, false].into_iter().filter(|v4| uplinks.of(*v4).is_some());
        let tunnels = families.filter(|_| network.mode.tunnels()).map(|v4| overhead(config, v4));
        let mtu = network.mtu.unwrap_or(uplink_mtu.saturating_sub(tunnels.max().unwrap_or_default()));
        return Ok(Attach { network: name, mtu, segment: None });
    }
    let Some(uplink) = uplinks.of_network(network) else {
        return Err(format!("network `{name}`: this host has no address of the network's family"));
    };
    let mut segment = Segment {
        link: uplink.name.clone(),
        bridge: uplink.bridge,
        prefixes: BTreeMap::new(),
        reserved: nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        host6: None,
    };
    for pods in &network.pods {
        let v4 = pods.addr().is_ipv4();
        let of_family = uplinks.of(v4).filter(|other| other.link == uplink.link);
        let whole = of_family.and_then(|it| Some((it, it.on_link.iter().find(|net| net.contains(pods))?)));
        let Some((uplink, whole)) = whole else {
            return Err(format!(
                "network `{name}`: {pods} is not in a prefix of {}: set `pods` to addresses of the hosts' own prefix",
                uplink.name
            ));
        };
        let gateway = uplink.gateway.filter(|ip| whole.contains(ip) || ip.is_ipv6());
        segment.prefixes.insert(*whole, gateway);
        segment.reserved.extend(gateway);
        segment.reserved.insert(whole.network());
        if v4 {
            segment.reserved.insert(whole.broadcast());
        } else if devices.iter().any(|device| device.name == BESIDE) {
            segment.host6 = Some((uplink.address, hop_of(beside_mac(own))));
        }
    }
    Ok(Attach { network: name, mtu: network.mtu.unwrap_or(uplink.mtu), segment: Some(segment) })
}
