//! Addresses that a plugin's IPAM assigns or points to: static addresses, gateways, routes, name servers.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    document::Plugin,
    node::{Node, Span},
    ranges::{self, is_link_local, no_address, no_prefix},
    report::Report,
    table::Rule,
};

/// Servers that the C library uses (`MAXNS` in resolv.h).
const SERVERS: usize = 3;

pub(crate) fn check(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let mut subnets: Vec<IpNet> = ranges::of(plugin).iter().map(|found| found.range.subnet).collect();
    name_servers(plugin.node, report);
    let Some((ipam, kind)) = plugin.ipam() else { return };
    name_servers(ipam, report);
    if kind == "static" {
        subnets = addresses(ipam, report);
    }
    // What the runtime passes is not in the file.
    let is_complete =
        !plugin.declares("ips") && !plugin.declares("ipRanges") && ipam.get("ranges").is_none_or(is_readable);
    if ["host-local", "static"].contains(&kind) {
        routes(ipam, if is_complete { &subnets } else { &[] }, report);
    }
}

/// Returns whether no range is a placeholder.
fn is_readable(ranges: &Node<'_>) -> bool {
    let of_sets = ranges.items().iter().flat_map(Node::items);
    of_sets.filter_map(|range| range.get("subnet")).all(|subnet| !subnet.is_placeholder())
}

fn addresses(ipam: &Node<'_>, report: &mut Report<'_>) -> Vec<IpNet> {
    let mut subnets = Vec::new();
    for item in ipam.get("addresses").map_or(&[][..], Node::items) {
        let Some(subnet) = prefix(item.get("address"), report) else { continue };
        subnets.push(subnet);
        let Some((node, gateway)) = address(item.get("gateway"), "gateway", report) else { continue };
        if !subnet.contains(&gateway) && !is_link_local(gateway) {
            let message = format!("gateway {gateway} is not in {}", subnet.trunc());
            report.add(Rule::GatewayOutside, node, message, "use an address of the subnet");
        } else if subnet.addr() == gateway {
            let message = format!("gateway {gateway} is the container's own address");
            report.add(Rule::GatewayUnusable, node, message, "use another address of the subnet");
        }
    }
    subnets
}

fn routes(ipam: &Node<'_>, subnets: &[IpNet], report: &mut Report<'_>) {
    let items = ipam.get("routes").map_or(&[][..], Node::items);
    let mut seen: Vec<(IpNet, Option<i128>, Option<i128>, Span)> = Vec::new();
    for item in items {
        let Some(node) = item.get("dst") else { continue };
        let Some(dst) = prefix(Some(node), report) else { continue };
        let number = |key: &str| item.get(key).and_then(Node::integer);
        let (table, priority) = (number("table"), number("priority"));
        let same =
            seen.iter().find(|other| other.0 == dst.trunc() && other.1 == table && other.2 == priority);
        if let Some((.., first)) = same {
            let message = format!("a second route to {dst}");
            report
                .add(Rule::RouteTwice, node.span.clone(), message, "keep one of them")
                .also(first.clone(), "the first one");
        }
        seen.push((dst.trunc(), table, priority, node.span.clone()));
        let gateway = address(item.get("gw"), "gw", report);
        let has_family = |ip: IpAddr| subnets.iter().any(|subnet| subnet.addr().is_ipv4() == ip.is_ipv4());
        if !subnets.is_empty() && !has_family(dst.addr()) {
            let family = if dst.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            let message = format!("a route to {dst}, and the network has no {family} addresses");
            let help = format!("remove the route, or add a range of {family} addresses");
            report.add(Rule::RouteFamily, node.span.clone(), message, help);
        } else if let Some((place, gateway)) = gateway
            && !subnets.is_empty()
            && !subnets.iter().any(|subnet| subnet.contains(&gateway))
            && !is_link_local(gateway)
            && !gateway.is_unspecified()
        {
            let message = format!("gateway {gateway} is in no subnet of the network");
            report.add(
                Rule::RouteUnreachable,
                place,
                message,
                "use a gateway that the containers reach directly",
            );
        }
    }
}

fn name_servers(node: &Node<'_>, report: &mut Report<'_>) {
    let Some(servers) = node.get("dns").and_then(|dns| dns.get("nameservers")) else { return };
    for server in servers.items() {
        let Some(text) = server.text().filter(|_| !server.is_placeholder()) else { continue };
        if text.split('%').next().is_none_or(|ip| ip.parse::<IpAddr>().is_err()) {
            let message = format!("name server \"{text}\" is not an IP address");
            report.add(Rule::DnsServer, server.span.clone(), message, "write its address");
        }
    }
    if let Some(extra) = servers.items().get(SERVERS) {
        let message = format!("more than {SERVERS} name servers");
        report.add(Rule::DnsTooMany, extra.span.clone(), message, format!("keep the {SERVERS} that count"));
    }
}

fn prefix(node: Option<&Node<'_>>, report: &mut Report<'_>) -> Option<IpNet> {
    let node = node.filter(|node| !node.is_placeholder())?;
    let text = node.text()?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        no_prefix(node, text, report);
    }
    parsed
}

fn address(node: Option<&Node<'_>>, key: &str, report: &mut Report<'_>) -> Option<(Span, IpAddr)> {
    let node = node.filter(|node| !node.is_placeholder())?;
    let text = node.text().filter(|text| !text.is_empty())?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        no_address(node, key, text, report);
    }
    Some((node.span.clone(), parsed?))
}
