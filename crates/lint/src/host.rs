//! Networks against the host: plugins, links, routes, permissions.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    document::{Document, Plugin},
    node::Node,
    ranges,
    report::Report,
    table::Rule,
    types,
};

/// A link of the host.
#[derive(Debug, Clone, Default)]
pub struct HostLink {
    /// Its name and alternative names.
    pub names: Vec<String>,
    /// Its MTU.
    pub mtu: u32,
}

/// A route of the host's main table.
#[derive(Debug, Clone)]
pub struct HostRoute {
    /// The destination.
    pub to: IpNet,
    /// The link's name.
    pub link: String,
    /// Whether the destination is on the link itself, without a gateway.
    pub is_connected: bool,
}

/// What is known of a plugin's program.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Where it is, or `None` if no folder has it.
    pub path: Option<String>,
    /// Whether it cannot be executed.
    pub is_not_executable: bool,
    /// Whether all users can write it.
    pub is_writable: bool,
    /// The versions that it says it supports. Empty if it does not say.
    pub versions: Vec<String>,
}

/// The host that configurations are for.
pub trait Host {
    /// Lists the links.
    fn links(&self) -> &[HostLink];
    /// Returns the link of the default route.
    fn default_link(&self) -> Option<&str>;
    /// Lists the routes of the main table, without default routes.
    fn routes(&self) -> &[HostRoute];
    /// Looks a plugin up.
    fn program(&self, kind: &str) -> Program;
    /// Returns the folders in which plugins are looked up.
    fn folders(&self) -> &str;
    /// Returns whether a file exists.
    fn has_file(&self, path: &str) -> bool;
    /// Returns whether a chain drops forwarded packets that no rule accepts.
    fn drops_forwarded(&self) -> bool;
    /// Returns the path and permission bits of the network folder, if the files are in one.
    fn folder(&self) -> Option<(String, u32)>;
}

/// Permission bits for writing: of the group, and of others.
const WRITABLE: u32 = 0o022;
const WRITABLE_BY_ALL: u32 = 0o002;

pub(crate) fn check(document: &Document<'_>, host: &dyn Host, report: &mut Report<'_>) {
    access(document, host, report);
    let mut kinds = Vec::new();
    for plugin in document.plugins() {
        for (kind, node) in programs(plugin) {
            if !kinds.contains(&kind) && !kind.contains('/') {
                kinds.push(kind);
                program(document, kind, node, host, report);
            }
        }
        parent(plugin, host, report);
        routed(plugin, host, report);
        files(plugin, host, report);
    }
    forwarding(document, host, report);
}

fn access(document: &Document<'_>, host: &dyn Host, report: &mut Report<'_>) {
    let place = document.start();
    if let Some((folder, mode)) =
        host.folder().filter(|(_, mode)| document.file == 0 && mode & WRITABLE_BY_ALL != 0)
    {
        let message = format!("all users can write to {folder} (mode {mode:o})");
        report.add(Rule::FolderWritable, place.clone(), message, format!("run `chmod go-w {folder}`"));
    }
    let Some((mode, owner)) = document.source.access else { return };
    let path = &document.source.path;
    if mode & WRITABLE != 0 {
        let message = format!("others than the owner can write the file (mode {mode:o})");
        report.add(Rule::FileWritable, place.clone(), message, format!("run `chmod go-w {path}`"));
    }
    if owner != 0 {
        let message = format!("the file belongs to user {owner}, not to root");
        report.add(Rule::FileOwner, place, message, format!("run `chown root: {path}`"));
    }
}

/// Lists the programs that a plugin's configuration names, with the place of each name.
fn programs<'a, 't>(plugin: Plugin<'a, 't>) -> Vec<(&'a str, &'a Node<'t>)> {
    let own = plugin.node.get("type");
    let ipam = plugin.node.get("ipam").and_then(|ipam| ipam.get("type"));
    let named = [own, ipam].into_iter().flatten().filter(|node| !node.is_placeholder());
    named.filter_map(|node| Some((node.text().filter(|kind| !kind.is_empty())?, node))).collect()
}

fn program(document: &Document<'_>, kind: &str, node: &Node<'_>, host: &dyn Host, report: &mut Report<'_>) {
    let program = host.program(kind);
    let span = node.span.clone();
    let Some(path) = program.path else {
        let message = format!("no plugin `{kind}` in {}", host.folders());
        report.add(Rule::PluginMissing, span, message, "install it, or set --bin-path to its folder");
        return;
    };
    if program.is_not_executable {
        let message = format!("{path} is not executable");
        report.add(Rule::PluginNotExecutable, span, message, format!("run `chmod +x {path}`"));
        return;
    }
    if program.is_writable {
        let message = format!("all users can write {path}");
        report.add(Rule::PluginWritable, span.clone(), message, format!("run `chmod go-w {path}`"));
    }
    let written = document.root.text_of("cniVersion").unwrap_or_default();
    let wanted = if written.is_empty() { "0.1.0" } else { written };
    let is_only = document.root.get("cniVersions").is_none();
    if is_only && !program.versions.is_empty() && !program.versions.iter().any(|version| version == wanted) {
        let message =
            format!("`{kind}` does not support version {wanted}, only {}", program.versions.join(", "));
        report.add(
            Rule::PluginVersion,
            span,
            message,
            "use a version that all plugins support, or update the plugin",
        );
    }
}

