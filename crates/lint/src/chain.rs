//! The order of a list's plugins, and which of them get what the runtime passes.

use crate::{
    document::{Document, Plugin},
    node::{Node, Value},
    report::Report,
    shape,
    table::Rule,
    types,
};

/// The conventional capabilities (CONVENTIONS.md), and that of the CRI runtimes.
const CAPABILITIES: [&str; 11] = [
    "portMappings",
    "ipRanges",
    "bandwidth",
    "dns",
    "ips",
    "mac",
    "infinibandGUID",
    "deviceID",
    "aliases",
    "cgroupPath",
    "io.kubernetes.cri.pod-annotations",
];

/// Chained plugins that work once per list.
const ONCE: [&str; 4] = ["portmap", "bandwidth", "sbr", "vrf"];

pub(crate) fn check(document: &Document<'_>, report: &mut Report<'_>) {
    let plugins = document.plugins();
    if let Some(first) = plugins.first().filter(|first| types::CHAINED.contains(&first.kind())) {
        let kind = first.kind();
        let message = format!("`{kind}` needs the result of a plugin before it");
        let help = if plugins.iter().any(|plugin| types::INTERFACE.contains(&plugin.kind())) {
            "put the interface plugin first"
        } else {
            "put an interface plugin, such as bridge, before it"
        };
        report.add(Rule::ChainedFirst, first.place(), message, help);
    }
    interfaces(&plugins, report);
    masquerade(&plugins, report);
    for (index, plugin) in plugins.iter().enumerate() {
        let kind = plugin.kind();
        if let Some(first) =
            plugins[..index].iter().find(|first| first.kind() == kind && ONCE.contains(&kind))
        {
            let message = format!("a second `{kind}` in the list");
            report
                .add(Rule::PluginTwice, plugin.place(), message, "keep one of them")
                .also(first.place(), "the first one");
        }
        capabilities(*plugin, report);
    }
}

/// Checks what follows the plugin that creates the interface.
fn interfaces(plugins: &[Plugin<'_, '_>], report: &mut Report<'_>) {
    let Some(at) = plugins.iter().position(|plugin| types::INTERFACE.contains(&plugin.kind())) else {
        return;
    };
    let (first, rest) = (&plugins[at], &plugins[at + 1..]);
    for plugin in rest {
        let kind = plugin.kind();
        let creates = types::INTERFACE.contains(&kind)
            && !["macvlan", "ipvlan"].contains(&kind)
            && !plugin.node.is_set("linkInContainer");
        if creates {
            let message =
                format!("`{kind}` creates an interface whose name `{}` has already used", first.kind());
            let help = "put it into a network of its own";
            report
                .add(Rule::SecondInterface, plugin.place(), message, help)
                .also(first.place(), "creates the interface");
        }
        if kind == "portmap" && at == 0 && first.node.get("ipam").is_none() {
            let message =
                format!("`portmap` publishes ports to an address, and `{}` has no `ipam`", first.kind());
            report.add(Rule::ChainAddresses, plugin.place(), message, "add `ipam`, or remove portmap");
        }
        let policy = plugin.node.member("ingressPolicy").filter(|_| kind == "firewall" && at == 0);
        if let Some(member) = policy
            && first.kind() != "bridge"
            && member.node.text().is_some_and(|policy| !policy.is_empty() && policy != "open")
        {
            let message = format!("this policy needs a bridge, and `{}` has none", first.kind());
            report.add(
                Rule::FirewallWithoutBridge,
                member.node.span.clone(),
                message,
                "use \"open\", or the bridge plugin",
            );
        }
    }
    if first.kind() == "ipvlan" && at == 0 && first.ipam().is_none() && first.node.get("ipam").is_none() {
        let help =
            "add `ipam`: the interface shares its parent's hardware address and needs an address of its own";
        report.add(Rule::IpamMissing, first.place(), "`ipvlan` has no `ipam`", help);
    }
}

