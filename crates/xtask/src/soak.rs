//! `cargo xtask soak`: many containers in and out, and nothing grows; then the crash tests with every error.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Outcome,
    bench::{Call, Case, Side, run_chain, sides},
    host::Host,
    run_with, say,
};

const AT_ONCE: usize = 8;
/// What may not grow, counted on the host by these.
const COUNTED: [(&str, &str); 8] = [
    ("links", "ls /sys/class/net | wc -l"),
    ("files", "find /var/lib/cni /run -xdev -type f ! -path '/run/netns/*' | wc -l"),
    ("elements", "nft list ruleset | grep -c comment || true"),
    ("routes", "ip route show table all | wc -l"),
    ("queues", "tc qdisc | wc -l"),
    ("tracked connections", "cat /proc/sys/net/netfilter/nf_conntrack_count 2>/dev/null || echo 0"),
    ("processes", "ls /proc | grep -c '^[0-9]'"),
    ("memory of the kernel, MiB", "awk '/^SUnreclaim/ {print int($2 / 1024)}' /proc/meminfo"),
];

/// Runs 20,000 containers, or as many as are asked for.
pub(crate) fn soak(arguments: &[String]) -> Outcome {
    let containers = match arguments.first() {
        None => 20_000,
        Some(count) => count.parse::<usize>().map_err(|_| format!("{count} is no number"))?,
    };
    let (all, _) = sides(&[], 0)?;
    let side = all.into_iter().next_back().ok_or("nothing to run")?;
    let host = Host::new()?;
    host.sh(&format!("for n in $(seq 0 {}); do ip netns add c$n; done", AT_ONCE - 1))?;
    let chain = Case::named("the whole chain")?;
    // The first ones make what stays.
    go_through(&side, &host, &chain, 10 * AT_ONCE)?;
    let before = look(&host)?;
    let started = Instant::now();
    go_through(&side, &host, &chain, containers)?;
    say(&format!("{containers} containers in and out in {:.0} s", started.elapsed().as_secs_f64()));
    let after = look(&host)?;
    let mut grown = Vec::new();
    for (((what, _), before), after) in COUNTED.iter().zip(&before).zip(&after) {
        say(&format!("{what:<26} {before:>8} before {after:>8} after"));
        // The kernel keeps what it may need again: a page for some hundred containers would still be a leak.
        let room = if what.contains("MiB") {
            20 + containers as u64 / 1000
        } else if *what == "processes" {
            10
        } else {
            0
        };
        if *after > before + room {
            grown.push(*what);
        }
    }
    if !grown.is_empty() {
        return Err(format!("grown: {}", grown.join(", ")));
    }
    let mut crash = Command::new("cargo");
    crash.args(["test", "--package", "netloom", "--test", "it", "--", "crash::", "--nocapture"]);
    run_with(crash.env("NETLOOM_ALL_ERRORS", "1"))
}

fn go_through(side: &Side, host: &Host, case: &Case, containers: usize) -> Outcome {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| {
                let next = &next;
                scope.spawn(move || -> Outcome {
                    while next.fetch_add(1, Ordering::Relaxed) < containers {
                        let call = Call { side, host, container: format!("c{worker}") };
                        let mut chain = case.on(host);
                        for (index, port) in [8080, 8443].into_iter().enumerate() {
                            let port = json!(port + 1000 * worker);
                            chain[2]["runtimeConfig"]["portMappings"][index]["hostPort"] = port;
                        }
                        run_chain(&call, "ADD", &mut chain)?;
                        run_chain(&call, "DEL", &mut chain)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a worker panicked".into())))
    })
}

/// Counts until two looks, a second apart, say the same: the kernel and the children that wait for it have had their time.
fn look(host: &Host) -> Result<Vec<u64>, String> {
    const LOOKS: usize = 60;
    let mut before = count(host)?;
    for _ in 0..LOOKS {
        std::thread::sleep(Duration::from_secs(1));
        let now = count(host)?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before)
}

fn count(host: &Host) -> Result<Vec<u64>, String> {
    COUNTED
        .iter()
        .map(|(what, line)| {
            let text = host.output(line)?;
            text.trim().parse().map_err(|_| format!("{what}: {text}"))
        })
        .collect()
}
