//! The network configurations for the container runtime, with the node's blocks as ranges, and host-local's reservations.

use std::{collections::BTreeMap, fs, io, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use ruleset::cluster::POD_GROUP;
use serde_json::{Value, json};

use crate::{
    blocks::{self, Pieces},
    config::{Config, Network, Underlay},
    desired::{Attach, Segment},
    file,
    status::Pod,
};

/// Returns the path of a network's configuration. The first network's sorts before the others: a runtime takes the first file.
pub fn path(config: &Config, network: &str) -> PathBuf {
    let is_first = config.networks.first().is_some_and(|first| first.name == network);
    config.conf_dir.join(format!("{}-{network}.conflist", if is_first { 10 } else { 20 }))
}

/// Writes a network's configuration atomically; returns false if it was up to date.
///
/// # Errors
/// If the directory or the file cannot be written.
pub fn write(config: &Config, attach: &Attach, own: &BTreeMap<IpNet, Pieces>) -> io::Result<bool> {
    let text = serde_json::to_string_pretty(&render(config, attach, own)).unwrap_or_default() + "\n";
    file::write(&path(config, &attach.network), text.as_bytes(), 0o644)
}

/// Lists the files that sort before the first network's: a runtime would start pods on another network.
///
/// # Errors
/// If the directory exists but cannot be read.
pub fn before(config: &Config) -> io::Result<Vec<PathBuf>> {
    let Some(own) = config.networks.first().map(|network| path(config, &network.name)) else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(&config.conf_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    let is_network = |path: &PathBuf| {
        path.extension().is_some_and(|kind| ["conf", "conflist", "json"].iter().any(|known| kind == *known))
    };
    let mut before: Vec<PathBuf> = paths.into_iter().filter(|path| is_network(path) && *path < own).collect();
    before.sort();
    Ok(before)
}

/// Returns the path of the file that tells whether a network is ready. It is beside the daemon's socket, where no file survives
/// a reboot.
fn ready_path(config: &Config, network: &str) -> PathBuf {
    config.socket.with_file_name(format!("{network}.ready"))
}

/// Publishes readiness to the plugins' STATUS. The file stays when the daemon ends: pods start without it.
///
/// # Errors
/// If a file cannot be written.
pub fn publish_readiness(config: &Config, problems: &[String]) -> io::Result<()> {
    let text = if problems.is_empty() { "ready".to_owned() } else { problems.join("; ") };
    config.networks.iter().try_for_each(|network| {
        file::write(&ready_path(config, &network.name), text.as_bytes(), 0o644).map(drop)
    })
}

/// Removes the files. Succeeds if they do not exist.
///
/// # Errors
/// If a file cannot be removed.
pub fn remove(config: &Config) -> io::Result<()> {
    config.networks.iter().try_for_each(|network| {
        file::remove(&path(config, &network.name))?;
        file::remove(&ready_path(config, &network.name))
    })
}

/// Seconds for which the address of a deleted pod is not reused if others are free: by then its peers have noticed.
const COOLDOWN: u32 = 60;

/// Returns a network's configuration.
pub fn render(config: &Config, attach: &Attach, own: &BTreeMap<IpNet, Pieces>) -> Value {
    let mut ranges = Vec::new();
    let mut routes = Vec::new();
    for (v4, everywhere) in [(true, "0.0.0.0/0"), (false, "::/0")] {
        let of_family = own.iter().filter(|(block, _)| block.addr().is_ipv4() == v4);
        let set: Vec<Value> = match &attach.segment {
            None => of_family
                .flat_map(|(block, pieces)| pieces.iter().map(move |piece| range(*block, *piece, None)))
                .collect(),
            Some(segment) => on_segment(segment, of_family),
        };
        if set.is_empty() {
            continue;
        }
        let leads_out = attach.segment.as_ref().is_none_or(|segment| {
            segment.prefixes.iter().any(|(net, gateway)| net.addr().is_ipv4() == v4 && gateway.is_some())
        });
        ranges.push(set);
        if leads_out {
            routes.push(json!({"dst": everywhere}));
        }
    }
    if let Some((host, hop)) = attach.segment.as_ref().and_then(|segment| segment.host6)
        && own.keys().any(|block| block.addr().is_ipv6())
    {
        routes.push(json!({"dst": IpNet::from(host), "gw": hop}));
    }
    let ipam = json!({
        "type": "host-local", "dataDir": config.data_dir, "ranges": ranges, "routes": routes,
        "readyFile": ready_path(config, &attach.network), "cooldown": COOLDOWN,
    });
    let mtu = attach.mtu;
    let plugins = match &attach.segment {
        None => json!([
            {"type": "ptp", "mtu": mtu, "group": POD_GROUP, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]),
        Some(Segment { bridge: true, link, .. }) => json!([
            {"type": "bridge", "bridge": link, "mtu": mtu, "ipam": ipam},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]),
        Some(Segment { link, .. }) => {
            let mode = match config.underlay {
                Underlay::Macvlan => "bridge",
                Underlay::Ipvlan => "l2",
            };
            json!([{"type": config.underlay.as_str(), "master": link, "mode": mode, "mtu": mtu, "ipam": ipam}])
        }
    };
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": attach.network,
        "plugins": plugins,
    })
}

fn range(subnet: IpNet, (first, last): (IpAddr, IpAddr), gateway: Option<IpAddr>) -> Value {
    let mut range = json!({"subnet": subnet, "rangeStart": first, "rangeEnd": last});
    if let Some(gateway) = gateway {
        range["gateway"] = json!(gateway);
    }
    range
}

/// Returns the ranges of a segment's prefixes, with adjacent ranges merged.
fn on_segment<'a>(segment: &Segment, own: impl Iterator<Item = (&'a IpNet, &'a Pieces)>) -> Vec<Value> {
    let mut merged: Pieces = Vec::new();
    for (first, last) in own.flat_map(|(_, pieces)| pieces.iter().copied()) {
        match merged.last_mut().filter(|before| blocks::count(&[(before.1, first)]) == 2) {
            Some(before) => before.1 = last,
            None => merged.push((first, last)),
        }
    }
    let of = |piece: (IpAddr, IpAddr)| {
        let (net, gateway) = segment.prefixes.iter().find(|(net, _)| net.contains(&piece.0))?;
        Some(range(*net, piece, *gateway))
    };
    merged.into_iter().filter_map(of).collect()
}

