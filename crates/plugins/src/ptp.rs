//! `ptp`: a veth pair between the container and the host, routed, without a bridge.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{
    Protocol, Socket,
    addr::{self, Detection},
    deferred,
    link::{self, Handle, Link},
    route::{self, Route},
    sysctl::{self, Setting},
};
use netloom_plugin::{
    Attachment, Error, Plugin, Request, Sandbox, Undo,
    result::{Dns, v100::Success},
};
use ruleset::masquerade;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleanup,
    common_config::{Ipam, ipam_of, mtu, require_masquerade_backend},
    container_netns::{ContainerNetns, Duplicates, Settings},
    failure::{Errors, Explain, differs, invalid},
    interface,
    owner::Owner,
    veth,
};

/// The plugin.
#[derive(Debug)]
pub struct Ptp;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// What leaves the network gets the host's address (masquerade)
    ip_masq: bool,
    /// Either name is taken; rules are nftables' either way
    #[schemars(extend("enum" = ["nftables", "iptables"]))]
    ip_masq_backend: Option<String>,
    /// MTU of the link, 68 to 65535; 0 is the kernel's 1500
    #[schemars(example = 1450)]
    mtu: i64,
    ipam: Ipam,
    /// What the result says of DNS, where the IPAM plugin says nothing
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
}

/// The configuration as meant.
struct Conf {
    masquerade: bool,
    mtu: Option<u32>,
    ipam: String,
    dns: Dns,
}

/// The index of the container's interface in the result: behind the host's end.
const INSIDE: i64 = 1;

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_masquerade_backend(written.ip_masq_backend.as_deref())?;
        let ipam = written.ipam.kind().ok_or_else(|| {
            invalid("`ipam.type` is missing")
                .details("ptp routes the container's addresses, so it needs some")
        })?;
        Ok(Self { masquerade: written.ip_masq, mtu: mtu(written.mtu)?, ipam, dns: written.dns })
    }
}

impl Plugin for Ptp {
    fn name(&self) -> &'static str {
        "ptp"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let owner = Owner::of(request, sandbox);
        let host = Socket::open(Protocol::Route).explain()?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let new = veth::New { mtu: conf.mtu, mac: None };
        let (outside, inside) = veth::create(&host, &container, sandbox, &owner, new, undo)?;
        let mark = owner.mark();
        // Nobody else is on this link, so its addresses need not be asked about: IPv6 works at once.
        sysctl::set(Setting::Ipv6(&outside.name, "accept_dad"), "0").explain()?;
        link::change(&host, &outside, &veth::owned(&mark)).explain()?;
        sysctl::set(Setting::Ipv6(&outside.name, "accept_ra"), "0").explain()?;

        let mut result = request.delegate_add(&conf.ipam, sandbox, undo)?;
        if result.ips.is_empty() {
            return Err(invalid(format!("IPAM plugin {:?} returned missing IP config", conf.ipam)));
        }
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(INSIDE));
        let ipv6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
        let settings = Settings { ipv6, duplicates: Duplicates::Ignore, announce: false };
        container.set_sysctls(sandbox.ifname.as_str(), settings)?;
        container.configure(&inside, &result, settings)?;
        for ip in &result.ips {
            let gateway = ip.gateway.ok_or_else(|| {
                invalid(format!("IPAM plugin {:?} gave address {} without gateway", conf.ipam, ip.address))
            })?;
            route_by_gateway(&container, &inside, ip.address, gateway)?;
            route_to_container(&host, &outside, ip.address.addr(), gateway)?;
        }
        if conf.masquerade {
            let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
            let netfilter = deferred::netfilter().explain()?;
            masquerade::add(&netfilter, &mark, &addresses).explain()?;
            undo.push("remove masquerade", move || masquerade::remove(&netfilter, &mark).explain())?;
        }
        let mac = link::mac(&host, &outside.name).explain()?;
        result.interfaces =
            vec![interface::listed(&outside.name, Some(mac)), interface::in_container(&inside, sandbox)];
        if !conf.dns.is_empty() {
            result.dns = conf.dns;
        }
        Ok(result)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let owner = Owner::of(request, sandbox);
        let mut errors = Errors::default();
        errors.note(cleanup::remove_rules(&owner));
        errors.note(cleanup::remove_link_and_addresses(request, sandbox, || veth::remove(&owner, sandbox)));
        errors.into_result()
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        request.delegate_check(&conf.ipam, sandbox)?;
        let prev = request.require_prev_result()?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let inside = interface::require_listed(&container, sandbox, &prev, Some("veth"))?;
        let host = Socket::open(Protocol::Route).explain()?;
        for ip in &prev.ips {
            let towards = route::link_towards(&host, ip.address.addr()).explain()?;
            if towards != inside.peer {
                return Err(differs(format!("the host has no route to {} by `{}`", ip.address, inside.name)));
            }
        }
        if conf.masquerade {
            let addresses: Vec<IpNet> = prev.ips.iter().map(|ip| ip.address).collect();
            let netfilter = deferred::netfilter().explain()?;
            let mark = Owner::of(request, sandbox).mark();
            if let Some(net) = masquerade::absent(&netfilter, &mark, &addresses).explain()?.first() {
                return Err(differs(format!("address {net} is not masqueraded")));
            }
        }
        container.compare(&inside, &prev)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        request.delegate_status(&Conf::of(request)?.ipam)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        cleanup::gc(request, valid, ipam_of(request)?.as_deref())
    }
}

/// Has everything of the container's subnet go by the gateway, which is the only one on the link.
fn route_by_gateway(
    container: &ContainerNetns,
    inside: &Link,
    address: IpNet,
    gateway: IpAddr,
) -> Result<(), Error> {
    let subnet = address.trunc();
    route::remove(&container.socket, subnet, inside.index).explain()?;
    let source = Some(address.addr());
    let on_link =
        Route { scope: route::SCOPE_LINK, source, ..Route::new(IpNet::from(gateway), None, inside.index) };
    let by_gateway = Route { source, ..Route::new(subnet, Some(gateway), inside.index) };
    container.socket.make([route::addition(&on_link), route::addition(&by_gateway)]).explain()
}

/// Makes the host the gateway, and routes the container's address to it.
fn route_to_container(
    host: &Socket,
    outside: &Handle,
    address: IpAddr,
    gateway: IpAddr,
) -> Result<(), Error> {
    let route = Route { scope: route::SCOPE_HOST, ..Route::new(IpNet::from(address), None, outside.index) };
    let own = addr::addition(outside, IpNet::from(gateway), Detection::Skip);
    host.make([own, route::addition(&route)]).explain()?;
    sysctl::ensure_forwarding(host, address).explain()
}
