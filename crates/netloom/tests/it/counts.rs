//! The cost of each verb of each plugin in numbers that are free of noise: system calls, writes to netlink sockets, and
//! user-space instructions of the release binary. `counts.json` pins them; `NETLOOM_PIN=1` rewrites that file.

use std::{collections::BTreeMap, ffi::OsStr};

use serde_json::Value;
use testkit::Traced;

use crate::{
    crash::{Lab, cases},
    lab::{PLUGINS, with_prev},
};

/// Counts by kind, for each "case plugin VERB".
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/counts.json");
/// Rounds per case. The minimum removes calls that a late event adds.
const ROUNDS: usize = 5;
/// Repetitions on a machine that other tests keep busy.
const ATTEMPTS: usize = 5;
/// Tolerance for system calls: the number of waits depends on timing.
const BY_TIMING: u64 = 6;
/// Tolerance for instructions, which depend on the length of paths and process IDs.
const TOLERANCE: f64 = 0.10;

/// Calls ADD, CHECK and DEL of a chain as a runtime does, with the results of the ADDs.
fn life(chain: &[Value], mut call: impl FnMut(&str, &Value) -> String) {
    let mut results: Vec<Value> = Vec::new();
    for conf in chain {
        let conf = with_prev(conf, results.last().unwrap_or(&Value::Null));
        results.push(serde_json::from_str(&call("ADD", &conf)).unwrap());
    }
    for conf in chain {
        call("CHECK", &with_prev(conf, results.last().unwrap()));
    }
    for conf in chain.iter().rev() {
        call("DEL", &with_prev(conf, results.last().unwrap()));
    }
}

