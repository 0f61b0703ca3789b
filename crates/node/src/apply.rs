//! Making the difference between what there should be and what there is, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kernel::{
    Socket, addr,
    addr::Detection,
    link::{self, Change, Driver, IpvlanMode, Link, MacvlanMode, New},
    neigh::{self, Forward},
    offload, route,
    sysctl::{self, Setting},
};

use crate::{
    actual::{self, Actual, PROTOCOL},
    config::Underlay,
    desired::{By, Desired, Device, Kind, Route, Uplinks},
    record::hop_of,
};

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// How many objects were put there, changed or taken away.
    pub changes: usize,
    /// The indices of the devices.
    pub devices: BTreeSet<u32>,
    /// What the kernel refused.
    pub refused: Vec<String>,
}

impl Done {
    fn note<T>(&mut self, outcome: kernel::Result<T>) -> Option<T> {
        match outcome {
            Ok(done) => Some(done),
            Err(error) => {
                let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                self.refused.push(format!("{error}{hint}"));
                None
            }
        }
    }

    fn note_all(&mut self, count: usize, refused: Vec<kernel::Error>) {
        self.changes += count.saturating_sub(refused.len());
        self.refused.extend(refused.iter().map(ToString::to_string));
    }
}

/// Marks the devices as ours.
const ALIAS: &str = "netloomd";

/// Makes the kernel hold what it should of devices, neighbours and routes.
pub fn apply(socket: &Socket, desired: &Desired, actual: &Actual) -> Done {
    let mut done = Done::default();
    let mut devices: BTreeMap<&str, u32> = BTreeMap::new();
    for device in &desired.devices {
        let there = actual.devices.get(device.name);
        if let Some((link, entries_of)) = ensure_device(socket, device, there, &mut done) {
            devices.insert(device.name, link.index);
            change_entries(socket, desired, device.name, link.index, entries_of, &mut done);
        }
    }
    done.devices = devices.values().copied().collect();
    change_routes(socket, desired, actual, &devices, &mut done);
    // Last: no route leads there any more.
    for (name, there) in &actual.devices {
        if desired.devices.iter().all(|device| device.name != *name) {
            done.note(link::remove(socket, &there.link));
            done.changes += 1;
        }
    }
    done
}

/// Returns the device, and what is known of its entries: nothing when it was made just now.
fn ensure_device<'a>(
    socket: &Socket,
    device: &Device,
    there: Option<&'a actual::Device>,
    done: &mut Done,
) -> Option<(Link, Option<&'a actual::Device>)> {
    let mut known = there;
    if let Some(other) = there.filter(|there| !is(&there.link, device)) {
        // What a device is cannot be changed: it is made anew, with all its entries.
        done.note(link::remove(socket, &other.link))?;
        known = None;
    }
    if known.is_none() {
        // Two of one network and port cannot be on a host.
        if let Some(name) = &device.replaces
            && let Some(other) = done.note(link::find(socket, name))?
            && other.kind.as_deref() == Some("vxlan")
        {
            done.note(link::remove(socket, &other))?;
        }
        let new = New { mtu: Some(device.mtu), mac: device.mac, ..new(device) };
        done.note(link::create(socket, &new))?;
        done.changes += 1;
        for (setting, value) in settings(device) {
            done.note(sysctl::set(setting, value));
        }
    }
    let link = match known {
        Some(there) => there.link.clone(),
        None => done.note(link::require(socket, device.name))?,
    };
    let change = Change {
        up: Some(true).filter(|_| !link.up),
        mtu: Some(device.mtu).filter(|mtu| link.mtu != *mtu),
        mac: device.mac.filter(|mac| link.mac != Some(*mac)),
        alias: Some(ALIAS).filter(|alias| link.alias.as_deref() != Some(*alias)),
        ..Change::default()
    };
    if change.up.is_some() || change.mtu.is_some() || change.mac.is_some() || change.alias.is_some() {
        done.note(link::change(socket, &link, &change))?;
        done.changes += 1;
    }
    // What leaves it to the card and should may do so; some cards cannot.
    if !device.checksum_offload
        && done.note(offload::checksums(device.name)) == Some(true)
        && done.note(offload::set_checksums(device.name, false)).is_some()
    {
        done.changes += 1;
    }
    let there = known.map(|there| there.addresses.clone()).unwrap_or_default();
    let wanted: BTreeSet<_> = device.addresses.iter().copied().collect();
    for net in wanted.difference(&there) {
        if done.note(addr::add(socket, &link, *net, Detection::Skip)).is_some() {
            done.changes += 1;
        }
    }
    // The kernel gives links addresses of its own.
    let by_kernel = |net: &IpNet| matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    for net in there.difference(&wanted).filter(|net| !by_kernel(net)) {
        if done.note(addr::remove(socket, &link, *net)).is_some() {
            done.changes += 1;
        }
    }
    // What went down lost its IPv6 neighbours' settings, not its entries.
    Some((link, known))
}

