//! Subnets and ranges of `host-local`, as `ipam` checks them.

use std::net::IpAddr;

use ipam::{Range, RangeError, RangeSet};
use ipnet::IpNet;

use crate::{
    document::Plugin,
    node::{Node, Span},
    report::Report,
    table::Rule,
};

/// A range and the place of its subnet.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) range: Range,
    pub(crate) span: Span,
    /// The index of its set.
    set: usize,
}

/// Lists the ranges of a plugin's IPAM that can be read.
pub(crate) fn of(plugin: Plugin<'_, '_>) -> Vec<Located> {
    read(plugin, &mut |_, _| ())
}

pub(crate) fn check(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let Some((ipam, "host-local")) = plugin.ipam() else { return };
    let found = read(plugin, &mut |place, fault| say(place, fault, report));
    let sets = ipam.get("ranges").map_or(&[][..], Node::items);
    for set in
        sets.iter().filter(|set| matches!(&set.value, crate::node::Value::Array(items) if items.is_empty()))
    {
        report.add(
            Rule::RangeSetEmpty,
            set.span.clone(),
            "a range set without ranges",
            "add a range, or remove the set",
        );
    }
    overlaps(&found, report);
    let is_list = ipam.get("ranges").is_none_or(|node| matches!(node.value, crate::node::Value::Array(_)));
    // The runtime may pass ranges.
    if ipam.get("subnet").is_none() && sets.is_empty() && is_list && !plugin.declares("ipRanges") {
        let help = "add `ranges`, for example [[{\"subnet\": \"10.88.0.0/16\"}]]";
        let place = ipam.get("type").unwrap_or(ipam).span.clone();
        report.add(Rule::RangeMissing, place, "host-local has no range to assign addresses from", help);
    }
}

