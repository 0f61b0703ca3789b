//! `cargo xtask scale [NODES]`: measures one daemon in a cluster of thousands of nodes, whose records are in an etcd server.
//!
//! It prints the time to the first complete state, memory, idle CPU, the delay of one change, and the delay after many.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use crate::{
    Outcome,
    cluster::{ETCD, Running, built, etcd, fresh_dir, until},
    host::Host,
    say,
};

/// Returns a node's name and its record as a daemon writes it.
fn node(number: u32) -> (String, String) {
    let name = format!("node{number:05}");
    let (high, low) = (number / 250, number % 250 + 1);
    let (block4, block6) = (block4(number), format!("fd44:0:{number:x}::/64"));
    let record = format!(
        r#"{{"name":"{name}","addresses":["10.64.{high}.{low}","2001:db8:64:{high:x}::{low:x}"],"blocks":["{block4}","{block6}"],"tunnel":{{"vni":4242,"port":4789}},"incarnation":"{name}"}}"#
    );
    (name, record)
}

/// Returns a node's IPv4 block.
fn block4(number: u32) -> String {
    format!("10.{}.{}.0/24", 128 + number / 256, number % 256)
}

/// Writes the records of nodes and the owners of their blocks, as many in a transaction as etcd's limit of operations allows.
fn put(wire: &Host, dir: &str, numbers: &[u32]) -> Outcome {
    for part in numbers.chunks(40) {
        let mut text = String::from("\n");
        for number in part {
            let (name, record) = node(*number);
            let (block4, block6) = (block4(*number).replace('/', "-"), format!("fd44:0:{number:x}::-64"));
            // Writing to a `String` cannot fail.
            let _ = writeln!(
                text,
                "put /netloom/nodes/{name} {}",
                format_args!("\"{}\"", record.replace('"', "\\\""))
            );
            let _ =
                writeln!(text, "put /netloom/blocks/{block4} {name}\nput /netloom/blocks/{block6} {name}");
        }
        text.push_str("\n\n");
        fs::write(format!("{dir}/txn"), text).map_err(|error| error.to_string())?;
        wire.sh(&format!("ETCDCTL_API=3 etcdctl --endpoints http://{ETCD} txn <{dir}/txn >/dev/null"))?;
    }
    Ok(())
}

