//! `cargo xtask tidy`: the conventions of this repository that a program can check.
//!
//! It prints files that grow too long, and fails for everything else: arrows between crates that ARCHITECTURE.md does not draw,
//! circles between files, missing descriptions, empty names, and a map that names files that do not exist.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;

use crate::{Outcome, circles::Imports, files, read, root, say};

/// The crates of this workspace that each crate may use, as drawn in ARCHITECTURE.md. Anything else is an error: a crate is
/// a promise about what it does not know.
const ARROWS: [(&str, &[&str]); 16] = [
    ("netloom-types", &[]),
    ("netloom-invoke", &["netloom-types"]),
    ("netloom-plugin", &["netloom-invoke", "netloom-types"]),
    ("netloom-runtime", &["netloom-invoke", "netloom-types"]),
    ("kernel", &[]),
    ("ruleset", &["kernel"]),
    ("ipam", &["kernel"]),
    ("dhcp", &["kernel"]),
    ("plugins", &["netloom-types", "netloom-invoke", "netloom-plugin", "kernel", "ruleset", "ipam", "dhcp"]),
    ("lint", &["netloom-types", "ipam", "plugins"]),
    (
        "netloom",
        &[
            "netloom-types",
            "netloom-invoke",
            "netloom-plugin",
            "netloom-runtime",
            "kernel",
            "ruleset",
            "dhcp",
            "plugins",
            "lint",
        ],
    ),
    ("node", &["kernel", "ruleset"]),
    ("netloomd", &["node"]),
    ("fuzz", &["netloom-types", "netloom-invoke", "netloom-runtime", "dhcp", "ipam", "kernel", "lint"]),
    ("testkit", &[]),
    ("xtask", &["testkit"]),
];

/// Files longer than this hold more than one thing.
const MOST_LINES: usize = 700;
/// Files with more lines of code than this are listed: the next change should split them.
const MANY_LINES_OF_CODE: usize = 450;
const FORBIDDEN_NAMES: [&str; 6] =
    ["utils.rs", "helpers.rs", "common.rs", "misc.rs", "constants.rs", "core.rs"];

pub(crate) fn tidy() -> Outcome {
    let mut wrong = Vec::new();
    crate_arrows(&mut wrong)?;
    sources(&mut wrong)?;
    architecture(&mut wrong)?;
    circles(&mut wrong)?;
    if wrong.is_empty() {
        say("tidy");
        return Ok(());
    }
    Err(format!("not tidy:\n  {}", wrong.join("\n  ")))
}

/// Crates use the crates that [`ARROWS`] allows, and outside crates for a reason that ARCHITECTURE.md states.
fn crate_arrows(wrong: &mut Vec<String>) -> Outcome {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .map_err(|error| error.to_string())?;
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let page = read(&root().join("ARCHITECTURE.md"))?;
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("crate {name} has no arrows in crates/xtask/src/tidy.rs"));
            continue;
        };
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().unwrap_or(manifest);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev";
            if !is_used(folder, used, for_tests)? {
                wrong.push(format!("{name} does not use {used}, which its Cargo.toml names"));
            }
            if ours.contains(used) {
                if !(allowed.contains(&used) || for_tests && used == "testkit") {
                    wrong.push(format!("{name} must not use {used}"));
                }
            } else if !page.contains(&format!("`{used}`")) {
                wrong.push(format!("ARCHITECTURE.md does not say why {name} uses {used}"));
            }
        }
    }
    Ok(())
}

/// Returns whether a crate's code (its tests, for what only they may use) names a dependency.
fn is_used(folder: &Path, dependency: &str, for_tests: bool) -> Result<bool, String> {
    let dependency = dependency.replace('-', "_");
    for path in files(folder, &[".rs"]) {
        let in_tests = path.starts_with(folder.join("tests"));
        let text = read(&path)?;
        let uses = [format!("{dependency}::"), format!("use {dependency} as _;")];
        if (for_tests || !in_tests) && uses.iter().any(|it| text.contains(it)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every file has a description, a name that explains it, no unsafe code outside `kernel`, and a bounded length.
fn sources(wrong: &mut Vec<String>) -> Outcome {
    let mut long = Vec::new();
    for path in ["crates", "fuzz"].iter().flat_map(|dir| files(&root().join(dir), &[".rs"])) {
        let text = read(&path)?;
        let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        if !text.starts_with("//!") {
            wrong.push(format!("{shown} has no `//!` description"));
        }
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| FORBIDDEN_NAMES.contains(&name))
        {
            wrong.push(format!("{shown} has a name that explains nothing"));
        }
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        if is_root && !shown.starts_with("crates/kernel") && !text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{shown} does not forbid unsafe code"));
        }
        let is_test = shown.contains("/tests/");
        let lines = text.lines().count();
        let code =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        if code > MANY_LINES_OF_CODE && !is_test {
            long.push((code, shown.clone()));
        }
        if lines > MOST_LINES && !is_test {
            wrong.push(format!("{shown} has {lines} lines, more than {MOST_LINES}"));
        }
        // Written in two pieces, so that this file does not match itself.
        for mark in [concat!("#[", "ignore"), concat!("TO", "DO"), concat!("FIX", "ME")] {
            if text.contains(mark) {
                wrong.push(format!("{shown} has {mark}"));
            }
        }
    }
    long.sort_unstable_by(|a, b| b.cmp(a));
    for (code, shown) in long {
        say(&format!("{shown} has {code} lines of code, more than {MANY_LINES_OF_CODE}"));
    }
    Ok(())
}

/// Files of a crate do not import from each other in a circle.
fn circles(wrong: &mut Vec<String>) -> Outcome {
    let mut arrows = 0;
    for (name, _) in ARROWS {
        let folder = if name == "fuzz" { root().join(name) } else { root().join("crates").join(name) };
        let imports = Imports::read(&folder.join("src"))?;
        arrows += imports.arrows.values().map(BTreeSet::len).sum::<usize>();
        for circle in imports.circles() {
            wrong.push(format!(
                "{name} has a circle of {} files:{}",
                circle.len(),
                imports.describe(&circle)
            ));
        }
    }
    say(&format!("{arrows} imports between files"));
    Ok(())
}

/// ARCHITECTURE.md names every crate, and only files that exist.
fn architecture(wrong: &mut Vec<String>) -> Outcome {
    let page = read(&root().join("ARCHITECTURE.md"))?;
    for (name, _) in ARROWS {
        if !page.contains(&format!("`{name}`")) {
            wrong.push(format!("ARCHITECTURE.md does not name crate {name}"));
        }
    }
    for word in page.split('`').skip(1).step_by(2) {
        let is_path = word.contains('/')
            && !word.contains(' ')
            && [".rs", ".md"].iter().any(|ending| word.ends_with(ending));
        if is_path && !Path::new(&root()).join("crates").join(word).exists() && !root().join(word).exists() {
            wrong.push(format!("ARCHITECTURE.md names {word}, which does not exist"));
        }
    }
    Ok(())
}
