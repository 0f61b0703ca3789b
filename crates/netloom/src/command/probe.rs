//! `netloom check --deep`: sends packets along the paths of an attachment, which CHECK only compares with the result of ADD.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use kernel::{
    IpFamily, Netns, Protocol, Socket,
    echo::{Echo, SMALLEST},
    link::{self, Link},
    neigh,
    packet::Capture,
    route,
};
use netloom_runtime::types::{
    NetworkList, address::parse_ip, capability::PortMapping, result::v100::Success,
};
use rustix::{io::Errno, net::ipproto};

use super::{Failure, Outcome, say};

/// Time limit for each reply.
const LIMIT: Duration = Duration::from_secs(1);
/// Number of requests before a path counts as broken.
const ATTEMPTS: u32 = 2;
/// Addresses beyond every host (RFC 5737, RFC 3849), which show the path that packets to the outside take.
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// What is probed.
pub(crate) struct Probe<'a> {
    pub(crate) list: &'a NetworkList,
    pub(crate) netns: &'a Path,
    pub(crate) ifname: &'a str,
    /// The result of ADD.
    pub(crate) result: &'a Success,
    pub(crate) ports: &'a [PortMapping],
}

/// The outcome of one step.
enum Step {
    /// The packet arrived.
    Works(String),
    /// The step does not apply, or does not tell.
    Skipped(String),
    Broken(Failure),
}

/// Both sides of the attachment.
struct Sides {
    host: Socket,
    container: Socket,
    netns: Netns,
    inside: Link,
}