fn new(device: &Device) -> New<'_> {
    match device.kind {
        Kind::Tunnel { vni, port, local } => New::of(device.name, Driver::Vxlan { vni, port, local }),
        Kind::Gpe { port } => New::of(device.name, Driver::VxlanGpe { port }),
        Kind::Beside { underlay, link } => {
            let driver = match underlay {
                Underlay::Macvlan => Driver::Macvlan { mode: MacvlanMode::Bridge, broadcasts: None },
                Underlay::Ipvlan => Driver::Ipvlan { mode: IpvlanMode::L2 },
            };
            New { over: Some(link), ..New::of(device.name, driver) }
        }
    }
}

/// Returns whether a link is what the device should be.
fn is(link: &Link, device: &Device) -> bool {
    match (device.kind, link.driver) {
        (Kind::Tunnel { vni, port, local }, driver) => driver == Some(Driver::Vxlan { vni, port, local }),
        (Kind::Gpe { port }, driver) => driver == Some(Driver::VxlanGpe { port }),
        (Kind::Beside { underlay, link: over }, driver) => {
            let is = matches!(
                (underlay, driver),
                (Underlay::Macvlan, Some(Driver::Macvlan { mode: MacvlanMode::Bridge, .. }))
                    | (Underlay::Ipvlan, Some(Driver::Ipvlan { mode: IpvlanMode::L2 }))
            );
            is && link.peer == Some(over)
        }
    }
}

/// Says what is set of a new device before it goes up.
fn settings(device: &Device) -> Vec<(Setting<'_>, &'static str)> {
    let name = device.name;
    let mut settings =
        vec![(Setting::Ipv6(name, "disable_ipv6"), "0"), (Setting::Ipv6(name, "accept_ra"), "0")];
    settings.extend(match device.kind {
        // Packets of pods come by it whose way back may be another; nobody is on it who could have its addresses.
        Kind::Tunnel { .. } => {
            vec![(Setting::Ipv4(name, "rp_filter"), "2"), (Setting::Ipv6(name, "accept_dad"), "0")]
        }
        // No next hop is on it, and so no link-local address.
        Kind::Gpe { .. } => {
            vec![(Setting::Ipv4(name, "rp_filter"), "2"), (Setting::Ipv6(name, "addr_gen_mode"), "1")]
        }
        // It answers for the host's addresses to those alone that it leads to, this host's pods: others hear of the link
        // itself. The link-local address of a macvlan follows from its hardware address, whatever the host's default is; an ipvlan
        // is given one, and asks by its own address, for it does not hear what is answered to the host's.
        Kind::Beside { underlay, .. } => {
            let (announce, generated) = match underlay {
                Underlay::Macvlan => ("0", "0"),
                Underlay::Ipvlan => ("2", "1"),
            };
            vec![
                (Setting::Ipv4(name, "arp_filter"), "1"),
                (Setting::Ipv4(name, "arp_announce"), announce),
                (Setting::Ipv6(name, "addr_gen_mode"), generated),
                (Setting::Ipv6(name, "accept_dad"), "0"),
            ]
        }
    });
    settings
}

fn change_entries(
    socket: &Socket,
    desired: &Desired,
    device: &str,
    link: u32,
    known: Option<&actual::Device>,
    done: &mut Done,
) {
    let wanted = desired.heard.iter().filter(|(of, _, _)| *of == device);
    let wanted: Vec<_> = wanted.map(|(_, mac, to)| (*mac, *to)).collect();
    let hops: BTreeMap<IpAddr, _> =
        wanted.iter().map(|(mac, _)| (IpAddr::from(hop_of(*mac)), *mac)).collect();
    let forwards: BTreeSet<Forward> =
        wanted.iter().map(|(mac, to)| Forward { link, mac: *mac, to: *to }).collect();
    let (no_hops, no_forwards) = (BTreeMap::new(), BTreeSet::new());
    let there = known.map_or(&no_hops, |there| &there.neighbours);
    let forwarded = known.map_or(&no_forwards, |there| &there.forwards);
    let mut fates = Vec::new();
    // An entry of the same hardware address at another host goes first: there is one way at a time.
    fates.extend(forwarded.difference(&forwards).map(|forward| neigh::Fate::NoForward(*forward)));
    fates.extend(forwards.difference(forwarded).map(|forward| neigh::Fate::Forward(*forward)));
    let new = hops.iter().filter(|(ip, mac)| there.get(ip) != Some(mac));
    fates.extend(new.map(|(ip, mac)| neigh::Fate::Neighbour(link, *ip, *mac)));
    let gone = there.keys().filter(|ip| !hops.contains_key(ip));
    fates.extend(gone.map(|ip| neigh::Fate::NoNeighbour(link, *ip)));
    let refused = neigh::change_all(socket, &fates);
    done.note_all(fates.len(), refused);
}