/// Reports masquerading for containers that get no route out. A plugin that is not known may make a route.
fn masquerade(plugins: &[Plugin<'_, '_>], report: &mut Report<'_>) {
    if !plugins.iter().all(|plugin| types::is_known(plugin.kind())) {
        return;
    }
    for plugin in plugins.iter().filter(|plugin| types::INTERFACE.contains(&plugin.kind())) {
        let node = plugin.node;
        let Some(member) = node.member("ipMasq").filter(|_| node.is_set("ipMasq")) else { continue };
        let Some((ipam, "host-local" | "static")) = plugin.ipam() else { continue };
        let routes = ipam.get("routes");
        if routes.is_none_or(|routes| routes.items().is_empty() && !routes.is_placeholder())
            && !node.is_set("isDefaultGateway")
        {
            let message = "`ipMasq` is set, and the containers get no route out of their subnet";
            let help = match plugin.kind() {
                "bridge" => "set `isDefaultGateway`, or add `routes` to `ipam`: [{\"dst\": \"0.0.0.0/0\"}]",
                _ => "add `routes` to `ipam`: [{\"dst\": \"0.0.0.0/0\"}]",
            };
            report.add(Rule::MasqueradeRoute, member.key_span.clone(), message, help);
        }
    }
}

fn capabilities(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let declared = plugin.node.get("capabilities");
    for member in declared.map_or(&[][..], Node::members) {
        let key = member.key.as_ref();
        if !matches!(member.node.value, Value::Bool(true)) {
            continue;
        }
        let meant = types::nearest(key, CAPABILITIES.into_iter()).filter(|meant| *meant != key);
        if let Some(meant) = meant {
            let message = format!("no runtime knows a capability `{key}`");
            let finding = report.add(
                Rule::CapabilityMisspelt,
                member.key_span.clone(),
                message,
                format!("write `{meant}`"),
            );
            if meant.eq_ignore_ascii_case(key) {
                finding.replace(member.key_span.clone(), format!("\"{meant}\""));
            }
        } else if !reads(plugin, key) {
            let message = format!("`{}` does not read `{key}`", plugin.kind());
            let help = match key {
                "portMappings" => "declare it in a portmap plugin",
                "bandwidth" => "declare it in a bandwidth plugin",
                _ => "remove it, or declare it in the plugin that reads it",
            };
            report.add(Rule::CapabilityUnread, member.key_span.clone(), message, help);
        }
    }
    let is_readable = declared.is_none_or(|node| matches!(node.value, Value::Object(_)));
    if !is_readable || plugin.node.get("runtimeConfig").is_some() {
        return;
    }
    let missing = |capability: &str| {
        let is_meant = |member: &crate::node::Member<'_>| {
            types::nearest(&member.key, [capability].into_iter()).is_some()
        };
        !declared.is_some_and(|node| {
            node.members()
                .iter()
                .any(|member| is_meant(member) && !matches!(member.node.value, Value::Bool(false)))
        })
    };
    let has_rates = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"]
        .iter()
        .any(|key| plugin.node.get(key).is_some());
    let wanted = match plugin.kind() {
        "portmap" => "portMappings",
        "bandwidth" if !has_rates => "bandwidth",
        _ => return,
    };
    if missing(wanted) {
        let message =
            format!("`{}` does not declare the capability `{wanted}`, so it does nothing", plugin.kind());
        let help = format!("add \"capabilities\": {{\"{wanted}\": true}}");
        report.add(Rule::CapabilityMissing, plugin.place(), message, help);
    }
}

/// Returns whether a plugin or its IPAM plugin reads a capability, as far as is known.
fn reads(plugin: Plugin<'_, '_>, capability: &str) -> bool {
    if !types::is_known(plugin.kind()) {
        return true;
    }
    let of_ipam = match plugin.ipam() {
        Some((_, "host-local")) => ["ips", "ipRanges"].contains(&capability),
        Some((_, "static")) => capability == "ips",
        Some((_, "dhcp")) | None => false,
        Some(_) => true,
    };
    of_ipam
        || shape::of_plugin(plugin.kind())
            .and_then(|shape| shape.key("runtimeConfig"))
            .is_some_and(|(_, config)| config.keys.iter().any(|(key, _)| key == capability))
}
