//! The host's side of a bridge network: the gateway addresses, on the bridge or on the host's interface in a VLAN of it.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{
    Kind, Socket,
    addr::{self, Detection},
    bridge::Vlan,
    link::{self, Change, Link, QuickLink, Veth},
    sysctl::{self, Setting},
};
use netloom_plugin::{Error, Undo, result::v100::Success};

use super::{
    conf::{Conf, Vlans},
    device::look,
    port::set_vlans,
};
use crate::{
    error::{Explain, check_failed, invalid},
    owner::Owner,
    veth,
};

/// Adds the gateway addresses to the bridge, or to the host's interface in the VLAN, and enables forwarding. Returns the
/// VLAN interface, or `None` if the network has none.
pub(super) fn set_up(
    host: &Socket,
    bridge: &QuickLink,
    conf: &Conf,
    result: &Success,
    undo: &mut Undo,
) -> Result<Option<QuickLink>, Error> {
    let access = conf.vlans.as_ref().and_then(|vlans| vlans.access);
    let vlan_link = access.map(|vlan| ensure_vlan_link(host, bridge, conf, vlan, undo)).transpose()?;
    let link = vlan_link.as_ref().unwrap_or(bridge);
    let mut there: Vec<IpNet> =
        addr::list(host, link).explain()?.into_iter().map(|address| address.net).collect();
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let net = IpNet::new(gateway, ip.address.prefix_len()).map_err(|_| {
            invalid(format!("gateway {gateway} is not of the family of address {}", ip.address))
        })?;
        if ensure_address(host, link, net, &mut there, conf.force_address)? {
            let (socket, of) = (host.clone(), link.clone());
            undo.push(format!("remove address {net} from `{}`", link.name), move || {
                remove_address_if_unused(&socket, &of, net)
            })?;
            // Setting the address that it has pins it: otherwise it changes as ports come and go.
            let mac = Some(link::mac(host, &link.name).explain()?);
            link::change(host, link, &Change { mac, ..Change::default() }).explain()?;
        }
        sysctl::ensure_forwarding(host, gateway).explain()?;
    }
    Ok(vlan_link)
}

/// Checks that the host still has the gateway addresses and forwards (CHECK).
pub(super) fn check(host: &Socket, bridge: &Link, conf: &Conf, prev: &Success) -> Result<(), Error> {
    let access = conf.vlans.as_ref().and_then(|vlans| vlans.access);
    let vlan_link = access.map(|vlan| link::require(host, &vlan_link_name(&bridge.name, vlan)).explain());
    let vlan_link = vlan_link.transpose()?;
    let link = vlan_link.as_ref().unwrap_or(bridge);
    let there = addr::list(host, link).explain()?;
    for ip in &prev.ips {
        let Some(gateway) = ip.gateway else { continue };
        if !there.iter().any(|address| address.net.addr() == gateway) {
            return Err(check_failed(format!("gateway {gateway} is no address of `{}`", link.name)));
        }
        veth::require_forwarding(host, gateway)?;
    }
    Ok(())
}

fn vlan_link_name(bridge: &str, vlan: u16) -> String {
    format!("{bridge}.{vlan}")
}

/// Removes a gateway address that this ADD added, unless another container's port depends on it by now.
fn remove_address_if_unused(host: &Socket, link: &QuickLink, net: IpNet) -> Result<(), Error> {
    let ports = link::list(host).explain()?.iter().filter(|port| port.master == Some(link.index)).count();
    if ports > 1 { Ok(()) } else { addr::remove(host, link, net).explain() }
}

/// Adds an address to a link unless the link has it. A conflicting address is an error, or is removed with `force`: any other IPv4
/// address, or an IPv6 address of an overlapping subnet.
///
/// Returns whether the address is new.
fn ensure_address(
    host: &Socket,
    link: &QuickLink,
    net: IpNet,
    there: &mut Vec<IpNet>,
    force: bool,
) -> Result<bool, Error> {
    if there.contains(&net) {
        return Ok(false);
    }
    let same_family = |other: &IpNet| other.addr().is_ipv4() == net.addr().is_ipv4();
    let in_the_way = |other: &IpNet| {
        same_family(other)
            && !is_link_local(other.addr())
            && (net.addr().is_ipv4() || other.contains(&net.addr()) || net.contains(&other.addr()))
    };
    while let Some(at) = there.iter().position(in_the_way) {
        let other = there.remove(at);
        if !force {
            return Err(invalid(format!("{:?} already has an IP address different from {net}", link.name))
                .details(format!(
                    "it has {other}; set `forceAddress` to replace it, or give this network another bridge"
                )));
        }
        addr::remove(host, link, other).explain()?;
    }
    there.push(net);
    match addr::add(host, link, net, Detection::Skip) {
        Err(error) if error.kind() == Kind::Exists => Ok(false),
        other => other.explain().map(|()| true),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Creates the host's interface in a VLAN of the bridge: a veth pair whose other end is a port of the bridge.
fn ensure_vlan_link(
    host: &Socket,
    bridge: &QuickLink,
    conf: &Conf,
    vlan: u16,
    undo: &mut Undo,
) -> Result<QuickLink, Error> {
    let name = vlan_link_name(&bridge.name, vlan);
    if name.len() > 15 {
        return Err(invalid(format!("interface name {name:?} is longer than 15 characters"))
            .details("the gateway of a VLAN needs an interface BRIDGE.VLAN: use a shorter `bridge`"));
    }
    if let Some(there) = link::find_quick(host, &name).explain()? {
        return Ok(there);
    }
    let owner = Owner { network: &name, container: "", ifname: "" };
    let port = owner.host_link(0);
    let mtu = match conf.mtu {
        None => link::require(host, &bridge.name).explain()?.mtu,
        Some(mtu) => mtu,
    };
    let veth = Veth {
        name: &name,
        peer_name: &port,
        peer_netns: None,
        peer_group: None,
        mtu: Some(mtu),
        mac: None,
        peer_mac: Some(owner.port_mac(0)),
    };
    match link::create_veth(host, &veth) {
        // Another ADD of this VLAN creates it.
        Err(error) if error.kind() == Kind::Exists => return look(host, &name),
        other => drop(other.explain()?),
    }
    let made = look(host, &name)?;
    let (socket, to_remove) = (host.clone(), made.clone());
    undo.push(format!("remove `{name}`"), move || link::remove(&socket, &to_remove).explain())?;
    let port = link::require(host, &port).explain()?;
    let join = Change { up: Some(true), master: Some(bridge.index), ..Change::default() };
    link::change(host, &port, &join).explain()?;
    sysctl::set(Setting::Ipv6(&port.name, "accept_ra"), "0").explain()?;
    let keep_default = conf.vlans.as_ref().is_some_and(|vlans| vlans.keep_default);
    let of_port = vec![Vlan { id: vlan, pvid: true, untagged: true }];
    set_vlans(host, &port, &Vlans { access: Some(vlan), of_port, keep_default })?;
    link::change(host, &made, &Change { up: Some(true), ..Change::default() }).explain()?;
    Ok(made)
}
