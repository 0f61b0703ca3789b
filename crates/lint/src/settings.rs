//! Settings of one plugin that exclude or need each other, and values whose form no schema describes.

use netloom_types::name::IfName;

use crate::{document::Plugin, node::Node, ranges, report::Report, table::Rule, types};

/// Bridges that other programs create and configure.
const FOREIGN_BRIDGES: [(&str, &str); 4] =
    [("docker0", "Docker"), ("virbr0", "libvirt"), ("lxcbr0", "LXC"), ("lxdbr0", "LXD")];

/// Limits of an MTU, as the plugins check it.
const MTU: std::ops::RangeInclusive<i128> = 68..=65535;

pub(crate) fn check(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let kind = plugin.kind();
    let is_interface = types::INTERFACE.contains(&kind);
    if is_interface || types::CHAINED.contains(&kind) {
        names(plugin.node, report);
        hardware_addresses(plugin.node, report);
        mtu(plugin, report);
    }
    if is_interface {
        addressing(plugin, report);
    }
    paths(plugin, report);
    match kind {
        "bridge" => bridge(plugin, report),
        "vlan"
            if plugin.node.text_of("master").is_none_or(str::is_empty)
                && !is_written(plugin.node, "master") =>
        {
            let help = "set `master` to the parent link of the VLAN";
            report.add(Rule::MasterRequired, plugin.place(), "`vlan` has no `master`", help);
        }
        "host-device" => {
            let keys = ["device", "hwaddr", "kernelpath", "pciBusID", "runtimeConfig"];
            if !keys.iter().any(|key| is_written(plugin.node, key)) && !plugin.declares("deviceID") {
                let help = "set one of `device`, `hwaddr`, `kernelpath` and `pciBusID`, or declare the capability `deviceID`";
                report.add(Rule::DeviceRequired, plugin.place(), "`host-device` has no device", help);
            }
        }
        "vrf" if !is_written(plugin.node, "vrfname") => {
            let help = "set `vrfname` to a name of at most 15 characters";
            report.add(Rule::VrfName, plugin.place(), "`vrf` has no `vrfname`", help);
        }
        "tuning" => sysctls(plugin.node, report),
        "bandwidth" => bandwidth(plugin.node, report),
        "portmap" => portmap(plugin.node, report),
        "multus" if !is_written(plugin.node, "delegates") && !is_written(plugin.node, "clusterNetwork") => {
            let help = "set `delegates` to a list of configurations, or `clusterNetwork` to the name of one";
            let message = "multus has neither `delegates` nor `clusterNetwork`";
            report.add(Rule::MultusDelegates, plugin.place(), message, help);
        }
        _ => {}
    }
}

/// Returns whether a key has a value that is not an empty text.
fn is_written(node: &Node<'_>, key: &str) -> bool {
    node.get(key).is_some_and(|value| value.text() != Some(""))
}

fn names(node: &Node<'_>, report: &mut Report<'_>) {
    for key in ["bridge", "vrfname", "master", "device", "uplinkInterface"] {
        let Some(value) = node.get(key).filter(|value| !value.is_placeholder()) else { continue };
        let Some(text) = value.text().filter(|text| !text.is_empty() || key == "bridge") else { continue };
        // A link that exists can have an alternative name, which is longer.
        let is_alternative = !["bridge", "vrfname"].contains(&key)
            && (16..128).contains(&text.len())
            && !text.contains(|letter: char| letter == '/' || letter.is_whitespace());
        if let Err(error) = IfName::parse(text)
            && !is_alternative
        {
            let help = "use at most 15 characters, without spaces, / and :";
            report.add(
                Rule::InterfaceName,
                value.span.clone(),
                format!("`{key}` \"{text}\": {}", error.msg),
                help,
            );
        }
    }
}

fn hardware_addresses(node: &Node<'_>, report: &mut Report<'_>) {
    for key in ["mac", "hwaddr"] {
        let Some(value) = node.get(key).filter(|value| !value.is_placeholder()) else { continue };
        let Some(text) = value.text().filter(|text| !text.is_empty()) else { continue };
        let octets: Vec<&str> = text.split([':', '-']).collect();
        let is_octet = |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
        if ![6, 8, 20].contains(&octets.len()) || !octets.iter().all(is_octet) {
            let message = format!("`{key}` \"{text}\" is not a hardware address");
            report.add(Rule::MacAddress, value.span.clone(), message, "write it as c2:11:22:33:44:55");
        }
    }
}

