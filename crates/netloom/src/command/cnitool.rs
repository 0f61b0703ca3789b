//! `netloom add`, `check`, `del`, `status` and `version`, and the same verbs under the name `cnitool`.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand};
use hmac_sha512::Hash as Sha512;
use netloom_runtime::{
    Container, Error,
    cache::Entry,
    load,
    types::{NetworkList, Object, SpecVersion, json},
};

use super::{
    Failure, Outcome, Places,
    find::Target,
    gc, install,
    networks::Runtime,
    note, parse, say, say_json,
    unprivileged::refused,
    walk::{
        place::{Place, Side},
        single::Step,
        steps,
    },
    why,
};

/// Arguments of `del`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Detach {
    #[command(flatten)]
    attach: Attach,
    /// Delete the attachment even if another runtime created it
    #[arg(long)]
    force: bool,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    attach: Attach,
    /// Also send packets: to and from the gateway, out of the host, of full size, and to each published port
    #[arg(long)]
    deep: bool,
}

/// Arguments that name an attachment.
#[derive(Debug, Clone, Args)]
pub(crate) struct Attach {
    /// Name of the network
    network: String,
    /// Network namespace: a path such as /run/netns/c1, a name in /run/netns, or a process ID
    ///
    /// `check` and `del` also accept a container ID, a prefix of it, and the name of a container.
    netns: PathBuf,
    #[command(flatten)]
    arguments: Arguments,
}

/// Arguments that are passed to the plugins.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Name of the interface in the namespace [default: eth0]
    #[arg(short, long, env = "CNI_IFNAME", value_name = "NAME")]
    ifname: Option<String>,
    /// Capability arguments as a JSON object, for example {"portMappings":[…]}
    #[arg(long, env = "CAP_ARGS", value_name = "JSON")]
    cap_args: Option<String>,
    /// Arguments for the plugins, as KEY=VALUE;KEY=VALUE
    #[arg(long, env = "CNI_ARGS", value_name = "PAIRS")]
    args: Option<String>,
    /// ID of the container [default: derived from the path, as cnitool does]
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
}

/// Arguments of the verbs that concern a whole network.
#[derive(Debug, Clone, Args)]
pub(crate) struct Network {
    /// Name of the network
    network: String,
    /// Ignored: cnitool requires a namespace here.
    #[arg(hide = true)]
    netns: Option<PathBuf>,
}

/// Arguments of `version`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VersionOf {
    /// Name of the network. Defaults to printing the version of netloom and the specification versions it supports.
    network: Option<String>,
}

pub(crate) fn add(places: &Places, options: &Attach) -> Outcome {
    let (runtime, list, container) = prepare(places, options)?;
    say_json(runtime.add(&list, &container).map_err(|error| refused("add", error))?.to_json());
    Ok(())
}

pub(crate) fn check(places: &Places, options: &Check) -> Outcome {
    let (runtime, list, mut container) = prepare(places, &options.attach)?;
    if let Some(found) = find_attachment(&runtime, &list, &options.attach, &container)? {
        found.apply(&mut container);
    }
    let checked = runtime.check(&list, &container).map_err(Failure::from);
    if !options.deep {
        return checked;
    }
    // What CHECK finds is the first fault to report; the probes may show its cause.
    let probed = probe(&runtime, &list, &container);
    checked.and(probed)
}

/// Walks the paths of an attachment, prints each step, and fails with the first that is broken.
fn probe(runtime: &Runtime, list: &NetworkList, container: &Container) -> Outcome {
    let is_it = |entry: &Entry| {
        entry.network == list.name && entry.container_id == container.id && entry.ifname == container.ifname
    };
    let entry = runtime.attachments()?.into_iter().find(is_it).filter(|entry| entry.result.is_some());
    let entry = entry.ok_or_else(|| {
        Failure::new(format!("no result of `{}` on network `{}` is cached", container.id, list.name))
            .hint("`--deep` takes addresses and ports from the cached result: see `netloom list`")
    })?;
    let host = Side::of_host()?;
    let place = Place::of_entry(&host, &Entry { netns: container.netns.clone(), ..entry })?;
    let mut broken = Vec::new();
    steps::attachment(&host, &place, true, |what, step| {
        why::show(&what, &step);
        if let Step::Broken(cause) = step {
            broken.push(cause);
        }
    })?;
    let count = broken.len();
    match broken.into_iter().next().map(Failure::from) {
        None => Ok(()),
        Some(first) if count == 1 => Err(first),
        Some(first) => {
            let message = format!("{}; and {} more of these probes failed", first.message(), count - 1);
            Err(Failure { messages: vec![message], ..first })
        }
    }
}

pub(crate) fn del(places: &Places, options: &Detach) -> Outcome {
    let list = list_for_del(places, &options.attach)?;
    let (runtime, mut container) = prepare_with(places, &options.attach)?;
    if let Some(found) = find_attachment(&runtime, &list, &options.attach, &container)? {
        if found.is_foreign() && !options.force {
            return Err(Failure::new(format!("{} was created by another runtime", found.describe()))
                .hint("remove the container with that runtime, or repeat the command with --force"));
        }
        found.apply(&mut container);
    }
    if !options.force
        && let Some(owner) = super::find::other_owner(&runtime, &list, &container)?
    {
        return Err(Failure::new(format!(
            "interface `{}` of this namespace belongs to {owner}",
            container.ifname
        ))
        .hint("detach that container by its own network and ID, or repeat the command with --force"));
    }
    Ok(runtime.del(&list, &container)?)
}

