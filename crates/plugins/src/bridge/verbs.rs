//! The verbs of `bridge`.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use kernel::{
    Kind, Protocol, Socket,
    bridge::{self, Side},
    deferred,
    events::Events,
    link::{self, Change, Handle, Link, Mac, Named, QuickLink},
    sysctl::{self, Setting},
};
use netloom_plugin::{
    Attachment, Error, Request, Sandbox, Undo,
    result::{
        Route,
        v100::{Interface, IpConfig, Success},
    },
};
use netloom_types::address::default_route;
use ruleset::{
    masquerade,
    spoof::{self, Sender},
};

use super::{
    conf::{Conf, Vlans},
    gateway,
};
use crate::{
    cleanup,
    common_config::ipam_of,
    container_link,
    container_netns::{ContainerNetns, Duplicates, Settings},
    error::{Errors, Explain, check_failed, invalid},
    interface,
    owner::Owner,
    veth,
};

/// Index of the container's interface in the result, after the bridge and the host end.
const INSIDE: i64 = 2;
/// Time limit for a new bridge port to reach the forwarding state, which takes well under a millisecond.
const PORT_LIMIT: Duration = Duration::from_secs(5);

pub(super) fn add(request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
    let conf = Conf::of(request)?;
    let owner = Owner::of(request, sandbox);
    let host = Socket::open(Protocol::Route).explain()?;
    let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;

    // The bridge comes first, so that the undo removes it last, when it has no port of this ADD any more.
    let mut bridge = ensure_bridge(&host, &conf, undo)?;
    let new = veth::New { mtu: conf.mtu, mac: conf.mac, port: true };
    let (outside, mut inside) = veth::create(&host, &container, sandbox, &owner, new, undo)?;
    bridge = connect(&host, bridge, &outside, &conf, &owner, undo)?;

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
        wait_until_operational(&host, &outside)?;
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
        listed(&host, &bridge)?,
        interface::listed(&outside.name, Some(link::mac(&host, &outside.name).explain()?)),
        interface::in_container(&inside, sandbox),
    ];
    if let Some(link) = gateway_link {
        result.interfaces.push(listed(&host, &link)?);
    }
    if !conf.dns.is_empty() {
        result.dns = conf.dns;
    }
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
    check_rules(&conf, &owner, &outside.name, &inside, &prev)?;
    container.compare(&inside, &prev)
}

pub(super) fn gc(request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    cleanup::gc(request, valid, ipam_of(request)?.as_deref())
}

pub(super) fn status(request: &Request) -> Result<(), Error> {
    let conf = Conf::of(request)?;
    let host = Socket::open(Protocol::Route).explain()?;
    require_bridge(link::find_quick(&host, conf.bridge.as_str()).explain()?.as_ref())?;
    conf.ipam.map_or(Ok(()), |ipam| request.delegate_status(&ipam))
}

/// Makes the host end a port of the bridge.
fn connect(
    host: &Socket,
    mut bridge: QuickLink,
    outside: &Handle,
    conf: &Conf,
    owner: &Owner<'_>,
    undo: &mut Undo,
) -> Result<QuickLink, Error> {
    const ATTEMPTS: u32 = 4;
    let mark = owner.mark();
    for attempt in 0.. {
        let change = Change { master: Some(bridge.index), ..veth::up_and_marked(&mark) };
        let joined =
            link::mac(host, &bridge.name).and_then(|mac| link::change(host, outside, &change).map(|()| mac));
        let error = match joined {
            Ok(before) => {
                keep_mac(host, &bridge, before)?;
                break;
            }
            Err(error) => error,
        };
        // Another ADD created the bridge, failed and removed it; a third one may have created the next.
        let there = link::find_quick(host, &bridge.name).explain()?;
        if attempt == ATTEMPTS || there.is_some_and(|there| there.index == bridge.index) {
            return Err(error).explain();
        }
        bridge = ensure_bridge(host, conf, undo)?;
    }
    sysctl::set(Setting::Ipv6(&outside.name, "accept_ra"), "0").explain()?;
    if conf.port.hairpin || conf.port.isolated {
        bridge::set_port(host, outside, conf.port).explain()?;
    }
    if let Some(vlans) = &conf.vlans {
        set_vlans(host, outside, vlans)?;
    }
    Ok(bridge)
}

/// Restores the hardware address that a bridge had before a port joined.
///
/// A bridge whose address was not set takes the lowest one of its ports. Ports of containers have higher addresses than any
/// other link, so only a bridge without other ports loses the address that it had before.
fn keep_mac(host: &Socket, bridge: &QuickLink, before: Mac) -> Result<(), Error> {
    let now = link::mac(host, &bridge.name).explain()?;
    // With two ADDs at once the second one reads the first one's port address, which is not the bridge's own.
    if Owner::is_port_mac(now) && !Owner::is_port_mac(before) {
        let change = Change { mac: Some(before), ..Change::default() };
        link::change(host, bridge, &change).explain()?;
    }
    Ok(())
}

pub(super) fn set_vlans(host: &Socket, port: &dyn Named, vlans: &Vlans) -> Result<(), Error> {
    if !vlans.of_port.is_empty() && !vlans.keep_default {
        let there = bridge::vlans(host, port).explain()?;
        bridge::remove_vlans(host, port, Side::Port, &there).explain()?;
    }
    bridge::add_vlans(host, port, Side::Port, &vlans.of_port).explain()
}

