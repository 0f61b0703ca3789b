//! Which crates are linked into the binaries, and the licence texts that they come with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

use super::output;
use crate::root;

/// The dependencies of the two binaries on one target, without what only compiles or tests them.
pub(super) struct Metadata {
    /// Package IDs and cargo's descriptions of them.
    pub(super) packages: BTreeMap<String, Value>,
    /// The packages that each package links.
    pub(super) links: BTreeMap<String, BTreeSet<String>>,
}

/// Asks cargo, and follows the dependencies of both binaries.
pub(super) fn metadata(target: &str) -> Result<Metadata, String> {
    let text = output(
        Command::new("cargo")
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target])
            .current_dir(root()),
    )?;
    let all: Value = serde_json::from_str(&text).map_err(|error| format!("cargo metadata: {error}"))?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let id = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let described: BTreeMap<String, Value> =
        list(&all["packages"]).into_iter().map(|package| (id(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&all["resolve"]["nodes"]).into_iter().map(|node| (id(&node["id"]), node)).collect();
    let is_macro = |package: &Value| {
        list(&package["targets"]).iter().any(|target| list(&target["kind"]).contains(&"proc-macro".into()))
    };
    let mut metadata = Metadata { packages: BTreeMap::new(), links: BTreeMap::new() };
    let binaries = ["netloom", "netloomd"];
    let mut open: Vec<String> = described
        .iter()
        .filter(|(_, package)| {
            package["source"].is_null() && binaries.iter().any(|name| package["name"] == *name)
        })
        .map(|(id, _)| id.clone())
        .collect();
    while let Some(next) = open.pop() {
        let Some(package) = described.get(&next).filter(|_| !metadata.packages.contains_key(&next)) else {
            continue;
        };
        let dependencies = nodes.get(&next).map(|node| list(&node["deps"])).unwrap_or_default();
        let linked: BTreeSet<String> = dependencies
            .iter()
            .filter(|dependency| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()))
            .map(|dependency| id(&dependency["pkg"]))
            .filter(|id| described.get(id).is_some_and(|package| !is_macro(package)))
            .collect();
        open.extend(linked.iter().cloned());
        metadata.packages.insert(next.clone(), package.clone());
        metadata.links.insert(next, linked);
    }
    Ok(metadata)
}

impl Metadata {
    /// Returns the version of a package of this workspace.
    pub(super) fn version(&self, name: &str) -> Result<String, String> {
        let package = self.packages.values().find(|it| it["name"] == name && it["source"].is_null());
        package
            .and_then(|package| package["version"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| format!("cargo metadata has no package {name}"))
    }
}

/// Returns a page with every linked crate of others and the texts of their licences, each text once.
pub(super) fn collect(metadata: &Metadata) -> Result<String, String> {
    let mut crates = String::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let others = metadata.packages.values().filter(|package| !package["source"].is_null());
    for package in others {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        let name = format!("{} {}", field("name"), field("version"));
        let _ = writeln!(crates, "{name:<40} {:<40} {}", field("license"), field("repository"));
        let manifest = Path::new(field("manifest_path"));
        let found = licence_files(manifest.parent().unwrap_or(manifest))?;
        if found.is_empty() {
            texts.entry("(the crate contains no licence text)".to_owned()).or_default().push(name.clone());
        }
        for text in found {
            let users = texts.entry(text).or_default();
            if !users.contains(&name) {
                users.push(name.clone());
            }
        }
    }
    let mut page = format!(
        "Netloom is licensed under the Apache License 2.0. Its binaries contain the following crates, Rust's standard library\n\
         (MIT OR Apache-2.0) and, in static builds, the C library musl (MIT) or parts of glibc (LGPL-2.1-or-later).\n\n{crates}"
    );
    for (text, users) in texts {
        let _ = write!(page, "\n{}\n{}\n\n{}\n", "=".repeat(80), users.join(", "), text);
    }
    Ok(page)
}

fn licence_files(dir: &Path) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let is_licence = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"]
            .iter()
            .any(|start| name.starts_with(start));
        let is_source = entry.path().extension().is_some_and(|extension| extension == "rs");
        if is_licence && entry.path().is_file() && !is_source {
            let text =
                fs::read(entry.path()).map_err(|error| format!("{}: {error}", entry.path().display()))?;
            texts.push(String::from_utf8_lossy(&text).replace('\r', "").trim().to_owned());
        }
    }
    texts.sort();
    Ok(texts)
}
