//! `--publish`: the forms that docker accepts, and the choice of free ports of the host.

use std::{
    fmt,
    fs::File,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    ops::RangeInclusive,
    str::FromStr,
};

use kernel::sysctl::{self, Setting};
use netloom_runtime::types::{Object, address::parse_ip, capability::PortMapping};
use ruleset::portmap::Protocol;
use rustix::net::{AddressFamily, SocketType, ipproto};
use serde_json::{Value, json};

use super::super::{
    Failure, Outcome, Places, list::published_ports, networks::Runtime, temporary_netns::lock_dir,
};

/// Ports to publish, as one `--publish` names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    ip: Option<IpAddr>,
    host: HostPorts,
    container: RangeInclusive<u16>,
    protocol: Protocol,
}

/// The ports of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPorts {
    /// One for each port of the container, in order.
    These(RangeInclusive<u16>),
    /// A free one of these, for the only port of the container.
    FreeOf(RangeInclusive<u16>),
    /// Any free ports.
    Free,
}

/// One published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) host: u16,
    pub(crate) container: u16,
    pub(crate) protocol: Protocol,
    /// Whether the port of the host was chosen here.
    pub(crate) chosen: bool,
}

/// The ports that a kernel without the setting would choose from.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

impl FromStr for Publish {
    type Err = String;

    /// Parses `[[IP:][HOST]:]CONTAINER[/PROTOCOL]`, with an IPv6 address in brackets. HOST and CONTAINER are ports or ranges of ports.
    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = Protocol::parse(&protocol.to_ascii_lowercase())
            .ok_or_else(|| format!("the protocol `{protocol}` is not tcp, udp or sctp"))?;
        let (ip, ports) = split_address(ports)?;
        let (host, container) = match ports.rsplit_once(':') {
            Some((host, container)) => (Some(host), container),
            None if ip.is_some() => {
                return Err("an address needs IP:HOST:CONTAINER, or IP::CONTAINER for any free port".into());
            }
            None => (None, ports),
        };
        let container = range("container", container)?;
        let host = match host {
            None | Some("" | "0") => HostPorts::Free,
            Some(host) => {
                let host = range("host", host)?;
                match (host.len(), container.len()) {
                    (ports, wanted) if ports == wanted => HostPorts::These(host),
                    (_, 1) => HostPorts::FreeOf(host),
                    (ports, wanted) => {
                        return Err(format!(
                            "the range of the host has {ports} ports and that of the container {wanted}"
                        ));
                    }
                }
            }
        };
        Ok(Self { ip, host, container, protocol })
    }
}

/// Separates the address in front of the ports.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    let (ip, ports) = if let Some(bracketed) = text.strip_prefix('[') {
        let (ip, rest) =
            bracketed.split_once(']').ok_or_else(|| format!("`{text}` has no `]` after the address"))?;
        let ports =
            rest.strip_prefix(':').ok_or_else(|| format!("`:` and a port are missing after `[{ip}]`"))?;
        (ip, ports)
    } else {
        match text.matches(':').count() {
            0 | 1 => return Ok((None, text)),
            2 => text.split_once(':').unwrap_or_default(),
            _ => {
                return Err(format!(
                    "`{text}` has too many colons: write an IPv6 address in brackets, as in [::1]:8080:80"
                ));
            }
        }
    };
    if ip.is_empty() {
        return Err(format!("the address in front of `{ports}` is empty"));
    }
    let ip = parse_ip(ip).map_err(|_| format!("the address `{ip}` is not an IP address"))?;
    Ok((Some(ip), ports))
}

/// Parses a port or `FIRST-LAST`.
fn range(whose: &str, text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |port: &str| {
        port.parse::<u16>().ok().filter(|number| *number > 0).ok_or_else(|| match port {
            "" => format!("the port of the {whose} is missing"),
            _ => format!("the port of the {whose} `{port}` is not a number from 1 to 65535"),
        })
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if last < first {
        return Err(format!("the range of the {whose} `{text}` ends before it begins"));
    }
    Ok(first..=last)
}

impl Mapping {
    /// Returns the value for the capability `portMappings`.
    pub(crate) fn to_value(self) -> Value {
        let mut value = json!({
            "hostPort": self.host,
            "containerPort": self.container,
            "protocol": self.protocol.as_str(),
        });
        if let Some(ip) = self.ip {
            value["hostIP"] = ip.to_string().into();
        }
        value
    }

    /// Returns whether both occupy the same port of at least one address.
    fn meets(&self, other: &Self) -> bool {
        let shares = |a: Option<IpAddr>, b: Option<IpAddr>| match (a, b) {
            (Some(a), Some(b)) => {
                a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
            }
            _ => true,
        };
        self.protocol.number() == other.protocol.number()
            && self.host == other.host
            && shares(self.ip, other.ip)
    }

    /// Returns whether a program of this host listens on the port of this address, or sends from it.
    fn is_in_use(&self, ip: IpAddr) -> bool {
        let refused = bind(self.protocol, SocketAddr::new(ip, self.host)).err();
        refused.is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }

    fn is_free(&self) -> bool {
        let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = self.ip.as_ref().map_or(&any[..], std::slice::from_ref);
        !addresses.iter().any(|ip| self.is_in_use(*ip))
    }

    /// Refuses a port of a program of this host, which would lose its callers. A program on `::1` alone keeps them.
    fn require_unused(&self) -> Outcome {
        if !self.is_in_use(self.ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into())) {
            return Ok(());
        }
        Err(Failure::new(format!("cannot publish {self}: a program of this host uses the port")).hint(
            format!("find it with `ss -lntup sport = {}`, or choose another port of the host", self.host),
        ))
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = SocketAddr::new(self.ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), self.host);
        write!(out, "{host} -> {}/{}", self.container, self.protocol.as_str())
    }
}

