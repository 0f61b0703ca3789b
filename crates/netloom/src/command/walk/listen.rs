//! Which ports a namespace listens on, from `/proc/net`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    cause::{self, Cause},
    path::Path,
    place::Side,
    shot::Kind,
};

/// Where a namespace listens on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listens {
    /// On the address, or on all.
    There,
    /// On this other address alone.
    Elsewhere(IpAddr),
    Nowhere,
}

/// Returns where a namespace listens on the port of a probe.
pub(crate) fn on(side: &Side, kind: Kind, ip: IpAddr, port: u16) -> Listens {
    let name = if matches!(kind, Kind::Udp(_)) { "udp" } else { "tcp" };
    let files = [format!("/proc/thread-self/net/{name}"), format!("/proc/thread-self/net/{name}6")];
    let read = || files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect::<String>();
    let text = side.netns.run(read).unwrap_or_default();
    let mut found = Listens::Nowhere;
    for address in text.lines().filter_map(|line| listener(line, name == "udp", port)) {
        let is_there = address == ip || address.is_unspecified() && (address.is_ipv6() || ip.is_ipv4());
        if is_there {
            return Listens::There;
        }
        found = Listens::Elsewhere(address);
    }
    found
}

/// Parses a line: number, local and remote address in hexadecimal, state. Source: `get_tcp4_sock`, `udp4_format_sock`.
fn listener(line: &str, is_udp: bool, port: u16) -> Option<IpAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, number) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let wanted = if is_udp { "07" } else { "0A" };
    if state != wanted || u16::from_str_radix(number, 16) != Ok(port) {
        return None;
    }
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if address.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
    let ip = Ipv6Addr::from(*words.first_chunk::<16>()?);
    Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4))
}

/// Explains that a destination answers that nothing listens.
pub(crate) fn refused(path: &Path<'_>) -> Cause {
    let port = path.end_port().unwrap_or_default();
    let destination = path.destination();
    let side = match path.target {
        Some(target) => Some((&target.side, format!("in container `{}`", target.name))),
        None if path.to.is_loopback() && path.from.is_some() => {
            path.from.map(|place| (&place.side, format!("in container `{}`", place.name)))
        }
        None if path.host.has(path.to) => Some((path.host, "on the host".to_owned())),
        None => None,
    };
    let Some((side, place)) = side else {
        return Cause::new(
            format!("packets reach {}, which answers that nothing listens on port {port}", path.to),
            format!("start the service on {}, or correct the port", path.to),
        );
    };
    match on(side, path.kind, path.end(), port) {
        Listens::There => Cause::new(
            format!(
                "{destination} refuses the connection although a program listens there: a rule rejects it"
            ),
            "find the rule: `nft list ruleset | grep -n reject`, `iptables -vnL | grep REJECT`",
        ),
        Listens::Elsewhere(address) => Cause::new(
            format!("the program {place} listens on {address} alone, and not on {}", path.end()),
            format!("let it listen on {} or on all addresses", path.end()),
        ),
        Listens::Nowhere => Cause::new(
            format!("nothing listens on port {port} {place}"),
            "start the service, or correct the port",
        )
        .of(cause::Kind::NoListener),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 1 1 0 100 0 0 10 0";
        let little = cfg!(target_endian = "little");
        let expected: IpAddr = if little { [127, 0, 0, 1].into() } else { [1, 0, 0, 127].into() };
        assert_eq!(listener(line, false, 8080), Some(expected));
        assert_eq!(listener(line, false, 80), None);
        assert_eq!(listener(line, true, 8080), None);
        assert_eq!(listener("garbage", false, 80), None);
    }
}