impl Probe<'_> {
    /// Sends the packets and prints the outcome of each step.
    ///
    /// # Errors
    /// If a path is broken.
    pub(crate) fn run(&self) -> Outcome {
        let netns = Netns::open(self.netns)?;
        let container = netns.run(|| Socket::open(Protocol::Route))??;
        let inside = link::require(&container, self.ifname)?;
        let sides = Sides { host: Socket::open(Protocol::Route)?, container, netns, inside };
        let mut broken = Vec::new();
        let mut step = |what: String, work: &mut dyn FnMut() -> Outcome<Step>| {
            let outcome = work().unwrap_or_else(Step::Broken);
            print(&what, &outcome);
            if let Step::Broken(failure) = outcome {
                broken.push(failure);
            }
        };
        for ip in &self.result.ips {
            if self.result.interface_of(ip).is_some_and(|interface| interface.name != self.ifname) {
                continue;
            }
            let address = ip.address.addr();
            let gateway = ip.gateway.filter(|gateway| gateway.is_ipv4() == address.is_ipv4());
            let of_host = match gateway {
                Some(gateway) => route::way_to(&sides.host, gateway)?.is_some_and(|way| way.local),
                None => false,
            };
            if let Some(gateway) = gateway {
                step(format!("container to gateway {gateway}"), &mut || sides.to_gateway(gateway, of_host));
            }
            if of_host && let Some(gateway) = gateway {
                step(format!("host to container {address}"), &mut || to_container(address));
                step(format!("{} bytes to gateway {gateway}", sides.inside.mtu), &mut || {
                    sides.full_size(gateway)
                });
                step(format!("{} out of the host", IpFamily::of(address)), &mut || {
                    self.to_outside(&sides, address)
                });
            }
            for port in self.ports {
                if let Some(to) = host_address(port, address, gateway) {
                    let what = format!("published port {}", SocketAddr::new(to.ip(), to.port()));
                    step(what, &mut || sides.to_published(port, to, address));
                }
            }
        }
        let count = broken.len();
        match broken.into_iter().next() {
            None => Ok(()),
            Some(first) if count == 1 => Err(first),
            Some(first) => {
                let message = format!("{}; and {} more of these probes failed", first.message(), count - 1);
                Err(Failure { messages: vec![message], ..first })
            }
        }
    }

    /// Sends a packet towards the host's next hop, and looks for it on the link by which it must leave the host.
    fn to_outside(&self, sides: &Sides, address: IpAddr) -> Outcome<Step> {
        let outside: IpAddr = if address.is_ipv4() { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() };
        let of_container = route::way_to(&sides.container, outside)?;
        if of_container.is_none() {
            let wants_default =
                self.result.routes.iter().any(|route| {
                    route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4() == address.is_ipv4()
                });
            return if wants_default {
                Err(Failure::new(format!("the container has no {} default route", IpFamily::of(address)))
                    .hint(
                        "delete and add the attachment again: something removed the route that ADD created",
                    ))
            } else {
                Ok(Step::Skipped("the network gives the container no default route".into()))
            };
        }
        let Some(way) = route::way_to(&sides.host, outside)?.filter(|way| !way.local) else {
            return Ok(Step::Skipped(format!("the host has no {} default route", IpFamily::of(address))));
        };
        let Some(uplink) = link::find_index(&sides.host, way.link)? else {
            return Ok(Step::Skipped("the host's default route has no link".into()));
        };
        let target = way.gateway.unwrap_or(outside);
        let protocol = if address.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        let capture = Capture::open(&uplink, protocol_number(protocol))?;
        let echo = sides.netns.run(|| Echo::open(target))??;
        let Some(source) = seen(&echo, SMALLEST, &capture)? else {
            return not_forwarded(sides, &uplink, target, address);
        };
        if self.masquerades() && source == address {
            return Err(Failure::new(format!(
                "packets leave by `{}` with the container's address {address}: they are not masqueraded",
                uplink.name
            ))
            .hint("look for a rule before Netloom's: `nft list ruleset | grep -n postrouting`, `iptables -t nat -vnL POSTROUTING`"));
        }
        let size = usize::try_from(sides.inside.mtu).unwrap_or(usize::MAX);
        if sides.inside.mtu > uplink.mtu {
            return Ok(Step::Works(format!(
                "leaves by `{}` from {source}; its MTU {} is below the container's {size}, which costs a retry per connection",
                uplink.name, uplink.mtu
            )));
        }
        if seen(&echo, size, &capture)?.is_none() {
            return Err(Failure::new(format!(
                "packets of {size} bytes do not leave by `{}`, smaller ones do",
                uplink.name
            ))
            .hint("set `mtu` of the network to the smallest MTU on the path"));
        }
        Ok(Step::Works(format!("leaves by `{}` from {source}", uplink.name)))
    }

    fn masquerades(&self) -> bool {
        self.list
            .plugins
            .iter()
            .any(|plugin| plugin.object().get("ipMasq").and_then(serde_json::Value::as_bool) == Some(true))
    }
}

impl Sides {
    fn to_gateway(&self, gateway: IpAddr, of_host: bool) -> Outcome<Step> {
        let echo = self.netns.run(|| Echo::open(gateway))??;
        if answered(&echo, SMALLEST)? {
            return Ok(Step::Works("answers".into()));
        }
        // A router may ignore echo requests, but it must resolve.
        let known = neigh::list(&self.container, &self.inside, gateway)?;
        if !of_host && known.iter().any(|it| it.ip == gateway && it.mac.is_some()) {
            return Ok(Step::Works("answers ARP or neighbour discovery, not echo requests".into()));
        }
        let hint = if of_host {
            "see which rule drops the packet: `nft monitor trace`, or the counters of `iptables -vnL INPUT`"
        } else {
            "check that the parent link is connected to the gateway's segment and VLAN"
        };
        Err(Failure::new(format!("gateway {gateway} does not answer the container")).hint(hint))
    }

    /// Sends a packet of the container's MTU: a smaller MTU on the way, as on a bridge, drops it silently.
    fn full_size(&self, gateway: IpAddr) -> Outcome<Step> {
        let echo = self.netns.run(|| Echo::open(gateway))??;
        let size = usize::try_from(self.inside.mtu).unwrap_or(usize::MAX);
        if answered(&echo, size)? {
            return Ok(Step::Works("answers".into()));
        }
        Err(Failure::new(format!("packets of {size} bytes from the container are lost before gateway {gateway}"))
            .hint("compare the MTU of the container's interface with that of the bridge and the host end: `ip link`"))
    }

