//! Applies the difference between desired and actual state to the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kernel::{
    Socket, addr,
    addr::Detection,
    hash::fnv1a,
    link::{self, Driver, IpvlanMode, Link, Mac, MacvlanMode, New},
    neigh::{self, Forward},
    offload, route, sysctl,
};

use crate::{
    actual::{self, Actual, PROTOCOL},
    config::Underlay,
    desired::{Desired, Device, Kind, Route, Target},
    record::hop_of,
    refusals::{Change, Object, Refusals},
    settings::{self, Settings},
    status::Changes,
};

/// The result of a pass.
#[derive(Debug, Default)]
pub struct Done {
    /// The numbers of objects created, changed or removed.
    pub changes: Changes,
    /// The indices of the daemon's devices.
    pub devices: BTreeSet<u32>,
    /// The refused changes of objects that are no peer's.
    pub refused: Vec<String>,
    /// The number of all refused changes.
    pub refused_count: usize,
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

    /// Counts the changes with the counter of each one's kind, and sorts the refusals into those of peers' objects and others.
    fn note_all<T: Copy>(
        &mut self,
        changes: &[(Option<Object>, T)],
        refused: Vec<(usize, kernel::Error)>,
        kind: impl Fn(T) -> Change,
        counter: fn(&mut Changes, T) -> &mut usize,
        known: &mut Known,
    ) {
        for (_, fate) in changes {
            *counter(&mut self.changes, *fate) += 1;
        }
        self.refused_count += refused.len();
        for (index, error) in refused {
            let Some((of_peer, fate)) = changes.get(index) else { continue };
            *counter(&mut self.changes, *fate) -= 1;
            match of_peer {
                Some(object) => known.refusals.note(*object, kind(*fate), &error),
                None => self.refused.push(error.to_string()),
            }
        }
    }
}

/// What is known from earlier passes.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The changes for peers that the kernel refused.
    pub(crate) refusals: Refusals,
    /// The settings, and how often other programs have changed them.
    pub(crate) settings: Settings,
    /// The chains of the ruleset.
    pub(crate) rules: ruleset::cluster::Known,
    /// The routes that were this daemon's, sorted: a program that replaced one has changed an object of the daemon's.
    routes: Vec<RouteKey>,
}

impl Known {
    /// Starts with what an earlier daemon knew of the ruleset.
    pub(crate) fn new(rules: ruleset::cluster::Known) -> Self {
        Self { rules, ..Self::default() }
    }
}

/// Destination, metric and table.
type RouteKey = (IpNet, u32, u32);

/// The alias of the daemon's devices.
const ALIAS: &str = "netloomd";

/// Brings devices, neighbours and routes to the desired state.
pub(crate) fn apply(socket: &Socket, desired: &Desired, actual: &Actual, known: &mut Known) -> Done {
    let mut done = Done::default();
    let mut pending = BTreeSet::new();
    let mut devices: BTreeMap<&str, u32> = BTreeMap::new();
    let again;
    let mut actual = actual;
    if desired.devices.iter().any(|device| is_stale(device, actual)) {
        // A device that is created again loses its routes: those that lead elsewhere from now on do so before that.
        let staying = desired.devices.iter().filter(|device| !is_stale(device, actual));
        let staying = staying.filter_map(|it| Some((it.name, actual.devices.get(it.name)?.link.index)));
        change_routes(socket, desired, actual, &staying.collect(), (known, &mut pending), &mut done);
        if let Some(read) = done.note(actual::read(socket)) {
            again = read;
            actual = &again;
        }
    }
    for device in &desired.devices {
        let current = actual.devices.get(device.name);
        if let Some((link, entries_of)) = ensure_device(socket, device, current, &mut done) {
            devices.insert(device.name, link.index);
            change_entries(
                socket,
                desired,
                (device.name, link.index),
                entries_of,
                (known, &mut pending),
                &mut done,
            );
        }
    }
    done.devices = devices.values().copied().collect();
    if done.changes.devices > 0 {
        // What was refused because of a device or an address that is back is tried again at once.
        known.refusals.clear();
    }
    change_routes(socket, desired, actual, &devices, (known, &mut pending), &mut done);
    known.refusals.retain(|object| pending.contains(object));
    // Devices are removed last, when no route leads to them any more.
    for (name, current) in &actual.devices {
        if desired.devices.iter().all(|device| device.name != *name) {
            done.note(link::remove(socket, &current.link));
            done.changes.devices += 1;
        }
    }
    done
}

/// Returns whether a device is of another kind than it should be.
fn is_stale(device: &Device, actual: &Actual) -> bool {
    actual.devices.get(device.name).is_some_and(|current| !matches(&current.link, device))
}