/// Runs `cargo xtask scale`.
pub(crate) fn scale(arguments: &[String]) -> Outcome {
    let count: u32 =
        arguments.first().map_or(Ok(5000), |text| text.parse()).map_err(|_| "NODES is not a number")?;
    let (built, dir) = (built()?, fresh_dir("scale")?);
    let text = dir.display().to_string();
    let (wire, host) = (Host::new()?, Host::bare()?);
    wire.sh(&format!(
        "ip link add seg type bridge; ip link set seg up; ip addr add 192.0.2.254/24 dev seg; ip -6 addr add 2001:db8:a::fe/64 dev seg nodad
         ip link add n1 type veth peer name eth0 netns {}; ip link set n1 master seg up", host.pid()
    ))?;
    host.sh("ip link set eth0 up; ip addr add 192.0.2.1/24 dev eth0; ip -6 addr add 2001:db8:a::1/64 dev eth0 nodad
             ip route add default via 192.0.2.254; ip -6 route add default via 2001:db8:a::fe")?;
    let _etcd = etcd(&wire, &dir)?;
    put(&wire, &text, &(1..=count).collect::<Vec<_>>())?;
    say(&format!("{count} nodes with a block of each family in etcd, mode overlay"));
    let log = fs::File::create(dir.join("log")).map_err(|error| error.to_string())?;
    let mut command = host.command(&built.join("netloomd").display().to_string());
    command.args([
        "--node",
        "own",
        "--mode",
        "overlay",
        "--pods",
        "10.128.0.0/9,fd44::/32",
        "--store",
        "etcd",
        "--lease",
        "60",
    ]);
    command.args([
        "--etcd-endpoints",
        &format!("http://{ETCD}"),
        "--conf-dir",
        "/run/net.d",
        "--config",
        "/nowhere",
    ]);
    let started = Instant::now();
    let daemon = Running(command.stderr(log).spawn().map_err(|error| error.to_string())?);
    let routes = |wanted: u32| {
        format!(
            "test $(ip route show proto 95 | wc -l) -ge {wanted} -a $(ip -6 route show proto 95 | wc -l) -ge {wanted}"
        )
    };
    until("all routes exist", || host.succeeds(&routes(count)))?;
    say(&format!("first complete state: {:.2} s after start", started.elapsed().as_secs_f64()));
    let status = |filter: &str| {
        host.output(&format!("{} cluster --json | jq -r '{filter}'", built.join("netloom").display()))
    };
    until("the daemon reports ready", || status(".ready").is_ok_and(|text| text.trim() == "true"))?;
    let objects = status(".counters.changes")?.trim().parse::<f64>().unwrap_or_default();
    let longest = status(".counters.longestMicros")?.trim().parse::<f64>().unwrap_or_default() / 1e6;
    say(&format!("programming: {objects:.0} objects in {longest:.2} s, {:.0} a second", objects / longest));
    // The events of the start settle.
    std::thread::sleep(Duration::from_secs(5));
    let pid = daemon.0.id();
    let cpu = || -> Result<f64, String> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| error.to_string())?;
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 =
            fields[11].parse::<f64>().unwrap_or_default() + fields[12].parse::<f64>().unwrap_or_default();
        Ok(ticks / 100.0)
    };
    let (before, long) = (cpu()?, 60);
    std::thread::sleep(Duration::from_secs(long));
    say(&format!(
        "idle: {:.2} % of a core, over {long} s",
        (cpu()? - before) * 100.0 / f64::from(u32::try_from(long).unwrap_or(1))
    ));
    let memory = || {
        fs::read_to_string(format!("/proc/{pid}/status")).map(|text| {
            let line = |key: &str| {
                text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned()
            };
            format!("{} now, {} peak", line("VmRSS:"), line("VmHWM:"))
        })
    };
    say(&format!("memory: {}", memory().map_err(|error| error.to_string())?));
    let mut times = Vec::new();
    for number in count + 1..=count + 10 {
        times.push(one_more(&host, &text, number)?);
        std::thread::sleep(Duration::from_millis(700));
    }
    times.sort_by(f64::total_cmp);
    say(&format!(
        "one more node: route after {:.1} ms (median), {:.1} to {:.1} ms",
        times[5], times[0], times[9]
    ));
    churn(&wire, &host, &text, count + 10)?;
    say(&format!("memory: {}", memory().map_err(|error| error.to_string())?));
    Ok(())
}

/// Writes one record over etcd's HTTP gateway and returns the milliseconds until the kernel announces the route.
fn one_more(host: &Host, dir: &str, number: u32) -> Result<f64, String> {
    let (name, record) = node(number);
    let (ip, port) = ETCD.split_once(':').unwrap_or_default();
    let prefix = block4(number);
    fs::write(format!("{dir}/record"), record).map_err(|error| error.to_string())?;
    let output = host.output(&format!(
        "bash -c 'body=\"{{\\\"key\\\":\\\"$(printf /netloom/nodes/{name} | base64 -w0)\\\",\\\"value\\\":\\\"$(base64 -w0 {dir}/record)\\\"}}\"
         exec 3<>/dev/tcp/{ip}/{port}
         coproc ip -o -ts monitor route; sleep 0.3
         date +%s%N
         printf \"POST /v3/kv/put HTTP/1.0\\r\\nContent-Length: ${{#body}}\\r\\n\\r\\n%s\" \"$body\" >&3
         while read -r line <&${{COPROC[0]}}; do case \"$line\" in *{prefix}*) break;; esac; done
         date +%s%N; kill $COPROC_PID'"
    ))?;
    let times: Vec<f64> = output.lines().filter_map(|line| line.parse().ok()).collect();
    match times[..] {
        [before, after] => Ok((after - before) / 1e6),
        _ => Err(format!("unexpected output: {output}")),
    }
}

/// Adds a hundred nodes a second for ten seconds, then waits for the route to the last one.
fn churn(wire: &Host, host: &Host, dir: &str, count: u32) -> Outcome {
    let started = Instant::now();
    let mut next = count + 1;
    for second in 0..10 {
        put(wire, dir, &(next..next + 100).collect::<Vec<_>>())?;
        next += 100;
        std::thread::sleep(Duration::from_secs(second + 1).saturating_sub(started.elapsed()));
    }
    let last = block4(next - 1);
    let done = Instant::now();
    until("the last node's route", || host.succeeds(&format!("ip route show {last} | grep -q netloom4")))?;
    say(&format!(
        "100 nodes a second for 10 s: route to the last one {:.0} ms later",
        done.elapsed().as_secs_f64() * 1e3
    ));
    Ok(())
}
