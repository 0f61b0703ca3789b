//! `netloom list`: configured networks, attachments, and what is wrong with them.

use std::path::Path;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use kernel::{Netns, printable};
use netloom_runtime::{
    cache,
    load::{self, Loaded},
    types::{
        CniResult, Object, PluginConfig, SpecVersion, capability::PortMapping, json, result::v100::Success,
    },
};
use serde_json::{Value, json};

use super::{Outcome, Places, find::Target, install, lint, note, say, say_json, say_lines};

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
    let attachments = attachments(places, options)?;
    let mut problems = install::foreign_plugins(&netloom_invoke::split_path(&places.bin_path));
    problems.extend(lint::problems(places)?);
    if options.json {
        let networks: Vec<Value> = networks.iter().map(network_value).collect();
        let attachments: Vec<Value> = attachments.iter().map(attachment_value).collect();
        let all = json!({ "networks": networks, "attachments": attachments, "problems": problems });
        say_json(json::render(&all));
        return Ok(());
    }
    for problem in problems {
        note(format!("netloom: {problem}"));
    }
    if networks.is_empty() {
        say(format!(
            "No networks in {}. `netloom run` and `netloom demo` use the embedded network.",
            places.conf_dir.display()
        ));
    } else {
        say_lines(network_table(&networks).trim_fmt());
    }
    say("");
    if attachments.is_empty() {
        say("No attachments.");
    } else {
        say_lines(attachment_table(attachments).trim_fmt());
    }
    Ok(())
}

fn attachments(places: &Places, options: &Options) -> Outcome<Vec<Row>> {
    let target = options.container.as_deref().map(Target::new);
    let is_listed = |entry: &cache::Entry| {
        target.as_ref().is_none_or(|target| target.matches(&entry.container_id, entry.sandbox(), &entry.args))
    };
    Ok(places.runtime().attachments()?.into_iter().filter(is_listed).map(row).collect())
}

fn network_value((path, list): &Loaded) -> Value {
    match list {
        Ok(list) => json!({
            "name": list.name,
            "cniVersion": list.cni_version,
            "plugins": list.plugins.iter().map(PluginConfig::kind).collect::<Vec<_>>(),
            "file": path,
        }),
        Err(error) => json!({ "file": path, "error": error.to_string() }),
    }
}

fn attachment_value(row: &Row) -> Value {
    json!({
        "network": row.network,
        "containerID": row.container,
        "ifname": row.ifname,
        "addresses": row.addresses,
        "ports": row.ports,
        "netns": row.netns,
        "netnsExists": row.exists,
    })
}

fn network_table(networks: &[Loaded]) -> Table {
    let mut shown = table(&["NETWORK", "VERSION", "PLUGINS", "FILE"]);
    for (path, list) in networks {
        if let Ok(list) = list {
            let plugins: Vec<&str> = list.plugins.iter().map(PluginConfig::kind).collect();
            let cells = [&list.name, &list.cni_version, &plugins.join(" "), &path.display().to_string()];
            shown.add_row(cells.map(|cell| printable(cell)));
        }
    }
    shown
}

fn attachment_table(attachments: Vec<Row>) -> Table {
    let lines = |items: &[String]| items.iter().map(|item| printable(item)).collect::<Vec<_>>().join("\n");
    let mut shown = table(&["NETWORK", "CONTAINER", "IF", "ADDRESSES", "PORTS", "NETNS"]);
    for row in attachments {
        let gone = if row.exists || row.netns.is_empty() { "" } else { " (gone)" };
        shown.add_row([
            printable(&row.network).into_owned(),
            printable(&row.container).into_owned(),
            printable(&row.ifname).into_owned(),
            lines(&row.addresses),
            lines(&row.ports),
            format!("{}{gone}", printable(&row.netns)),
        ]);
    }
    shown
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
    let addresses = current_result(&entry)
        .map(|result| result.ips.iter().map(|ip| ip.address.to_string()).collect())
        .unwrap_or_default();
    Row {
        exists: Netns::open(Path::new(entry.sandbox())).is_ok(),
        netns: entry.sandbox().to_owned(),
        network: entry.network,
        container: entry.container_id,
        ifname: entry.ifname,
        addresses,
        ports: published_ports(&entry.capability_args).iter().map(shown).collect(),
    }
}

/// Returns the cached result of an attachment in the newest version's form.
pub(super) fn current_result(entry: &cache::Entry) -> Option<Success> {
    let result = CniResult::from_object(entry.result.as_ref()?, SpecVersion::V0_1_0).ok()?;
    Some(result.into_current())
}

/// Reads the published ports alone: a runtime may pass another capability in a form of its own, as podman does with `aliases`.
pub(super) fn published_ports(capability_args: &Object) -> Vec<PortMapping> {
    let mappings = json::lookup(capability_args, "portMappings").and_then(Value::as_array);
    mappings.into_iter().flatten().filter_map(|mapping| json::from_value(mapping).ok()).collect()
}

fn shown(mapping: &PortMapping) -> String {
    let host = if mapping.host_ip.is_empty() { String::new() } else { format!("{}:", mapping.host_ip) };
    format!("{host}{}->{}/{}", mapping.host_port, mapping.container_port, mapping.protocol)
}
