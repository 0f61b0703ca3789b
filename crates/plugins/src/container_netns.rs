//! An open container namespace, and how interfaces in it get their sysctls, addresses and routes.

use std::{net::IpAddr, path::Path, time::Duration};

use ipnet::IpNet;
use kernel::{
    Netns, Protocol, Socket,
    addr::{self, Detection},
    deferred,
    events::Events,
    link::{self, Change, Link},
    route,
    sysctl::{self, Setting},
};
use netloom_plugin::{Error, result::v100::Success};

use crate::error::{Explain, check_failed};

/// An open container namespace with a netlink socket in it.
pub(crate) struct ContainerNetns {
    /// The namespace of this process.
    pub(crate) host: Netns,
    /// The container's namespace.
    pub(crate) netns: Netns,
    /// A route netlink socket in the container's namespace.
    pub(crate) socket: Socket,
}

impl ContainerNetns {
    /// Opens the namespace at a path.
    pub(crate) fn open(path: &Path) -> kernel::Result<Self> {
        let (host, netns) = (Netns::own()?, Netns::open(path)?);
        let socket = netns.run_from(&host, || Socket::open(Protocol::Route))??;
        Ok(Self { host, netns, socket })
    }

    /// Opens the namespace for a DEL. Returns `None` if there is no path, or the namespace is gone.
    pub(crate) fn open_if_exists(path: Option<&Path>) -> Result<Option<Self>, Error> {
        let Some(path) = path else { return Ok(None) };
        match Self::open(path) {
            Ok(container) => Ok(Some(container)),
            Err(error) if kernel::netns::is_gone(&error) => Ok(None),
            Err(error) => Err(error).explain(),
        }
    }

    /// Removes a link of the container. Returns once the kernel has announced the removal.
    pub(crate) fn remove_link(&self, link: &Link) -> Result<(), Error> {
        self.run(|| deferred::remove_link(&self.socket, link))
    }

    /// Sets the interface's sysctls for its addresses to the values that the reference plugins set.
    pub(crate) fn set_sysctls(&self, ifname: &str, settings: Settings) -> Result<(), Error> {
        self.run(|| {
            match settings.duplicates {
                Duplicates::Detect => {
                    sysctl::ensure(Setting::Ipv6(ifname, "enhanced_dad"), "1")?;
                    sysctl::ensure(Setting::Ipv6(ifname, "accept_dad"), "1")?;
                }
                Duplicates::Ignore => sysctl::set(Setting::Ipv6(ifname, "accept_dad"), "0")?,
                Duplicates::Fast | Duplicates::Skip => {}
            }
            if settings.announce {
                sysctl::set(Setting::Ipv4(ifname, "arp_notify"), "1")?;
                sysctl::set(Setting::Ipv6(ifname, "ndisc_notify"), "1")?;
            }
            if settings.ipv6 { allow_ipv6(ifname) } else { Ok(()) }
        })
    }

    /// Sets the sysctls of an interface whose IPAM result turns out to have IPv6 addresses, and enables their announcement.
    pub(crate) fn set_ipv6_sysctls(&self, ifname: &str) -> Result<(), Error> {
        self.run(|| {
            sysctl::set(Setting::Ipv6(ifname, "ndisc_notify"), "1")?;
            allow_ipv6(ifname)
        })
    }

    /// Runs a function in the container's namespace.
    fn run<T>(&self, work: impl FnOnce() -> kernel::Result<T>) -> Result<T, Error> {
        self.netns.run_from(&self.host, work).and_then(|done| done).explain()
    }

    /// Adds the addresses and routes of a result to the interface and sets it up.
    ///
    /// The kernel announces the addresses to neighbours if the sysctls say so. With duplicate address detection this waits until
    /// the IPv6 addresses have passed it.
    pub(crate) fn configure(&self, link: &Link, result: &Success, settings: Settings) -> Result<(), Error> {
        let detect = settings.ipv6 && matches!(settings.duplicates, Duplicates::Detect | Duplicates::Fast);
        let shortened = match settings.duplicates {
            Duplicates::Fast if detect => self.shorten_detection(&link.name)?,
            _ => Vec::new(),
        };
        let mut gateways: [Option<IpAddr>; 2] = [None, None];
        let mut requests = Vec::new();
        for ip in &result.ips {
            let detection = if detect { Detection::AsSet } else { Detection::Skip };
            requests.push(addr::addition(link, ip.address, detection));
            let gateway = &mut gateways[usize::from(ip.address.addr().is_ipv6())];
            *gateway = gateway.or(ip.gateway);
        }
        // The kernel announces addresses when a link comes up, and when a link that is up gets a hardware address, even the
        // one that it already has.
        let announcement = match link.mac.filter(|_| link.up) {
            Some(mac) => Change { mac: Some(mac), ..Change::default() },
            None => Change { up: Some(true), ..Change::default() },
        };
        requests.push(link::changing(link, &announcement));
        if detect {
            self.socket.make(requests.drain(..)).explain()?;
            self.wait_for_detection(link)?;
        }
        self.set_all(&shortened)?;
        for wanted in &result.routes {
            let route = route_of(wanted, link, gateways[usize::from(wanted.dst.addr().is_ipv6())]);
            requests.push(route::addition(&route));
        }
        self.socket.make(requests).explain()
    }

