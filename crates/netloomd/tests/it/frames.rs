//! Frames that a pod or a host puts on a link by hand, and which of them arrive where.

use std::{
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, Ipv6Addr},
    process::Stdio,
};

use etherparse::{PacketBuilder, err::packet::BuildVecWriteError};
use testkit::Host;

use crate::lab::Lab;

/// The hardware addresses of a frame: source and destination.
pub(crate) type Ends = ([u8; 6], [u8; 6]);

/// A pod, and both ends of its link.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) host: usize,
    pub(crate) name: &'static str,
    /// Its addresses, IPv4 first.
    pub(crate) ips: [IpAddr; 2],
    /// The name of the host end.
    pub(crate) link: String,
    pub(crate) ends: Ends,
}

impl Pod {
    pub(crate) fn start(lab: &Lab, host: usize, name: &'static str) -> Self {
        let ips = lab.pod(host, name);
        let link = lab.hosts[host].sh(&format!("ip route show {} | grep -o 'veth[0-9a-f]*'", ips[0]));
        let link = link.trim().to_owned();
        let own = lab.hosts[host].sh(&format!("ip netns exec {name} cat /sys/class/net/eth0/address"));
        let ends = (octets(&own), mac(&lab.hosts[host], &link));
        let ips = [ips[0].parse().unwrap(), ips[1].parse().unwrap()];
        Self { host, name, ips, link, ends }
    }

    /// Sends a frame from the pod.
    pub(crate) fn send(&self, lab: &Lab, frame: &[u8]) {
        pour(&lab.hosts[self.host], Some(self.name), "INTERFACE:eth0", frame);
    }
}

/// Returns the hardware address of a host's link.
pub(crate) fn mac(host: &Host, link: &str) -> [u8; 6] {
    octets(&host.sh(&format!("cat /sys/class/net/{link}/address")))
}

fn octets(text: &str) -> [u8; 6] {
    let octets: Vec<u8> = text.trim().split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// Writes bytes to what socat connects to, in one piece.
pub(crate) fn pour(host: &Host, container: Option<&str>, to: &str, bytes: &[u8]) {
    let mut command = host.command(if container.is_some() { "ip" } else { "socat" });
    if let Some(name) = container {
        command.args(["netns", "exec", name, "socat"]);
    }
    let mut socat = command.args(["-u", "-", to]).stdin(Stdio::piped()).spawn().unwrap();
    socat.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(socat.wait().unwrap().success(), "{to}");
}

/// Returns a frame with UDP.
pub(crate) fn udp(ends: Ends, from: IpAddr, to: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let frame = PacketBuilder::ethernet2(ends.0, ends.1);
    finish(payload, |out, payload| match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.ipv4(from.octets(), to.octets(), 64).udp(ports.0, ports.1).write_to_vec(out, payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.ipv6(from.octets(), to.octets(), 64).udp(ports.0, ports.1).write_to_vec(out, payload)
        }
        _ => panic!("{from} and {to} are of two families"),
    })
}

/// Returns a frame with an ICMP redirect, or with an ICMPv6 message of a type, whose flags say that it replaces what is known.
pub(crate) fn icmp(ends: Ends, from: IpAddr, to: IpAddr, kind: u8, payload: &[u8]) -> Vec<u8> {
    let frame = PacketBuilder::ethernet2(ends.0, ends.1);
    finish(payload, |out, payload| match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.ipv4(from.octets(), to.octets(), 64).icmpv4_raw(kind, 1, [0; 4]).write_to_vec(out, payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => frame
            .ipv6(from.octets(), to.octets(), 255)
            .icmpv6_raw(kind, 0, [0x20, 0, 0, 0])
            .write_to_vec(out, payload),
        _ => panic!("{from} and {to} are of two families"),
    })
}

/// Returns a frame with an ARP answer to all: `ip` is at the frame's source.
pub(crate) fn arp(ends: Ends, ip: IpAddr) -> Vec<u8> {
    let IpAddr::V4(ip) = ip else { panic!("{ip} has no ARP") };
    let (ip, (from, to)) = (ip.octets(), ends);
    let header = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2];
    [&[0xff; 6][..], &from, &header, &from, &ip, &to, &ip].concat()
}

fn finish(
    payload: &[u8],
    build: impl FnOnce(&mut Vec<u8>, &[u8]) -> Result<(), BuildVecWriteError>,
) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out, payload).unwrap();
    out
}

/// Returns a frame, or a packet (VXLAN-GPE, with its kind), as the payload of a tunnelled packet.
pub(crate) fn in_tunnel(vni: u32, kind: Option<u8>, carried: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let flags = if kind.is_some() { 0x0c } else { 0x08 };
    [&[flags, 0, 0, kind.unwrap_or(0), a, b, c, 0], carried].concat()
}

/// The ports and message types that [`watch`] notes, beside its own range of ports.
const NOTED: &str = "{ 68, 546 }";

/// Notes which of the tests' packets arrive: in a container before anything else, on a host what it accepts for itself.
pub(crate) fn watch(host: &Host, container: Option<&str>) {
    let (inside, hook) = match container {
        Some(name) => (format!("ip netns exec {name}"), "prerouting priority -500"),
        None => (String::new(), "input priority 300"),
    };
    host.sh(&format!(
        "{inside} nft 'table inet seen {{ set ports {{ type inet_service; flags dynamic; size 999; }}
           set kinds {{ type icmpv6_type; flags dynamic; size 99; }}; set kinds4 {{ type icmp_type; flags dynamic; size 99; }}
           chain arrive {{ type filter hook {hook}; udp dport 7000-7999 add @ports {{ udp dport }}; udp dport {NOTED} add @ports {{ udp dport }}
             icmpv6 type {{ 134, 137 }} add @kinds {{ icmpv6 type }}; icmp type redirect add @kinds4 {{ icmp type }}; }}; }}'"
    ));
}

/// Returns the ports to which packets arrived, and as text the types of messages; forgets them.
pub(crate) fn seen(host: &Host, container: Option<&str>) -> BTreeSet<String> {
    let inside = container.map(|name| format!("ip netns exec {name} ")).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for set in ["ports", "kinds", "kinds4"] {
        let listed = host.json(&format!("{inside}nft -j list set inet seen {set}"));
        let elements =
            listed["nftables"].as_array().unwrap().iter().find_map(|it| it["set"]["elem"].as_array());
        seen.extend(elements.into_iter().flatten().map(|it| it.to_string().replace('"', "")));
        host.sh(&format!("{inside}nft flush set inet seen {set}"));
    }
    seen
}

/// Returns the link-local address that the kernel makes of a hardware address.
pub(crate) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> IpAddr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]).into()
}