    /// Connects to a published port from the host, and looks for the packet at the container's interface.
    fn to_published(&self, port: &PortMapping, to: SocketAddr, address: IpAddr) -> Outcome<Step> {
        let protocol = port.protocol.to_ascii_lowercase();
        let number = match protocol.as_str() {
            "tcp" | "" => ipproto::TCP,
            "udp" => ipproto::UDP,
            _ => return Ok(Step::Skipped(format!("{protocol} is not probed"))),
        };
        let inside_port = u16::try_from(port.container_port).unwrap_or_default();
        let number = protocol_number(number);
        let capture = self.netns.run(|| Capture::open(&self.inside, number))??;
        std::thread::scope(|scope| {
            let connect = scope.spawn(move || {
                if protocol == "udp" {
                    let any: IpAddr = if to.is_ipv4() {
                        Ipv4Addr::UNSPECIFIED.into()
                    } else {
                        Ipv6Addr::UNSPECIFIED.into()
                    };
                    return UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(&[], to)).map(drop);
                }
                TcpStream::connect_timeout(&to, LIMIT * ATTEMPTS).map(drop)
            });
            let arrived = arrival(&capture, LIMIT * ATTEMPTS, |packet| is_to(packet, address, inside_port))?;
            let connected = connect.join().unwrap_or_else(|_| Err(ErrorKind::Other.into()));
            let target = SocketAddr::new(address, inside_port);
            if !arrived {
                let reason = connected.err().map(|error| format!(" ({error})")).unwrap_or_default();
                return Err(Failure::new(format!("packets to the published port {to} do not reach {target}{reason}"))
                    .hint("check for a program or another rule that takes the port: `ss -ltnup`, `nft list ruleset`, `iptables -t nat -vnL`"));
            }
            match connected {
                Ok(()) => Ok(Step::Works(format!("reaches {target}"))),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Ok(Step::Works(format!("reaches {target}, where nothing listens")))
                }
                Err(error) => Err(Failure::new(format!(
                    "packets to the published port {to} reach {target}, but no answer comes back ({error})"
                ))
                .hint(
                    "see which rule drops the answer, in the container or on the host: `nft monitor trace`",
                )),
            }
        })
    }
}

fn to_container(address: IpAddr) -> Outcome<Step> {
    if answered(&Echo::open(address)?, SMALLEST)? {
        return Ok(Step::Works("answers".into()));
    }
    Err(Failure::new(format!("container {address} does not answer the host"))
        .hint("check that no rule in the container drops echo requests, and that the route to it is its bridge or veth: `ip route get ADDRESS`"))
}

/// Explains why no packet of the container left the host.
fn not_forwarded(sides: &Sides, uplink: &Link, target: IpAddr, address: IpAddr) -> Outcome<Step> {
    let resolved =
        neigh::list(&sides.host, uplink, target)?.iter().any(|it| it.ip == target && it.mac.is_some());
    if !resolved && !answered(&Echo::open(target)?, SMALLEST)? {
        return Ok(Step::Skipped(format!(
            "the host itself does not reach its next hop {target} by `{}`",
            uplink.name
        )));
    }
    let family = IpFamily::of(address);
    if !kernel::sysctl::is_forwarding(&sides.host, address) {
        return Err(Failure::new(format!("the host does not forward {family} packets"))
            .hint("set `sysctl -w net.ipv4.ip_forward=1` (IPv6: net.ipv6.conf.all.forwarding), and find what turned it off"));
    }
    let filters = Socket::open(Protocol::Netfilter)
        .is_ok_and(|socket| ruleset::forward_hook::is_needed(&socket).unwrap_or(false));
    let failure = Failure::new(format!("the container's {family} packets do not leave by `{}`", uplink.name));
    Err(if filters {
        failure.hint("a filter at the forward hook drops them: add the plugin `firewall` to the network, or admit them in that filter (`nft list ruleset | grep -n 'hook forward'`, `iptables -vnL FORWARD`)")
    } else {
        failure.hint("look for reverse path filtering (`sysctl net.ipv4.conf.all.rp_filter`) and routing rules (`ip rule`)")
    })
}

