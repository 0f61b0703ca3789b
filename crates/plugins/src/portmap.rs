//! `portmap`: ports of the host that lead to a container.

use std::net::IpAddr;

use kernel::{
    Kind, Protocol as Netlink, Socket, link, route,
    sysctl::{self, Setting},
};
use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, Undo, capability::PortMapping, result::v100::Success,
};
use netloom_types::address::parse_ip;
use ruleset::{
    RulesetError,
    portmap::{self, Mapping, Masquerade, Protocol},
};
use serde::Deserialize;

use crate::{
    failure::{Explain, differs, explained, invalid},
    owner::{Owner, is_stale},
};

/// The plugin.
#[derive(Debug)]
pub struct Portmap;

/// The configuration as written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    backend: Option<String>,
    snat: Option<bool>,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    conditions_v4: Option<Vec<String>>,
    conditions_v6: Option<Vec<String>>,
    runtime_config: RuntimePorts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimePorts {
    port_mappings: Vec<PortMapping>,
}

/// The configuration as meant, for one container.
struct Conf {
    mappings: Vec<Mapping>,
    masquerade: Masquerade,
}

impl Conf {
    /// Reads the configuration, and pairs each mapping with the container's address of each family.
    fn of(request: &Request, sandbox: &Sandbox) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_supported(&written)?;
        let masquerade = match (written.snat.unwrap_or(true), written.masq_all) {
            (false, _) => Masquerade::Nobody,
            (true, false) => Masquerade::Hairpin,
            (true, true) => Masquerade::Everybody,
        };
        let prev = request.prev_result.as_ref();
        let containers = prev.map(|prev| container_addresses(prev, sandbox)).unwrap_or_default();
        let mut mappings = Vec::new();
        for (index, wanted) in written.runtime_config.port_mappings.iter().enumerate() {
            let port = |key: &str, port: i64| match u16::try_from(port) {
                Ok(port @ 1..) => Ok(port),
                _ => Err(invalid(format!(
                    "Invalid {key} number: {port} in `runtimeConfig.portMappings[{index}]`"
                ))),
            };
            let protocol = Protocol::parse(&wanted.protocol.to_ascii_lowercase()).ok_or_else(|| {
                invalid(format!(
                    "`runtimeConfig.portMappings[{index}].protocol` {:?} is not tcp, udp or sctp",
                    wanted.protocol
                ))
            })?;
            let host = match wanted.host_ip.as_str() {
                "" => None,
                text => Some(parse_ip(text).map_err(|error| {
                    invalid(format!("`runtimeConfig.portMappings[{index}].hostIP`: {error}"))
                })?),
            };
            let host_port = port("host port", wanted.host_port)?;
            let container_port = port("container port", wanted.container_port)?;
            // A mapping on an address is for that family alone; on 0.0.0.0 or :: it is for all of the family's.
            for container in &containers {
                if host.is_none_or(|host| host.is_ipv4() == container.is_ipv4()) {
                    let host = host.filter(|host| !host.is_unspecified());
                    mappings.push(Mapping {
                        protocol,
                        host,
                        host_port,
                        container: *container,
                        container_port,
                    });
                }
            }
        }
        Ok(Self { mappings, masquerade })
    }
}

impl Plugin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let Some(result) = request.prev_result.clone() else {
            return Err(invalid("must be called as chained plugin").details(
                "put portmap behind the plugin that makes the interface, in the same `plugins` list",
            ));
        };
        let conf = Conf::of(request, sandbox)?;
        if conf.mappings.is_empty() {
            return Ok(result);
        }
        let mark = Owner::of(request, sandbox).mark();
        let netfilter = Socket::open(Netlink::Netfilter).explain()?;
        portmap::add(&netfilter, &mark, &conf.mappings, conf.masquerade)
            .map_err(|error| taken(error, &conf.mappings))?;
        undo.push("unpublish ports", move || portmap::remove(&netfilter, &mark).explain())?;
        if conf.masquerade != Masquerade::Nobody {
            route_from_localhost(&conf.mappings)?;
        }
        Ok(result)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let mark = Owner::of(request, sandbox).mark();
        match Socket::open(Netlink::Netfilter) {
            Ok(netfilter) => portmap::remove(&netfilter, &mark).explain(),
            // A kernel without nftables has nothing to remove.
            Err(error) if error.kind() == Kind::Unsupported => Ok(()),
            Err(error) => Err(error).explain(),
        }
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request, sandbox)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let mark = Owner::of(request, sandbox).mark();
        let netfilter = Socket::open(Netlink::Netfilter).explain()?;
        let absent = portmap::absent(&netfilter, &mark, &conf.mappings, conf.masquerade).explain()?;
        match absent.first().map(|index| conf.mappings.get(*index)) {
            None => Ok(()),
            Some(Some(mapping)) => Err(differs(format!("{} is not published", described(mapping)))),
            Some(None) => Err(differs("masquerade of the published ports is missing")),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        require_supported(&request.read()?)?;
        Socket::open(Netlink::Netfilter)
            .and_then(|socket| kernel::nft::generation(&socket))
            .map(drop)
            .map_err(|error| {
                Error::new(Code::NotAvailable, error.to_string())
                    .details("published ports need nftables in the kernel (module nf_tables)")
            })
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let netfilter = Socket::open(Netlink::Netfilter).explain()?;
        let network = request.config.name.as_str();
        ruleset::retain(&netfilter, &|mark| is_stale(mark, network, valid)).explain()
    }
}

