//! What is wrong with a host's networks and plugins, in words.

use std::{collections::BTreeMap, path::Path};

use netloom_invoke::{FindError, find_in_path, split_path};
use netloom_runtime::{
    load::{self, Loaded},
    types::{NetworkList, PluginConfig, json},
};
use serde_json::Value;

use super::{Places, install};

/// Lists the problems of network files and of the plugins that they use.
pub(crate) fn problems(places: &Places, networks: &[Loaded]) -> Vec<String> {
    let paths = split_path(&places.bin_path);
    let mut problems = install::foreign_plugins(&paths);
    problems.extend(networks.iter().filter_map(|(_, list)| Some(list.as_ref().err()?.to_string())));
    problems.extend(shadowed(&places.conf_dir, networks));
    for list in networks.iter().filter_map(|(_, list)| list.as_ref().ok()) {
        // Files with the same network often use the same plugins.
        problems.extend(missing_plugins(list, places).filter(|problem| !problems.contains(problem)));
    }
    problems
}

/// Names the plugins of a network, also its IPAM plugins, that cannot be found.
fn missing_plugins(list: &NetworkList, places: &Places) -> Option<String> {
    let paths = split_path(&places.bin_path);
    let mut missing: Vec<String> = Vec::new();
    for kind in list.plugins.iter().flat_map(plugins_of) {
        let described = match find_in_path(kind, &paths) {
            Err(FindError::NotFound { not_executable: Some(path), .. }) => {
                format!("`{kind}` ({} is not executable)", path.display())
            }
            Err(_) => format!("`{kind}`"),
            Ok(_) => continue,
        };
        if !missing.contains(&described) {
            missing.push(described);
        }
    }
    (!missing.is_empty()).then(|| {
        format!(
            "network `{}` uses plugins that are not in {}: {}: install them, or set --bin-path to their folder",
            list.name,
            if places.bin_path.is_empty() { "any folder" } else { &places.bin_path },
            missing.join(", ")
        )
    })
}

/// Returns the types of a plugin and of the IPAM plugin to which it delegates.
fn plugins_of(plugin: &PluginConfig) -> impl Iterator<Item = &str> {
    let ipam = match json::lookup(plugin.object(), "ipam") {
        Some(Value::Object(ipam)) => json::lookup(ipam, "type").and_then(Value::as_str),
        _ => None,
    };
    std::iter::once(plugin.kind()).chain(ipam.filter(|kind| !kind.is_empty()))
}

/// Names the networks that several files contain, and which file is used.
///
/// `load::network` looks through lists first and then through single plugins, as cnitool does. Other runtimes go by file name
/// alone (`ConfFiles` of libcni, sorted): containerd's go-cni, CRI-O's ocicni and podman.
fn shadowed(conf_dir: &Path, networks: &[Loaded]) -> Vec<String> {
    let mut by_name: BTreeMap<String, Vec<&Loaded>> = BTreeMap::new();
    for loaded in networks {
        let name = match &loaded.1 {
            Ok(list) => Some(list.name.clone()),
            Err(_) => load::name_in(&loaded.0),
        };
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            by_name.entry(name).or_default().push(loaded);
        }
    }
    let file = |(path, _): &Loaded| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut problems = Vec::new();
    for (name, by_file_name) in by_name.into_iter().filter(|(_, files)| files.len() > 1) {
        let mut in_order = by_file_name.clone();
        in_order.sort_by_key(|(path, _)| path.extension().is_none_or(|ending| ending != "conflist"));
        let ignored: Vec<String> = in_order[1..].iter().map(|loaded| file(loaded)).collect();
        let (used, ignored) = (file(in_order[0]), ignored.join(", "));
        let folder = conf_dir.display();
        let mut problem = if in_order[0].1.is_ok() {
            format!(
                "network `{name}` has several files in {folder}: Netloom uses {used} and ignores {ignored}"
            )
        } else {
            format!(
                "network `{name}` has several files in {folder} and cannot be used: {used} comes first and is invalid, \
                 so {ignored} is ignored"
            )
        };
        let first = file(by_file_name[0]);
        if first != used {
            problem +=
                &format!("; runtimes that go by file name alone (containerd, CRI-O, podman) use {first}");
        }
        problems.push(problem + ": keep one of them");
    }
    problems
}