    /// Compares the interface's addresses and the container's routes with a result (CHECK).
    pub(crate) fn compare(&self, link: &Link, result: &Success) -> Result<(), Error> {
        let addresses = addr::list(&self.socket, link).explain()?;
        let mut gateways: [Option<IpAddr>; 2] = [None, None];
        for ip in &result.ips {
            let of_link = result.interface_of(ip).is_none_or(|interface| interface.name == link.name);
            if !of_link {
                continue;
            }
            match addresses.iter().find(|address| address.net == ip.address) {
                None => {
                    return Err(check_failed(format!(
                        "address {} is missing on `{}`",
                        ip.address, link.name
                    )));
                }
                Some(address) if address.duplicate => return Err(in_use(link, address.net)),
                Some(_) => {}
            }
            let gateway = &mut gateways[usize::from(ip.address.addr().is_ipv6())];
            *gateway = gateway.or(ip.gateway);
        }
        for wanted in &result.routes {
            let expected = route_of(wanted, link, gateways[usize::from(wanted.dst.addr().is_ipv6())]);
            let routes = route::list(&self.socket, wanted.dst.addr()).explain()?;
            let same = |route: &route::Route| {
                route.dst == expected.dst.trunc()
                    && (route.gateway == expected.gateway || expected.gateway.is_none())
            };
            if !routes.iter().any(same) {
                return Err(check_failed(format!("route {expected} is missing in the container")));
            }
        }
        Ok(())
    }

    /// Makes the kernel start duplicate address detection at once and wait a hundredth of a second, its minimum, for an answer
    /// instead of a full second. Returns the previous settings.
    ///
    /// The value is less than 10 ms because the kernel counts in ticks and rounds up: at 250 ticks a second, 10 ms would become
    /// one tick more than the minimum.
    fn shorten_detection<'a>(&self, ifname: &'a str) -> Result<Vec<(Setting<'a>, String)>, Error> {
        let quick = [
            (Setting::Ipv6(ifname, "router_solicitation_delay"), "0"),
            (Setting::Ipv6Neighbour(ifname, "retrans_time_ms"), "8"),
        ];
        self.set_all(&quick.map(|(setting, value)| (setting, value.to_owned())))
    }

    /// Writes those settings that exist, and returns their old values.
    fn set_all<'a>(&self, settings: &[(Setting<'a>, String)]) -> Result<Vec<(Setting<'a>, String)>, Error> {
        if settings.is_empty() {
            return Ok(Vec::new());
        }
        let write = || {
            let mut before = Vec::new();
            for (setting, value) in settings {
                if let Some(old) = sysctl::read(*setting)? {
                    sysctl::write(*setting, value)?;
                    before.push((*setting, old));
                }
            }
            Ok(before)
        };
        self.run(write)
    }

    /// Waits until no address of the interface is tentative. Fails if another host has one of them.
    fn wait_for_detection(&self, link: &Link) -> Result<(), Error> {
        const LIMIT: Duration = Duration::from_secs(5);
        let mut events: Option<Events> = None;
        loop {
            let addresses = addr::list(&self.socket, link).explain()?;
            if let Some(taken) = addresses.iter().find(|address| address.duplicate) {
                return Err(in_use(link, taken.net));
            }
            if !addresses.iter().any(|address| address.tentative) {
                return Ok(());
            }
            let Some(events) = &events else {
                // Events from here on are received. The next round looks again for what happened before.
                events = Some(self.run(Events::of_addresses)?);
                continue;
            };
            events
                .wait_for_address(LIMIT, &format!("`{}` to settle", link.name), |address| {
                    address.link == link.index && (!address.tentative || address.duplicate)
                })
                .explain()?;
        }
    }
}

fn allow_ipv6(ifname: &str) -> kernel::Result<()> {
    sysctl::ensure(Setting::Ipv6("lo", "disable_ipv6"), "0")?;
    sysctl::ensure(Setting::Ipv6(ifname, "disable_ipv6"), "0")?;
    sysctl::set(Setting::Ipv6(ifname, "keep_addr_on_down"), "1")
}

fn in_use(link: &Link, net: IpNet) -> Error {
    Error::new(
        netloom_plugin::Code::Internal,
        format!("address {net} on `{}` is in use by another host on that link", link.name),
    )
    .details("assign another address to the container, or to the host that has this one")
}

/// How an interface's addresses are configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Whether there are IPv6 addresses among them.
    pub(crate) ipv6: bool,
    /// How addresses that another host may have are detected.
    pub(crate) duplicates: Duplicates,
    /// Whether the kernel announces them, so that neighbours replace stale entries of their caches.
    pub(crate) announce: bool,
}

/// Duplicate address detection for IPv6 (RFC 4862).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// Enables detection on the interface, and waits for it.
    Detect,
    /// Starts detection at once, and waits no longer than an answer on the local segment takes.
    Fast,
    /// Disables detection on the interface, because no other host is on the link.
    Ignore,
    /// Skips detection for these addresses, whatever the interface is set to.
    Skip,
}

impl Duplicates {
    /// Returns what `enabledad` means for a link on a segment shared with other hosts.
    pub(crate) fn of(detect: bool) -> Self {
        if detect { Self::Detect } else { Self::Fast }
    }
}

/// Converts a result's route to the kernel's, via the gateway of its family if it has none of its own.
fn route_of(wanted: &netloom_plugin::result::Route, link: &Link, gateway: Option<IpAddr>) -> route::Route {
    // A destination on the link needs no gateway.
    let gateway = wanted.gw.or(gateway.filter(|_| wanted.scope != Some(route::SCOPE_LINK)));
    route::Route {
        priority: wanted.priority,
        table: wanted.table.unwrap_or(0),
        scope: wanted.scope.unwrap_or(0),
        mtu: wanted.mtu,
        advmss: wanted.advmss,
        ..route::Route::new(wanted.dst, gateway, link.index)
    }
}
