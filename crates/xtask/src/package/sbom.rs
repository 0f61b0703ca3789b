//! The software bill of materials: CycloneDX 1.5 in JSON.

use std::{collections::BTreeMap, process::Command};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{licences::Metadata, output};
use crate::{read, root};

/// Describes both binaries and every crate that they link.
pub(super) fn cyclonedx(metadata: &Metadata, epoch: u64) -> Result<String, String> {
    let checksums = checksums(&read(&root().join("Cargo.lock"))?);
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for (id, package) in &metadata.packages {
        components.push(component(package, &checksums));
        let linked: Vec<String> =
            metadata.links[id].iter().filter_map(|id| metadata.packages.get(id)).map(reference).collect();
        dependencies.push(json!({"ref": reference(package), "dependsOn": linked}));
    }
    let version = metadata.version("netloom")?;
    let whole = format!("netloom-release@{version}");
    let binaries: Vec<String> = metadata
        .packages
        .values()
        .filter(|package| {
            package["source"].is_null() && (package["name"] == "netloom" || package["name"] == "netloomd")
        })
        .map(reference)
        .collect();
    dependencies.push(json!({"ref": whole, "dependsOn": binaries}));
    let date = Command::new("date")
        .args(["--utc", "+%Y-%m-%dT%H:%M:%SZ", "--date"])
        .arg(format!("@{epoch}"))
        .output();
    let date = date.map_err(|error| format!("date: {error}"))?;
    let compiler = output(Command::new("rustc").arg("--version").current_dir(root()))?;
    let mut sbom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": String::from_utf8_lossy(&date.stdout).trim(),
            "component": {"type": "application", "bom-ref": whole, "name": "netloom", "version": version,
                "licenses": [{"expression": "Apache-2.0"}]},
            "properties": [{"name": "rustc", "value": compiler.trim()}],
        },
        "components": components,
        "dependencies": dependencies,
    });
    // The number identifies the content, so that it is the same when the same release is built again.
    let digest = Sha256::digest(sbom.to_string().as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    sbom["serialNumber"] = format!("urn:uuid:{}", parts.join("-")).into();
    serde_json::to_string_pretty(&sbom).map(|text| text + "\n").map_err(|error| error.to_string())
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Value {
    let field = |name: &str| package[name].as_str().unwrap_or_default();
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": field("name"),
        "version": field("version"),
        "purl": purl(package),
    });
    if !field("description").is_empty() {
        component["description"] = field("description").trim().into();
    }
    if !field("license").is_empty() {
        // The older way to write OR is not an SPDX expression.
        component["licenses"] = json!([{"expression": field("license").replace('/', " OR ")}]);
    }
    if let Some(checksum) = checksums.get(&(field("name").to_owned(), field("version").to_owned())) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    if field("repository").starts_with("http") {
        component["externalReferences"] = json!([{"type": "vcs", "url": field("repository")}]);
    }
    component
}

fn reference(package: &Value) -> String {
    purl(package)
}

/// Returns a package URL.
fn purl(package: &Value) -> String {
    let field = |name: &str| package[name].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", field("name"), field("version").replace('+', "%2B"))
}

/// Reads the checksums of `Cargo.lock`, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |section: &str, key: &str| {
        let line = section.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""))?;
        line.strip_suffix('"').map(str::to_owned)
    };
    lock.split("[[package]]")
        .filter_map(|section| {
            Some(((value(section, "name")?, value(section, "version")?), value(section, "checksum")?))
        })
        .collect()
}
