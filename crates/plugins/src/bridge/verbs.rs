//! The verbs of `bridge`.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{
    Protocol, Socket, deferred,
    link::{self, Change, Link},
};
use netloom_plugin::{
    Attachment, Error, Request, Sandbox, Undo,
    result::{
        Route,
        v100::{IpConfig, Success},
    },
};
use netloom_types::address::default_route;
use ruleset::{
    masquerade,
    spoof::{self, Sender},
};

use super::{conf::Conf, device, gateway, port};
use crate::{
    cleanup,
    common_config::ipam_of,
    container_link,
    container_netns::{ContainerNetns, Duplicates, Settings},
    error::{Errors, Explain, check_failed},
    interface,
    owner::Owner,
    veth,
};

/// Index of the container's interface in the result, after the bridge and the host end.
const INSIDE: i64 = 2;

pub(super) fn add(request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
    let conf = Conf::of(request)?;
    let owner = Owner::of(request, sandbox);
    let host = Socket::open(Protocol::Route).explain()?;
    let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;

    // The bridge comes first, so that the undo removes it last, when it has no port of this ADD any more.
    let mut bridge = device::ensure_bridge(&host, &conf, undo)?;
    let new = veth::New { mtu: conf.mtu, mac: conf.mac, port: true };
    let (outside, mut inside) = veth::create(&host, &container, sandbox, &owner, new, undo)?;
    bridge = port::connect(&host, bridge, &outside, &conf, &owner, undo)?;

    let duplicates = if conf.detect_duplicates { Duplicates::Detect } else { Duplicates::Ignore };
    let settings = Settings { ipv6: false, duplicates, announce: false };
    if conf.ipam.is_some() {
        container.set_sysctls(&inside.name, settings)?;
    }
    // The container end goes up before it has addresses: the kernel detects the carrier while the IPAM plugin runs. Gratuitous
    // ARP sent before the port forwards would be lost.
    if !conf.leave_down {
        let up = Change { up: Some(true), announce: conf.ipam.as_ref().map(|_| true), ..Change::default() };
        link::change(&container.socket, &inside, &up).explain()?;
        inside.up = true;
    }
    let mut result = Success::default();
    if let Some(ipam) = &conf.ipam {
        result = addresses(request, sandbox, &conf, ipam, undo)?;
    }
    if !conf.leave_down {
        port::wait_until_operational(&host, &outside)?;
    }
    if conf.ipam.is_some() {
        let ipv6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
        if ipv6 {
            container.set_ipv6_sysctls(&inside.name)?;
        }
        container.configure(&inside, &result, Settings { ipv6, ..settings })?;
    }

    let mut gateway_link = None;
    if conf.gateway && conf.ipam.is_some() {
        gateway_link = gateway::set_up(&host, &bridge, &conf, &result, undo)?;
    }
    set_up_rules(&conf, &owner, &outside.name, &inside, &result, undo)?;

    // The bridge's hardware address is final only now: it follows the ports until a gateway address pins it.
    result.interfaces = vec![
        device::listed(&host, &bridge)?,
        interface::listed(&outside.name, Some(link::mac(&host, &outside.name).explain()?)),
        interface::in_container(&inside, sandbox),
    ];
    if let Some(link) = gateway_link {
        result.interfaces.push(device::listed(&host, &link)?);
    }
    conf.dns.replace_in(&mut result);
    Ok(result)
}

pub(super) fn del(request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
    let owner = Owner::of(request, sandbox);
    let mut errors = Errors::default();
    errors.note(cleanup::remove_rules(&owner));
    errors.note(cleanup::remove_link_and_addresses(request, sandbox, || veth::remove(&owner, sandbox)));
    errors.into_result()
}

pub(super) fn check(request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
    let conf = Conf::of(request)?;
    let owner = Owner::of(request, sandbox);
    if let Some(ipam) = &conf.ipam {
        request.delegate_check(ipam, sandbox)?;
    }
    let prev = request.require_prev_result()?;
    let host = Socket::open(Protocol::Route).explain()?;
    let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;

    let bridge = link::find(&host, conf.bridge.as_str()).explain()?.ok_or_else(|| {
        check_failed(format!("CNI created bridge {} in host namespace was not found", conf.bridge))
    })?;
    if bridge.kind.as_deref() != Some("bridge") {
        return Err(check_failed(format!("Interface {} does not have link type of bridge", bridge.name)));
    }
    if conf.promiscuous && bridge.promiscuity == 0 {
        return Err(check_failed(format!("bridge `{}` is not in promiscuous mode", bridge.name)));
    }
    let inside = interface::require_listed(&container, sandbox, &prev, Some("veth"))?;
    let outside = veth::host_end(&host, &container, &inside)?
        .ok_or_else(|| check_failed(format!("the host end of `{}` is not on this host", inside.name)))?;
    if outside.master != Some(bridge.index) {
        return Err(check_failed(format!("`{}` is no port of bridge `{}`", outside.name, bridge.name)));
    }
    if conf.gateway && conf.ipam.is_some() {
        gateway::check(&host, &bridge, &conf, &prev)?;
    }
    check_rules(&conf, &owner, &outside.name, &inside, &prev)?;
    container.compare(&inside, &prev)
}

