//! `cargo xtask dist`: the binary to install. All flags that a plain build does not have are here, with what each gains.
//!
//! Measured with `cargo xtask bench` on the machine of `docs/performance.md`; `docs/builds.md` has the table.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Outcome, read, root, run_with, say, section_order};

/// What to build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dist {
    /// Link the program at a fixed address instead of as a position-independent executable.
    pub(crate) fixed: bool,
    /// The target triple. Defaults to this architecture's musl target if the toolchain has it or can get it.
    pub(crate) target: Option<String>,
    /// The repository to build, with a target folder of its own. Defaults to this one.
    pub(crate) root: Option<PathBuf>,
    /// Further arguments to the compiler, for the binary alone.
    pub(crate) more: Vec<String>,
}

/// Runs `cargo xtask dist`.
pub(crate) fn main(arguments: &[String]) -> Outcome {
    let mut dist = Dist::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--fixed" => dist.fixed = true,
            "--target" => dist.target = Some(arguments.next().ok_or("`--target` needs a triple")?.clone()),
            other => return Err(format!("unknown option `{other}`")),
        }
    }
    say(&dist.build()?.display().to_string());
    Ok(())
}

impl Dist {
    /// Builds the binary and returns its path. Prints how many names of `hot.ld` no longer exist.
    pub(crate) fn build(&self) -> Result<PathBuf, String> {
        let root = self.root.clone().unwrap_or_else(root);
        let target = self.target.clone().unwrap_or_else(usual_target);
        let target_dir = self.root.as_ref().map_or_else(crate::target, |root| root.join("target"));
        let map = target_dir.join("dist.map");
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&root)
            .args(["rustc", "--release", "--locked", "--quiet", "--package", "netloom", "--bin", "netloom"])
            .args(["--target", &target, "--target-dir"])
            .arg(&target_dir)
            .env("NETLOOM_SECTION_ORDER", "1")
            // Cargo reads flags from one place only: in this variable they are added to the caller's own.
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(&root, &target)?.join("\u{1f}"))
            .env_remove("RUSTFLAGS")
            .arg("--")
            .arg(format!("-Clink-arg=-Wl,-Map={}", map.display()))
            .args(&self.more);
        let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
        if !status.success() {
            return Err(format!("cargo rustc failed: {status}"));
        }
        if let Some(stale) = read(&map).ok().and_then(|map| section_order::stale(&map)) {
            say(&stale);
        }
        Ok(target_dir.join(target).join("release/netloom"))
    }

    /// Returns the compiler's flags: the caller's, then those of `dist`.
    fn flags(&self, root: &Path, target: &str) -> Result<Vec<String>, String> {
        let mut flags = callers_flags();
        let mut add = |flag: String| flags.push(flag);
        if target.ends_with("-gnu") {
            // Static: no dynamic loader runs, and no library is mapped.
            add("-Ctarget-feature=+crt-static".to_owned());
        }
        if self.fixed {
            // Nothing to relocate: 40,000 instructions less at each start, and the tables of pointers stay untouched in the page cache.
            add("-Crelocation-model=static".to_owned());
        }
        // The names in `hot.ld`. They identify one instance of a generic function, the older mangling does not.
        add("-Csymbol-mangling-version=v0".to_owned());
        // Panic messages and debug information name source files: without folders of this machine builds are reproducible.
        let sysroot = sysroot()?;
        let cargo_home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
            .unwrap_or_default();
        for (folder, name) in [(cargo_home, "/cargo"), (sysroot, "/rust"), (root.to_owned(), "/netloom")] {
            add(format!("--remap-path-prefix={}={name}", folder.display()));
        }
        Ok(flags)
    }
}

/// Returns the flags that the caller of `cargo xtask` has set, from where Cargo reads them.
fn callers_flags() -> Vec<String> {
    let split = |name: &str, separator: char| {
        let text = std::env::var(name).ok()?;
        Some(text.split(separator).filter(|flag| !flag.is_empty()).map(str::to_owned).collect())
    };
    split("CARGO_ENCODED_RUSTFLAGS", '\u{1f}').or_else(|| split("RUSTFLAGS", ' ')).unwrap_or_default()
}

/// Returns this architecture's musl target, or its GNU target if the toolchain has no other and cannot get it.
///
/// glibc executes `cpuid` 68 times before `main` to size its memory functions, static or not, and each is an exit to the
/// hypervisor in a virtual machine: 0.4 ms on the machine of `docs/performance.md`. musl executes none.
fn usual_target() -> String {
    let linux = format!("{}-unknown-linux", std::env::consts::ARCH);
    let musl = format!("{linux}-musl");
    let has_musl = || sysroot().is_ok_and(|dir| dir.join("lib/rustlib").join(&musl).join("lib").is_dir());
    if !has_musl() {
        // Fails without rustup or without network.
        drop(Command::new("rustup").args(["target", "add", &musl]).current_dir(root()).output());
    }
    if has_musl() { musl } else { format!("{linux}-gnu") }
}

fn sysroot() -> Result<PathBuf, String> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("rustc: {error}"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Runs `cargo xtask reproducible`: builds copies of the last commit in two folders and compares the binaries.
pub(crate) fn reproducible() -> Outcome {
    let scratch = crate::target().join("reproducible");
    drop(std::fs::remove_dir_all(&scratch));
    let mut binaries = Vec::new();
    // Names of different lengths: a path that is left in the binary moves what follows.
    for name in ["a", "another-folder"] {
        let copy = scratch.join(name);
        std::fs::create_dir_all(&copy).map_err(|error| error.to_string())?;
        let copied = "git archive HEAD | tar -x -C \"$0\"";
        run_with(Command::new("sh").args(["-c", copied]).arg(&copy))?;
        let dist = Dist { root: Some(copy), ..Dist::default() };
        let binary = dist.build()?;
        binaries.push((std::fs::read(&binary).map_err(|error| error.to_string())?, binary));
    }
    let [(first, one), (second, other)] = &binaries[..] else { return Err("two builds".to_owned()) };
    if first != second {
        let at = first.iter().zip(second).position(|(a, b)| a != b).unwrap_or(first.len().min(second.len()));
        return Err(format!(
            "{} and {} differ at byte {at}; sizes: {} and {}",
            one.display(),
            other.display(),
            first.len(),
            second.len()
        ));
    }
    say(&format!("two builds in different folders have the same {} bytes", first.len()));
    Ok(())
}