/// Compares the parent link and the MTU with the host's links.
fn parent(plugin: Plugin<'_, '_>, host: &dyn Host, report: &mut Report<'_>) {
    let node = plugin.node;
    let key = match plugin.kind() {
        "macvlan" | "ipvlan" | "vlan" => "master",
        "host-device" => "device",
        "bridge" => "uplinkInterface",
        _ => return,
    };
    if node.is_set("linkInContainer") {
        return;
    }
    let written = node.get(key).filter(|value| value.text().is_some_and(|text| !text.is_empty()));
    let name = match written {
        Some(value) if value.is_placeholder() => return,
        Some(value) => value.text(),
        None if key == "master" => host.default_link(),
        None => return,
    };
    let Some(name) = name else { return };
    let Some(link) = host.links().iter().find(|link| link.names.iter().any(|own| own == name)) else {
        if let Some(value) = written {
            let help = match plugin.kind() {
                "host-device" => "use a link that `ip link` lists; a running container may have it",
                _ => "use a link that `ip link` lists",
            };
            report.add(
                Rule::MasterAbsent,
                value.span.clone(),
                format!("the host has no link `{name}`"),
                help,
            );
        }
        return;
    };
    if key == "master"
        && let Some(mtu) = node.get("mtu")
        && let Some(number) = mtu.integer().filter(|mtu| *mtu > i128::from(link.mtu))
    {
        let message = format!("MTU {number} is above that of `{name}`, {}", link.mtu);
        report.add(
            Rule::MtuAboveMaster,
            mtu.span.clone(),
            message,
            format!("use at most {}, or leave it out", link.mtu),
        );
    }
}

/// Compares the subnets that the host routes to containers with its other routes.
fn routed(plugin: Plugin<'_, '_>, host: &dyn Host, report: &mut Report<'_>) {
    let own = match plugin.kind() {
        "bridge" if plugin.node.is_set("isGateway") || plugin.node.is_set("isDefaultGateway") => {
            plugin.node.text_of("bridge").unwrap_or("cni0")
        }
        "ptp" => "",
        _ => return,
    };
    for found in ranges::of(plugin) {
        let subnet = found.range.subnet;
        let collides = |route: &&HostRoute| {
            let is_host_route = route.to.prefix_len() == route.to.max_prefix_len();
            let is_of_vlan =
                !own.is_empty() && route.link.strip_prefix(own).is_some_and(|rest| rest.starts_with('.'));
            route.link != own
                && !is_of_vlan
                && !is_host_route
                && !is_link_local(route.to)
                && (subnet.contains(&route.to) || route.is_connected && route.to.contains(&subnet))
        };
        if let Some(route) = host.routes().iter().find(collides) {
            let message = format!("the host reaches {} over `{}`", route.to, route.link);
            let help = "use a subnet that the host does not reach otherwise";
            report.add(Rule::SubnetRouted, found.span, message, help);
        }
    }
}

fn is_link_local(subnet: IpNet) -> bool {
    match subnet.addr() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn files(plugin: Plugin<'_, '_>, host: &dyn Host, report: &mut Report<'_>) {
    let Some((ipam, kind)) = plugin.ipam() else { return };
    if let Some(node) = ipam.get("resolvConf").filter(|node| kind == "host-local" && !node.is_placeholder())
        && let Some(path) = node.text().filter(|path| path.starts_with('/') && !host.has_file(path))
    {
        report.add(
            Rule::FileAbsent,
            node.span.clone(),
            format!("the host has no file {path}"),
            "create it, or name another",
        );
    }
    let socket =
        ipam.text_of("daemonSocketPath").filter(|path| !path.is_empty()).unwrap_or("/run/cni/dhcp.sock");
    if kind == "dhcp" && !host.has_file(socket) {
        let place = ipam.get("type").unwrap_or(ipam).span.clone();
        let help = "start it with `/opt/cni/bin/dhcp daemon`, or enable its systemd socket";
        report.add(
            Rule::DhcpDaemonAbsent,
            place,
            format!("the DHCP daemon does not listen at {socket}"),
            help,
        );
    }
}

fn forwarding(document: &Document<'_>, host: &dyn Host, report: &mut Report<'_>) {
    let plugins = document.plugins();
    let is_routed = |plugin: &&Plugin<'_, '_>| match plugin.kind() {
        "bridge" => plugin.node.is_set("ipMasq") || plugin.node.is_set("isDefaultGateway"),
        "ptp" => plugin.node.is_set("ipMasq"),
        _ => false,
    };
    let Some(routed) = plugins.iter().find(is_routed) else { return };
    let is_known = plugins.iter().all(|plugin| types::is_known(plugin.kind()));
    if is_known && !plugins.iter().any(|plugin| plugin.kind() == "firewall") && host.drops_forwarded() {
        let message = "the host drops forwarded packets, and the network has no `firewall` plugin";
        let help = "add {\"type\": \"firewall\"} to `plugins`";
        report.add(Rule::ForwardDropped, routed.place(), message, help);
    }
}
