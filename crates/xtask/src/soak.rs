//! `cargo xtask soak`: attaches and detaches many containers and checks that nothing accumulates; then runs the crash tests with
//! every error.

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

/// Number of containers in parallel.
const AT_ONCE: usize = 8;
/// The quantities that must not grow, each with the shell line that prints it.
const COUNTED: [(&str, &str); 8] = [
    ("links", "ls /sys/class/net | wc -l"),
    ("files", "find /var/lib/cni /run -xdev -type f ! -path '/run/netns/*' | wc -l"),
    ("elements", "nft list ruleset | grep -c comment || true"),
    ("routes", "ip route show table all | wc -l"),
    ("queues", "tc qdisc | wc -l"),
    ("tracked connections", "cat /proc/sys/net/netfilter/nf_conntrack_count 2>/dev/null || echo 0"),
    ("processes", "ls /proc | grep -c '^[0-9]'"),
    ("kernel memory, MiB", "awk '/^SUnreclaim/ {print int($2 / 1024)}' /proc/meminfo"),
];

/// Attaches and detaches 20,000 containers, or the number in the first argument.
pub(crate) fn soak(arguments: &[String]) -> Outcome {
    let containers = match arguments.first() {
        None => 20_000,
        Some(count) => count.parse::<usize>().map_err(|_| format!("`{count}` is not a number"))?,
    };
    let (sides, _) = sides(&[], 0)?;
    let side = sides.into_iter().next_back().ok_or("no binary to run")?;
    let host = Host::new()?;
    host.sh(&format!("for n in $(seq 0 {}); do ip netns add c$n; done", AT_ONCE - 1))?;
    let chain = Case::named("the whole chain")?;
    // The first containers create what the host keeps: tables, chains, the bridge.
    go_through(&side, &host, &chain, 10 * AT_ONCE)?;
    let before = settled(&host)?;
    let started = Instant::now();
    go_through(&side, &host, &chain, containers)?;
    say(&format!("{containers} containers in and out in {:.0} s", started.elapsed().as_secs_f64()));
    let after = settled(&host)?;
    let mut grown = Vec::new();
    for (((what, _), before), after) in COUNTED.iter().zip(&before).zip(&after) {
        say(&format!("{what:<26} {before:>8} before {after:>8} after"));
        // The kernel's caches grow a little. One page per hundred containers would already be a leak.
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

/// Attaches and detaches containers in parallel.
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

/// Counts every second until two counts agree: by then the kernel and the deferred children have finished.
fn settled(host: &Host) -> Result<Vec<u64>, String> {
    const ATTEMPTS: usize = 60;
    let mut before = count(host)?;
    for _ in 0..ATTEMPTS {
        std::thread::sleep(Duration::from_secs(1));
        let now = count(host)?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before)
}

/// Reads each quantity once.
fn count(host: &Host) -> Result<Vec<u64>, String> {
    COUNTED
        .iter()
        .map(|(what, line)| {
            let text = host.output(line)?;
            text.trim().parse().map_err(|_| format!("{what}: {text}"))
        })
        .collect()
}