fn change_routes(
    socket: &Socket,
    desired: &Desired,
    actual: &Actual,
    devices: &BTreeMap<&str, u32>,
    done: &mut Done,
) {
    let all = desired.routes.values().chain(&desired.exported);
    let wanted: Vec<route::Route> = all.filter_map(|route| as_kernel_has_it(route, devices)).collect();
    let key = |route: &route::Route| (route.dst, route.priority, route.table);
    let wanted_keys: BTreeSet<_> = wanted.iter().map(key).collect();
    let there: BTreeMap<_, &route::Route> = actual.routes.iter().map(|route| (key(route), route)).collect();
    let new = wanted.iter().filter(|route| there.get(&key(route)).is_none_or(|other| !same(other, route)));
    let mut fates: Vec<route::Fate> = new.map(|route| route::Fate::Put(*route)).collect();
    let gone = actual.routes.iter().filter(|route| !wanted_keys.contains(&key(route)));
    fates.extend(gone.map(|route| route::Fate::Remove(*route)));
    let refused = route::change_all(socket, &fates);
    done.note_all(fates.len(), refused);
}

/// The kernel fills in a scope, and a source that follows by itself.
fn same(there: &route::Route, wanted: &route::Route) -> bool {
    there.link == wanted.link
        && there.gateway == wanted.gateway
        && there.blackhole == wanted.blackhole
        && there.carried == wanted.carried
        && (wanted.source.is_none() || there.source == wanted.source)
}

fn as_kernel_has_it(route: &Route, devices: &BTreeMap<&str, u32>) -> Option<route::Route> {
    /// Where none is given, IPv6's routes have this metric.
    const USUAL6: u32 = 1024;
    let (link, blackhole) = match route.by {
        By::Link(link) => (link, false),
        By::Device(name) => (*devices.get(name)?, false),
        By::Nothing if route.dst.addr().is_ipv6() => (LOOPBACK, true),
        By::Nothing => (0, true),
    };
    let usual = if route.dst.addr().is_ipv6() { USUAL6 } else { 0 };
    Some(route::Route {
        // What is on the link.
        scope: if route.gateway.is_none() && !blackhole && route.dst.addr().is_ipv4() { LINK } else { 0 },
        priority: if route.priority == 0 { usual } else { route.priority },
        source: route.source,
        table: route.table,
        protocol: PROTOCOL,
        blackhole,
        carried: route.carried,
        ..route::Route::new(route.dst, route.gateway, link)
    })
}

/// The scope of what is on the link (`RT_SCOPE_LINK`).
const LINK: u8 = 253;
/// The kernel says of IPv6's blackhole routes that they lead to `lo`.
const LOOPBACK: u32 = 1;

/// Has the host forward, without losing the default route that it may have from a router's advertisements.
///
/// # Errors
/// When the kernel refuses.
pub fn forward(desired: &Desired, uplinks: &Uplinks) -> kernel::Result<()> {
    let pods = desired.ruleset.iter().flat_map(|ruleset| &ruleset.pods);
    let families: BTreeSet<bool> = pods.map(|net| net.addr().is_ipv4()).collect();
    if families.contains(&true) {
        sysctl::ensure(Setting::Ipv4Forward, "1")?;
    }
    if families.contains(&false) {
        let accept = uplinks.v6.as_ref().map(|uplink| Setting::Ipv6(&uplink.name, "accept_ra"));
        if let Some(accept) = accept
            && sysctl::read(accept)?.as_deref() == Some("1")
        {
            sysctl::ensure(accept, "2")?;
        }
        sysctl::ensure(Setting::Ipv6Forward, "1")?;
    }
    Ok(())
}

/// Has the uplink hear this host's own pods that are ipvlans over it: what they send to the host comes by it, and the way to
/// them is another, which a strict filter of sources takes for a lie (`rp_filter`, RFC 3704).
///
/// # Errors
/// When the kernel refuses.
pub fn hear_ipvlans(desired: &Desired, uplinks: &Uplinks) -> kernel::Result<()> {
    let is_ipvlan = |device: &Device| matches!(device.kind, Kind::Beside { underlay: Underlay::Ipvlan, .. });
    let Some(uplink) = uplinks.v4.as_ref().filter(|_| desired.devices.iter().any(is_ipvlan)) else {
        return Ok(());
    };
    // The greater of the two counts: 0 is no filter, 1 a strict one, 2 a loose one.
    let of = |link| sysctl::read(Setting::Ipv4(link, "rp_filter"));
    if of("all")?.max(of(&uplink.name)?).as_deref() == Some("1") {
        sysctl::ensure(Setting::Ipv4(&uplink.name, "rp_filter"), "2")?;
    }
    Ok(())
}

/// Takes everything of ours away.
pub fn remove(socket: &Socket, actual: &Actual) -> Done {
    let mut done = Done::default();
    let fates: Vec<route::Fate> = actual.routes.iter().map(|route| route::Fate::Remove(*route)).collect();
    let refused = route::change_all(socket, &fates);
    done.note_all(fates.len(), refused);
    for device in actual.devices.values() {
        if done.note(link::remove(socket, &device.link)).is_some() {
            done.changes += 1;
        }
    }
    done
}