/// Counts the reservations in each of a network's blocks.
///
/// # Errors
/// If the reservations cannot be read: then the use is unknown, not zero.
pub fn used(config: &Config, network: &Network, blocks: &[IpNet]) -> io::Result<Vec<u64>> {
    let mut used = vec![0; blocks.len()];
    for ip in reserved(config, &network.name)? {
        if let Some(index) = blocks.iter().position(|block| block.contains(&ip)) {
            used[index] += 1;
        }
    }
    Ok(used)
}

/// Lists the addresses of a network that are reserved on this host. A directory that does not exist holds none.
///
/// # Errors
/// If the directory cannot be read.
pub fn reserved(config: &Config, network: &str) -> io::Result<Vec<IpAddr>> {
    reservations(config, network)?.map(|entry| entry.map(|(ip, _)| ip)).collect()
}

/// Returns the reserved addresses of a network, each with its file.
fn reservations(
    config: &Config,
    network: &str,
) -> io::Result<impl Iterator<Item = io::Result<(IpAddr, fs::DirEntry)>>> {
    let entries = match fs::read_dir(config.data_dir.join(network)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    Ok(entries.into_iter().flatten().filter_map(|entry| match entry {
        Ok(entry) => {
            let ip = entry.file_name().to_str().and_then(|name| name.replace('_', ":").parse().ok());
            ip.map(|ip| Ok((ip, entry)))
        }
        Err(error) => Some(Err(error)),
    }))
}

/// Lists the addresses of pods on this host, with the owners that host-local's files name: the container's ID, and on a second line the
/// interface.
///
/// # Errors
/// If a directory cannot be read.
pub fn pods(config: &Config) -> io::Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for network in &config.networks {
        for entry in reservations(config, &network.name)? {
            let (address, file) = entry?;
            let owner = fs::read_to_string(file.path()).unwrap_or_default();
            let mut lines = owner.lines().map(|line| line.trim().to_owned());
            let mut line = || lines.next().unwrap_or_default();
            pods.push(Pod { network: network.name.clone(), address, container: line(), interface: line() });
        }
    }
    pods.sort();
    Ok(pods)
}