/// Runs every case several times and returns the minimum of each count for each call.
fn count(mut cost: impl FnMut(&Lab, &str, &Value) -> (String, Vec<(&'static str, u64)>)) -> Counts {
    let mut least = Counts::new();
    for case in cases().iter().filter(|case| case.reset.is_none()) {
        let lab = Lab::new(case);
        // The first container creates the host's tables, chains and bridge.
        let result = lab.add(&case.chain);
        lab.del(&case.chain, result.last().unwrap()).unwrap();
        for _ in 0..ROUNDS {
            life(&case.chain, |verb, conf| {
                // portmap would have to read the entries of the host's own traffic.
                lab.host.sh("conntrack -F 2>/dev/null || true");
                let (stdout, costs) = cost(&lab, verb, conf);
                let of_call = least
                    .entry(format!("{} {} {verb}", case.name, conf["type"].as_str().unwrap()))
                    .or_default();
                for (what, cost) in costs {
                    of_call
                        .entry(what.to_owned())
                        .and_modify(|least| *least = cost.min(*least))
                        .or_insert(cost);
                }
                stdout
            });
        }
    }
    least
}

fn pinned() -> Counts {
    serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap()
}

/// Returns the counts that differ: the call, the kind, the pinned and the measured count.
fn misfits(found: &Counts, fits: impl Fn(u64, u64) -> bool) -> Vec<(String, String, Option<u64>, u64)> {
    let pinned = pinned();
    let mut misfits = Vec::new();
    for (name, counts) in found {
        for (what, count) in counts {
            let before = pinned.get(name).and_then(|counts| counts.get(what)).copied();
            if before.is_none_or(|before| !fits(before, *count)) {
                misfits.push((name.clone(), what.clone(), before, *count));
            }
        }
    }
    misfits
}

/// Compares with the pinned counts, or pins the new ones.
fn compare(found: &Counts, fits: impl Fn(u64, u64) -> bool, detail: &dyn Fn(&str) -> String) {
    if std::env::var_os("NETLOOM_PIN").is_some() {
        let mut pinned = pinned();
        for (name, counts) in found {
            pinned.entry(name.clone()).or_default().extend(counts.clone());
        }
        std::fs::write(FILE, serde_json::to_string_pretty(&pinned).unwrap() + "\n").unwrap();
        return;
    }
    let told = |(name, what, before, count): (String, String, Option<u64>, u64)| {
        format!("{name}: {what} were {before:?}, are {count}\n{}", detail(&name))
    };
    let wrong: Vec<String> = misfits(found, fits).into_iter().map(told).collect();
    assert!(wrong.is_empty(), "NETLOOM_PIN=1 pins what is meant to be so:\n{}", wrong.join("\n"));
}

/// Returns the plugin's own system calls, without those of its child process.
fn own(traced: &Traced) -> impl Iterator<Item = &'static str> {
    traced.syscalls.iter().filter(|call| !call.by_child).map(|call| call.number.name())
}

/// The system calls after a program's start and the writes to netlink sockets of every verb of every plugin match `counts.json`.
#[test]
fn system_calls_are_as_pinned() {
    if !testkit::is_root() || !testkit::can_trace() {
        return;
    }
    let mut lists: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    let mut cost = |lab: &Lab, verb: &str, conf: &Value| {
        let traced = lab.traced(verb, conf, None);
        assert!(traced.status.success(), "{verb} {conf}: {}", traced.stdout);
        let list: Vec<&str> = own(&traced).collect();
        // The C library's startup reads more or less depending on the length of the program's path. The calls of VERSION of the
        // same plugin are therefore subtracted.
        let start = own(&lab.traced("VERSION", conf, None)).count();
        let sends = list.iter().filter(|name| ["sendto", "sendmsg"].contains(name)).count();
        let costs = vec![("system calls", (list.len() - start) as u64), ("netlink sends", sends as u64)];
        lists.insert(format!("{} {verb}", conf["type"].as_str().unwrap()), list);
        (traced.stdout, costs)
    };
    // A late kernel notification costs a few calls more, an early one a few less.
    let fits = |before: u64, now: u64| now <= before && before - now <= BY_TIMING;
    let mut found = Counts::new();
    for _ in 0..ATTEMPTS {
        for (name, costs) in count(&mut cost) {
            let least = found.entry(name).or_default();
            for (what, cost) in costs {
                least.entry(what).and_modify(|least| *least = cost.min(*least)).or_insert(cost);
            }
        }
        if misfits(&found, fits).is_empty() {
            break;
        }
    }
    let list = |name: &str| {
        let call = name.split_once(' ').map_or(name, |(_, call)| call);
        lists.get(call).map(|list| list.join(" ")).unwrap_or_default()
    };
    compare(&found, fits, &list);
}

/// The user-space instructions of every verb of every plugin stay within 10 %, counted by callgrind in the release binary
/// that `NETLOOM_RELEASE` names.
#[test]
fn instructions_are_as_pinned() {
    let Some(release) = std::env::var_os("NETLOOM_RELEASE") else {
        testkit::say_skipped(
            "NETLOOM_RELEASE does not name a release binary whose instructions are to be counted",
        );
        return;
    };
    if !testkit::is_root() || !testkit::has("valgrind") {
        return;
    }
    // The C library's startup is included, and toolchains use either library.
    let musl = release.to_string_lossy().contains("musl");
    let what = if musl { "instructions (musl)" } else { "instructions (glibc)" };
    let bin = tempfile::tempdir().unwrap();
    for name in PLUGINS {
        std::fs::copy(&release, bin.path().join(name)).unwrap();
    }
    let found = count(|lab, verb, conf| {
        let plugin = bin.path().join(conf["type"].as_str().unwrap());
        let callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
        let output = lab.run_by(
            callgrind.into_iter().map(OsStr::new).chain([plugin.as_os_str()]),
            bin.path(),
            verb,
            conf,
        );
        let log = String::from_utf8_lossy(&output.stderr);
        // A child process prints a line of its own, with part of its parent's count.
        let lines = log.lines().filter_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
        let instructions = lines.max().unwrap_or_else(|| panic!("{verb} {conf}: {log}"));
        (String::from_utf8_lossy(&output.stdout).into_owned(), vec![(what, instructions)])
    });
    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
    let fits = |before: u64, now: u64| (now as f64 / before as f64 - 1.0).abs() <= TOLERANCE;
    compare(&found, fits, &|_| String::new());
}
