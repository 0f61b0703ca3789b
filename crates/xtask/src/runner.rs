//! Runs every test of the workspace as a process of its own and counts the results.
//!
//! `cargo test` runs one test binary after another, each with the tests in alphabetical order, so that the longest tests end
//! last and alone. Here all binaries share one queue that starts with the longest. A test's own output also shows
//! whether it was skipped, which libtest counts as passed.

mod watched;

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{root, say};

/// The longest tests, longest first.
const LONGEST: [&str; 8] =
    ["crash::", "other_kernel::", "parity::", "chains::", "churn::", "model::", "counts::", "underlay::"];
/// Tests that count system calls or instructions: they start when all others have ended, one at a time.
const ALONE: [&str; 1] = ["counts::"];
/// How many more tests than processors run at the same time: most of them wait for the kernel now and then.
const MORE_THAN_PROCESSORS: usize = 1;
/// Tests that take longer than this are listed with their time.
const LONG: Duration = Duration::from_secs(5);
/// Tests that take longer than this hang, which is a failure. The longest ones take some ten minutes on a busy machine, the others one.
const LIMIT: Duration = Duration::from_mins(5);
const LIMIT_OF_LONGEST: Duration = Duration::from_mins(20);
/// What tests print to report that they, or a part of them, cannot run on this machine.
const SKIPPED: &str = "SKIPPED: ";

/// One test of one binary.
#[derive(Debug, Clone)]
struct Test {
    /// The crate, and the name of the binary if it is not the crate's own.
    binary: String,
    program: PathBuf,
    /// The crate's folder, in which cargo runs tests.
    folder: PathBuf,
    name: String,
}

/// The results of all tests.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    reasons: Vec<String>,
}

impl Counts {
    /// Adds the results of other tests.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.reasons.extend(other.reasons);
        self
    }

    pub(crate) fn is_success(&self) -> bool {
        self.failed.is_empty()
    }

    /// Returns a line for each test that failed.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failed.iter().map(|name| format!("FAILED: {name}")).collect()
    }

    /// Returns why tests, or parts of them, were skipped: a line each.
    pub(crate) fn skips(&self) -> &[String] {
        &self.reasons
    }

    /// Returns the line that ends a run.
    pub(crate) fn summary(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

/// Runs the tests of all binaries of some packages, or of the workspace, with these variables in their environment.
pub(crate) fn run(packages: &[String], settings: &[(&str, String)]) -> Result<Counts, String> {
    let mut tests = Vec::new();
    for (binary, program, folder) in binaries(packages)? {
        tests.extend(list(&binary, &program, &folder)?);
    }
    tests.sort_by_key(rank);
    let (alone, together): (Vec<Test>, Vec<Test>) =
        tests.into_iter().partition(|test| ALONE.iter().any(|prefix| test.name.starts_with(prefix)));
    let slots = std::thread::available_parallelism().map_or(1, usize::from) + MORE_THAN_PROCESSORS;
    say(&format!("running {} tests, {slots} at a time", together.len() + alone.len()));
    let counts = run_all(&together, slots, settings);
    Ok(counts.and(run_all(&alone, 1, settings)))
}

/// Returns a test's place among the longest tests, or their number.
fn rank(test: &Test) -> usize {
    LONGEST.iter().position(|prefix| test.name.starts_with(prefix)).unwrap_or(LONGEST.len())
}

/// Runs the examples in the documentation.
pub(crate) fn run_doctests() -> Result<Counts, String> {
    let output = Command::new("cargo")
        .args(["test", "--workspace", "--doc", "--quiet", "--no-fail-fast"])
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut counts = Counts::default();
    // test result: ok. 10 passed; 0 failed; 0 ignored; ...
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let count = |what: &str| -> usize {
            let words: Vec<&str> = line.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|word| *word == what).unwrap_or_default();
            at.checked_sub(1).and_then(|at| words[at].parse().ok()).unwrap_or_default()
        };
        counts.passed += count("passed");
        counts.failed.extend((0..count("failed")).map(|_| "an example in the documentation".to_owned()));
    }
    if !output.status.success() {
        say(&text);
        if counts.failed.is_empty() {
            return Err("the examples in the documentation do not compile".to_owned());
        }
    }
    Ok(counts)
}

/// Compiles the tests, and lists the binaries: name, file and the crate's folder.
fn binaries(packages: &[String]) -> Result<Vec<(String, PathBuf, PathBuf)>, String> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--no-run", "--quiet", "--message-format", "json-render-diagnostics"]);
    if packages.is_empty() {
        cargo.arg("--workspace");
    }
    for package in packages {
        cargo.args(["--package", package]);
    }
    let output = cargo
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err("the tests do not compile".to_owned());
    }
    let mut binaries = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).map_err(|error| format!("cargo: {error}"))?;
        let Some(program) = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)
        else {
            continue;
        };
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().unwrap_or(manifest);
        let package = folder.file_name().unwrap_or_default().to_string_lossy();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let binary = if target.replace('_', "-") == package {
            package.into_owned()
        } else {
            format!("{package}/{target}")
        };
        binaries.push((binary, program.into(), folder.to_owned()));
    }
    Ok(binaries)
}

fn list(binary: &str, program: &Path, folder: &Path) -> Result<Vec<Test>, String> {
    let output = Command::new(program)
        .args(["--list", "--format", "terse"])
        .current_dir(folder)
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        return Err(format!("{binary} does not list its tests"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let test = |name: &str| Test {
        binary: binary.to_owned(),
        program: program.to_owned(),
        folder: folder.to_owned(),
        name: name.to_owned(),
    };
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(test).collect())
}

fn run_all(tests: &[Test], slots: usize, settings: &[(&str, String)]) -> Counts {
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..slots {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let outcome = run_one(test, settings);
                    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                    note(&mut counts, test, &outcome, start.elapsed());
                }
            });
        }
    });
    counts.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one test: whether it passed, and all it printed.
fn run_one(test: &Test, settings: &[(&str, String)]) -> (bool, String) {
    let mut command = Command::new(&test.program);
    command
        .args(["--exact", &test.name])
        .current_dir(&test.folder)
        .env("CARGO_MANIFEST_DIR", &test.folder)
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null());
    let limit = if rank(test) < LONGEST.len() { LIMIT_OF_LONGEST } else { LIMIT };
    match watched::run(&mut command, limit) {
        // A name that libtest no longer finds would pass with no test run.
        Ok((passed, text)) => (passed && text.contains("running 1 test\n"), text),
        Err(error) => (false, error.to_string()),
    }
}

fn note(counts: &mut Counts, test: &Test, outcome: &(bool, String), time: Duration) {
    let (passed, text) = outcome;
    let name = format!("{} {}", test.binary, test.name);
    let mut reasons: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(SKIPPED)).collect();
    reasons.sort_unstable();
    reasons.dedup();
    counts.reasons.extend(reasons.iter().map(|reason| format!("{SKIPPED}{name}: {reason}")));
    let what = match (passed, reasons.is_empty()) {
        (false, _) => {
            counts.failed.push(name.clone());
            "FAILED"
        }
        (true, false) => {
            counts.skipped.push(name.clone());
            "skipped"
        }
        (true, true) => {
            counts.passed += 1;
            "ok"
        }
    };
    let mut line = String::new();
    if !passed {
        let _ = writeln!(line, "{text}");
    }
    if !passed || !reasons.is_empty() || time > LONG {
        let _ = writeln!(line, "{what:<8} {:>6.1} s  {name}", time.as_secs_f64());
    }
    drop(std::io::stdout().write_all(line.as_bytes()));
}
