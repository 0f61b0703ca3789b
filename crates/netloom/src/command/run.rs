//! `netloom run`: runs a command in a new network namespace that is attached to a network.

mod dns;
mod ports;

use std::{
    fs,
    io::Write as _,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ExitCode, ExitStatus},
    thread,
};

use clap::Args;
use kernel::Netns;
use netloom_runtime::{
    Container, load,
    types::{CniResult, NetworkList, Object, PluginConfig, address::parse_ip},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use self::ports::{Mapping, Publish};
use super::{Failure, Outcome, Places, networks::Source, note, temporary_netns::TemporaryNetns};

/// Exit codes, as those of `docker run`: this program failed, the command cannot be executed, the command does not exist.
pub(crate) const OWN_FAILURE: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

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
    let (list, source) = match &options.config {
        Some(file) => (load::file(file)?, Source::Configured),
        None => places.network(options.network.as_deref())?,
    };
    require_port_mappings(&list, options)?;
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
    // From here on signals are forwarded to the command, and this process lives on to clean up.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let temporary = TemporaryNetns::create(places, "run")?;
    let (mappings, choosing) = ports::choose(places, &runtime, &options.publish)?;
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
    let ended = start(options, &temporary, &result).and_then(|mut child| {
        let handle = signals.handle();
        let pid = Pid::from_child(&child);
        let forward = thread::spawn(move || {
            for signal in signals.forever() {
                // The terminal sends SIGINT to the command itself.
                if signal == SIGTERM || signal == SIGHUP {
                    kill_process(pid, Signal::TERM).ok();
                }
            }
        });
        let status = child.wait();
        handle.close();
        drop(forward.join());
        status.map_err(Failure::from)
    });
    let detached = runtime.del(&list, &container);
    // The first error is the one to report.
    match (ended, detached) {
        (Ok(status), detached) => detached.map(|()| exit_code(status)).map_err(Failure::from),
        (Err(failure), detached) => {
            if let Err(error) = detached {
                note(format!("netloom: cannot detach the command's namespace: {error}"));
            }
            Err(failure)
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

/// Starts the command from a new thread, which enters the namespace and then ends.
fn start(options: &Options, temporary: &TemporaryNetns, result: &CniResult) -> Outcome<Child> {
    let resolv_conf = dns::resolv_conf(&options.dns, result);
    thread::scope(|scope| {
        let spawned = scope.spawn(|| spawn(&options.command, &temporary.netns, resolv_conf.as_deref()));
        spawned.join().unwrap_or_else(|_| Err(Failure::new("the thread that starts the command panicked")))
    })
}

fn spawn(command: &[String], netns: &Netns, resolv_conf: Option<&str>) -> Outcome<Child> {
    netns.enter()?;
    // /sys shows the network namespace in which it was mounted, so the command needs a mount namespace with its own.
    kernel::netns::unshare_mounts()?;
    kernel::netns::mount_sys()?;
    if let Some(text) = resolv_conf
        && Path::new("/etc/resolv.conf").exists()
    {
        let path = std::env::temp_dir().join(format!("netloom-resolv-{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
        let mounted = file
            .write_all(text.as_bytes())
            .map_err(Failure::from)
            .and_then(|()| Ok(kernel::netns::mount_file(&path, Path::new("/etc/resolv.conf"))?));
        // The mount keeps the file alive without its name.
        fs::remove_file(&path)?;
        mounted?;
    }
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::new("no command was given"))?;
    std::process::Command::new(program).args(arguments).spawn().map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        Failure::new(format!("cannot run `{program}`: {error}")).or_code(code)
    })
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

/// Returns the command's exit code, or 128 plus the signal's number as shells do.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