fn mtu(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let Some(node) = plugin.node.get("mtu") else { return };
    let Some(mtu) = node.integer().filter(|mtu| *mtu != 0) else { return };
    let has_ipv6 = ranges::of(plugin).iter().any(|found| !found.range.start.is_ipv4());
    if !MTU.contains(&mtu) {
        let help = format!("use a number from {} to {}, or leave it out", MTU.start(), MTU.end());
        report.add(Rule::OutOfRange, node.span.clone(), format!("`mtu` cannot be {mtu}"), help);
    } else if mtu < 1280 && has_ipv6 {
        let message = format!("MTU {mtu} is below 1280, the least that IPv6 needs");
        report.add(
            Rule::MtuBelowIpv6,
            node.span.clone(),
            message,
            "use at least 1280, or remove the IPv6 range",
        );
    }
}

/// Checks whether the plugin gets the addresses that it needs.
fn addressing(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let node = plugin.node;
    if let Some(ipam) = node.get("ipam")
        && plugin.ipam().is_none()
        && ipam.members().iter().any(|member| member.key != "type")
        && ipam.get("type").is_none_or(|kind| kind.text() == Some(""))
    {
        let start = ipam.span.start..ipam.span.start + 1;
        report.add(
            Rule::IpamWithoutType,
            start,
            "`ipam` has no `type`",
            "add `type`, for example \"host-local\"",
        );
        return;
    }
    if plugin.kind() == "ptp" && plugin.ipam().is_none() {
        let help = "add `ipam`, for example with `type` \"host-local\"";
        report.add(Rule::IpamMissing, plugin.place(), "`ptp` routes addresses and has no `ipam`", help);
    }
}

fn bridge(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let node = plugin.node;
    let has_ipam = plugin.ipam().is_some();
    if let Some(member) =
        node.member("promiscMode").filter(|_| node.is_set("hairpinMode") && node.is_set("promiscMode"))
    {
        let message = "`hairpinMode` and `promiscMode` exclude each other";
        report.add(Rule::HairpinPromiscuous, member.key_span.clone(), message, "remove one of them");
    }
    if let Some(member) = node.member("disableContainerInterface")
        && node.is_set("disableContainerInterface")
        && has_ipam
    {
        let message = "an interface that stays down cannot have addresses";
        report.add(Rule::InterfaceOff, member.key_span.clone(), message, "remove it, or `ipam`");
    }
    if let Some(member) = node.member("ipspoofchk").filter(|_| node.is_set("ipspoofchk") && !has_ipam) {
        let message = "`ipspoofchk` needs `ipam`: without addresses there is nothing to check";
        report.add(
            Rule::SpoofCheckAddresses,
            member.key_span.clone(),
            message,
            "add `ipam`, or use `macspoofchk`",
        );
    }
    for key in ["isGateway", "isDefaultGateway"] {
        if let Some(member) = node.member(key).filter(|_| node.is_set(key) && node.get("ipam").is_none()) {
            let message = format!("`{key}` is set, and without `ipam` there is no gateway's address");
            report.add(
                Rule::GatewayWithoutIpam,
                member.key_span.clone(),
                message,
                "add `ipam`, or remove it",
            );
            break;
        }
    }
    if let Some(name) = node.get("bridge")
        && let Some((_, owner)) = FOREIGN_BRIDGES.iter().find(|(bridge, _)| name.text() == Some(bridge))
    {
        let message = format!("this bridge belongs to {owner}, which sets its addresses");
        report.add(
            Rule::BridgeOfDocker,
            name.span.clone(),
            message,
            "use a bridge of its own, for example \"cni0\"",
        );
    }
    trunk(node, report);
}