fn bind(protocol: Protocol, to: SocketAddr) -> io::Result<()> {
    match protocol {
        Protocol::Tcp => TcpListener::bind(to).map(drop),
        Protocol::Udp => UdpSocket::bind(to).map(drop),
        Protocol::Sctp => {
            let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = rustix::net::socket(family, SocketType::STREAM, Some(ipproto::SCTP))?;
            Ok(rustix::net::bind(&socket, &to)?)
        }
    }
}

/// Chooses the ports that `--publish` leaves open. The second value is a lock that keeps other calls from choosing the same ports
/// until their ADD has published them.
pub(crate) fn choose(
    places: &Places,
    runtime: &Runtime,
    wanted: &[Publish],
) -> Outcome<(Vec<Mapping>, Option<File>)> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for publish in wanted {
        for mapping in publish.fixed() {
            require_once(&mapping, &mappings)?;
            mapping.require_unused()?;
            mappings.push(mapping);
        }
    }
    if wanted.iter().all(|publish| matches!(publish.host, HostPorts::These(_))) {
        return Ok((mappings, None));
    }
    let dir = lock_dir(places);
    let lock = File::open(&dir).and_then(|dir| dir.lock().map(|()| dir)).map_err(|error| {
        Failure::new(format!("cannot lock {}: {error}", dir.display()))
            .hint("name the ports of the host: `-p HOST:CONTAINER`")
    })?;
    let published: Vec<Mapping> =
        runtime.attachments()?.iter().flat_map(|entry| published_by(&entry.capability_args)).collect();
    for publish in wanted {
        publish.choose(&published, &mut mappings)?;
    }
    Ok((mappings, Some(lock)))
}

fn require_once(mapping: &Mapping, others: &[Mapping]) -> Outcome {
    let twice = |other: &&Mapping| {
        other.ip == mapping.ip && other.meets(mapping) && other.container != mapping.container
    };
    match others.iter().find(twice) {
        None => Ok(()),
        Some(other) => Err(Failure::new(format!("cannot publish both {other} and {mapping}"))
            .hint("a port of the host leads to one port of the container: choose another")),
    }
}

impl Publish {
    fn mapping(&self, host: u16, container: u16) -> Mapping {
        Mapping { ip: self.ip, host, container, protocol: self.protocol, chosen: false }
    }

    /// Lists the mappings whose port of the host is given.
    fn fixed(&self) -> Vec<Mapping> {
        let HostPorts::These(host) = &self.host else { return Vec::new() };
        host.clone().zip(self.container.clone()).map(|(host, to)| self.mapping(host, to)).collect()
    }

    /// Adds the mappings whose port of the host is open to `mappings`, with ports that are free.
    fn choose(&self, published: &[Mapping], mappings: &mut Vec<Mapping>) -> Outcome {
        let candidates: Vec<u16> = match &self.host {
            HostPorts::These(_) => return Ok(()),
            HostPorts::FreeOf(range) => range.clone().collect(),
            HostPorts::Free => shuffled(&ephemeral()),
        };
        for container in self.container.clone() {
            let free = candidates
                .iter()
                .map(|host| Mapping { chosen: true, ..self.mapping(*host, container) })
                .find(|mapping| {
                    !published.iter().chain(&*mappings).any(|other| other.meets(mapping)) && mapping.is_free()
                });
            mappings.push(free.ok_or_else(|| self.none_free(container))?);
        }
        Ok(())
    }

    fn none_free(&self, container: u16) -> Failure {
        let range = match &self.host {
            HostPorts::These(range) | HostPorts::FreeOf(range) => range.clone(),
            HostPorts::Free => ephemeral(),
        };
        Failure::new(format!(
            "cannot publish port {container}/{} of the container: none of the host's ports {} to {} is free",
            self.protocol.as_str(),
            range.start(),
            range.end()
        ))
        .hint("see who has them with `ss -ltunp` and `netloom list`")
    }
}

/// Reads the range from which the kernel chooses ports.
fn ephemeral() -> RangeInclusive<u16> {
    let parse = |text: String| {
        let mut ports = text.split_whitespace().map(str::parse::<u16>);
        Some(ports.next()?.ok()?..=ports.next()?.ok()?)
    };
    let setting = sysctl::read(Setting::Net("ipv4/ip_local_port_range")).ok().flatten();
    setting.and_then(parse).filter(|range| !range.is_empty()).unwrap_or(EPHEMERAL)
}