/// Creates devices again that are of another kind than they should be, if no route leads to them.
pub(crate) fn prepare(socket: &Socket, desired: &Desired, actual: &Actual) -> Done {
    let mut done = Done::default();
    for device in desired.devices.iter().filter(|device| is_stale(device, actual)) {
        let current = &actual.devices[device.name];
        if actual.routes.iter().all(|route| route.link != current.link.index) {
            ensure_device(socket, device, Some(current), &mut done);
        }
    }
    done
}

/// Creates or changes a device. Returns its link, and its current entries unless it is new.
fn ensure_device<'a>(
    socket: &Socket,
    device: &Device,
    current: Option<&'a actual::Device>,
    done: &mut Done,
) -> Option<(Link, Option<&'a actual::Device>)> {
    let mut known = current;
    if let Some(other) = current.filter(|current| !matches(&current.link, device)) {
        // A device's kind cannot be changed: the device is created again, with all its entries.
        done.note(link::remove(socket, &other.link))?;
        known = None;
    }
    if known.is_none() {
        // The kernel allows one VXLAN device per network identifier and port.
        if let Some(name) = &device.replaces
            && let Some(other) = done.note(link::find(socket, name))?
            && other.kind.as_deref() == Some("vxlan")
        {
            done.note(link::remove(socket, &other))?;
        }
        // The same holds for the daemon's own device that another program has renamed.
        let is_renamed = |link: &Link| link.alias.as_deref() == Some(ALIAS) && matches(link, device);
        for renamed in done.note(link::list(socket))?.iter().filter(|link| is_renamed(link)) {
            done.note(link::remove(socket, renamed))?;
        }
        let new = New { mtu: Some(device.mtu), mac: device.mac, ..new(device) };
        match link::create(socket, &new) {
            Err(error) if error.kind() == kernel::Kind::Exists => {
                done.refused.push(blocked(socket, device, &error));
                return None;
            }
            created => done.note(created)?,
        }
        done.changes.devices += 1;
        for (setting, value) in settings::of_device(device) {
            done.note(sysctl::set(setting, value));
        }
    }
    let link = match known {
        Some(current) => current.link.clone(),
        None => done.note(link::require(socket, device.name))?,
    };
    let change = link::Change {
        up: Some(true).filter(|_| !link.up),
        mtu: Some(device.mtu).filter(|mtu| link.mtu != *mtu),
        mac: device.mac.filter(|mac| link.mac != Some(*mac)),
        alias: Some(ALIAS).filter(|alias| link.alias.as_deref() != Some(*alias)),
        ..link::Change::default()
    };
    if change.up.is_some() || change.mtu.is_some() || change.mac.is_some() || change.alias.is_some() {
        done.note(link::change(socket, &link, &change))?;
        done.changes.devices += 1;
    }
    // Offload is only ever switched off: some cards do not support it.
    if !device.checksum_offload
        && done.note(offload::checksums(device.name)) == Some(true)
        && done.note(offload::set_checksums(device.name, false)).is_some()
    {
        done.changes.devices += 1;
    }
    let current = known.map(|current| current.addresses.clone()).unwrap_or_default();
    let wanted: BTreeSet<_> = device.addresses.iter().copied().collect();
    // The kernel assigns link-local addresses itself, when the device is set up, and not again.
    let by_kernel = |net: &IpNet| matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    for net in wanted.difference(&current) {
        let detection = if by_kernel(net) { Detection::AsSet } else { Detection::Skip };
        match addr::add(socket, &link, *net, detection) {
            Err(error) if error.kind() == kernel::Kind::Exists => {}
            added => done.changes.devices += usize::from(done.note(added).is_some()),
        }
    }
    for net in current.difference(&wanted).filter(|net| !by_kernel(net)) {
        if done.note(addr::remove(socket, &link, *net)).is_some() {
            done.changes.devices += 1;
        }
    }
    Some((link, known))
}

