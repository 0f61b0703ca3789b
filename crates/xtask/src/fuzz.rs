//! `cargo xtask fuzz`: runs the fuzz targets one after the other. It needs a nightly toolchain and cargo-fuzz.

use std::process::Command;

use crate::{Outcome, files, root, run, run_with, say, test};

/// Runs the named fuzz targets, or all, for a number of seconds each.
///
/// An input that crashes a target is saved in its corpus, which `cargo test` replays.
pub(crate) fn fuzz(arguments: &[String]) -> Outcome {
    let (seconds, wanted) = match arguments.split_first() {
        None => (60, arguments),
        Some((seconds, rest)) => {
            (seconds.parse::<u32>().map_err(|_| format!("`{seconds}` is not a number"))?, rest)
        }
    };
    if !test::found("cargo-fuzz") {
        say("installing cargo-fuzz, which takes a minute");
        run("cargo", &["install", "cargo-fuzz", "--locked", "--quiet"])?;
    }
    let mut broken = Vec::new();
    for target in files(&root().join("fuzz/fuzz_targets"), &[".rs"]) {
        let name = target.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        say(&format!("fuzz {name} for {seconds} s"));
        // Inputs that reach new code without a crash number thousands. They stay out of the repository.
        let (found, seeds) = (format!("target/fuzz/{name}"), format!("fuzz/corpus/{name}"));
        std::fs::create_dir_all(root().join(&found)).map_err(|error| error.to_string())?;
        let mut command = Command::new("cargo");
        command.args(["+nightly", "fuzz", "run", &name, &found, &seeds, "--"]);
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={seeds}/"));
        // Link-time optimization removes libFuzzer's coverage counters.
        command
            .args(["-max_len=4096", "-verbosity=0", "-print_final_stats=1"])
            .env("CARGO_PROFILE_RELEASE_LTO", "off");
        if run_with(&mut command).is_err() {
            broken.push(name);
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(format!("broken: {}", broken.join(", "))) }
}
