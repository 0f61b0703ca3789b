//! The etcd server of a measurement: its JSON gateway, over which records are written, and its own metrics.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{Read, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{Outcome, cluster::ETCD, host::Host};

/// Nodes whose keys are written in a transaction: etcd's limit is 128 operations.
const AT_ONCE: usize = 30;

/// The server, as a host reaches it.
#[derive(Clone, Copy)]
pub(super) struct Store<'a>(pub(super) &'a Host);

impl Store<'_> {
    /// Makes a request over a connection of its own, and returns the answer's body.
    fn ask(self, request: &str) -> Result<String, String> {
        let exchange = || {
            let mut stream = TcpStream::connect(ETCD)?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let answer = self.0.inside(exchange)?.map_err(|error| format!("etcd: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if head.contains(" 200 ") { Ok(body.to_owned()) } else { Err(format!("etcd: {answer}")) }
    }

    fn post(self, path: &str, body: &str) -> Outcome {
        self.ask(&format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())).map(drop)
    }

    /// Writes one key, and returns how long that took.
    pub(super) fn put(self, key: &str, value: &str) -> Result<Duration, String> {
        let started = Instant::now();
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        self.post("/v3/kv/put", &format!(r#"{{"key":"{key}","value":"{value}"}}"#))?;
        Ok(started.elapsed())
    }

    /// Writes all keys of nodes, as their daemons would.
    pub(super) fn add_nodes(self, numbers: impl Iterator<Item = u32>) -> Outcome {
        let numbers: Vec<u32> = numbers.collect();
        for part in numbers.chunks(AT_ONCE) {
            let puts = part.iter().flat_map(|number| keys(*number)).map(|(key, value)| {
                let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
                format!(r#"{{"requestPut":{{"key":"{key}","value":"{value}"}}}}"#)
            });
            let puts: Vec<String> = puts.collect();
            self.post("/v3/kv/txn", &format!(r#"{{"success":[{}]}}"#, puts.join(",")))?;
        }
        Ok(())
    }

    /// Reads the server's metrics.
    pub(super) fn load(self) -> Result<Load, String> {
        let text = self.ask("GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut load = Load::default();
        for (name, value) in text.lines().filter_map(|line| line.rsplit_once(' ')) {
            let value: f64 = value.parse().unwrap_or_default();
            if name.starts_with("grpc_server_msg_received_total") {
                let method = name.split("grpc_method=\"").nth(1).and_then(|rest| rest.split('"').next());
                *load.requests.entry(method.unwrap_or_default().to_owned()).or_default() += value;
            } else if name == "etcd_network_client_grpc_sent_bytes_total" {
                load.sent = value;
            } else if name == "etcd_network_client_grpc_received_bytes_total" {
                load.received = value;
            } else if name == "etcd_debugging_mvcc_watcher_total" {
                load.watches = value;
            }
        }
        Ok(load)
    }
}

/// What the server has counted since it started.
#[derive(Clone, Default)]
pub(super) struct Load {
    /// Requests by method; each message of a stream is one.
    requests: BTreeMap<String, f64>,
    sent: f64,
    received: f64,
    /// The number of open watches.
    pub(super) watches: f64,
}

impl Load {
    /// Returns what was counted after an earlier reading.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let mut requests = self.requests.clone();
        for (method, count) in &mut requests {
            *count -= earlier.requests.get(method).copied().unwrap_or_default();
        }
        let (sent, received) = (self.sent - earlier.sent, self.received - earlier.received);
        Self { requests, sent, received, watches: self.watches }
    }

    /// Describes the load, divided by a number.
    pub(super) fn per(&self, number: f64) -> String {
        let (mut text, mut sum) = (String::new(), 0.0);
        for (method, count) in self.requests.iter().filter(|(_, count)| **count > 0.0) {
            sum += count / number;
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{} {method} {:.1}", if text.is_empty() { "" } else { "," }, count / number);
        }
        format!(
            "{sum:.1} requests ({}), {:.1} kB to daemons, {:.1} kB from them",
            text.trim(),
            self.sent / number / 1e3,
            self.received / number / 1e3
        )
    }
}

/// Returns a node's name and its record as a daemon writes it.
pub(super) fn record(number: u32) -> (String, String) {
    let name = format!("node{number:05}");
    let (high, low) = (number / 250, number % 250 + 1);
    let (block4, block6) = (block4(number), format!("fd44:0:{number:x}::/64"));
    let id = format!("00000000-0000-4000-8000-{number:012}");
    let record = format!(
        r#"{{"name":"{name}","addresses":["10.64.{high}.{low}","2001:db8:64:{high:x}::{low:x}"],"blocks":["{block4}","{block6}"],"tunnel":{{"vni":4242,"port":4789}},"incarnation":"{id}","instance":"{id}"}}"#
    );
    (name, record)
}

/// Returns a node's IPv4 block.
pub(super) fn block4(number: u32) -> String {
    format!("10.{}.{}.0/24", 128 + number / 256, number % 256)
}

/// Returns all keys of a node.
fn keys(number: u32) -> [(String, String); 4] {
    let (name, record) = record(number);
    let blocks = [block4(number).replace('/', "-"), format!("fd44:0:{number:x}::-64")];
    let [block4, block6] = blocks.map(|block| (format!("/netloom/blocks/{block}"), name.clone()));
    let id = format!("00000000-0000-4000-8000-{number:012}");
    [(format!("/netloom/nodes/{name}"), record), block4, block6, (format!("/netloom/alive/{name}"), id)]
}
