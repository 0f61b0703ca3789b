//! `ptp`: a routed veth pair between the container and the host, without a bridge.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{
    Protocol, Socket,
    addr::{self, Detection},
    deferred,
    link::{self, Change, Handle, Link},
    route::{self, Route},
    sysctl::{self, Setting},
};
use netloom_plugin::{Attachment, Error, Plugin, Request, Sandbox, Undo, result::v100::Success};
use ruleset::masquerade;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleanup,
    common_config::{Ipam, OwnDns, ipam_of, mtu, require_masquerade_backend},
    container_link,
    container_netns::{ContainerNetns, Duplicates, Settings},
    error::{Errors, Explain, check_failed, invalid},
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
    /// Masquerade: packets that leave the network get the host's address
    ip_masq: bool,
    /// Accepted for compatibility. Masquerade uses nftables with either name
    #[schemars(extend("enum" = ["nftables", "iptables"]))]
    ip_masq_backend: Option<String>,
    /// MTU of the link, 68 to 65535. 0 is the kernel's default, 1500
    #[schemars(example = 1450)]
    mtu: i64,
    /// Link group of the host end, 0 to 2130706431, which rules can match (`meta iifgroup`). It is set before the first packet
    #[schemars(example = 100)]
    group: Option<u32>,
    ipam: Ipam,
    /// DNS settings of the result. They replace those of the IPAM plugin, even if they are an empty list
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: OwnDns,
}

/// The validated configuration.
struct Conf {
    masquerade: bool,
    mtu: Option<u32>,
    group: Option<u32>,
    ipam: String,
    dns: OwnDns,
}

/// The last group below those of links under removal ([`link::remove_all`]) and of links without mark.
const LAST_GROUP: u32 = 0x7eff_ffff;
/// The index of the container's interface in the result, after the host end.
const INSIDE: i64 = 1;

impl Conf {
    /// Reads and validates the configuration.
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_masquerade_backend(written.ip_masq_backend.as_deref())?;
        let ipam = written.ipam.kind().ok_or_else(|| {
            invalid("`ipam.type` is missing").details("set `ipam.type`: ptp routes the container's addresses")
        })?;
        let (masquerade, group) = (written.ip_masq, written.group);
        if let Some(group) = group.filter(|group| *group > LAST_GROUP) {
            return Err(invalid(format!("invalid `group` {group}"))
                .details(format!("choose a number up to {LAST_GROUP}: the plugins use those above")));
        }
        Ok(Self { masquerade, mtu: mtu(written.mtu)?, group, ipam, dns: written.dns })
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
        let new = veth::New { mtu: conf.mtu, mac: None, port: false };
        let (outside, inside) = veth::create(&host, &container, sandbox, &owner, new, undo)?;
        let mark = owner.mark();
        // No other host is on this link. Without duplicate address detection IPv6 works at once.
        sysctl::set(Setting::Ipv6(&outside.name, "accept_dad"), "0").explain()?;
        let in_group = Change { group: Some(conf.group.unwrap_or(0)), ..veth::up_and_marked(&mark) };
        link::change(&host, &outside, &in_group).explain()?;
        sysctl::set(Setting::Ipv6(&outside.name, "accept_ra"), "0").explain()?;

        let mut result = container_link::addresses_of(request, &conf.ipam, sandbox, undo)?;
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(INSIDE));
        let ipv6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
        let settings = Settings { ipv6, duplicates: Duplicates::Ignore, announce: false };
        container.set_sysctls(sandbox.ifname.as_str(), settings)?;
        container.configure(&inside, &result, settings)?;
        for ip in &result.ips {
            let gateway = ip.gateway.ok_or_else(|| {
                let (ipam, address) = (&conf.ipam, ip.address);
                invalid(format!("IPAM plugin {ipam:?} returned address {address} without a gateway"))
                    .details("configure a gateway under `ipam`: ptp routes the container's traffic via it")
            })?;
            route_via_gateway(&container, &inside, ip.address, gateway)?;
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
        conf.dns.replace_in(&mut result);
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
        let outside = veth::host_end(&host, &container, &inside)?
            .ok_or_else(|| check_failed(format!("the host end of `{}` is not on this host", inside.name)))?;
        if let Some(group) = conf.group.filter(|group| outside.group != *group) {
            let (name, there) = (&outside.name, outside.group);
            return Err(check_failed(format!("host link `{name}` is in group {there}, not in {group}")));
        }
        for ip in &prev.ips {
            veth::require_forwarding(&host, ip.address.addr())?;
            let towards = route::link_towards(&host, ip.address.addr()).explain()?;
            if towards != Some(outside.index) {
                return Err(check_failed(format!(
                    "the host has no route to {} over the peer of `{}`",
                    ip.address, inside.name
                )));
            }
        }
        if conf.masquerade {
            let addresses: Vec<IpNet> = prev.ips.iter().map(|ip| ip.address).collect();
            let netfilter = deferred::netfilter().explain()?;
            let mark = Owner::of(request, sandbox).mark();
            if let Some(net) = masquerade::absent(&netfilter, &mark, &addresses).explain()?.first() {
                return Err(check_failed(format!("address {net} is not masqueraded")));
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

/// Routes the container's subnet via the gateway, the only other host on the link.
fn route_via_gateway(
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
    let via_gateway = Route { source, ..Route::new(subnet, Some(gateway), inside.index) };
    container.socket.make([route::addition(&on_link), route::addition(&via_gateway)]).explain()
}

/// Gives the host end the gateway's address, and routes the container's address to the host end.
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