/// Explains why a tunnel's device cannot be created, if that is because of another one.
fn blocked(socket: &Socket, device: &Device, error: &kernel::Error) -> String {
    let links = link::list(socket).unwrap_or_default();
    let is_same = |link: &&Link| match (device.kind, link.driver) {
        (
            Kind::Tunnel { vni, port, local },
            Some(Driver::Vxlan { vni: other, port: of_other, local: from }),
        ) => (vni, port, local.is_ipv4()) == (other, of_other, from.is_ipv4()),
        (Kind::Gpe { port }, Some(Driver::VxlanGpe { port: of_other })) => port == of_other,
        _ => false,
    };
    match links.iter().find(is_same) {
        Some(other) => format!(
            "{error}: device `{name}` of another program uses the tunnels' network identifier and port; if nothing needs it, remove it with \
             `ip link del {name}`, otherwise set another `vni` or `port` on all nodes",
            name = other.name
        ),
        None => error.to_string(),
    }
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

/// Returns whether a link is of the kind that a device should be.
fn matches(link: &Link, device: &Device) -> bool {
    match (device.kind, link.driver) {
        (Kind::Tunnel { vni, port, local }, driver) => driver == Some(Driver::Vxlan { vni, port, local }),
        (Kind::Gpe { port }, driver) => driver == Some(Driver::VxlanGpe { port }),
        (Kind::Beside { underlay, link: over }, driver) => {
            let same = matches!(
                (underlay, driver),
                (Underlay::Macvlan, Some(Driver::Macvlan { mode: MacvlanMode::Bridge, .. }))
                    | (Underlay::Ipvlan, Some(Driver::Ipvlan { mode: IpvlanMode::L2 }))
            );
            same && link.peer == Some(over)
        }
    }
}

/// What is known, and the objects of peers that need a change in this pass.
type Peers<'a> = (&'a mut Known, &'a mut BTreeSet<Object>);

fn change_entries(
    socket: &Socket,
    desired: &Desired,
    (device, link): (&str, u32),
    current: Option<&actual::Device>,
    (known, pending): Peers<'_>,
    done: &mut Done,
) {
    let wanted = desired.remotes.iter().filter(|(of, _, _)| *of == device);
    let wanted: Vec<_> = wanted.map(|(_, mac, to)| (*mac, *to)).collect();
    let hops: BTreeMap<IpAddr, _> =
        wanted.iter().map(|(mac, _)| (IpAddr::from(hop_of(*mac)), *mac)).collect();
    let forwards: BTreeSet<Forward> =
        wanted.iter().map(|(mac, to)| Forward { link, mac: *mac, to: *to }).collect();
    let (no_hops, no_forwards) = (BTreeMap::new(), BTreeSet::new());
    let neighbours = current.map_or(&no_hops, |current| &current.neighbours);
    let forwarded = current.map_or(&no_forwards, |current| &current.forwards);
    let mut changes = Vec::new();
    let mut of_peer = |mac: Mac, fate| {
        let (object, change) = (Object::Remote(link, mac), Change::Remote(fate));
        pending.insert(object);
        (!known.refusals.is_paused(object, change)).then_some((Some(object), fate))
    };
    // A stale entry of a hardware address is removed before the new one is added: there is one remote host at a time.
    changes.extend(forwarded.difference(&forwards).map(|forward| (None, neigh::Fate::NoForward(*forward))));
    let new = forwards.difference(forwarded);
    changes.extend(new.filter_map(|forward| of_peer(forward.mac, neigh::Fate::Forward(*forward))));
    let new = hops.iter().filter(|(ip, mac)| neighbours.get(ip) != Some(mac));
    changes.extend(new.filter_map(|(ip, mac)| of_peer(*mac, neigh::Fate::Neighbour(link, *ip, *mac))));
    let gone = neighbours.keys().filter(|ip| !hops.contains_key(ip));
    changes.extend(gone.map(|ip| (None, neigh::Fate::NoNeighbour(link, *ip))));
    let refused = neigh::change_all(socket, changes.iter().map(|(_, fate)| fate));
    done.note_all(&changes, refused, Change::Remote, entries_counter, known);
}

fn entries_counter(counts: &mut Changes, fate: neigh::Fate) -> &mut usize {
    match fate {
        neigh::Fate::Neighbour(..) | neigh::Fate::NoNeighbour(..) => &mut counts.neighbours,
        neigh::Fate::Forward(_) | neigh::Fate::NoForward(_) => &mut counts.forwarding_entries,
    }
}

fn change_routes(
    socket: &Socket,
    desired: &Desired,
    actual: &Actual,
    devices: &BTreeMap<&str, u32>,
    (known, pending): Peers<'_>,
    done: &mut Done,
) {
    let all = desired.routes.values().chain(&desired.exported);
    let wanted: Vec<route::Route> = all.filter_map(|route| kernel_route(route, devices)).collect();
    // Sorted lists: there are tens of thousands.
    let mut keys: Vec<RouteKey> = wanted.iter().map(key).collect();
    keys.sort_unstable();
    let is_wanted = |key: &RouteKey| keys.binary_search(key).is_ok();
    let mut current: Vec<(RouteKey, &route::Route)> =
        actual.routes.iter().map(|route| (key(route), route)).collect();
    current.sort_by_key(|(key, _)| *key);
    known.routes.retain(is_wanted);
    known.routes.extend(current.iter().map(|(key, _)| *key));
    known.routes.sort();
    known.routes.dedup();
    let mut changes = Vec::new();
    for route in &wanted {
        let there = current.binary_search_by_key(&key(route), |(key, _)| *key);
        if there.is_ok_and(|index| same(current[index].1, route)) {
            continue;
        }
        // A route of another program is not replaced.
        let replaces = desired.takes_over_routes || known.routes.binary_search(&key(route)).is_ok();
        let fate = if replaces { route::Fate::Put(*route) } else { route::Fate::Add(*route) };
        if route.blackhole {
            changes.push((None, fate));
            continue;
        }
        let object = Object::Route(route.dst);
        pending.insert(object);
        if !known.refusals.is_paused(object, Change::Route(fate)) {
            changes.push((Some(object), fate));
        }
    }
    let gone = actual.routes.iter().filter(|route| !is_wanted(&key(route)));
    changes.extend(gone.map(|route| (None, route::Fate::Remove(*route))));
    let refused = route::change_all(socket, changes.iter().map(|(_, fate)| fate));
    done.note_all(&changes, refused, Change::Route, |counts, _| &mut counts.routes, known);
}

fn key(route: &route::Route) -> RouteKey {
    (route.dst, route.priority, route.table)
}

/// Compares routes, except for the scope and the source that the kernel fills in itself.
fn same(current: &route::Route, wanted: &route::Route) -> bool {
    current.link == wanted.link
        && current.gateway == wanted.gateway
        && current.blackhole == wanted.blackhole
        && current.carried == wanted.carried
        && (wanted.source.is_none() || current.source == wanted.source)
}

/// Returns a route in the kernel's terms, or `None` while its device does not exist.
fn kernel_route(route: &Route, devices: &BTreeMap<&str, u32>) -> Option<route::Route> {
    /// The kernel's default metric of IPv6 routes (`IP6_RT_PRIO_USER`).
    const DEFAULT6: u32 = 1024;
    let (link, blackhole) = match route.to {
        Target::Link(link) => (link, false),
        Target::Device(name) => (*devices.get(name)?, false),
        Target::Blackhole if route.dst.addr().is_ipv6() => (LOOPBACK, true),
        Target::Blackhole => (0, true),
    };
    let default = if route.dst.addr().is_ipv6() { DEFAULT6 } else { 0 };
    Some(route::Route {
        scope: scope_of(route, blackhole),
        priority: if route.priority == 0 { default } else { route.priority },
        source: route.source,
        table: route.table,
        protocol: PROTOCOL,
        blackhole,
        carried: route.carried,
        ..route::Route::new(route.dst, route.gateway, link)
    })
}

/// Returns the scope of a route; IPv6 has none.
///
/// The kernel finds equal IPv4 next hops in a table whose slots depend on device, source, metric and scope, but not on the gateway. With one
/// scope, thousands of next hops would be in one slot, and each new one would be compared with all of them. All scopes below that of
/// a site mean the same to packets, to other programs' routes and to `ip route`, so the next hops are spread over them.
fn scope_of(route: &Route, blackhole: bool) -> u8 {
    match route.gateway {
        _ if blackhole || route.dst.addr().is_ipv6() => route::SCOPE_UNIVERSE,
        // Without a gateway, the destination is on the link.
        None => route::SCOPE_LINK,
        Some(IpAddr::V4(ip)) => spread(&ip.octets()),
        Some(IpAddr::V6(ip)) => spread(&ip.octets()),
    }
}

fn spread(octets: &[u8]) -> u8 {
    /// The scope of a site (`RT_SCOPE_SITE`).
    const SITE: u64 = 200;
    u8::try_from(fnv1a(octets.iter().copied()) % SITE).unwrap_or_default()
}

/// The link of IPv6 blackhole routes: the kernel reports `lo`.
const LOOPBACK: u32 = 1;

/// Removes the daemon's objects.
pub fn remove(socket: &Socket, actual: &Actual) -> Done {
    let mut done = Done::default();
    let fates: Vec<route::Fate> = actual.routes.iter().map(|route| route::Fate::Remove(*route)).collect();
    let refused = route::change_all(socket, &fates);
    done.changes.routes += fates.len().saturating_sub(refused.len());
    done.refused.extend(refused.iter().map(|(_, error)| error.to_string()));
    for device in actual.devices.values() {
        if done.note(link::remove(socket, &device.link)).is_some() {
            done.changes.devices += 1;
        }
    }
    done
}
