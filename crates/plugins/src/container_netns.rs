//! The inside of a sandbox: its namespace, a socket in it, and what every interface plugin does there.

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

use crate::failure::{Explain, differs};

/// Holds an open sandbox.
pub(crate) struct ContainerNetns {
    /// Where this process is at home.
    pub(crate) host: Netns,
    pub(crate) netns: Netns,
    pub(crate) socket: Socket,
}

impl ContainerNetns {
    pub(crate) fn open(path: &Path) -> kernel::Result<Self> {
        let (host, netns) = (Netns::own()?, Netns::open(path)?);
        let socket = netns.run_from(&host, || Socket::open(Protocol::Route))??;
        Ok(Self { host, netns, socket })
    }

    /// Opens a sandbox that may be gone, as DEL finds it.
    pub(crate) fn open_if_there(path: Option<&Path>) -> Result<Option<Self>, Error> {
        let Some(path) = path else { return Ok(None) };
        match Self::open(path) {
            Ok(container) => Ok(Some(container)),
            Err(error) if kernel::netns::is_gone(&error) => Ok(None),
            Err(error) => Err(error).explain(),
        }
    }

    /// Removes a link of the container, and returns once it is gone for everybody.
    pub(crate) fn remove_link(&self, link: &Link) -> Result<(), Error> {
        self.run(|| deferred::remove_link(&self.socket, link))
    }

    /// Sets the interface's sysctls for the addresses that it gets, as the reference plugins leave them.
    pub(crate) fn set_sysctls(&self, ifname: &str, settings: Settings) -> Result<(), Error> {
        self.run(|| {
            match settings.duplicates {
                Duplicates::Detect => {
                    sysctl::ensure(Setting::Ipv6(ifname, "enhanced_dad"), "1")?;
                    sysctl::ensure(Setting::Ipv6(ifname, "accept_dad"), "1")?;
                }
                Duplicates::Ignore => sysctl::set(Setting::Ipv6(ifname, "accept_dad"), "0")?,
                Duplicates::Quick | Duplicates::Unasked => {}
            }
            if settings.announce {
                sysctl::set(Setting::Ipv4(ifname, "arp_notify"), "1")?;
                sysctl::set(Setting::Ipv6(ifname, "ndisc_notify"), "1")?;
            }
            if settings.ipv6 { allow_ipv6(ifname) } else { Ok(()) }
        })
    }

    /// Sets the sysctls of an interface that turns out to get IPv6 addresses; neighbours are told of them.
    pub(crate) fn set_ipv6_sysctls(&self, ifname: &str) -> Result<(), Error> {
        self.run(|| {
            sysctl::set(Setting::Ipv6(ifname, "ndisc_notify"), "1")?;
            allow_ipv6(ifname)
        })
    }

    fn run<T>(&self, work: impl FnOnce() -> kernel::Result<T>) -> Result<T, Error> {
        self.netns.run_from(&self.host, work).and_then(|done| done).explain()
    }

