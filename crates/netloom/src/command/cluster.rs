//! `netloom cluster`: the nodes of the cluster as this node's daemon sees them.

use std::{
    io::{IsTerminal, Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
};

use clap::Args;
use ipnet::IpNet;
use kernel::printable;
use serde_json::Value;

use super::{Failure, Outcome, list::table, note, say, say_json, say_lines};

const SOCKET: &str = "/run/netloom/netloomd.sock";

/// The number of peers listed in a terminal.
const SHOWN: usize = 50;

/// Options of `netloom cluster`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// List every peer. In a terminal, only the first 50 are listed, those that are not well first.
    #[arg(long)]
    all: bool,
    /// Socket of the daemon.
    #[arg(long, env = "NETLOOMD_SOCKET", value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

pub(crate) fn cluster(options: &Options) -> Outcome {
    let status = query(&options.socket).map_err(|error| {
        Failure::new(format!("cannot query netloomd at {}: {error}", options.socket.display()))
            .hint("run as root, check `systemctl status netloomd`, or set --socket to the daemon's socket")
    })?;
    if options.json {
        say_json(serde_json::to_string_pretty(&status).unwrap_or_default());
        return Ok(());
    }
    let ready = if status["ready"] == true { "ready" } else { "not ready" };
    let store = if status["store"]["connected"] == true { "connected" } else { "disconnected" };
    say(format!("{}: {ready}, store {} {store}", text(&status["node"]), text(&status["store"]["kind"])));
    for network in status["networks"].as_array().into_iter().flatten() {
        say(format!(
            "  network {}: mode {}, MTU {}",
            text(&network["name"]),
            text(&network["mode"]),
            network["mtu"]
        ));
    }
    for block in status["blocks"].as_array().into_iter().flatten() {
        say(format!(
            "  block {}: {} of {} addresses in use",
            text(&block["prefix"]),
            block["used"].as_u64().map_or("unknown".to_owned(), |used| used.to_string()),
            block["size"]
        ));
    }
    let shortened = !options.all && std::io::stdout().is_terminal();
    show_peers(
        status["peers"].as_array().map_or(&[], Vec::as_slice),
        if shortened { SHOWN } else { usize::MAX },
    );
    for problem in [&status["problems"], &status["notes"], &status["store"]["refused"]] {
        problem.as_array().into_iter().flatten().for_each(|problem| note(text(problem)));
    }
    Ok(())
}

/// Lists peers, those that are not well first, behind a line that counts them.
fn show_peers(peers: &[Value], most: usize) {
    let mut peers: Vec<(State, &Value)> = peers.iter().map(|peer| (State::of(peer), peer)).collect();
    peers.sort_by_key(|(state, _)| *state);
    say(format!("  {} peers{}", peers.len(), counted(&peers)));
    let mut table = table(&["NODE", "PATH", "RTT", "ADDRESSES", "BLOCKS", "PROBLEM"]);
    let shown = |value: &Value| printable(&text(value)).into_owned();
    let list =
        |value: &Value| value.as_array().into_iter().flatten().map(shown).collect::<Vec<_>>().join("\n");
    let or_none = |value: &Value, none: &str| printable(value.as_str().unwrap_or(none)).into_owned();
    for (_, peer) in peers.iter().take(most) {
        let answers = match (&peer["answers"], peer["rttUs"].as_f64()) {
            (Value::Bool(true), Some(micros)) => format!("{:.2} ms", micros / 1000.0),
            (Value::Bool(false), _) => "no".to_owned(),
            _ => "?".to_owned(),
        };
        table.add_row([
            shown(&peer["name"]),
            or_none(&peer["path"], "none"),
            answers,
            list(&peer["addresses"]),
            list(&peer["blocks"]),
            or_none(&peer["problem"], ""),
        ]);
    }
    say("");
    say_lines(table.trim_fmt());
    if let Some(others) = peers.get(most..).filter(|others| !others.is_empty()) {
        say("");
        say(format!("{} more peers{}; `--all` lists them", others.len(), counted(others)));
    }
}

/// The state of a peer, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Problem,
    Silent,
    NoAnswer,
    NotProbed,
    Answers,
}

impl State {
    const ALL: [(Self, &str); 5] = [
        (Self::Problem, "with a problem"),
        (Self::Silent, "silent"),
        (Self::NoAnswer, "without an answer"),
        (Self::NotProbed, "not probed yet"),
        (Self::Answers, "answering"),
    ];

    fn of(peer: &Value) -> Self {
        // A silent peer has a problem too, which says so.
        match (&peer["silentSeconds"], &peer["problem"], &peer["path"], &peer["answers"]) {
            (Value::Number(_), ..) => Self::Silent,
            (_, Value::String(_), ..) | (_, _, Value::Null, _) => Self::Problem,
            (.., Value::Bool(true)) => Self::Answers,
            (.., Value::Bool(false)) => Self::NoAnswer,
            _ => Self::NotProbed,
        }
    }
}

/// Returns the number of peers in each state, as a text that follows the number of all.
fn counted(peers: &[(State, &Value)]) -> String {
    let number = |state| peers.iter().filter(|(of, _)| *of == state).count();
    let counts =
        State::ALL.iter().map(|(state, text)| (number(*state), text)).filter(|(number, _)| *number > 0);
    let texts: Vec<String> = counts.map(|(number, text)| format!("{number} {text}")).collect();
    if texts.is_empty() { String::new() } else { format!(": {}", texts.join(", ")) }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What this node's daemon knows of the node that an address belongs to.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// Direct or tunnel, as the daemon writes it.
    pub(crate) path: String,
    pub(crate) problem: String,
}

/// Finds the node that has an address and does not answer. Returns `None` without a daemon.
pub(crate) fn silent_peer(ip: IpAddr) -> Option<Peer> {
    let socket = std::env::var_os("NETLOOMD_SOCKET").map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let status = query(&socket).ok()?;
    let has = |list: &Value| {
        let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut nets = texts.filter_map(|text| {
            text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        });
        nets.any(|net| net.contains(&ip))
    };
    let peer =
        status["peers"].as_array()?.iter().find(|peer| has(&peer["blocks"]) || has(&peer["addresses"]))?;
    let text = |key: &str| peer[key].as_str().unwrap_or_default().to_owned();
    let is_silent = peer["answers"] == false || !text("problem").is_empty();
    is_silent.then(|| Peer { name: text("name"), path: text("path"), problem: text("problem") })
}

/// Queries the daemon's HTTP endpoint. With HTTP/1.0 the end of the connection ends the response.
fn query(socket: &PathBuf) -> std::io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    Ok(serde_json::from_str(body)?)
}