/// Refuses what is not done rather than leaving it out in silence.
fn require_supported(written: &Written) -> Result<(), Error> {
    let unsupported =
        |message: String, hint: &str| Err(Error::new(Code::UnsupportedField, message).details(hint));
    match written.backend.as_deref() {
        // Either name asks for published ports, and gets them by nftables.
        None | Some("iptables" | "nftables") => {}
        Some(other) => {
            return unsupported(
                format!("unrecognized backend {other:?} in `backend`"),
                "use \"nftables\", \"iptables\" or leave it out",
            );
        }
    }
    for (key, conditions) in
        [("conditionsV4", &written.conditions_v4), ("conditionsV6", &written.conditions_v6)]
    {
        if let Some(conditions) = conditions.as_ref().filter(|conditions| !conditions.is_empty()) {
            return unsupported(
                format!("`{key}` {conditions:?} is not supported"),
                "limit who reaches the port with `hostIP`, or in the host's firewall",
            );
        }
    }
    if written.mark_masq_bit.is_some() && written.external_set_mark_chain.is_some() {
        return Err(invalid("Cannot specify externalSetMarkChain and markMasqBit"));
    }
    match written.mark_masq_bit {
        // No mark is needed: what is to be masqueraded is told by its addresses.
        None | Some(0..=31) => Ok(()),
        Some(bit) => Err(invalid(format!("MasqMarkBit must be between 0 and 31, `markMasqBit` is {bit}"))),
    }
}

/// Gives the first address of each family on the container's interface.
fn container_addresses(prev: &Success, sandbox: &Sandbox) -> Vec<IpAddr> {
    let on_interface = |ip: &&netloom_plugin::result::v100::IpConfig| {
        prev.interface_of(ip).is_none_or(|interface| {
            interface.name == sandbox.ifname.as_str() && !interface.sandbox.is_empty()
        })
    };
    let ips: Vec<IpAddr> = prev.ips.iter().filter(on_interface).map(|ip| ip.address.addr()).collect();
    let first = |v4: bool| ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
    [first(true), first(false)].into_iter().flatten().collect()
}

/// Lets packets from 127.0.0.1 be routed to the container (IPv6 has no such setting).
fn route_from_localhost(mappings: &[Mapping]) -> Result<(), Error> {
    let Some(ip) = mappings.iter().map(|mapping| mapping.container).find(IpAddr::is_ipv4) else {
        return Ok(());
    };
    let host = Socket::open(Netlink::Route).explain()?;
    let Some(index) = route::link_towards(&host, ip).explain()? else { return Ok(()) };
    let Some(link) = link::find_index(&host, index).explain()? else { return Ok(()) };
    sysctl::ensure(Setting::Ipv4(&link.name, "route_localnet"), "1").explain()
}

fn taken(error: RulesetError, mappings: &[Mapping]) -> Error {
    let (index, owner) = match error {
        RulesetError::Taken { index, owner } => (index, owner),
        RulesetError::Kernel(error) => return explained(&error),
    };
    let port = mappings.get(index).map_or_else(String::new, described);
    // A mark is two hashes, then interface, container and network.
    let mut names = owner.split(' ').skip(1);
    let (ifname, container) = (names.next().unwrap_or("?"), names.next().unwrap_or(&owner));
    Error::new(Code::Internal, format!("{port} is already published for container {container} ({ifname})"))
        .details("delete that container or choose another host port")
}

fn described(mapping: &Mapping) -> String {
    let host = mapping.host.map_or_else(|| "*".to_owned(), |host| host.to_string());
    format!("host port {host}:{}/{}", mapping.host_port, mapping.protocol.as_str())
}
