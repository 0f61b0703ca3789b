//! cnitool's verbs: put an existing network namespace on a network, and take it off.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand};
use hmac_sha512::Hash as Sha512;
use netloom_runtime::{
    Container, Runtime, load,
    types::{NetworkList, Object, json},
};

use super::{Failure, Outcome, Places, gc, say};

/// Which namespace on which network.
#[derive(Debug, Clone, Args)]
pub(crate) struct Attach {
    /// Name of the network.
    network: String,
    /// Path of the network namespace, such as /run/netns/c1.
    netns: PathBuf,
    #[command(flatten)]
    arguments: Arguments,
}

/// What is handed to the plugins.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Name of the interface in the namespace.
    #[arg(short, long, env = "CNI_IFNAME", value_name = "NAME")]
    ifname: Option<String>,
    /// Capability arguments: a JSON object, such as `{"portMappings":[…]}`.
    #[arg(long, env = "CAP_ARGS", value_name = "JSON")]
    cap_args: Option<String>,
    /// Arguments for the plugins: KEY=VALUE;KEY=VALUE.
    #[arg(long, env = "CNI_ARGS", value_name = "PAIRS")]
    args: Option<String>,
    /// ID of the container; by default it is made of the path.
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
}

/// Which network.
#[derive(Debug, Clone, Args)]
pub(crate) struct Network {
    /// Name of the network.
    network: String,
    /// Ignored, as cnitool asks for one.
    #[arg(hide = true)]
    netns: Option<PathBuf>,
}

/// Which network, or this program itself.
#[derive(Debug, Clone, Args)]
pub(crate) struct VersionOf {
    /// Name of the network; without it, the version of netloom and the specification's that it supports.
    network: Option<String>,
}

pub(crate) fn add(places: &Places, options: &Attach) -> Outcome {
    let (runtime, list, container) = prepare(places, options)?;
    say(runtime.add(&list, &container)?.to_json());
    Ok(())
}

pub(crate) fn check(places: &Places, options: &Attach) -> Outcome {
    let (runtime, list, container) = prepare(places, options)?;
    Ok(runtime.check(&list, &container)?)
}

pub(crate) fn del(places: &Places, options: &Attach) -> Outcome {
    let (runtime, list, container) = prepare(places, options)?;
    Ok(runtime.del(&list, &container)?)
}

pub(crate) fn status(places: &Places, options: &Network) -> Outcome {
    let list = load::network(&places.conf_dir, &options.network)?;
    Ok(places.runtime().status(&list)?)
}

pub(crate) fn version(places: &Places, options: &VersionOf) -> Outcome {
    let Some(network) = &options.network else {
        let versions: Vec<&str> =
            netloom_runtime::types::SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
        say(format!(
            "netloom {}\nCNI protocol versions supported: {}",
            env!("CARGO_PKG_VERSION"),
            versions.join(", ")
        ));
        return Ok(());
    };
    let list = load::network(&places.conf_dir, network)?;
    let runtime = places.runtime();
    for plugin in &list.plugins {
        let info = runtime.version(plugin.kind())?;
        say(format!("{}: {}", plugin.kind(), info.supported_versions.join(", ")));
    }
    runtime.validate(&list)?;
    Ok(())
}

/// cnitool's own command line.
#[derive(Debug, Parser)]
#[command(name = "cnitool", version, about = "Add, check, remove, gc or status of a network namespace")]
struct Cnitool {
    #[command(subcommand)]
    verb: CnitoolVerb,
}

#[derive(Debug, Subcommand)]
enum CnitoolVerb {
    /// Add a network namespace to a network
    Add(Attach),
    /// Check that a network namespace is as add left it
    Check(Attach),
    /// Remove a network namespace from a network
    Del(Attach),
    /// Remove what belongs to no existing namespace
    Gc(Network),
    /// Ask whether a network is ready
    Status(Network),
}

/// Runs as cnitool: configuration from NETCONFPATH, plugins from CNI_PATH, which has no default.
pub(crate) fn main() -> Outcome {
    let Cnitool { verb } = Cnitool::parse();
    let variable = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
    let places = Places {
        conf_dir: variable("NETCONFPATH").unwrap_or_else(|| "/etc/cni/net.d".into()).into(),
        bin_path: variable("CNI_PATH").unwrap_or_default(),
        state_dir: variable("NETLOOM_STATE").unwrap_or_else(|| "/var/lib/cni".into()).into(),
    };
    match verb {
        CnitoolVerb::Add(options) => add(&places, &options),
        CnitoolVerb::Check(options) => check(&places, &options),
        CnitoolVerb::Del(options) => del(&places, &options),
        CnitoolVerb::Gc(options) => gc::gc(&places, &gc::Options { network: Some(options.network) }),
        CnitoolVerb::Status(options) => status(&places, &options),
    }
}

fn prepare(places: &Places, options: &Attach) -> Outcome<(Runtime, NetworkList, Container)> {
    let list = load::network(&places.conf_dir, &options.network)?;
    let netns = std::path::absolute(&options.netns)?;
    let arguments = &options.arguments;
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let container = Container {
        id: given(&arguments.container_id).unwrap_or_else(|| container_id(&netns)),
        netns: netns.display().to_string(),
        ifname: given(&arguments.ifname).unwrap_or_else(|| "eth0".into()),
        args: given(&arguments.args).map_or(Ok(Vec::new()), |text| pairs(&text))?,
        capability_args: given(&arguments.cap_args).map_or(Ok(Object::new()), |text| {
            json::parse_object(text.as_bytes()).map_err(|error| Failure::new(format!("CAP_ARGS: {error}")))
        })?,
    };
    Ok((places.runtime(), list, container))
}

/// Makes the ID that cnitool makes: `cnitool-` and the first ten bytes of the path's SHA-512.
fn container_id(netns: &Path) -> String {
    let digest = Sha512::hash(netns.display().to_string());
    digest.iter().take(10).fold("cnitool-".to_owned(), |mut id, byte| {
        write!(id, "{byte:02x}").ok();
        id
    })
}

/// Splits CNI_ARGS as cnitool does, which wants both sides of each pair.
fn pairs(text: &str) -> Outcome<Vec<(String, String)>> {
    text.split(';')
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() && !value.contains('=') => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => {
                Err(Failure::new(format!("invalid CNI_ARGS pair {pair:?}")).hint("write KEY=VALUE;KEY=VALUE"))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V71: the ID that cnitool makes of a path.
    #[test]
    fn container_id_is_cnitools() {
        assert_eq!(container_id(Path::new("/var/run/netns/cnitest")), "cnitool-20c433bb2b1d6ede56d6");
    }

    #[test]
    fn arguments_need_both_sides() {
        assert_eq!(pairs("A=1;B=2").unwrap(), [("A".into(), "1".into()), ("B".into(), "2".into())]);
        for wrong in ["A", "A=", "=1", "A=1=2", "A=1;"] {
            assert!(pairs(wrong).is_err(), "{wrong}");
        }
    }
}
