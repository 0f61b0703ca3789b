//! `cargo xtask bench`: times folders of plugins against each other.
//!
//! Every side is called as a runtime calls plugins: a process, `CNI_*` variables, the configuration on standard input. Calls of
//! the sides alternate, so that other load on the machine affects all of them. Compare medians. Each side has its own host
//! (network and mount namespace).

mod call;
mod case;
mod churn;
mod measure;
mod ports;

use std::path::{Path, PathBuf};

pub(crate) use self::{
    call::{Call, Side, run_chain},
    case::{Case, cases},
    measure::version,
};
use crate::{Outcome, dist::Dist, host::Host, peers, say, target};

/// Runs `cargo xtask bench`.
pub(crate) fn bench(arguments: &[String]) -> Outcome {
    let (mut arguments, mut only) = (arguments.to_vec(), None);
    if let Some(at) = arguments.iter().position(|argument| argument == "--only") {
        only = arguments.drain(at..(at + 2).min(arguments.len())).nth(1);
    }
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let (sides, count) = sides(&arguments, 60)?;
    let hosts: Vec<Host> = sides.iter().map(|_| Host::new()).collect::<Result<_, _>>()?;
    if is_wanted("VERSION") {
        version(&sides, &hosts, count)?;
    }
    for case in cases().iter().filter(|case| is_wanted(case.name) && case.can_run(&hosts[0])) {
        measure::measure(&sides, &hosts, case, count)?;
    }
    if is_wanted(ports::NAME) {
        ports::ports(&sides, count)?;
    }
    if !is_wanted("churn") {
        return Ok(());
    }
    let chain = Case::named(churn::CHURNED)?;
    for at_once in [8, 32] {
        churn::churn(&sides, &hosts, &chain, at_once)?;
    }
    measure::peak_memory(&sides, &hosts)
}

/// Parses the options, builds this repository's binary and returns the sides and the number of rounds.
pub(crate) fn sides(arguments: &[String], mut count: usize) -> Result<(Vec<Side>, usize), String> {
    let mut sides = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?;
        match argument.as_str() {
            "--side" => {
                let (name, dir) = value.split_once('=').ok_or("write `--side NAME=DIR`")?;
                sides.push(Side::of(name, dir.into()));
            }
            "-n" => count = value.parse().map_err(|_| format!("`-n {value}` is not a number"))?,
            other => return Err(format!("unknown option `{other}`")),
        }
    }
    if sides.is_empty() {
        match peers::first() {
            Some(dir) => sides.push(Side::of("go", dir)),
            None => {
                say("SKIPPED: no reference plugins to compare with; name a folder with `--side NAME=DIR`")
            }
        }
    }
    let (binary, bin) = build()?;
    sides.push(Side::of("netloom", bin));
    let size = std::fs::metadata(&binary).map_err(|error| error.to_string())?.len();
    say(&format!("{}: {:.2} MiB\n", binary.display(), mebibytes(size)));
    Ok((sides, count))
}

/// Builds the binary that is measured.
///
/// It has a fixed address: the self-relocation of a position-independent executable adds 40,000 instructions to every call, which
/// would hide changes of the calls themselves. The pinned counts of `counts.json` and `docs/performance.md` are of this build.
pub(crate) fn measured() -> Result<PathBuf, String> {
    Dist { fixed: true, ..Dist::default() }.build()
}

/// Builds the measured binary and a folder of links to it.
fn build() -> Result<(PathBuf, PathBuf), String> {
    let binary = measured()?;
    let bin = links_to(&binary, "bench-bin")?;
    Ok((binary, bin))
}

/// Creates a folder in the target folder in which each plugin is a link to a binary.
pub(crate) fn links_to(binary: &Path, folder: &str) -> Result<PathBuf, String> {
    let bin = target().join(folder);
    drop(std::fs::remove_dir_all(&bin));
    std::fs::create_dir_all(&bin).map_err(|error| error.to_string())?;
    for name in
        "netloom loopback bridge ptp macvlan ipvlan vlan dummy tap host-device host-local static portmap firewall tuning bandwidth"
            .split(' ')
    {
        std::fs::hard_link(binary, bin.join(name)).map_err(|error| error.to_string())?;
    }
    Ok(bin)
}

#[expect(clippy::cast_precision_loss, reason = "sizes of files and processes are far below 2^52")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}
