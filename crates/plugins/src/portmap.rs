//! `portmap`: publishes ports of a container on the host.

use std::{collections::BTreeMap, net::IpAddr};

use kernel::{
    IpFamily, Kind, Protocol as Netlink, Socket, conntrack, deferred, link, route,
    sysctl::{self, Setting},
};
use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, Undo, capability::PortMapping, result::v100::Success,
};
use netloom_types::address::parse_ip;
use ruleset::{
    RulesetError,
    condition::Condition,
    portmap::{self, Mapping, Masquerade, Protocol, Terms},
    reference,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleanup,
    error::{Explain, check_failed, invalid, kernel_error},
    owner::Owner,
    prev_result::{first_of_each_family, prev_result},
};

/// The plugin.
#[derive(Debug)]
pub struct Portmap;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// `nftables` or `iptables`; accepted for compatibility, rules are always nftables'
    #[schemars(extend("enum" = ["nftables", "iptables"]))]
    backend: Option<String>,
    /// Masquerade connections whose replies would take another path: those from the container itself, and from the host to 127.0.0.1
    #[schemars(extend("default" = true))]
    snat: Option<bool>,
    /// Masquerade all connections to published ports: the container sees the host's address instead of the client's
    masq_all: bool,
    /// Accepted and not used: connections to masquerade are identified by their addresses, not by a mark
    #[schemars(example = 13, range(min = 0, max = 31))]
    mark_masq_bit: Option<i64>,
    /// Accepted and not used. Not together with `markMasqBit`
    #[schemars(example = &"KUBE-MARK-MASQ")]
    external_set_mark_chain: Option<String>,
    /// Conditions that IPv4 packets must meet, in the syntax of iptables or nft
    #[schemars(example = serde_json::json!(["-s", "192.0.2.0/24"]))]
    conditions_v4: Option<Vec<String>>,
    /// Conditions that IPv6 packets must meet
    #[schemars(example = serde_json::json!(["ip6", "saddr", "!=", "2001:db8::/32"]))]
    conditions_v6: Option<Vec<String>>,
    runtime_config: RuntimePorts,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct RuntimePorts {
    /// Capability `portMappings`: the ports to publish
    #[schemars(example = serde_json::json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))]
    port_mappings: Vec<PortMapping>,
}

/// The configuration as meant, for one container.
struct Conf {
    mappings: Vec<Mapping>,
    terms: Terms,
}

impl Conf {
    /// Reads the configuration. A mapping is paired with the container's first address of each family.
    fn of(request: &Request, sandbox: &Sandbox) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let terms = terms(&written)?;
        let prev = request.prev_result.as_ref();
        let containers = prev.map(|prev| first_of_each_family(prev, sandbox)).unwrap_or_default();
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
            // A mapping with a host address is of that family alone. 0.0.0.0 and :: stand for every address of the family.
            for container in &containers {
                if host.is_none_or(|host| host.is_ipv4() == container.is_ipv4()) {
                    let host = host.filter(|host| !host.is_unspecified());
                    let mapping =
                        Mapping { protocol, host, host_port, container: *container, container_port };
                    // A runtime may ask twice for the same, as with and without 0.0.0.0.
                    if !mappings.contains(&mapping) {
                        mappings.push(mapping);
                    }
                }
            }
        }
        Ok(Self { mappings, terms })
    }
}

impl Plugin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let result = prev_result(request)?;
        let conf = Conf::of(request, sandbox)?;
        if conf.mappings.is_empty() {
            return Ok(result);
        }
        let mark = Owner::of(request, sandbox).mark();
        let netfilter = deferred::netfilter().explain()?;
        portmap::add(&netfilter, &mark, &conf.mappings, &conf.terms)
            .map_err(|error| taken(error, &conf.mappings))?;
        let socket = netfilter.clone();
        undo.push("unpublish ports", move || portmap::remove(&socket, &mark).map(drop).explain())?;
        forget_connections(&netfilter, &conf.mappings, &|mapping, to| to != mapping.container)?;
        if conf.terms.masquerade != Masquerade::Nobody {
            route_from_localhost(&conf.mappings)?;
        }
        Ok(result)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let owner = Owner::of(request, sandbox);
        let Some(netfilter) = cleanup::netfilter()? else { return Ok(()) };
        let removed = portmap::remove(&netfilter, &owner.mark()).explain()?;
        forget_connections(&netfilter, &removed, &|mapping, to| to == mapping.container)?;
        let chains =
            ["DN-", "SN-"].map(|prefix| Owner::reference_chain(owner.network, owner.container, prefix));
        reference::remove_nat_chains(&netfilter, &chains).explain()?;
        reference::remove_host_ports(&netfilter, owner.container).explain()
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request, sandbox)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let mark = Owner::of(request, sandbox).mark();
        let netfilter = deferred::netfilter().explain()?;
        let absent = portmap::absent(&netfilter, &mark, &conf.mappings, &conf.terms).explain()?;
        match absent.first().map(|index| conf.mappings.get(*index)) {
            None => Ok(()),
            Some(Some(mapping)) => Err(check_failed(format!("{} is not published", described(mapping)))),
            Some(None) => Err(check_failed("masquerade of the published ports is missing")),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        terms(&request.read()?)?;
        cleanup::require_nftables()
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        cleanup::gc_rules(request, valid)
    }
}