fn trunk(node: &Node<'_>, report: &mut Report<'_>) {
    for item in node.get("vlanTrunk").map_or(&[][..], Node::items) {
        let of = |key: &str| item.get(key).and_then(Node::integer);
        let start = item.span.start..item.span.start + 1;
        match (of("minID"), of("maxID")) {
            (Some(min), Some(max)) if min > max => {
                report.add(Rule::VlanTrunk, start, "`minID` is greater than `maxID`", "swap them");
            }
            (Some(_), None) if item.get("maxID").is_none() => {
                report.add(
                    Rule::VlanTrunk,
                    start,
                    "`minID` without `maxID`",
                    "add `maxID`, or use `id` for one VLAN",
                );
            }
            (None, Some(_)) if item.get("minID").is_none() => {
                report.add(
                    Rule::VlanTrunk,
                    start,
                    "`maxID` without `minID`",
                    "add `minID`, or use `id` for one VLAN",
                );
            }
            _ => {}
        }
    }
}

fn sysctls(node: &Node<'_>, report: &mut Report<'_>) {
    for member in node.get("sysctl").map_or(&[][..], Node::members) {
        if !member.key.replace('/', ".").starts_with("net.") {
            let message = format!("`{}` does not belong to a network namespace", member.key);
            let help = "use sysctls that begin with `net.`, and set others where the container is started";
            report.add(Rule::SysctlNamespace, member.key_span.clone(), message, help);
        }
    }
}

fn bandwidth(node: &Node<'_>, report: &mut Report<'_>) {
    for (rate, burst) in [("ingressRate", "ingressBurst"), ("egressRate", "egressBurst")] {
        let is_given = |key: &str| node.get(key).is_some_and(|value| value.integer() != Some(0));
        for (given, missing) in [(rate, burst), (burst, rate)] {
            if let Some(member) = node.member(given).filter(|_| is_given(given) && !is_given(missing)) {
                let message = format!("`{given}` without `{missing}`");
                report.add(
                    Rule::BandwidthIncomplete,
                    member.key_span.clone(),
                    message,
                    format!("add `{missing}`"),
                );
            }
        }
    }
    let subnets = |key: &str| node.member(key).filter(|member| !member.node.items().is_empty());
    if let (Some(member), Some(other)) = (subnets("shapedSubnets"), subnets("unshapedSubnets")) {
        let message = "`shapedSubnets` and `unshapedSubnets` exclude each other";
        report
            .add(Rule::ShapedSubnets, member.key_span.clone(), message, "remove one of them")
            .also(other.key_span.clone(), "the other one");
    }
}

fn portmap(node: &Node<'_>, report: &mut Report<'_>) {
    let Some(bit) = node.member("markMasqBit") else { return };
    if let Some(chain) = node.member("externalSetMarkChain") {
        let message = "`externalSetMarkChain` and `markMasqBit` exclude each other";
        report
            .add(Rule::PortmapTwoMarks, bit.key_span.clone(), message, "remove one of them")
            .also(chain.key_span.clone(), "the other one");
    } else if let Some(number @ (14 | 15)) = bit.node.integer() {
        let message = format!(
            "kube-proxy uses bit {number} of the mark to {}",
            if number == 14 { "masquerade" } else { "drop" }
        );
        report.add(Rule::PortmapKubeMark, bit.node.span.clone(), message, "use another bit, for example 13");
    }
}

fn paths(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let own = ["dataDir", "subnetFile"].map(|key| plugin.node.get(key).map(|node| (key, node)));
    let ipam = plugin.ipam().filter(|(_, kind)| types::is_known(kind)).map(|(node, _)| node);
    let of_ipam = ["dataDir", "resolvConf", "daemonSocketPath", "readyFile"]
        .map(|key| ipam.and_then(|ipam| ipam.get(key)).map(|node| (key, node)));
    for (key, node) in own.into_iter().chain(of_ipam).flatten() {
        let Some(text) = node.text().filter(|text| !text.is_empty() && !node.is_placeholder()) else {
            continue;
        };
        if !text.starts_with('/') {
            let message = format!("`{key}` \"{text}\" is not an absolute path");
            report.add(Rule::PathRelative, node.span.clone(), message, "begin the path with /");
        }
    }
}