pub(super) fn gc(request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    cleanup::gc(request, valid, ipam_of(request)?.as_deref())
}

pub(super) fn status(request: &Request) -> Result<(), Error> {
    let conf = Conf::of(request)?;
    let host = Socket::open(Protocol::Route).explain()?;
    device::require_bridge(link::find_quick(&host, conf.bridge.as_str()).explain()?.as_ref())?;
    conf.ipam.map_or(Ok(()), |ipam| request.delegate_status(&ipam))
}

/// Gets addresses from the IPAM plugin, and adds the gateways and the default routes that follow from the configuration.
fn addresses(
    request: &Request,
    sandbox: &Sandbox,
    conf: &Conf,
    ipam: &str,
    undo: &mut Undo,
) -> Result<Success, Error> {
    let mut result = container_link::addresses_of(request, ipam, sandbox, undo)?;
    for ip in &mut result.ips {
        ip.interface = Some(INSIDE);
        if conf.gateway {
            ip.gateway = ip.gateway.or_else(|| first_of(ip.address));
        }
        let default = default_route(ip.address.addr());
        let has_default = result.routes.iter().any(|route| route.gw.is_some() && route.dst == default);
        if conf.default_gateway && !has_default {
            result.routes.push(Route::new(default, ip.gateway));
        }
    }
    result.interfaces.clear();
    Ok(result)
}

fn first_of(net: IpNet) -> Option<IpAddr> {
    match net.network() {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|ip| IpAddr::V4(ip.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|ip| IpAddr::V6(ip.into())),
    }
}

/// Adds the container's nftables elements. Opens no socket if there are none.
fn set_up_rules(
    conf: &Conf,
    owner: &Owner<'_>,
    outside: &str,
    inside: &Link,
    result: &Success,
    undo: &mut Undo,
) -> Result<(), Error> {
    let (masqueraded, addresses) = (masqueraded(conf, result), addresses_of(result));
    let sender = sender(conf, outside, inside, &addresses);
    if masqueraded.is_empty() && sender.is_none() {
        return Ok(());
    }
    let netfilter = deferred::netfilter().explain()?;
    let mark = owner.mark();
    if let Some(sender) = &sender {
        spoof::add(&netfilter, &mark, sender).explain()?;
        let (socket, mark) = (netfilter.clone(), mark.clone());
        undo.push("remove the spoof check", move || spoof::remove(&socket, &mark).explain())?;
    }
    if !masqueraded.is_empty() {
        masquerade::add(&netfilter, &mark, &masqueraded).explain()?;
        undo.push("remove masquerade", move || masquerade::remove(&netfilter, &mark).explain())?;
    }
    Ok(())
}

fn check_rules(
    conf: &Conf,
    owner: &Owner<'_>,
    outside: &str,
    inside: &Link,
    prev: &Success,
) -> Result<(), Error> {
    let (masqueraded, addresses) = (masqueraded(conf, prev), addresses_of(prev));
    let sender = sender(conf, outside, inside, &addresses);
    if masqueraded.is_empty() && sender.is_none() {
        return Ok(());
    }
    let netfilter = deferred::netfilter().explain()?;
    let mark = owner.mark();
    if let Some(net) = masquerade::absent(&netfilter, &mark, &masqueraded).explain()?.first() {
        return Err(check_failed(format!("address {net} is not masqueraded")));
    }
    if let Some(sender) = &sender
        && !spoof::is_set(&netfilter, &mark, sender).explain()?
    {
        let kind = if sender.check_mac { "MAC" } else { "address" };
        return Err(check_failed(format!("`{outside}` has no {kind} spoof check")));
    }
    Ok(())
}

/// Returns the addresses that the port may send from, or `None` if the configuration does not restrict them.
fn sender<'a>(conf: &Conf, outside: &'a str, inside: &Link, addresses: &'a [IpAddr]) -> Option<Sender<'a>> {
    let addresses = if conf.ip_spoof_check { addresses } else { &[] };
    let mac = inside.mac.filter(|_| conf.mac_spoof_check || !addresses.is_empty())?;
    Some(Sender { port: outside, mac, check_mac: conf.mac_spoof_check, addresses })
}

fn addresses_of(result: &Success) -> Vec<IpAddr> {
    of_container(result).map(|ip| ip.address.addr()).collect()
}

fn of_container(result: &Success) -> impl Iterator<Item = &IpConfig> {
    result.ips.iter().filter(|ip| ip.interface.is_none_or(|index| index == INSIDE))
}

fn masqueraded(conf: &Conf, result: &Success) -> Vec<IpNet> {
    if conf.masquerade { of_container(result).map(|ip| ip.address).collect() } else { Vec::new() }
}