/// Reads the terms of publishing. What cannot be done is refused, not ignored.
fn terms(written: &Written) -> Result<Terms, Error> {
    match written.backend.as_deref() {
        // Both backends are implemented with nftables.
        None | Some("iptables" | "nftables") => {}
        Some(other) => {
            return Err(Error::new(
                Code::UnsupportedField,
                format!("unrecognized backend {other:?} in `backend`"),
            )
            .details("use \"nftables\", \"iptables\" or leave it out"));
        }
    }
    let conditions = |key: &str, words: &Option<Vec<String>>, family| {
        let words: &[String] = words.as_deref().unwrap_or_default();
        // The first word decides which syntax they are in, as in the reference plugin.
        let of_iptables = words.first().map(|word| word.starts_with(['-', '!']));
        match (written.backend.as_deref(), of_iptables) {
            (Some("iptables"), Some(false)) | (Some("nftables"), Some(true)) => {
                return Err(invalid(format!(
                    "`backend` is {:?}, but `{key}` {words:?} is in the syntax of the other backend",
                    written.backend.as_deref().unwrap_or_default()
                )));
            }
            _ => {}
        }
        Condition::parse(words, family).map_err(|rest| {
            Error::new(Code::UnsupportedField, format!("`{key}`: {rest:?} is not supported")).details(
                "supported are -s, -d, -i and -m mark --mark, each also with `!`, or in the syntax of nft ip saddr, \
                 ip daddr, ip6 saddr, ip6 daddr, iifname and meta mark, each also with `!=` and a set after that",
            )
        })
    };
    if written.mark_masq_bit.is_some() && written.external_set_mark_chain.is_some() {
        return Err(invalid("Cannot specify externalSetMarkChain and markMasqBit"));
    }
    // The mark is not used: connections to masquerade are identified by their addresses.
    if let Some(bit) = written.mark_masq_bit.filter(|bit| !(0..=31).contains(bit)) {
        return Err(invalid(format!("MasqMarkBit must be between 0 and 31, `markMasqBit` is {bit}")));
    }
    Ok(Terms {
        masquerade: match (written.snat.unwrap_or(true), written.masq_all) {
            (false, _) => Masquerade::Nobody,
            (true, false) => Masquerade::Hairpin,
            (true, true) => Masquerade::Everybody,
        },
        conditions_v4: conditions("conditionsV4", &written.conditions_v4, IpFamily::V4)?,
        conditions_v6: conditions("conditionsV6", &written.conditions_v6, IpFamily::V6)?,
    })
}

/// Returns whether an address is one of the host's, and not of a remote server whose port has the same number.
fn is_of_host(ip: IpAddr) -> Result<bool, Error> {
    let host = Socket::open(Netlink::Route).explain()?;
    let Some(index) = route::link_towards(&host, ip).explain()? else { return Ok(false) };
    Ok(link::find_index(&host, index).explain()?.is_some_and(|link| link.name == "lo"))
}

/// Removes tracked UDP flows to these ports that lead to a wrong address. A sender that never pauses would otherwise keep the
/// destination that it had before.
fn forget_connections(
    netfilter: &Socket,
    mappings: &[Mapping],
    wrong: &dyn Fn(&Mapping, IpAddr) -> bool,
) -> Result<(), Error> {
    let mut by_port: BTreeMap<(IpFamily, u16), Vec<&Mapping>> = BTreeMap::new();
    for mapping in mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp) {
        by_port.entry((IpFamily::of(mapping.container), mapping.host_port)).or_default().push(mapping);
    }
    if by_port.is_empty() {
        return Ok(());
    }
    let ports = by_port.keys().copied().collect();
    let tracked = match conntrack::to_ports(netfilter, Protocol::Udp.number(), &ports) {
        // A kernel without connection tracking has no flows.
        Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::Invalid) => return Ok(()),
        other => other.explain()?,
    };
    let mut of_host: BTreeMap<IpAddr, bool> = BTreeMap::new();
    for connection in tracked {
        let (address, port) = connection.destination;
        let same_port = by_port.get(&(IpFamily::of(address), port));
        let leads_astray = same_port.into_iter().flatten().any(|mapping| {
            mapping.host.is_none_or(|host| host == address) && wrong(mapping, connection.answers_from)
        });
        if !leads_astray {
            continue;
        }
        let is_of_host = match of_host.get(&address) {
            Some(known) => *known,
            None => *of_host.entry(address).or_insert(is_of_host(address)?),
        };
        if is_of_host {
            conntrack::forget(netfilter, &connection).explain()?;
        }
    }
    Ok(())
}

/// Allows packets from 127.0.0.1 to be routed to the container. IPv6 has no such setting.
fn route_from_localhost(mappings: &[Mapping]) -> Result<(), Error> {
    let Some(ip) = mappings.iter().map(|mapping| mapping.container).find(IpAddr::is_ipv4) else {
        return Ok(());
    };
    let host = Socket::open(Netlink::Route).explain()?;
    let Some(index) = route::link_towards(&host, ip).explain()? else { return Ok(()) };
    let Some(link) = link::find_index(&host, index).explain()? else { return Ok(()) };
    sysctl::ensure(Setting::Ipv4(&link.name, "route_localnet"), "1").map(drop).explain()
}

fn taken(error: RulesetError, mappings: &[Mapping]) -> Error {
    let (index, owner) = match error {
        RulesetError::Taken { index, owner } => (index, owner),
        RulesetError::Kernel(error) => return kernel_error(&error),
    };
    let port = mappings.get(index).map_or_else(String::new, described);
    // A mark consists of two hashes, interface, container and network.
    let mut names = owner.split(' ').skip(1);
    let (ifname, container) = (names.next().unwrap_or("?"), names.next().unwrap_or(&owner));
    Error::new(Code::Internal, format!("{port} is already published for container {container} ({ifname})"))
        .details("delete that container, or choose another host port")
}

fn described(mapping: &Mapping) -> String {
    let host = mapping.host.map_or_else(|| "*".to_owned(), |host| host.to_string());
    format!("host port {host}:{}/{}", mapping.host_port, mapping.protocol.as_str())
}