/// Sends a request from the container until it is captured. Returns its source address there.
fn seen(echo: &Echo, size: usize, capture: &Capture) -> Outcome<Option<IpAddr>> {
    let mut source = None;
    for _ in 0..ATTEMPTS {
        send(echo, size)?;
        let is_ours = |packet: &[u8]| {
            source = echo.source_of(packet);
            source.is_some()
        };
        if arrival(capture, LIMIT, is_ours)? {
            break;
        }
    }
    Ok(source)
}

fn answered(echo: &Echo, size: usize) -> Outcome<bool> {
    for _ in 0..ATTEMPTS {
        send(echo, size)?;
        match echo.wait(LIMIT) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            other => return Ok(other.map(|()| true)?),
        }
    }
    Ok(false)
}

/// Sends a request. If a filter refuses it or the link drops it, no answer arrives.
fn send(echo: &Echo, size: usize) -> Outcome {
    match echo.send(size) {
        Err(error) if error.raw_os_error().is_some_and(|errno| DROPPED.contains(&errno)) => Ok(()),
        other => Ok(other?),
    }
}

/// The errors of a packet that is dropped on this host.
const DROPPED: [i32; 2] = [Errno::PERM.raw_os_error(), Errno::NOBUFS.raw_os_error()];

/// Waits until a packet that fits is captured. Returns false after `limit`.
fn arrival(capture: &Capture, limit: Duration, mut fits: impl FnMut(&[u8]) -> bool) -> Outcome<bool> {
    let started = Instant::now();
    let mut buffer = [0; 128];
    while let Some(left) = limit.checked_sub(started.elapsed()) {
        if !capture.wait(left)? {
            return Ok(false);
        }
        while let Some(packet) = capture.receive(&mut buffer)? {
            if fits(packet) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Returns whether a captured packet goes to this address and TCP or UDP port.
fn is_to(packet: &[u8], address: IpAddr, port: u16) -> bool {
    let (destination, ports) = match address {
        IpAddr::V4(ip) => (ip.octets().to_vec(), usize::from(packet[0] & 0xf) * 4),
        IpAddr::V6(ip) => (ip.octets().to_vec(), 40),
    };
    let at = if address.is_ipv4() { 16 } else { 24 };
    packet[0] >> 4 == if address.is_ipv4() { 4 } else { 6 }
        && packet.get(at..at + destination.len()) == Some(&destination)
        && packet.get(ports + 2..ports + 4) == Some(&port.to_be_bytes())
}

/// Returns the host's side of a published port for a container's address, or `None` if it is of the other family.
fn host_address(port: &PortMapping, address: IpAddr, gateway: Option<IpAddr>) -> Option<SocketAddr> {
    let number = u16::try_from(port.host_port).ok().filter(|number| *number > 0)?;
    let written = parse_ip(&port.host_ip).ok().filter(|ip| !ip.is_unspecified());
    let ip = written.or(gateway).unwrap_or(Ipv4Addr::LOCALHOST.into());
    (ip.is_ipv4() == address.is_ipv4()).then(|| SocketAddr::new(ip, number))
}

fn protocol_number(protocol: rustix::net::Protocol) -> u8 {
    u8::try_from(protocol.as_raw().get()).unwrap_or_default()
}

fn print(what: &str, step: &Step) {
    let (word, text) = match step {
        Step::Works(text) => ("ok", text.clone()),
        Step::Skipped(text) => ("skip", text.clone()),
        Step::Broken(failure) => ("FAIL", failure.message()),
    };
    say(format!("  {word:<4}  {what:<40}  {text}"));
}
