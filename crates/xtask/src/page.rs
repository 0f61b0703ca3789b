//! `cargo xtask page`: serves the daemon's web page with a made-up cluster, or draws it for docs/cluster.md.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};

use crate::{Outcome, root, say};

/// The pictures: number of nodes, width and height in pixels, file.
const PICTURES: [(usize, u32, u32, &str); 2] =
    [(12, 1180, 640, "docs/page-small.png"), (5000, 1180, 730, "docs/page-large.png")];

/// Serves the page for a number of nodes on `127.0.0.1:9471`, or draws the pictures (`--pictures`, which needs chromium).
pub(crate) fn page(arguments: &[String]) -> Outcome {
    if arguments.first().is_some_and(|argument| argument == "--pictures") {
        return PICTURES.iter().try_for_each(|(nodes, width, height, file)| {
            let listener = listen("127.0.0.1:0")?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            let nodes = *nodes;
            std::thread::spawn(move || serve(&listener, nodes));
            draw(&format!("http://{address}/"), (*width, *height), &root().join(file))
        });
    }
    let nodes =
        arguments.first().map_or(Ok(50), |nodes| nodes.parse().map_err(|_| format!("{nodes}: not a number")));
    let listener = listen("127.0.0.1:9471")?;
    say("http://127.0.0.1:9471/");
    serve(&listener, nodes?);
    Ok(())
}

fn listen(address: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|error| format!("{address}: {error}"))
}

/// Takes a picture of a page with chromium.
fn draw(url: &str, (width, height): (u32, u32), file: &Path) -> Outcome {
    let done = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--disable-lcd-text",
            "--virtual-time-budget=3000",
        ])
        .arg(format!("--window-size={width},{height}"))
        .arg(format!("--screenshot={}", file.display()))
        .arg(url)
        .output()
        .map_err(|error| format!("chromium: {error}"))?;
    if !done.status.success() || !file.exists() {
        return Err(format!("chromium: {}", String::from_utf8_lossy(&done.stderr)));
    }
    say(&format!("wrote {}", file.display()));
    Ok(())
}

fn serve(listener: &TcpListener, nodes: usize) {
    let status = status(nodes).to_string();
    for stream in listener.incoming().flatten() {
        // A client that goes away is no error.
        drop(answer(stream, &format!("\"{nodes}\""), &status));
    }
}

fn answer(mut stream: TcpStream, tag: &str, status: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default();
    let mut is_known = false;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        is_known |= line.eq_ignore_ascii_case(&format!("if-none-match: {tag}"));
    }
    let of_page = |name: &str| std::fs::read_to_string(root().join("crates/node/src/page").join(name));
    let (code, kind, text) = match path {
        "/" => ("200 OK", "text/html", of_page("page.html")?),
        "/page.css" => ("200 OK", "text/css", of_page("page.css")?),
        "/page.js" => ("200 OK", "text/javascript", of_page("page.js")?),
        "/status" if is_known => ("304 Not Modified", "application/json", String::new()),
        "/status" => ("200 OK", "application/json", status.to_owned()),
        "/pods" => ("200 OK", "application/json", pods().to_string()),
        _ => ("404 Not Found", "text/plain", String::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {code}\r\ncontent-type: {kind}; charset=utf-8\r\netag: {tag}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )
}

/// A time at which everything was well: 2026-03-01.
const TIME: u64 = 1_772_323_200;

/// Returns the status of a node in a made-up cluster with nodes in each state.
fn status(nodes: usize) -> Value {
    let peers: Vec<Value> = (2..=nodes).map(|number| peer(number, nodes)).collect();
    let repair = |minute: u64, changes: Value| json!({"at": TIME + 60 * minute, "changes": changes});
    json!({
        "node": name(1), "ready": true, "problems": [], "notes": [],
        "networks": [{"name": "netloom", "mode": "auto", "mtu": 1450}],
        "addresses": ["192.0.2.1", "2001:db8::1"],
        "blocks": [
            {"prefix": "10.236.1.0/24", "used": POD_COUNT, "size": 253},
            {"prefix": "fd44:0:0:1::/64", "used": POD_COUNT, "size": 281_474_976_710_641_u64},
        ],
        "peers": peers,
        "store": {"kind": "etcd", "connected": true, "problem": null, "refusedClaims": 0, "refused": []},
        "repairs": [
            repair(4, json!({"rulesets": 1})),
            repair(95, json!({"routes": 2, "devices": 1, "neighbours": 14, "forwardingEntries": 14})),
            repair(310, json!({"settings": 1})),
        ],
        "faults": [
            {"problem": "the store cannot be reached; the last view stays in use: connection refused", "since": TIME + 7000, "until": TIME + 7042},
            {"problem": "a route to 10.236.9.0/24 that another program set is in the way", "since": TIME + 11000, "until": TIME + 11300},
        ],
        "counters": {"comparisons": 900, "changes": 10_200, "repairs": 32, "refusals": 0, "reopened": 0, "longestMicros": 42_000},
    })
}

fn name(number: usize) -> String {
    format!("node-{number:04}")
}

/// The nodes of a segment. The first segment is this node's.
const SEGMENT: usize = 240;

fn peer(number: usize, nodes: usize) -> Value {
    // A small cluster has several segments too.
    let size = SEGMENT.min((nodes / 3).max(2));
    let (segment, host) = ((number - 1) / size, (number - 1) % size + 1);
    let is_down = segment == 7 && host < 40;
    let is_silent = number % 211 == 6 || is_down;
    let problem = match number {
        _ if is_silent => Some(
            "its daemon does not renew its lease: it is down, or cut off from the store; its routes stay"
                .into(),
        ),
        _ if number % 1301 == 9 => Some(format!(
            "the node claims block 10.{}.{host}.0/24, but `docker0` of this host is in 10.{0}.{host}.0/24",
            236 + number / 256,
            host = number % 256
        )),
        _ if number % 1777 == 12 => Some("the node and this host have no address family in common".into()),
        _ => None,
    };
    let answers = match number {
        _ if is_silent || number % 307 == 11 => Some(false),
        _ if nodes > SEGMENT && number + 90 > nodes => None,
        _ => Some(true),
    };
    let path = match (number % 1777 == 12, segment) {
        (true, _) => None,
        (_, 0) => Some("direct"),
        _ => Some("tunnel"),
    };
    let addresses = match segment {
        0 => [format!("192.0.2.{host}"), format!("2001:db8::{host:x}")],
        _ => [format!("198.18.{segment}.{host}"), format!("2001:db8:0:{segment:x}::{host:x}")],
    };
    json!({
        "name": name(number), "path": path, "problem": problem, "addresses": addresses,
        "blocks": [format!("10.{}.{}.0/24", 236 + number / 256, number % 256), format!("fd44:0:0:{number:x}::/64")],
        "silentSeconds": is_silent.then_some(60 * number), "answers": answers,
        "rttUs": (answers == Some(true)).then_some(180 + 37 * (number % 29) + if segment == 0 { 0 } else { 400 }),
    })
}

const POD_COUNT: usize = 14;

fn pods() -> Value {
    let pod = |number: usize| {
        let container = format!("{:016x}", (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let of = |address: String| json!({"network": "netloom", "address": address, "container": container, "interface": "eth0"});
        [of(format!("10.236.1.{}", number + 2)), of(format!("fd44:0:0:1::{:x}", number + 2))]
    };
    (0..POD_COUNT).flat_map(pod).collect()
}
