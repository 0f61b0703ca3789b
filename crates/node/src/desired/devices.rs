//! The daemon's devices: tunnels, and the host's own link beside its pods'.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::link::Mac;

use super::{
    inputs::Inputs,
    model::{BESIDE, DEVICE4, DEVICE6, Device, GPE, Kind},
};
use crate::{
    blocks,
    config::{Config, Form, Underlay},
    record::{Record, hop_of, mac_of},
};

/// Bytes that a tunnel adds to a packet: Ethernet, VXLAN and UDP headers, and the outer IP header.
const OVERHEAD4: u32 = 50;
const OVERHEAD6: u32 = 70;
/// Bytes of these that VXLAN-GPE saves.
const ETHERNET: u32 = 14;

/// Returns the bytes that a tunnel of an outer family adds to a packet.
pub(super) fn overhead(config: &Config, v4: bool) -> u32 {
    let frame = if config.tunnel == Form::VxlanGpe { ETHERNET } else { 0 };
    (if v4 { OVERHEAD4 } else { OVERHEAD6 }) - frame
}

/// Returns the devices.
pub(super) fn devices(inputs: &Inputs<'_>) -> Vec<Device> {
    let mut devices = tunnels(inputs);
    devices.extend(beside(inputs));
    devices
}

fn tunnels(inputs: &Inputs<'_>) -> Vec<Device> {
    let &Inputs { config, own, uplinks, checksum_offload, .. } = inputs;
    let tunnelled = || config.networks.iter().filter(|network| network.mode.tunnels());
    let own_blocks = own.blocks.iter().filter(|block| tunnelled().any(|network| network.has(block)));
    let mut addresses: Vec<IpNet> =
        own_blocks.map(|block| IpNet::from(blocks::own_address(*block))).collect();
    let configured = tunnelled().map(|network| network.mtu).collect::<Option<Vec<u32>>>();
    let configured = configured.and_then(|mtus| mtus.into_iter().max());
    let outer = [(true, DEVICE4), (false, DEVICE6)].into_iter().filter(|_| config.tunnels());
    let outer: Vec<_> = outer.filter_map(|(v4, name)| Some((v4, uplinks.of(v4)?, name))).collect();
    let fits = |v4, mtu: u32| mtu.saturating_sub(overhead(config, v4));
    if config.tunnel == Form::Vxlan {
        let device = |(v4, uplink, name): (bool, &super::model::Uplink, _)| Device {
            name,
            kind: Kind::Tunnel { vni: config.vni, port: config.port, local: uplink.address },
            checksum_offload,
            replaces: config.flannel.as_ref().map(|flannel| flannel.device(v4)),
            mtu: configured.unwrap_or(fits(v4, uplink.mtu)),
            mac: Some(own.mac(v4)),
            // The first device gets all addresses: the kernel has each address on one link.
            addresses: [std::mem::take(&mut addresses), vec![link_local6(own.mac(v4))]].concat(),
        };
        return outer.into_iter().map(device).collect();
    }
    let smallest = outer.iter().map(|(v4, uplink, _)| fits(*v4, uplink.mtu)).min();
    let device = smallest.map(|smallest| Device {
        name: GPE,
        kind: Kind::Gpe { port: config.port },
        checksum_offload,
        replaces: None,
        mtu: configured.unwrap_or(smallest),
        mac: None,
        addresses,
    });
    device.into_iter().collect()
}

fn beside(inputs: &Inputs<'_>) -> Option<Device> {
    let &Inputs { config, own, uplinks, .. } = inputs;
    let on_segment = config.networks.iter().find(|network| !network.mode.routes())?;
    let uplink = uplinks.of_network(on_segment).filter(|uplink| !uplink.bridge)?;
    let mac = beside_mac(own);
    let (mac, addresses) = match config.underlay {
        Underlay::Macvlan => (Some(mac), Vec::new()),
        // An ipvlan shares the uplink's hardware address, and the kernel finds the ipvlan by its IP addresses: to receive
        // replies it needs some.
        Underlay::Ipvlan => (None, vec![link_local4(mac).into(), link_local6(mac)]),
    };
    Some(Device {
        name: BESIDE,
        kind: Kind::Beside { underlay: config.underlay, link: uplink.link },
        replaces: None,
        checksum_offload: true,
        mtu: uplink.mtu,
        mac,
        addresses,
    })
}

/// Returns the hardware address of the host's own macvlan, from which an ipvlan's addresses are derived too.
pub(super) fn beside_mac(own: &Record) -> Mac {
    mac_of(&format!("{} beside", own.name))
}

/// Returns the link-local address that peers use as the next hop, which the kernel derives from the hardware address too.
fn link_local6(mac: Mac) -> IpNet {
    Ipv6Net::new_assert(hop_of(mac), 64).into()
}

/// Returns an IPv4 link-local address (RFC 3927), from a part of the prefix that neither cloud metadata services nor node-local
/// name servers use.
fn link_local4(mac: Mac) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 224 + mac.0[4] % 16, mac.0[5]), 32)
}
