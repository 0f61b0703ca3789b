//! `netloom run`: runs a command in a new network namespace that is attached to a network.

mod child;
mod dns;
mod ports;
mod relay;
mod signals;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use netloom_runtime::{
    Container, load,
    types::{NetworkList, Object, PluginConfig, address::parse_ip},
};
use serde_json::{Value, json};

use self::{
    ports::{Mapping, Publish},
    relay::Relays,
    signals::Caught,
};
use super::{
    Failure, Outcome, Places, networks::Source, note, temporary_netns::TemporaryNetns,
    unprivileged::require_capabilities,
};

/// Exit code if this program fails and not the command, as that of `docker run`.
pub(crate) const OWN_FAILURE: u8 = 125;

/// Options of `netloom run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Name of the network. Defaults to the first configured network, or else the embedded one.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    network: Option<String>,
    /// File with the network's configuration (.conflist, .conf or .json)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Publish a port of the container, or a range FIRST-LAST of them. May be repeated.
    ///
    /// Publish on all addresses of the host, or on IP. Without HOST choose a free port, and print it. Choose one of HOST if that is a
    /// range and CONTAINER is not. PROTOCOL is tcp (default), udp or sctp.
    #[arg(short, long, value_name = "[[IP:][HOST]:]CONTAINER[/PROTOCOL]")]
    publish: Vec<Publish>,
    /// Name server for the command. May be repeated. Defaults to the network's name servers, or else the host's.
    #[arg(long, value_name = "IP", value_parser = |text: &str| parse_ip(text).map(|ip| ip.to_string()))]
    dns: Vec<String>,
    /// Command to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) fn run(places: &Places, options: &Options) -> Outcome<ExitCode> {
    require_capabilities("run")?;
    let (list, source) = match &options.config {
        Some(file) => (load::file(file)?, Source::Configured),
        None => places.network(options.network.as_deref())?,
    };
    require_port_mappings(&list, options)?;
    let _folder = places.prepare()?;
    let list = places.with_own_reservations(list)?;
    let runtime = match source {
        Source::Configured => places.runtime_with_own_plugins()?,
        Source::Embedded => {
            note(format!(
                "netloom: no network in {}, using the embedded one (bridge netloom0)",
                places.conf_dir.display()
            ));
            places.own_runtime()?
        }
    };
    // From here on this process lives until it has cleaned up.
    let signals = Caught::new()?;
    let temporary = TemporaryNetns::create(places, "run")?;
    let (mappings, choosing) = ports::choose(places, &runtime, &options.publish)?;
    let relays = Relays::listen(&mappings)?;
    let mut container = Container::new(&temporary.id, temporary.path());
    container.capability_args = capability_args(options, &mappings);
    // The namespace is new, so that DEL cannot remove another attachment's interface. A plugin that failed may have
    // created something.
    let result = runtime.add(&list, &container).map_err(|error| {
        if let Err(error) = runtime.del(&list, &container) {
            note(format!("netloom: cannot clean up after the failed ADD: {error}"));
        }
        Failure::from(error)
    })?;
    drop(choosing);
    for mapping in mappings.iter().filter(|mapping| mapping.chosen) {
        note(format!("netloom: published {mapping}"));
    }
    let addresses: Vec<_> = result.clone().into_current().ips.iter().map(|ip| ip.address.addr()).collect();
    relays.start(&addresses);
    let resolv_conf = dns::resolv_conf(&options.dns, &result);
    let ended = child::run(&options.command, &temporary.netns, resolv_conf.as_deref(), signals);
    drop(relays);
    let detached = runtime.del(&list, &container).map_err(Failure::from);
    // The first error is the one to report, and a command that failed has its exit code.
    match (ended, detached) {
        (Ok(0), Err(failure)) => Err(failure),
        (ended, detached) => {
            if let Err(failure) = detached {
                note(format!("netloom: cannot detach the command's namespace: {}", failure.message()));
            }
            ended.map(ExitCode::from)
        }
    }
}

/// Refuses `--publish` on a network that would ignore it.
fn require_port_mappings(list: &NetworkList, options: &Options) -> Outcome {
    let capability = "portMappings";
    let declares = |plugin: &PluginConfig| plugin.capabilities().iter().any(|name| name == capability);
    if options.publish.is_empty() || list.plugins.iter().any(declares) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "cannot publish ports: no plugin of network `{}` has the capability `{capability}`",
        list.name
    ))
    .hint(r#"add the plugin portmap to the network: {"type": "portmap", "capabilities": {"portMappings": true}}"#))
}

fn capability_args(options: &Options, mappings: &[Mapping]) -> Object {
    let mut offered = Object::new();
    if !mappings.is_empty() {
        let mappings: Vec<Value> = mappings.iter().map(|mapping| mapping.to_value()).collect();
        offered.insert("portMappings".into(), mappings.into());
    }
    if !options.dns.is_empty() {
        offered.insert("dns".into(), json!({ "servers": options.dns }));
    }
    offered
}
