//! Arguments to the linker of the binary: the order of functions for `cargo xtask dist`, the unwinder for everybody.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=hot.ld");
    println!("cargo::rerun-if-env-changed=NETLOOM_SECTION_ORDER");
    // `cargo xtask dist` alone: mold refuses a script that inserts sections.
    if env::var_os("NETLOOM_SECTION_ORDER").is_some() {
        let dir = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{dir}/hot.ld");
    }
    link_unwinder();
}

/// Links the unwinder into a program that links glibc dynamically.
///
/// To load `libgcc_s.so.1` takes a seventh of such a program's start-up, and its constructor executes `cpuid` 12 times. Without
/// `libgcc_eh.a`, which comes with GCC, the program uses the shared library.
fn link_unwinder() {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|it| it == value);
    let is_static =
        env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|it| it.split(',').any(|it| it == "crt-static"));
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") || is_static {
        return;
    }
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let is_native = env::var("HOST").ok() == env::var("TARGET").ok();
    // Cargo names the linker only if a configuration sets it. A cross build without one does not get this far.
    let linker = match env::var_os("RUSTC_LINKER") {
        Some(linker) => linker,
        None if is_native => "cc".into(),
        None => return,
    };
    let Ok(output) = Command::new(linker).arg("-print-file-name=libgcc_eh.a").output() else { return };
    let archive = String::from_utf8_lossy(&output.stdout);
    let archive = Path::new(archive.trim());
    // A compiler that does not have the file prints the bare name.
    if let (true, Some(dir)) = (archive.is_absolute() && archive.exists(), archive.parent()) {
        println!("cargo::rustc-link-search=native={}", dir.display());
        println!("cargo::rustc-link-lib=static=gcc_eh");
    }
}
