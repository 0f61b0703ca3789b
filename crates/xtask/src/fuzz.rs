//! `cargo xtask fuzz`: runs the fuzz targets one after the other. Needs a nightly toolchain and cargo-fuzz.

use std::process::Command;

use crate::{Outcome, files, root, run, run_with, say, test};

/// Runs all, or those that are named, for so many seconds each. What breaks one is kept in its corpus, to be replayed by
/// `cargo test` from then on.
pub(crate) fn fuzz(arguments: &[String]) -> Outcome {
    let (seconds, wanted) = match arguments.split_first() {
        None => (60, arguments),
        Some((seconds, rest)) => {
            (seconds.parse::<u32>().map_err(|_| format!("{seconds} is no number"))?, rest)
        }
    };
    if !test::found("cargo-fuzz") {
        say("cargo-fuzz is missing: installing it takes a minute, once");
        run("cargo", &["install", "cargo-fuzz", "--locked", "--quiet"])?;
    }
    let mut broken = Vec::new();
    for target in files(&root().join("fuzz/fuzz_targets"), &[".rs"]) {
        let name = target.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        say(&format!("fuzz {name} for {seconds} s"));
        // Found on the way are thousands of inputs of which none breaks anything: they are kept out of the repository.
        let (found, seeds) = (format!("target/fuzz/{name}"), format!("fuzz/corpus/{name}"));
        std::fs::create_dir_all(root().join(&found)).map_err(|error| error.to_string())?;
        let mut command = Command::new("cargo");
        command.args(["+nightly", "fuzz", "run", &name, &found, &seeds, "--"]);
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={seeds}/"));
        // libFuzzer's marks do not outlive optimization of the whole program at once.
        command
            .args(["-max_len=4096", "-verbosity=0", "-print_final_stats=1"])
            .env("CARGO_PROFILE_RELEASE_LTO", "off");
        if run_with(&mut command).is_err() {
            broken.push(name);
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(format!("broken: {}", broken.join(", "))) }
}