/// Returns the cached attachment that the arguments name, or `None` if they name it exactly or nothing is cached.
fn find_attachment(
    runtime: &Runtime,
    list: &NetworkList,
    options: &Attach,
    container: &Container,
) -> Outcome<Option<super::find::Found>> {
    if options.arguments.container_id.as_ref().is_some_and(|id| !id.is_empty()) {
        return Ok(None);
    }
    let target = Target::new(&options.netns.to_string_lossy());
    let ifname = options.arguments.ifname.as_deref().filter(|name| !name.is_empty());
    super::find::find(runtime, list, &target, ifname, container)
}

pub(crate) fn status(places: &Places, options: &Network) -> Outcome {
    let list = load::network(&places.conf_dir, &options.network)?;
    for problem in install::foreign_plugins(&netloom_invoke::split_path(&places.bin_path)) {
        note(format!("netloom: {problem}"));
    }
    let runtime = places.runtime();
    if !runtime.has_status(&list)? {
        runtime.validate(&list)?;
        note(format!(
            "netloom: network `{}` has version {}, and STATUS exists since 1.1.0: only the existence and the versions of its \
             plugins were checked",
            list.name, list.cni_version
        ));
        return Ok(());
    }
    Ok(runtime.status(&list)?)
}

pub(crate) fn version(places: &Places, options: &VersionOf) -> Outcome {
    let Some(network) = &options.network else {
        let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
        say(format!("netloom {}", env!("CARGO_PKG_VERSION")));
        say(format!("CNI protocol versions supported: {}", versions.join(", ")));
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
#[command(name = "cnitool", version, about = "Attach network namespaces to networks, check and detach them")]
struct Cnitool {
    #[command(subcommand)]
    verb: CnitoolVerb,
}

#[derive(Debug, Subcommand)]
enum CnitoolVerb {
    /// Attach a network namespace to a network
    Add(Attach),
    /// Check that an attachment still matches the result of add
    Check(Check),
    /// Detach a network namespace from a network
    Del(Detach),
    /// Remove attachments of namespaces that no longer exist
    Gc(Network),
    /// Check whether a network is ready for add
    Status(Network),
}

/// Runs as cnitool: reads configurations from NETCONFPATH and plugins from CNI_PATH, which has no default.
pub(crate) fn main() -> Outcome {
    let Cnitool { verb } = parse();
    let variable = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
    let places = Places {
        conf_dir: variable("NETCONFPATH").unwrap_or_else(|| "/etc/cni/net.d".into()).into(),
        bin_path: variable("CNI_PATH").unwrap_or_default(),
        state_dir: variable("NETLOOM_STATE").unwrap_or_else(|| "/var/lib/cni".into()).into(),
        is_private: false,
    };
    match verb {
        CnitoolVerb::Add(options) => add(&places, &options),
        CnitoolVerb::Check(options) => check(&places, &options),
        CnitoolVerb::Del(options) => del(&places, &options),
        CnitoolVerb::Gc(options) => gc::quietly(&places, options.network),
        CnitoolVerb::Status(options) => status(&places, &options),
    }
}

fn prepare(places: &Places, options: &Attach) -> Outcome<(Runtime, NetworkList, Container)> {
    let list = load::network(&places.conf_dir, &options.network)?;
    let (runtime, container) = prepare_with(places, options)?;
    Ok((runtime, list, container))
}

/// Returns the network's configuration. If its file is gone, the one that an ADD of this network was called with.
fn list_for_del(places: &Places, options: &Attach) -> Outcome<NetworkList> {
    let error = match load::network(&places.conf_dir, &options.network) {
        Err(error @ (Error::NotFound { .. } | Error::NoConfigs(_))) => error,
        other => return Ok(other?),
    };
    let cached = places.runtime().attachments()?.into_iter().filter(|entry| entry.network == options.network);
    let list = cached.filter_map(|entry| entry.network_list()).next_back().ok_or(error)?;
    note(format!(
        "netloom: network `{}` has no file in {}: using the configuration of its last cached attachment",
        options.network,
        places.conf_dir.display()
    ));
    Ok(list)
}

fn prepare_with(places: &Places, options: &Attach) -> Outcome<(Runtime, Container)> {
    let netns = netns_path(&options.netns)?;
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
    Ok((places.runtime(), container))
}

/// Returns the path of a namespace that is given as a path, as a name in /run/netns or as a process ID.
fn netns_path(given: &Path) -> std::io::Result<PathBuf> {
    if given.components().count() == 1 && given.is_relative() {
        let named = Path::new("/run/netns").join(given);
        let of_process = Path::new("/proc").join(given).join("ns/net");
        let is_pid = given.as_os_str().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if named.exists() {
            return Ok(named);
        }
        if is_pid && of_process.exists() {
            return Ok(of_process);
        }
    }
    std::path::absolute(given)
}

/// Returns the ID that cnitool derives from a path: `cnitool-` and the first ten bytes of its SHA-512 in hexadecimal.
fn container_id(netns: &Path) -> String {
    let digest = Sha512::hash(netns.display().to_string());
    digest.iter().take(10).fold("cnitool-".to_owned(), |mut id, byte| {
        write!(id, "{byte:02x}").ok();
        id
    })
}

/// Splits CNI_ARGS. Like cnitool, requires a key and a value in each pair.
fn pairs(text: &str) -> Outcome<Vec<(String, String)>> {
    text.split(';')
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() && !value.contains('=') => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => {
                Err(Failure::new(format!("invalid CNI_ARGS pair `{pair}`")).hint("write KEY=VALUE;KEY=VALUE"))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V71: the ID that cnitool derives from a path.
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
