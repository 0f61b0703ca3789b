//! The programs that chores and tests need, and the Debian packages that they come in.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{Outcome, run, run_with, say};

/// Programs that the tests use, and the Debian package of each.
const PACKAGES: [(&str, &str); 35] = [
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
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("ufw", "ufw"),
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

/// Installs the packages of those programs that are missing.
pub(crate) fn install_packages() -> Outcome {
    let mut missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || !found("apt-get") {
        say(&format!("tests that need these packages are skipped or fail: {}", missing.join(" ")));
        return Ok(());
    }
    run("apt-get", &["update", "-qq"])?;
    let fixed = ["install", "-y", "-qq", "--no-install-recommends"];
    say(&format!("$ apt-get {} {}", fixed.join(" "), missing.join(" ")));
    let mut install = Command::new("apt-get");
    run_with(install.args(fixed).args(missing).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
}

/// Returns whether a program is in `PATH` or among cargo's, or, if it is a path, whether the file exists.
pub(crate) fn found(program: &str) -> bool {
    if program.starts_with('/') {
        return PathBuf::from(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain([home().join(".cargo/bin")]).any(|dir| dir.join(program).is_file())
}

/// Returns the home folder.
pub(crate) fn home() -> PathBuf {
    std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default()
}
