//! `cargo xtask growth`: measures what one more container costs on a host that has many.
//!
//! The elements (for the reference plugins, the rules) of the other containers are loaded in the layout of each side. Then
//! containers are attached and detached, and connections are opened through one published port.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};

use crate::{
    Outcome,
    bench::{Call, Side, run_chain, sides},
    host::Host,
    say,
};

/// Numbers of other containers.
const COUNTS: [u32; 3] = [0, 1000, 10_000];
/// Largest number for the reference plugins: their rules are searched linearly, and more would take minutes.
const MOST_OF_GO: u32 = 1000;

/// Runs `cargo xtask growth`.
pub(crate) fn growth(arguments: &[String]) -> Outcome {
    let (sides, rounds) = sides(arguments, 30)?;
    for side in &sides {
        let mut empty: Option<[f64; 3]> = None;
        for count in COUNTS.into_iter().filter(|count| side.name != "go" || *count <= MOST_OF_GO) {
            let found = measure(side, count, rounds)?;
            let empty = *empty.get_or_insert(found);
            say(&format!(
                "{:<8} {count:>6} other containers   ADD {:>6.2} ms {:>5.2}x   DEL {:>6.2} ms {:>5.2}x   {:>6.0} connections/s {:>5.2}x",
                side.name,
                found[0],
                found[0] / empty[0],
                found[1],
                found[1] / empty[1],
                found[2],
                empty[2] / found[2],
            ));
        }
    }
    reservations(&sides, rounds)
}

/// Numbers of existing reservations.
const RESERVED: [u32; 2] = [0, 60_000];

/// Times host-local next to many reservations. The reference plugin reads them all.
fn reservations(sides: &[Side], rounds: usize) -> Outcome {
    for side in sides {
        let mut empty: Option<[f64; 2]> = None;
        for count in RESERVED {
            let host = Host::bare()?;
            let dir = format!("/proc/{}/root/var/lib/cni/networks", host.pid());
            host.sh("ip netns add c")?;
            std::fs::create_dir_all(format!("{dir}/bench")).map_err(|error| error.to_string())?;
            for number in 0..count {
                let (a, b) = (number / 250, number % 250 + 2);
                let file = format!("{dir}/bench/10.{}.{}.{b}", 21 + a / 250, a % 250);
                std::fs::write(file, format!("other-{number}\r\neth0")).map_err(|error| error.to_string())?;
            }
            let conf = json!({"cniVersion": "1.0.0", "name": "bench", "type": "host-local",
                "ipam": {"type": "host-local", "subnet": "10.20.0.0/14", "dataDir": dir}});
            // The reference plugin takes most of a second.
            let rounds = if side.name == "go" && count > 0 { rounds.min(5) } else { rounds };
            let (mut adds, mut dels) = (Vec::new(), Vec::new());
            for round in 0..rounds + 2 {
                let call = Call { side, host: &host, container: "c".into() };
                let mut confs = vec![conf.clone()];
                let (add, del) = (run_chain(&call, "ADD", &mut confs)?, run_chain(&call, "DEL", &mut confs)?);
                if round >= 2 {
                    adds.push(add);
                    dels.push(del);
                }
            }
            let found = [median(adds), median(dels)];
            let empty = *empty.get_or_insert(found);
            say(&format!(
                "{:<8} {count:>6} reservations        ADD {:>6.2} ms {:>5.2}x   DEL {:>6.2} ms {:>5.2}x",
                side.name,
                found[0],
                found[0] / empty[0],
                found[1],
                found[1] / empty[1],
            ));
        }
    }
    Ok(())
}

/// Returns a chain that publishes a port.
fn chain(host: &Host, port: u16) -> Vec<Value> {
    let data = format!("/proc/{}/root/var/lib/cni/networks", host.pid());
    let ipam = json!({"type": "host-local", "subnet": "10.20.0.0/14", "dataDir": data});
    let port = json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]);
    let mut chain = vec![
        json!({"type": "bridge", "bridge": "cbr0", "isDefaultGateway": true, "ipMasq": true, "ipam": ipam}),
        json!({"type": "portmap", "runtimeConfig": {"portMappings": port}}),
        json!({"type": "firewall"}),
    ];
    for conf in &mut chain {
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!("bench");
    }
    chain
}