/// What is wrong with a range.
enum Fault {
    NoPrefix(String),
    NoAddress(&'static str, String),
    Range(RangeError, IpNet),
    GatewayOutside(IpAddr, IpNet),
    GatewayUnusable(IpAddr, IpNet),
    Unusable(IpNet),
}

fn read(plugin: Plugin<'_, '_>, fault: &mut dyn FnMut(&Node<'_>, Fault)) -> Vec<Located> {
    let Some((ipam, "host-local")) = plugin.ipam() else { return Vec::new() };
    let mut found = Vec::new();
    let mut set = 0;
    if ipam.get("subnet").is_some() {
        found.extend(range(ipam, set, fault));
        set += 1;
    }
    for items in ipam.get("ranges").map_or(&[][..], Node::items) {
        found.extend(items.items().iter().filter_map(|item| range(item, set, fault)));
        set += 1;
    }
    found
}

fn range(node: &Node<'_>, set: usize, fault: &mut dyn FnMut(&Node<'_>, Fault)) -> Option<Located> {
    let subnet_node = node.get("subnet").filter(|node| !node.is_placeholder())?;
    let text = subnet_node.text()?;
    let Ok(subnet) = text.parse::<IpNet>() else {
        fault(subnet_node, Fault::NoPrefix(text.to_owned()));
        return None;
    };
    let mut address = |key: &'static str| {
        let node = node.get(key).filter(|node| !node.is_placeholder())?;
        let text = node.text().filter(|text| !text.is_empty())?;
        let parsed = text.parse::<IpAddr>();
        if parsed.is_err() {
            fault(node, Fault::NoAddress(key, text.to_owned()));
        }
        Some((node, parsed.ok()?))
    };
    let (start, end, gateway) = (address("rangeStart"), address("rangeEnd"), address("gateway"));
    let ip = |found: Option<(&Node<'_>, IpAddr)>| found.map(|(_, ip)| ip);
    let (network, last) = (subnet.network(), subnet.broadcast());
    if let Some((node, ip)) = gateway {
        if !subnet.contains(&ip) && !is_link_local(ip) {
            fault(node, Fault::GatewayOutside(ip, subnet));
        } else if (ip == network || ip == last && ip.is_ipv4())
            && subnet.prefix_len() < subnet.max_prefix_len() - 1
        {
            fault(node, Fault::GatewayUnusable(ip, subnet));
        }
    }
    let inside = gateway.map(|(_, ip)| ip).filter(|ip| ip.is_ipv4() == subnet.addr().is_ipv4());
    let mut made = Range::new(subnet, ip(start), ip(end), inside);
    if let Err(error @ RangeError::HostBits(..)) = made {
        fault(subnet_node, Fault::Range(error, subnet));
        made = Range::new(subnet.trunc(), ip(start), ip(end), inside);
    }
    let range = match made {
        Ok(range) => range,
        Err(error) => {
            let place = match &error {
                RangeError::Outside { key: "rangeEnd", .. } => end,
                RangeError::Outside { .. } | RangeError::Backwards(..) => start.or(end),
                _ => None,
            };
            fault(place.map_or(subnet_node, |(node, _)| node), Fault::Range(error, subnet));
            return None;
        }
    };
    if is_unusable(subnet) {
        fault(subnet_node, Fault::Unusable(subnet));
        return None;
    }
    Some(Located { range, span: subnet_node.span.clone(), set })
}

fn say(node: &Node<'_>, fault: Fault, report: &mut Report<'_>) {
    let span = node.span.clone();
    match fault {
        Fault::NoPrefix(text) => no_prefix(node, &text, report),
        Fault::NoAddress(key, text) => no_address(node, key, &text, report),
        Fault::GatewayOutside(ip, subnet) => {
            let message = format!("gateway {ip} is not in {}", subnet.trunc());
            report.add(Rule::GatewayOutside, span, message, "use an address of the subnet");
        }
        Fault::GatewayUnusable(ip, subnet) => {
            let message = format!("gateway {ip} is the network or broadcast address of {}", subnet.trunc());
            report.add(Rule::GatewayUnusable, span, message, "use another address of the subnet");
        }
        Fault::Unusable(subnet) => {
            let help = "use a private subnet, for example of 10.0.0.0/8 or fd00::/8";
            report.add(
                Rule::SubnetUnusable,
                span,
                format!("containers cannot use addresses of {subnet}"),
                help,
            );
        }
        Fault::Range(error, subnet) => {
            let message = error.to_string();
            match error {
                RangeError::HostBits(..) => {
                    let meant = subnet.trunc();
                    report
                        .add(Rule::SubnetHostBits, span.clone(), message, format!("write \"{meant}\""))
                        .replace(span, format!("\"{meant}\""));
                }
                RangeError::TooSmall(_) => {
                    report.add(
                        Rule::SubnetTooSmall,
                        span,
                        format!("{subnet} is too small"),
                        "use a /30 or larger, with IPv6 a /126",
                    );
                }
                RangeError::Outside { .. } => {
                    report.add(Rule::RangeOutside, span, message, "use an address of the subnet");
                }
                RangeError::Backwards(..) => {
                    report.add(Rule::RangeBackwards, span, message, "swap `rangeStart` and `rangeEnd`");
                }
                _ => {
                    report.add(Rule::GatewayOutside, span, message, "use an address of the subnet");
                }
            }
        }
    }
}

/// Reports a text that is no address with a prefix length.
pub(crate) fn no_prefix(node: &Node<'_>, text: &str, report: &mut Report<'_>) {
    let help = match text.parse::<IpAddr>() {
        Ok(ip) => format!("add the prefix length, as in {ip}/{}", if ip.is_ipv4() { 24 } else { 64 }),
        Err(_) => "write it as 10.88.0.0/16 or fd00:1::/64".to_owned(),
    };
    report.add(
        Rule::BadPrefix,
        node.span.clone(),
        format!("\"{text}\" is not an address with a prefix length"),
        help,
    );
}

/// Reports a text that is no address.
pub(crate) fn no_address(node: &Node<'_>, key: &str, text: &str, report: &mut Report<'_>) {
    let help = match text.parse::<IpNet>() {
        Ok(net) => format!("write it without a prefix length: \"{}\"", net.addr()),
        Err(_) => "write it as 10.88.0.1 or fd00:1::1".to_owned(),
    };
    report.add(Rule::BadAddress, node.span.clone(), format!("`{key}` \"{text}\" is not an IP address"), help);
}

fn overlaps(found: &[Located], report: &mut Report<'_>) {
    for (index, one) in found.iter().enumerate() {
        for other in &found[..index] {
            let is_mixed = one.set == other.set && one.range.start.is_ipv4() != other.range.start.is_ipv4();
            if is_mixed {
                let help = "make two sets: a container gets one address of each";
                let message = "IPv4 and IPv6 in one range set";
                report
                    .add(Rule::RangeFamilies, one.span.clone(), message, help)
                    .also(other.span.clone(), "the other family");
                break;
            }
            if overlap(&one.range, &other.range) {
                let help = "use ranges that have no address in common";
                let message = format!("{} overlaps with {}", one.range, other.range);
                report
                    .add(Rule::RangeOverlap, one.span.clone(), message, help)
                    .also(other.span.clone(), "the other range");
                break;
            }
        }
    }
}

/// Returns whether two ranges have an address in common.
pub(crate) fn overlap(one: &Range, other: &Range) -> bool {
    let set = |range: &Range| RangeSet::new(vec![range.clone()]).ok();
    set(one).zip(set(other)).is_some_and(|(one, other)| one.overlap(&other).is_some())
}

/// Returns whether an address is valid on every link, so that a gateway may have it.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn is_unusable(subnet: IpNet) -> bool {
    match subnet.addr() {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.octets()[0] == 127 || ip.octets()[0] >= 224,
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_loopback() || ip.is_unspecified(),
    }
}