/// Lists the ports from a random one on, so that a port that was released a moment ago is not the next one.
fn shuffled(range: &RangeInclusive<u16>) -> Vec<u16> {
    let mut ports: Vec<u16> = range.clone().collect();
    let random = RandomState::new().build_hasher().finish();
    let middle = usize::try_from(random % ports.len().max(1) as u64).unwrap_or(0);
    ports.rotate_left(middle);
    ports
}

/// Reads the ports that an attachment has published.
fn published_by(capability_args: &Object) -> Vec<Mapping> {
    let mapping = |mapping: PortMapping| {
        let protocol = mapping.protocol.to_ascii_lowercase();
        Some(Mapping {
            ip: parse_ip(&mapping.host_ip).ok(),
            host: u16::try_from(mapping.host_port).ok()?,
            container: u16::try_from(mapping.container_port).unwrap_or_default(),
            protocol: Protocol::parse(&protocol).unwrap_or(Protocol::Tcp),
            chosen: false,
        })
    };
    published_ports(capability_args).into_iter().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every form of docker's `-p`: address, ports of the host, ports of the container.
    #[test]
    fn every_form_is_read() {
        use HostPorts::{Free, FreeOf, These};
        use Protocol::{Sctp, Tcp, Udp};
        let cases = [
            ("80", None, Free, 80..=80, Tcp),
            (":80", None, Free, 80..=80, Tcp),
            ("0:80", None, Free, 80..=80, Tcp),
            ("80-82/udp", None, Free, 80..=82, Udp),
            ("8080:80", None, These(8080..=8080), 80..=80, Tcp),
            ("53:5353/UDP", None, These(53..=53), 5353..=5353, Udp),
            ("8000-8010:80-90", None, These(8000..=8010), 80..=90, Tcp),
            ("8000-8010:80", None, FreeOf(8000..=8010), 80..=80, Tcp),
            ("8000-8000:80", None, These(8000..=8000), 80..=80, Tcp),
            ("127.0.0.1:1:2/sctp", Some("127.0.0.1"), These(1..=1), 2..=2, Sctp),
            ("127.0.0.1::80", Some("127.0.0.1"), Free, 80..=80, Tcp),
            ("0.0.0.0:1-2:3", Some("0.0.0.0"), FreeOf(1..=2), 3..=3, Tcp),
            ("[fd00::1]:1:2", Some("fd00::1"), These(1..=1), 2..=2, Tcp),
            ("[::1]::2/udp", Some("::1"), Free, 2..=2, Udp),
            ("[::]:1-2:3-4", Some("::"), These(1..=2), 3..=4, Tcp),
        ];
        for (text, ip, host, container, protocol) in cases {
            let ip = ip.map(|ip| ip.parse().unwrap());
            assert_eq!(text.parse(), Ok(Publish { ip, host, container, protocol }), "{text}");
        }
    }

    /// Each error names the part that is wrong.
    #[test]
    fn errors_name_the_part() {
        for (text, part) in [
            ("", "the port of the container is missing"),
            ("8080:", "the port of the container is missing"),
            ("80:0", "the port of the container `0`"),
            ("80:70000", "the port of the container `70000`"),
            ("x:80", "the port of the host `x`"),
            ("a:b", "the port of the container `b`"),
            ("80:80/icmp", "the protocol `icmp`"),
            ("80/", "the protocol ``"),
            ("x:80:80", "the address `x`"),
            (":80:80", "the address in front of `80:80` is empty"),
            ("[x]:80:80", "the address `x`"),
            ("[::1]:80", "IP::CONTAINER"),
            ("[::1]", "are missing after `[::1]`"),
            ("[::1:80:80", "has no `]`"),
            ("::1:80:80", "in brackets"),
            ("90-80:1-11", "the range of the host `90-80`"),
            ("1-2:4-3", "the range of the container `4-3`"),
            ("8000-8010:80-81", "the range of the host has 11 ports and that of the container 2"),
            ("8000:80-81", "the range of the host has 1 ports and that of the container 2"),
            ("1-:80", "the port of the host is missing"),
        ] {
            let error = text.parse::<Publish>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn mappings_meet_on_a_shared_address() {
        let mapping = |text: &str| text.parse::<Publish>().unwrap().fixed()[0];
        for (a, b, meet) in [
            ("80:1", "80:2", true),
            ("80:1", "81:1", false),
            ("80:1", "80:1/udp", false),
            ("80:1", "127.0.0.1:80:1", true),
            ("127.0.0.1:80:1", "127.0.0.2:80:1", false),
            ("0.0.0.0:80:1", "127.0.0.2:80:1", true),
            ("0.0.0.0:80:1", "[::1]:80:1", false),
            ("[::]:80:1", "[::1]:80:1", true),
        ] {
            assert_eq!(mapping(a).meets(&mapping(b)), meet, "{a} and {b}");
            assert_eq!(mapping(b).meets(&mapping(a)), meet, "{b} and {a}");
        }
    }
}
