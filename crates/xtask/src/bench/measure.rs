//! Times the verbs of each side in turn, and measures peak memory.

use std::{io::Write, path::PathBuf, process::Stdio, time::Duration};

use serde_json::json;

use super::{
    call::{Call, Side, run_chain},
    case::{Case, cases},
    mebibytes,
};
use crate::{Outcome, host::Host, say};

/// Times VERSION.
pub(crate) fn version(sides: &[Side], hosts: &[Host], count: usize) -> Outcome {
    let conf = json!({"cniVersion": "1.0.0", "name": "bench", "type": "bridge"});
    let mut rows = vec![Vec::new(); sides.len()];
    for _ in 0..count {
        for (index, (side, host)) in sides.iter().zip(hosts).enumerate() {
            rows[index].push(Call { side, host, container: "x".into() }.run("VERSION", &conf)?.0);
        }
    }
    table("bridge", "VERSION", sides, &mut rows);
    Ok(())
}

/// Times ADD, CHECK and DEL of a case.
pub(super) fn measure(sides: &[Side], hosts: &[Host], case: &Case, count: usize) -> Outcome {
    let verbs = ["ADD", "CHECK", "DEL"];
    let mut rows: Vec<Vec<Vec<Duration>>> = vec![vec![Vec::new(); sides.len()]; verbs.len()];
    const WARM_UP: usize = 3;
    for host in hosts {
        host.sh(&format!("for n in $(seq 0 {}); do ip netns add c$n; done", count + WARM_UP))?;
    }
    for round in 0..count + WARM_UP {
        for (index, (side, host)) in sides.iter().zip(hosts).enumerate() {
            let call = Call { side, host, container: format!("c{round}") };
            let mut chain = case.on(host);
            for (verb, row) in verbs.iter().zip(&mut rows) {
                let took = run_chain(&call, verb, &mut chain)?;
                if round >= WARM_UP {
                    row[index].push(took);
                }
            }
        }
    }
    for (verb, mut row) in verbs.iter().zip(rows) {
        table(case.name, verb, sides, &mut row);
    }
    for host in hosts {
        host.sh("ip -all netns delete; ip link del cbr0 2>/dev/null || true")?;
    }
    Ok(())
}

/// Prints a line of times for each side that took part, with the median of the first side divided by its own.
pub(super) fn table(case: &str, verb: &str, sides: &[Side], rows: &mut [Vec<Duration>]) {
    let mut first = None;
    for (side, row) in sides.iter().zip(rows).filter(|(_, row)| !row.is_empty()) {
        row.sort_unstable();
        let at = |part: usize| row[(row.len() - 1) * part / 100].as_secs_f64() * 1000.0;
        let median = at(50);
        let ratio = *first.get_or_insert(median) / median;
        say(&format!(
            "{case:<20} {verb:<8} {:<10} min {:>7.2}  median {median:>7.2}  p95 {:>7.2} ms   {ratio:>6.2}x",
            side.name,
            at(0),
            at(95)
        ));
    }
}

/// Measures the peak memory of a bridge ADD with GNU time.
///
/// The peak includes the process before `exec`, that is, a copy of its parent: GNU time is smaller than a plugin, this program is not.
pub(super) fn peak_memory(sides: &[Side], hosts: &[Host]) -> Outcome {
    if !PathBuf::from("/usr/bin/time").exists() {
        say("SKIPPED: peak memory is measured with /usr/bin/time (package time)");
        return Ok(());
    }
    for (side, host) in sides.iter().zip(hosts) {
        host.sh("ip netns add memory")?;
        let mut conf = cases().swap_remove(1).chain.swap_remove(0);
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!("memory");
        let mut child = host
            .command("/usr/bin/time")
            .args(["-f", "%M", &side.bin.join("bridge").to_string_lossy()])
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "memory")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/run/netns/memory")
            .env("CNI_PATH", &side.bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(conf.to_string().as_bytes()).map_err(|error| error.to_string())?;
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stderr);
        let kib: u64 = text.trim().parse().map_err(|_| format!("no figure: {text}"))?;
        say(&format!(
            "{:<20} {:<8} {:<10} peak memory {:.2} MiB",
            "bridge",
            "ADD",
            side.name,
            mebibytes(kib * 1024)
        ));
    }
    Ok(())
}
