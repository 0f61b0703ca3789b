//! What the container runtime is told: a network of routed pods with the node's blocks as ranges.

use std::{fs, io, path::PathBuf};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{blocks, config::Config, file};

/// Gives the file.
pub fn path(config: &Config) -> PathBuf {
    config.conf_dir.join(format!("10-{}.conflist", config.network))
}

/// Writes the file, whole or not at all, and tells whether it had to be.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn write(config: &Config, own: &[IpNet], mtu: u32) -> io::Result<bool> {
    let text = serde_json::to_string_pretty(&render(config, own, mtu)).unwrap_or_default() + "\n";
    file::write(&path(config), text.as_bytes(), 0o644)
}

/// Removes the file. Absent is fine.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(config: &Config) -> io::Result<()> {
    file::remove(&path(config))
}

/// Makes the network's configuration.
pub fn render(config: &Config, own: &[IpNet], mtu: u32) -> Value {
    let mut ranges = Vec::new();
    let mut routes = Vec::new();
    for (v4, everywhere) in [(true, "0.0.0.0/0"), (false, "::/0")] {
        let of_family = own.iter().filter(|block| block.addr().is_ipv4() == v4);
        let set: Vec<Value> = of_family
            .map(|block| {
                let (first, last) = blocks::range(*block);
                json!({"subnet": block, "rangeStart": first, "rangeEnd": last})
            })
            .collect();
        if !set.is_empty() {
            ranges.push(set);
            routes.push(json!({"dst": everywhere}));
        }
    }
    let ipam = json!({"type": "host-local", "dataDir": config.data_dir, "ranges": ranges, "routes": routes});
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": config.network,
        "plugins": [
            {"type": "ptp", "mtu": mtu, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ],
    })
}

/// Counts the reservations in each of the node's blocks.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn used(config: &Config, own: &[IpNet]) -> io::Result<Vec<u64>> {
    let mut used = vec![0; own.len()];
    let entries = match fs::read_dir(config.data_dir.join(&config.network)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(used),
        other => other?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(ip) = name.to_str().and_then(|name| name.replace('_', ":").parse::<std::net::IpAddr>().ok())
        else {
            continue;
        };
        if let Some(index) = own.iter().position(|block| block.contains(&ip)) {
            used[index] += 1;
        }
    }
    Ok(used)
}
