//! `netloom list`: configured networks, attachments, and plugin files that are not Netloom's.

use std::path::Path;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use kernel::Netns;
use netloom_runtime::{
    cache, load,
    types::{CniResult, Object, RuntimeConfig, SpecVersion, capability::PortMapping, json},
};
use serde_json::{Value, json};

use super::{Outcome, Places, find::Target, install, note, say};

/// Options of `netloom list`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Container to list: an ID or a prefix of it, a namespace's path or name, or a process ID. Defaults to all.
    container: Option<String>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

struct Row {
    network: String,
    container: String,
    ifname: String,
    addresses: Vec<String>,
    ports: Vec<String>,
    netns: String,
    exists: bool,
}

pub(crate) fn list(places: &Places, options: &Options) -> Outcome {
    let networks = load::networks(&places.conf_dir)?;
    let target = options.container.as_deref().map(Target::new);
    let attachments: Vec<Row> = places
        .runtime()
        .attachments()?
        .into_iter()
        .filter(|entry| {
            target
                .as_ref()
                .is_none_or(|target| target.matches(&entry.container_id, entry.sandbox(), &entry.args))
        })
        .map(row)
        .collect();
    for problem in install::foreign_plugins(&netloom_invoke::split_path(&places.bin_path)) {
        note(format!("netloom: {problem}"));
    }
    if options.json {
        let networks: Vec<Value> = networks
            .iter()
            .map(|(path, list)| match list {
                Ok(list) => json!({
                    "name": list.name,
                    "cniVersion": list.cni_version,
                    "plugins": list.plugins.iter().map(netloom_runtime::types::PluginConfig::kind).collect::<Vec<_>>(),
                    "file": path,
                }),
                Err(error) => json!({ "file": path, "error": error.to_string() }),
            })
            .collect();
        let attachments: Vec<Value> = attachments
            .iter()
            .map(|row| {
                json!({
                    "network": row.network,
                    "containerID": row.container,
                    "ifname": row.ifname,
                    "addresses": row.addresses,
                    "ports": row.ports,
                    "netns": row.netns,
                    "netnsExists": row.exists,
                })
            })
            .collect();
        say(json::render(&json!({ "networks": networks, "attachments": attachments })));
        return Ok(());
    }
    let mut shown = table(&["NETWORK", "VERSION", "PLUGINS", "FILE"]);
    for (path, list) in &networks {
        let file = path.display().to_string();
        match list {
            Ok(list) => {
                let plugins: Vec<&str> =
                    list.plugins.iter().map(netloom_runtime::types::PluginConfig::kind).collect();
                shown.add_row([&list.name, &list.cni_version, &plugins.join(" "), &file]);
            }
            Err(error) => note(format!("netloom: {error}")),
        }
    }
    if networks.is_empty() {
        say(format!(
            "No networks in {}. `netloom run` and `netloom demo` use the embedded network.",
            places.conf_dir.display()
        ));
    } else {
        say(shown.trim_fmt());
    }
    say("");
    if attachments.is_empty() {
        say("No attachments.");
        return Ok(());
    }
    let mut shown = table(&["NETWORK", "CONTAINER", "IF", "ADDRESSES", "PORTS", "NETNS"]);
    for row in attachments {
        let gone = if row.exists || row.netns.is_empty() { "" } else { " (gone)" };
        shown.add_row([
            row.network,
            row.container,
            row.ifname,
            row.addresses.join("\n"),
            row.ports.join("\n"),
            format!("{}{gone}", row.netns),
        ]);
    }
    say(shown.trim_fmt());
    Ok(())
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn row(entry: cache::Entry) -> Row {
    let result = entry.result.as_ref().and_then(|o| CniResult::from_object(o, SpecVersion::V0_1_0).ok());
    let addresses = result
        .map(CniResult::into_current)
        .map(|result| result.ips.iter().map(|ip| ip.address.to_string()).collect())
        .unwrap_or_default();
    // The other capabilities are left out: what podman sends for `aliases` is not a list.
    let offered = entry.capability_args.iter().filter(|(key, _)| key.eq_ignore_ascii_case("portMappings"));
    let offered: Object = offered.map(|(key, value)| (key.clone(), value.clone())).collect();
    let offered: RuntimeConfig = json::from_object(&offered).unwrap_or_default();
    let port = |mapping: &PortMapping| {
        let host = if mapping.host_ip.is_empty() { String::new() } else { format!("{}:", mapping.host_ip) };
        format!("{host}{}->{}/{}", mapping.host_port, mapping.container_port, mapping.protocol)
    };
    Row {
        exists: Netns::open(Path::new(entry.sandbox())).is_ok(),
        netns: entry.sandbox().to_owned(),
        network: entry.network,
        container: entry.container_id,
        ifname: entry.ifname,
        addresses,
        ports: offered.port_mappings.iter().map(port).collect(),
    }
}