/// Measures the medians of ADD and DEL in milliseconds, and new connections per second.
fn measure(side: &Side, count: u32, rounds: usize) -> Result<[f64; 3], String> {
    let host = Host::bare()?;
    host.sh("ip netns add other; ip link add up0 type veth peer name up0 netns other; ip link set up0 up
             ip -n other link set up0 up; ip addr add 192.0.2.1/24 dev up0; ip -n other addr add 192.0.2.2/24 dev up0
             ip netns add kept; ip netns add c")?;
    let kept = Call { side, host: &host, container: "kept".into() };
    run_chain(&kept, "ADD", &mut chain(&host, 9000))?;
    if count > 0 {
        let script = if side.name == "go" { go_rules(count) } else { elements(count) };
        let file = format!("/proc/{}/root/run/load", host.pid());
        std::fs::write(&file, script).map_err(|error| error.to_string())?;
        host.sh(if side.name == "go" { "iptables-restore --noflush /run/load" } else { "nft -f /run/load" })?;
    }
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for round in 0..rounds + 2 {
        let call = Call { side, host: &host, container: "c".into() };
        let mut confs = chain(&host, 8080);
        let add = run_chain(&call, "ADD", &mut confs)?;
        let del = run_chain(&call, "DEL", &mut confs)?;
        if round >= 2 {
            adds.push(add);
            dels.push(del);
        }
    }
    let mut rates: Vec<f64> = (0..3).map(|_| connections(&host)).collect::<Result<_, _>>()?;
    rates.sort_by(f64::total_cmp);
    Ok([median(adds), median(dels), rates[1]])
}

/// Returns the median in milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// Returns an nft script with the elements of other containers: published port, hairpin, masquerade, firewall.
fn elements(count: u32) -> String {
    let mut script = String::new();
    for number in 0..count {
        let (a, b) = (number / 250 % 250, number % 250 + 2);
        let ip = format!("10.23.{a}.{b}");
        let owner = format!("0123456789abcdef-{number:016x} eth0 other-{number} bench");
        let port = 10_000 + number;
        for (set, element) in [
            ("ip netloom ports", format!("tcp . {port} comment \"{owner}\" : {ip} . 80")),
            ("ip netloom hairpin", format!("{ip} . {ip} comment \"{owner}\"")),
            ("ip netloom hairpin", format!("127.0.0.1 . {ip} comment \"{owner}\"")),
            ("ip netloom masqueraded", format!("{ip} comment \"{owner}\" : goto masq-10.20.0.0-14")),
            ("ip netloom owners", format!("\"p{number:014x}\" comment \"{owner}\"")),
            ("ip netloom owners", format!("\"m{number:014x}\" comment \"{owner}\"")),
            ("inet netloom admitted4", format!("{ip} comment \"{owner}\"")),
            ("inet netloom owners", format!("\"f{number:014x}\" comment \"{owner}\"")),
        ] {
            let _ = writeln!(script, "add element {set} {{ {element} }}");
        }
    }
    script
}

/// Returns the same as iptables rules in the layout of the reference plugins.
fn go_rules(count: u32) -> String {
    let mut script = "*nat\n".to_owned();
    for number in 0..count {
        let _ = writeln!(script, ":CNI-DN-{number:021x} - [0:0]\n:CNI-{number:024x} - [0:0]");
    }
    let mut filter = "*filter\n".to_owned();
    for number in 0..count {
        let (ip, port) = (format!("10.23.{}.{}", number / 250 % 250, number % 250 + 2), 10_000 + number);
        let (dnat, masquerade) = (format!("CNI-DN-{number:021x}"), format!("CNI-{number:024x}"));
        let comment = format!("-m comment --comment \"dnat name: \\\"bench\\\" id: \\\"other-{number}\\\"\"");
        let _ = write!(
            script,
            "-A CNI-HOSTPORT-DNAT {comment} -p tcp -m multiport --dports {port} -j {dnat}\n\
             -A {dnat} -p tcp -s {ip}/14 --dport {port} -j CNI-HOSTPORT-SETMARK\n\
             -A {dnat} -p tcp -s 127.0.0.1 --dport {port} -j CNI-HOSTPORT-SETMARK\n\
             -A {dnat} -p tcp --dport {port} -j DNAT --to-destination {ip}:80\n\
             -A POSTROUTING -s {ip} {comment} -j {masquerade}\n\
             -A {masquerade} -d 10.20.0.0/14 -j ACCEPT\n\
             -A {masquerade} ! -d 224.0.0.0/4 -j MASQUERADE\n"
        );
        let _ = write!(
            filter,
            "-A CNI-FORWARD -d {ip} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A CNI-FORWARD -s {ip} -j ACCEPT\n"
        );
    }
    format!("{script}COMMIT\n{filter}COMMIT\n")
}

/// Opens connections from another host to the published port for a second, and resets each. Returns their number per second.
fn connections(host: &Host) -> Result<f64, String> {
    const TIME: Duration = Duration::from_secs(1);
    let error = |error: std::io::Error| error.to_string();
    let listener = host.inside_of("kept", || TcpListener::bind("0.0.0.0:80"))?.map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                drop(listener.accept());
            }
        });
        let made = host.inside_of("other", || {
            let to: SocketAddr = ([192, 0, 2, 1], 9000).into();
            let (started, mut made) = (Instant::now(), 0_u32);
            while started.elapsed() < TIME {
                // A SYN that overflows the backlog is retransmitted after a second. Such a connection does not count.
                let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(100)) else {
                    continue;
                };
                // A reset leaves no port in TIME_WAIT.
                set_socket_linger(&stream, Some(Duration::ZERO))?;
                made += 1;
            }
            Ok::<_, std::io::Error>(f64::from(made) / started.elapsed().as_secs_f64())
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        made?.map_err(error)
    })
}
