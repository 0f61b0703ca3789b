//! `cargo xtask test`: all checks and all tests, on a machine that may have nothing but Rust.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{Outcome, bench, kernel, root, run, run_with, say, tidy};

/// Programs that the tests use, and the Debian package of each.
const PACKAGES: [(&str, &str); 32] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("ping", "iputils-ping"),
    ("nc", "netcat-openbsd"),
    ("jq", "jq"),
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("conntrack", "conntrack"),
    ("firewalld", "firewalld"),
    ("dbus-daemon", "dbus"),
    ("iperf3", "iperf3"),
    ("dnsmasq", "dnsmasq-base"),
    ("kea-dhcp4", "kea-dhcp4-server"),
    ("kea-dhcp6", "kea-dhcp6-server"),
    ("systemd-socket-activate", "systemd"),
    ("valgrind", "valgrind"),
    ("protoc", "protobuf-compiler"),
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("bird", "bird2"),
    ("ethtool", "ethtool"),
    ("socat", "socat"),
    ("openssl", "openssl"),
];

pub(crate) fn test() -> Outcome {
    install_packages()?;
    run("cargo", &["fmt", "--check"])?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"])?;
    tidy::tidy()?;
    crate::spec::spec()?;
    crate::pages::pages(&["--check".to_owned()])?;
    deny()?;
    say("$ cargo doc --workspace --no-deps --quiet");
    let mut doc = Command::new("cargo");
    run_with(
        doc.args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    say("$ cargo test --workspace");
    let mut tests = Command::new("cargo");
    tests.args(["test", "--workspace"]);
    if let Some(peers) = peers() {
        tests.env("NETLOOM_PEERS", peers);
    }
    // The tests count the instructions of this binary.
    tests.env("NETLOOM_RELEASE", bench::measured()?);
    match kernel::prepare(kernel::USUAL) {
        Ok(dir) => drop(tests.env("NETLOOM_KERNEL", dir)),
        Err(error) => say(&format!("SKIPPED: tests on another kernel: {error}")),
    }
    run_with(&mut tests)
}

/// Checks what we depend on: licences, sources, duplicates; advisories where their list is on this machine.
pub(crate) fn deny() -> Outcome {
    if !found("cargo-deny") {
        say("cargo-deny is missing: installing it takes some minutes, once");
        run("cargo", &["install", "cargo-deny", "--locked", "--quiet"])?;
    }
    run(
        "cargo",
        &["deny", "--log-level", "error", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"],
    )?;
    let advisories = home().join(".cargo/advisory-dbs");
    if advisories.is_dir() {
        return run("cargo", &["deny", "--offline", "check", "advisories"]);
    }
    say("SKIPPED: cargo deny check advisories: this machine has no copy of the advisory database");
    Ok(())
}

/// Installs the packages of those programs that are missing.
pub(crate) fn install_packages() -> Outcome {
    let mut missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || !found("apt-get") {
        say(&format!("the tests that need these packages are skipped or fail: {}", missing.join(" ")));
        return Ok(());
    }
    run("apt-get", &["update", "-qq"])?;
    let fixed = ["install", "-y", "-qq", "--no-install-recommends"];
    say(&format!("$ apt-get {} {}", fixed.join(" "), missing.join(" ")));
    let mut install = Command::new("apt-get");
    run_with(install.args(fixed).args(missing).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
}

/// Finds the Go reference plugins for the comparisons: where `NETLOOM_PEERS` says, or by the script beside this
/// repository that fetches them. Without either the comparisons say that they are skipped.
pub(crate) fn peers() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("NETLOOM_PEERS") {
        return Some(dir.into());
    }
    let script = root().join("../shared/peers/get-peers");
    let dir = root().join("target/peers");
    if !script.is_file() {
        return None;
    }
    let mut get = Command::new(script);
    let fetched = run_with(get.arg(&dir).stdout(Stdio::null()));
    match fetched {
        Ok(()) => Some(dir),
        Err(error) => {
            say(&format!("the Go reference plugins cannot be fetched: {error}"));
            None
        }
    }
}

pub(crate) fn found(program: &str) -> bool {
    if program.starts_with('/') {
        return PathBuf::from(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain([home().join(".cargo/bin")]).any(|dir| dir.join(program).is_file())
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default()
}
