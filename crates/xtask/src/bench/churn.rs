//! Many containers at once.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde_json::{Value, json};

use super::{
    call::{Call, Side, run_chain},
    case::Case,
};
use crate::{Outcome, host::Host, say};

/// The case that churn runs.
pub(super) const CHURNED: &str = "bridge and portmap by nftables";

/// Attaches and detaches 200 containers, `at_once` in parallel, three times on each side in turn.
///
/// Prints the median of containers per second, and how many calls failed or received an address that was in use.
pub(super) fn churn(sides: &[Side], hosts: &[Host], case: &Case, at_once: usize) -> Outcome {
    const CONTAINERS: usize = 200;
    const ROUNDS: usize = 3;
    for host in hosts {
        host.sh(&format!("for n in $(seq 0 {}); do ip netns add c$n; done", CONTAINERS - 1))?;
    }
    let mut rates = vec![Vec::new(); sides.len()];
    let mut failures = vec![0; sides.len()];
    for _ in 0..ROUNDS {
        for (index, (side, host)) in sides.iter().zip(hosts).enumerate() {
            let (next, started) = (AtomicUsize::new(0), Instant::now());
            let (failed, in_use) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
            std::thread::scope(|scope| {
                for _ in 0..at_once {
                    scope.spawn(|| {
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= CONTAINERS {
                                return;
                            }
                            let call = Call { side, host, container: format!("c{number}") };
                            let mut chain = case.on(host);
                            if let Some(ports) =
                                chain[1].pointer_mut("/runtimeConfig/portMappings/0/hostPort")
                            {
                                *ports = json!(10_000 + number);
                            }
                            let added = run_chain(&call, "ADD", &mut chain);
                            let address = chain[0]["prevResult"]["ips"][0]["address"].clone();
                            // Remembered until DEL, so that a second container with the same address is noticed.
                            if added.is_ok() && !remember(&in_use, &address) {
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                            let deleted = {
                                if let Ok(mut in_use) = in_use.lock() {
                                    in_use.retain(|it| *it != address);
                                }
                                run_chain(&call, "DEL", &mut chain)
                            };
                            failed.fetch_add(
                                usize::from(added.is_err() || deleted.is_err()),
                                Ordering::Relaxed,
                            );
                        }
                    });
                }
            });
            #[expect(clippy::cast_precision_loss, reason = "some hundred")]
            rates[index].push(CONTAINERS as f64 / started.elapsed().as_secs_f64());
            failures[index] += failed.into_inner();
        }
    }
    let mut first = None;
    for ((side, mut rates), failed) in sides.iter().zip(rates).zip(failures) {
        rates.sort_by(f64::total_cmp);
        let median = rates[ROUNDS / 2];
        let ratio = median / *first.get_or_insert(median);
        say(&format!(
            "{CONTAINERS} containers, {at_once:>2} at once  {:<10} {median:>7.1} containers/s in and out   {ratio:>6.2}x   {failed} failed",
            side.name
        ));
    }
    for host in hosts {
        host.sh("ip -all netns delete; ip link del cbr0 2>/dev/null || true")?;
    }
    Ok(())
}

/// Remembers an address. Returns false if another container has it.
fn remember(in_use: &Mutex<Vec<Value>>, address: &Value) -> bool {
    let Ok(mut in_use) = in_use.lock() else { return false };
    let is_new = !in_use.contains(address);
    in_use.push(address.clone());
    is_new
}
