//! `portmap` alone: short and long lists of ports, on an idle host and on one that tracks many connections.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::{
    call::{Call, Side, run_chain},
    case::Case,
    measure::table,
};
use crate::{Outcome, host::Host, say};

/// The name in the output, and what `--only` selects.
pub(super) const NAME: &str = "published ports";
/// Numbers of connections that a host tracks already.
const TRACKED: [u32; 2] = [0, 100_000];
/// Length of the long lists.
const MANY: u16 = 1000;
/// Rounds with a long list.
const FEW_ROUNDS: usize = 10;

/// Numbers of rounds.
struct Rounds {
    netloom: usize,
    peers: usize,
}

/// Times ADD, CHECK and DEL of `portmap` with each list.
pub(super) fn ports(sides: &[Side], count: usize) -> Outcome {
    let half = MANY / 2;
    let lists = [
        ("1 TCP, 1 UDP", mappings(1, 1)),
        ("1000 TCP", mappings(MANY, 0)),
        ("1000 UDP", mappings(0, MANY)),
        ("500 TCP, 500 UDP", mappings(half, half)),
    ];
    for tracked in TRACKED {
        // New hosts: the connections of one host are not those of another.
        let hosts: Vec<Host> = sides.iter().map(|_| Host::new()).collect::<Result<_, _>>()?;
        for (side, host) in sides.iter().zip(&hosts) {
            prepare(side, host, tracked)?;
        }
        for (list, mappings) in &lists {
            let is_long = mappings.len() > 2;
            let rounds = Rounds {
                netloom: if is_long { count.min(FEW_ROUNDS) } else { count },
                // Long lists take the reference plugins up to ten seconds each, and minutes beside many connections.
                peers: if is_long { usize::from(tracked == 0) } else { count },
            };
            measure(sides, &hosts, &format!("{list}, {tracked} tracked"), mappings, &rounds)?;
        }
    }
    Ok(())
}

/// Returns a list of mappings of both protocols with the same ports.
fn mappings(tcp: u16, udp: u16) -> Vec<Value> {
    let list = |protocol: &'static str, length: u16| {
        (0..length).map(move |number| {
            json!({"hostPort": 8000 + number, "containerPort": 8000 + number, "protocol": protocol})
        })
    };
    list("tcp", tcp).chain(list("udp", udp)).collect()
}

fn case() -> Case {
    let ipam =
        json!({"type": "host-local", "ranges": [[{"subnet": "10.20.0.0/14"}], [{"subnet": "fd20::/64"}]]});
    let bridge = json!({"type": "bridge", "bridge": "cbr0", "isGateway": true, "ipam": ipam});
    Case { name: NAME, chain: vec![bridge, json!({"type": "portmap", "backend": "nftables"})] }
}

/// Lets a side create its tables, which makes the host track connections, and fills the kernel's table of them.
fn prepare(side: &Side, host: &Host, tracked: u32) -> Outcome {
    round(side, host, "first", &mappings(1, 1))?;
    if tracked == 0 {
        return Ok(());
    }
    let file = format!("/proc/{}/root/run/connections", host.pid());
    std::fs::write(&file, connections(tracked)).map_err(|error| format!("{file}: {error}"))?;
    host.sh("conntrack --load-file /run/connections >/dev/null 2>&1")?;
    let found = host.output("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
    say(&format!("{}: {} tracked connections", side.name, found.trim()));
    Ok(())
}

/// Returns the commands that create connections: three of four are IPv4, two of five are UDP.
fn connections(count: u32) -> String {
    let mut lines = String::new();
    for number in 0..count {
        let (a, b, port) = (number >> 8 & 255, number & 255, 1024 + number % 60_000);
        let (from, to) = if number % 4 == 0 {
            (format!("fd99::{a:x}:{b:x}"), "fd98::1")
        } else {
            (format!("198.18.{a}.{b}"), "198.19.0.1")
        };
        let kind =
            if number % 5 < 2 { "-p udp --dport 53" } else { "-p tcp --dport 443 --state ESTABLISHED" };
        let _ = writeln!(lines, "-A -s {from} -d {to} {kind} --sport {port} -t 86400 -u SEEN_REPLY,ASSURED");
    }
    lines
}

fn measure(sides: &[Side], hosts: &[Host], name: &str, mappings: &[Value], rounds: &Rounds) -> Outcome {
    const WARM_UP: usize = 2;
    // The last side is this repository's build.
    let last = sides.len() - 1;
    let mut rows: [Vec<Vec<Duration>>; 3] = std::array::from_fn(|_| vec![Vec::new(); sides.len()]);
    for number in 0..rounds.netloom + WARM_UP {
        for (index, (side, host)) in sides.iter().zip(hosts).enumerate() {
            let is_wanted = rounds.peers > 1 || number >= WARM_UP;
            if index != last && (number >= rounds.peers + WARM_UP || !is_wanted) {
                continue;
            }
            let times = round(side, host, &format!("p{number}"), mappings)?;
            if number >= WARM_UP {
                rows.iter_mut().zip(times).for_each(|(row, took)| row[index].push(took));
            }
        }
    }
    for (verb, rows) in ["ADD", "CHECK", "DEL"].into_iter().zip(&mut rows) {
        table(name, verb, sides, rows);
    }
    Ok(())
}

/// Attaches and detaches one container. Returns the times of ADD, CHECK and DEL of `portmap`.
fn round(side: &Side, host: &Host, container: &str, mappings: &[Value]) -> Result<[Duration; 3], String> {
    host.sh(&format!("ip netns add {container}"))?;
    let call = Call { side, host, container: container.to_owned() };
    let mut chain = case().on(host);
    let mut portmap = chain.pop().unwrap_or_default();
    run_chain(&call, "ADD", &mut chain)?;
    portmap["runtimeConfig"]["portMappings"] = json!(mappings);
    portmap["prevResult"] = chain[0]["prevResult"].clone();
    let mut times = [Duration::ZERO; 3];
    for (time, verb) in times.iter_mut().zip(["ADD", "CHECK", "DEL"]) {
        *time = call.run(verb, &portmap)?.0;
    }
    run_chain(&call, "DEL", &mut chain)?;
    host.sh(&format!("ip netns del {container}"))?;
    Ok(times)
}
