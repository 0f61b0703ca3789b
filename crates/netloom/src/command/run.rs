//! `netloom run`: runs a command in a new network namespace that is attached to a network.

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
    /// Publish a port of the container. PROTOCOL is tcp (default), udp or sctp. May be repeated.
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]", value_parser = parse_port)]
    publish: Vec<Value>,
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
    let mut container = Container::new(&temporary.id, temporary.path());
    container.capability_args = capability_args(options);
    // The namespace is new, so that DEL cannot remove another attachment's interface. A plugin that failed may have
    // created something.
    let result = runtime.add(&list, &container).map_err(|error| {
        if let Err(error) = runtime.del(&list, &container) {
            note(format!("netloom: cannot clean up after the failed ADD: {error}"));
        }
        Failure::from(error)
    })?;
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
    let resolv_conf = resolv_conf(options, result);
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

fn resolv_conf(options: &Options, result: &CniResult) -> Option<String> {
    let dns = result.clone().into_current().dns;
    let servers = if options.dns.is_empty() { &dns.nameservers } else { &options.dns };
    if servers.is_empty() {
        return match reachable(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()) {
            Reachable::All => None,
            Reachable::Some(text) => Some(text),
            Reachable::None => {
                // systemd-resolved listens on the host's loopback and keeps the servers that it asks in this file.
                let upstream = fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or_default();
                match reachable(&upstream) {
                    Reachable::All if !upstream.is_empty() => Some(upstream),
                    Reachable::Some(text) => Some(text),
                    _ => {
                        note(
                            "netloom: the host's name servers are on its loopback, which the command cannot reach: \
                             name one with --dns",
                        );
                        None
                    }
                }
            }
        };
    }
    let mut lines: Vec<String> = servers.iter().map(|server| format!("nameserver {server}")).collect();
    if !dns.search.is_empty() {
        lines.push(format!("search {}", dns.search.join(" ")));
    }
    if !dns.options.is_empty() {
        lines.push(format!("options {}", dns.options.join(" ")));
    }
    Some(lines.join("\n") + "\n")
}

fn capability_args(options: &Options) -> Object {
    let mut offered = Object::new();
    if !options.publish.is_empty() {
        offered.insert("portMappings".into(), options.publish.clone().into());
    }
    if !options.dns.is_empty() {
        offered.insert("dns".into(), json!({ "servers": options.dns }));
    }
    offered
}

/// Parses `[IP:]HOST:CONTAINER[/PROTOCOL]`, with an IPv6 address in brackets.
fn parse_port(text: &str) -> Result<Value, String> {
    let usage = || format!("`{text}` does not have the form [IP:]HOST:CONTAINER[/tcp|udp|sctp]");
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !["tcp", "udp", "sctp"].contains(&protocol) {
        return Err(usage());
    }
    let (rest, container) = ports.rsplit_once(':').ok_or_else(usage)?;
    let (ip, host) = match rest.rsplit_once(':') {
        None => ("", rest),
        Some((ip, host)) => (ip.trim_start_matches('[').trim_end_matches(']'), host),
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(usage);
    let mut mapping = json!({
        "hostPort": port(host)?,
        "containerPort": port(container)?,
        "protocol": protocol,
    });
    if !ip.is_empty() {
        mapping["hostIP"] = parse_ip(ip).map_err(|error| error.to_string())?.to_string().into();
    }
    Ok(mapping)
}

/// Returns the command's exit code, or 128 plus the signal's number as shells do.
/// The name servers of a resolv.conf(5) that another network namespace can reach.
#[derive(Debug, PartialEq, Eq)]
enum Reachable {
    /// All of them, or the file names none.
    All,
    /// Some of them: the file without the others.
    Some(String),
    None,
}

/// Leaves out name servers on the host's loopback, and those whose IPv6 scope is a link of the host.
fn reachable(text: &str) -> Reachable {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().unwrap_or_default().to_owned())
    };
    let is_local = |server: &str| server.contains('%') || parse_ip(server).is_ok_and(|ip| ip.is_loopback());
    let servers: Vec<String> = text.lines().filter_map(server).collect();
    let local = servers.iter().filter(|server| is_local(server)).count();
    match local {
        0 => Reachable::All,
        _ if local == servers.len() => Reachable::None,
        _ => {
            let kept = text.lines().filter(|line| !server(line).is_some_and(|server| is_local(&server)));
            Reachable::Some(kept.map(|line| format!("{line}\n")).collect())
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_the_loopback_are_left_out() {
        assert_eq!(reachable("nameserver 192.0.2.1\nsearch a b\n"), Reachable::All);
        assert_eq!(reachable(""), Reachable::All);
        assert_eq!(reachable("nameserver 127.0.0.53\nnameserver ::1\noptions edns0\n"), Reachable::None);
        assert_eq!(
            reachable("nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nsearch a\n"),
            Reachable::Some("nameserver 2001:db8::1\nsearch a\n".into())
        );
    }

    #[test]
    fn ports_are_read_with_and_without_address_and_protocol() {
        let cases = [
            ("8080:80", json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"})),
            ("53:5353/udp", json!({"hostPort": 53, "containerPort": 5353, "protocol": "udp"})),
            (
                "127.0.0.1:1:2/sctp",
                json!({"hostPort": 1, "containerPort": 2, "protocol": "sctp", "hostIP": "127.0.0.1"}),
            ),
            (
                "[fd00::1]:1:2",
                json!({"hostPort": 1, "containerPort": 2, "protocol": "tcp", "hostIP": "fd00::1"}),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_port(text), Ok(expected), "{text}");
        }
        for wrong in ["", "80", "0:80", "80:0", "80:70000", "80:80/icmp", "x:80:80", "a:b"] {
            assert!(parse_port(wrong).is_err(), "{wrong}");
        }
    }
}