fn ensure_bridge(host: &Socket, conf: &Conf, undo: &mut Undo) -> Result<QuickLink, Error> {
    let name = conf.bridge.as_str();
    let wanted = bridge::New { name, mtu: conf.mtu, vlan_filtering: conf.vlans.is_some() };
    let there = link::find_quick(host, name).explain()?;
    let mut created = false;
    if there.is_none() {
        match bridge::create(host, &wanted) {
            Ok(()) => {
                created = true;
                let (socket, name) = (host.clone(), name.to_owned());
                undo.push(format!("remove bridge `{name}`"), move || remove_if_empty(&socket, &name))?;
                sysctl::set(Setting::Ipv6(wanted.name, "accept_ra"), "0").explain()?;
                // Until duplicate address detection of its link-local address ends, after 1 to 2 s, a bridge does not
                // resolve neighbours for forwarded packets. Its address is random, so there is no duplicate.
                if conf.uplink.is_none() {
                    sysctl::set(Setting::Ipv6(wanted.name, "accept_dad"), "0").explain()?;
                }
            }
            Err(error) if error.kind() == Kind::Exists => {}
            Err(error) => return Err(error).explain(),
        }
    }
    let bridge = match there {
        Some(bridge) => bridge,
        None => look(host, name)?,
    };
    require_bridge(Some(&bridge))?;
    if !bridge.up || (conf.promiscuous && !bridge.promiscuous) {
        let promiscuous = conf.promiscuous.then_some(true);
        link::change(host, &bridge, &Change { up: Some(true), promiscuous, ..Change::default() })
            .explain()?;
    }
    if let Some(uplink) = &conf.uplink {
        connect_uplink(host, &bridge, uplink.as_str(), created)?;
    }
    Ok(bridge)
}

/// Makes a link of the host a permanent port of the bridge. A bridge that this ADD created takes the uplink's hardware address;
/// one that existed keeps its own.
fn connect_uplink(host: &Socket, bridge: &QuickLink, name: &str, created: bool) -> Result<(), Error> {
    let uplink = link::require(host, name).explain()?;
    match uplink.master {
        Some(master) if master == bridge.index => Ok(()),
        Some(_) => Err(invalid(format!("`uplinkInterface` {name:?} belongs to another bridge or bond"))
            .details("remove the link from that bridge, or name another link")),
        None => {
            let mac = link::mac(host, &bridge.name).explain()?;
            let change = Change { up: Some(true), master: Some(bridge.index), ..Change::default() };
            link::change(host, &uplink, &change).explain()?;
            if created || link::mac(host, &bridge.name).explain()? == mac {
                return Ok(());
            }
            link::change(host, bridge, &Change { mac: Some(mac), ..Change::default() }).explain()
        }
    }
}

/// Returns a link of the host that must exist.
pub(super) fn look(host: &Socket, name: &str) -> Result<QuickLink, Error> {
    link::find_quick(host, name).explain()?.ok_or_else(|| {
        Error::new(netloom_plugin::Code::Internal, format!("link {name:?} disappeared during the ADD"))
            .details("another program removed it: see which one with `ip monitor link`, then try again")
    })
}

/// Returns a link of the host as the result lists it, once its hardware address is final and it can transmit.
fn listed(host: &Socket, link: &QuickLink) -> Result<Interface, Error> {
    let mac = if link::is_running(host, &link.name).explain()? {
        Some(link::mac(host, &link.name).explain()?)
    } else {
        // RTM_GETLINK makes the kernel process a pending carrier event. Until then the link transmits nothing.
        link::require(host, &link.name).explain()?.mac
    };
    Ok(interface::listed(&link.name, mac))
}

fn require_bridge(there: Option<&QuickLink>) -> Result<(), Error> {
    match there {
        Some(link) if link.driver != "bridge" => {
            Err(invalid(format!("{:?} already exists but is not a bridge", link.name))
                .details("set `bridge` to another name"))
        }
        _ => Ok(()),
    }
}

/// Removes a bridge that this ADD created, unless it has a port by now.
fn remove_if_empty(host: &Socket, name: &str) -> Result<(), Error> {
    let Some(bridge) = link::find(host, name).explain()? else { return Ok(()) };
    let joined = link::list(host).explain()?.iter().any(|link| link.master == Some(bridge.index));
    if joined { Ok(()) } else { link::remove(host, &bridge).explain() }
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

/// Waits until the port forwards, which it usually does by now.
fn wait_until_operational(host: &Socket, port: &Handle) -> Result<(), Error> {
    let is_up = || link::find_index(host, port.index).map(|link| link.is_some_and(|l| l.is_operational()));
    if is_up().explain()? {
        return Ok(());
    }
    // The socket is open before the next look, so no event is missed.
    let events = Events::of_links().explain()?;
    let deadline = std::time::Instant::now() + PORT_LIMIT;
    while !is_up().explain()? {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        events
            .wait_for_link(left, &format!("`{}` to come up", port.name), |link| {
                link.index == port.index && link.is_operational()
            })
            .explain()?;
    }
    Ok(())
}
