//! `cargo xtask test`: all checks and all tests, on a machine that may have nothing but Rust.
//!
//! The release binary, the licence check, the other kernel and the reference plugins take minutes each but one processor at
//! most, so a second thread prepares them while the first one checks and compiles. Tests start when both have finished.

use std::{
    fmt::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{Outcome, bench, chaos, kernel, peers, programs::home, run, run_with, runner, say, tidy};

pub(crate) use crate::programs::{found, install_packages};

/// The seed of the minute of chaos: its mode is auto, which has the objects of all others.
const CHAOS: &str = "4";

/// The parts of a run and how long each took.
#[derive(Default)]
struct Times(Mutex<Vec<(&'static str, Duration)>>);

impl Times {
    fn time<T>(&self, part: &'static str, run: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = run();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((part, start.elapsed()));
        result
    }

    fn table(&self) -> String {
        let mut table = "time of each part:\n".to_owned();
        for (part, time) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(table, "  {part:<34} {:>6.1} s", time.as_secs_f64());
        }
        table
    }
}

/// What the second thread prepares.
struct Prepared {
    /// The release binary whose instructions are counted.
    release: PathBuf,
    /// The folder of another kernel, or why there is none.
    kernel: Result<PathBuf, String>,
    /// The value of `NETLOOM_PEERS`.
    peers: Option<String>,
    /// Checks that could not be made.
    skipped: Vec<String>,
}

/// Runs all checks, then all tests; of named packages, only the tests. The last line printed counts the tests.
pub(crate) fn test(packages: &[String]) -> Outcome {
    if !packages.is_empty() {
        let settings: Vec<_> = peers::variable().map(|dirs| ("NETLOOM_PEERS", dirs)).into_iter().collect();
        return runner::run(packages, &settings).and_then(|counts| conclude(&counts, &[]));
    }
    let start = Instant::now();
    let times = Times::default();
    times.time("packages", install_packages)?;
    let prepared = std::thread::scope(|scope| {
        let preparing = scope.spawn(|| prepare(&times));
        let checked = check(&times);
        let prepared = preparing.join().map_err(|_| "preparing the tests panicked".to_owned())?;
        checked.and(prepared)
    })?;
    let mut settings = vec![("NETLOOM_RELEASE", prepared.release.display().to_string())];
    settings.extend(prepared.peers.map(|dirs| ("NETLOOM_PEERS", dirs)));
    let mut skipped = prepared.skipped;
    match prepared.kernel {
        Ok(dir) => settings.push(("NETLOOM_KERNEL", dir.display().to_string())),
        Err(error) => skipped.push(format!("SKIPPED: tests on another kernel: {error}")),
    }
    let counts = times.time("tests", || runner::run(&[], &settings))?;
    let docs = times.time("tests in the documentation", runner::run_doctests)?;
    let counts = counts.and(docs);
    let chaos = match times.time("a minute of chaos", minute_of_chaos) {
        Ok(reason) => {
            skipped.extend(reason);
            Ok(())
        }
        Err(error) => Err(format!("FAILED: chaos: {error}")),
    };
    say(&format!("{}  {:<34} {:>6.1} s\n", times.table(), "in all", start.elapsed().as_secs_f64()));
    // The last line counts the tests.
    if let Err(error) = &chaos {
        say(error);
    }
    conclude(&counts, &skipped).and(chaos.map_err(|_| String::new()))
}

/// Runs `cargo xtask chaos` for a minute, with the binaries that were built for the tests. Returns why not, if it cannot run here.
fn minute_of_chaos() -> Result<Option<String>, String> {
    if !rustix::process::geteuid().is_root() || !found("etcd") {
        return Ok(Some("SKIPPED: chaos: it needs root, and etcd".into()));
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let built = own.parent().unwrap_or(&own).display().to_string();
    chaos::chaos(&["--seed", CHAOS, "--seconds", "60", "--binaries", &built].map(str::to_owned))
        .map(|()| None)
}

/// Prints what failed and what was skipped, and as the last line the number of tests.
fn conclude(counts: &runner::Counts, skipped: &[String]) -> Outcome {
    for line in counts.failures().iter().chain(skipped).chain(counts.skips()) {
        say(line);
    }
    say(&counts.summary());
    // Nothing more to print: the failures are above.
    if counts.is_success() { Ok(()) } else { Err(String::new()) }
}

/// Checks everything that can be checked without running a test, and compiles the tests.
fn check(times: &Times) -> Outcome {
    times.time("cargo fmt", || run("cargo", &["fmt", "--check"]))?;
    times.time("tidy", || tidy::tidy().and_then(|()| crate::spec::spec()))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
    times.time("cargo clippy", || run("cargo", &clippy))?;
    times.time("cargo test --no-run", || run("cargo", &["test", "--workspace", "--no-run", "--quiet"]))?;
    times.time("pages", || crate::pages::pages(&["--check".to_owned()]))?;
    times.time("cargo doc", || {
        let arguments = ["doc", "--workspace", "--no-deps", "--quiet"];
        say(&format!("$ cargo {}", arguments.join(" ")));
        run_with(Command::new("cargo").args(arguments).env("RUSTDOCFLAGS", "--deny warnings"))
    })
}

/// Builds and downloads what some tests need.
fn prepare(times: &Times) -> Result<Prepared, String> {
    let release = times.time("  meanwhile: release binary", bench::measured)?;
    let kernel = times.time("  meanwhile: another kernel", || kernel::prepare(kernel::USUAL));
    let peers = times.time("  meanwhile: reference plugins", peers::variable);
    let skipped = times.time("  meanwhile: cargo deny", check_dependencies)?;
    Ok(Prepared { release, kernel, peers, skipped })
}

/// Checks dependencies: licences, sources and duplicates, and advisories if their list can be had.
pub(crate) fn deny() -> Outcome {
    for reason in check_dependencies()? {
        say(&reason);
    }
    Ok(())
}

/// Checks dependencies and returns the checks that this machine cannot make.
fn check_dependencies() -> Result<Vec<String>, String> {
    if !found("cargo-deny") {
        // Without optimisation it is built in a third of the time, and still takes seconds for these checks.
        say("cargo-deny is missing: installing it takes some minutes, once");
        run("cargo", &["install", "cargo-deny", "--locked", "--quiet", "--debug"])?;
    }
    run(
        "cargo",
        &["deny", "--log-level", "error", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"],
    )?;
    // A failed download leaves the folder with nothing but a lock in it.
    let has_database = || {
        let folders = std::fs::read_dir(home().join(".cargo/advisory-dbs")).into_iter().flatten().flatten();
        folders.filter(|entry| entry.path().is_dir()).count() > 0
    };
    if !has_database() {
        let mut fetch = Command::new("cargo");
        fetch.args(["deny", "--log-level", "error", "fetch", "db"]).stderr(Stdio::null());
        drop(run_with(&mut fetch));
    }
    if has_database() {
        run("cargo", &["deny", "--offline", "check", "advisories"])?;
        return Ok(Vec::new());
    }
    Ok(vec![
        "SKIPPED: advisories: this machine has no copy of the advisory database and cannot fetch it"
            .to_owned(),
    ])
}