    /// Returns the interface the addresses and routes of a result, up, and has the kernel tell neighbours where the sysctls say so.
    ///
    /// Where it is asked for it waits until IPv6 addresses are the container's for sure.
    pub(crate) fn configure(&self, link: &Link, result: &Success, settings: Settings) -> Result<(), Error> {
        let detect = settings.ipv6 && matches!(settings.duplicates, Duplicates::Detect | Duplicates::Quick);
        let hurried = match settings.duplicates {
            Duplicates::Quick if detect => self.hurry(&link.name)?,
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
        // Neighbours are told when a link comes up, and when one that is up gets a hardware address, be it its own.
        let told = match link.mac.filter(|_| link.up) {
            Some(mac) => Change { mac: Some(mac), ..Change::default() },
            None => Change { up: Some(true), ..Change::default() },
        };
        requests.push(link::changing(link, &told));
        if detect {
            self.socket.make(requests.drain(..)).explain()?;
            self.settle(link)?;
        }
        self.set_all(&hurried)?;
        for wanted in &result.routes {
            let on_link = route_of(wanted, link, gateways[usize::from(wanted.dst.addr().is_ipv6())]);
            requests.push(route::addition(&on_link));
        }
        self.socket.make(requests).explain()
    }

    /// Compares the interface with a result (CHECK): its addresses, and the routes that it was given.
    pub(crate) fn compare(&self, link: &Link, result: &Success) -> Result<(), Error> {
        let addresses = addr::list(&self.socket, link).explain()?;
        let mut gateways: [Option<IpAddr>; 2] = [None, None];
        for ip in &result.ips {
            let of_link = result.interface_of(ip).is_none_or(|interface| interface.name == link.name);
            if !of_link {
                continue;
            }
            match addresses.iter().find(|address| address.net == ip.address) {
                None => return Err(differs(format!("address {} is missing on `{}`", ip.address, link.name))),
                Some(taken) if taken.duplicate => return Err(in_use(link, taken.net)),
                Some(_) => {}
            }
            let gateway = &mut gateways[usize::from(ip.address.addr().is_ipv6())];
            *gateway = gateway.or(ip.gateway);
        }
        for wanted in &result.routes {
            let expected = route_of(wanted, link, gateways[usize::from(wanted.dst.addr().is_ipv6())]);
            let there = route::list(&self.socket, wanted.dst.addr()).explain()?;
            let same = |route: &route::Route| {
                route.dst == expected.dst.trunc()
                    && (route.gateway == expected.gateway || expected.gateway.is_none())
            };
            if !there.iter().any(same) {
                return Err(differs(format!("route {expected} is missing in the container")));
            }
        }
        Ok(())
    }

    /// Has the kernel ask at once for others who have an address, and wait for their answer for a hundredth of a second
    /// (its least) instead of one. Gives what was set before.
    ///
    /// What is set is a little less: the kernel counts in ticks and rounds up, to one more than its least at 250 a second.
    fn hurry<'a>(&self, ifname: &'a str) -> Result<Vec<(Setting<'a>, String)>, Error> {
        let quick = [
            (Setting::Ipv6(ifname, "router_solicitation_delay"), "0"),
            (Setting::Ipv6Neighbour(ifname, "retrans_time_ms"), "8"),
        ];
        self.set_all(&quick.map(|(setting, value)| (setting, value.to_owned())))
    }

    /// Writes settings that are there and gives their old values.
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

    /// Waits until the interface's addresses can be used.
    fn settle(&self, link: &Link) -> Result<(), Error> {
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
                // From here on nothing is missed; what came before is looked at once more.
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
        format!("address {net} on `{}` is in use by somebody else on that link", link.name),
    )
    .details("give the container another address, or the other one")
}

/// Says how an interface's addresses are treated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// There are IPv6 addresses among them.
    pub(crate) ipv6: bool,
    /// What is done about others that may have them.
    pub(crate) duplicates: Duplicates,
    /// The kernel tells neighbours of them, so that they do not go on with what they knew before.
    pub(crate) announce: bool,
}

/// Says what is done about somebody else on the link who may have an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// The interface is set to ask, and the answer is waited for.
    Detect,
    /// The interface asks at once, and the answer is waited for, but no longer than one on this segment takes.
    Quick,
    /// The interface is set not to ask, as where nobody else is on the link.
    Ignore,
    /// These addresses are not asked about, whatever the interface is set to.
    Unasked,
}

impl Duplicates {
    /// Reads `enabledad` of a link on a segment with others.
    pub(crate) fn of(detect: bool) -> Self {
        if detect { Self::Detect } else { Self::Quick }
    }
}

fn route_of(wanted: &netloom_plugin::result::Route, link: &Link, gateway: Option<IpAddr>) -> route::Route {
    // What is on the link goes by nobody.
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
