//! What the command line and the plugins say while another process holds a lock that they need.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use serde_json::json;
use testkit::Host;

use crate::lab::{OURS, dual_stack};

/// Upper limit for a message to arrive on a busy machine; it is sent after one second.
const LIMIT: Duration = Duration::from_secs(30);

fn lab() -> Host {
    let host = Host::new();
    let list = json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [dual_stack()]});
    let folder = host.path("/etc/cni/net.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10-lab.conflist"), list.to_string()).unwrap();
    host.container("c1");
    host
}

fn start(host: &Host, command: &mut Command) -> Child {
    command.env("CNI_PATH", &*OURS).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    host.spawn(command)
}

/// Returns the first line of a process's standard error.
fn first_line(child: &mut Child) -> String {
    let stderr = child.stderr.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line).unwrap();
        drop(sender.send(line));
    });
    receiver.recv_timeout(LIMIT).unwrap()
}

/// Holds the lock of `path`, which exists, while a process of `command` runs, and returns what it says. The process succeeds once
/// the lock is free.
fn said_while_locked(host: &Host, path: &str, command: &mut Command) -> String {
    let held =
        File::options().read(true).write(true).create(true).truncate(false).open(host.path(path)).unwrap();
    held.lock().unwrap();
    let mut child = start(host, command);
    let line = first_line(&mut child);
    drop(held);
    assert!(child.wait().unwrap().success(), "{line}");
    line
}

/// The message names the lock and its holder, here the test itself, also if a plugin waits.
#[test]
fn a_long_wait_names_the_holder() {
    if !testkit::is_root() {
        return;
    }
    let host = lab();
    let own = fs::read_to_string("/proc/self/comm").unwrap();
    let holder = format!("held by {} (PID {})", own.trim(), std::process::id());
    let netloom = |args: &[&str]| {
        let mut command = Command::new(OURS.join("netloom"));
        command.args(args);
        command
    };
    testkit::require_success(
        &host
            .command(OURS.join("netloom"))
            .args(["add", "lab", "/run/netns/c1"])
            .env("CNI_PATH", &*OURS)
            .output()
            .unwrap(),
        "add",
    );
    let locks = [
        ("/var/lib/cni/netloom/locks/network-lab", "netloom", netloom(&["gc", "lab"])),
        (
            "/var/lib/cni/netloom/locks/turn-network-lab",
            "netloom",
            netloom(&["check", "lab", "/run/netns/c1"]),
        ),
        ("/var/lib/cni/networks/lab/lock", "bridge", netloom(&["check", "lab", "/run/netns/c1"])),
        ("/var/lib/cni/networks/lab/lock", "bridge", netloom(&["del", "lab", "/run/netns/c1"])),
    ];
    for (path, waiting, mut command) in locks {
        let said = said_while_locked(&host, path, &mut command);
        assert_eq!(said, format!("{waiting}: waiting for the lock {path}, {holder}\n"));
    }
}

/// A command of iptables-legacy that holds its lock, as one with many rules does, is named too.
#[test]
fn iptables_lock_names_the_holder() {
    if !testkit::is_root() || !testkit::has("iptables-legacy") {
        return;
    }
    let host = lab();
    let list = json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [dual_stack(), {"type": "firewall"}]});
    fs::write(host.path("/etc/cni/net.d/10-lab.conflist"), list.to_string()).unwrap();
    host.sh("iptables-legacy -P FORWARD DROP");
    let mut command = Command::new(OURS.join("netloom"));
    let said = said_while_locked(&host, "/run/xtables.lock", command.args(["add", "lab", "/run/netns/c1"]));
    let own = fs::read_to_string("/proc/self/comm").unwrap();
    let holder = format!("held by {} (PID {})", own.trim(), std::process::id());
    assert_eq!(said, format!("firewall: waiting for the lock /run/xtables.lock, {holder}\n"));
}

/// A DHCP server may take its time. The plugin says that it waits, for which process and where.
#[test]
fn a_slow_lease_is_explained() {
    if !testkit::is_root() {
        return;
    }
    let host = lab();
    fs::create_dir_all(host.path("/run/cni")).unwrap();
    let daemon = UnixListener::bind(host.path("/run/cni/dhcp.sock")).unwrap();
    let mut command = Command::new(OURS.join("dhcp"));
    command.envs([
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
    ]);
    command.env("CNI_PATH", &*OURS).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = host.spawn(&mut command);
    let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": "bridge", "ipam": {"type": "dhcp"}});
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let connection = daemon.accept().unwrap();
    let said = first_line(&mut child);
    drop(connection);
    child.wait().unwrap();
    let own = fs::read_to_string("/proc/self/comm").unwrap();
    let from = format!("from {} (PID {})", own.trim(), std::process::id());
    assert_eq!(said, format!("netloom: waiting for a DHCP lease {from} on /run/cni/dhcp.sock\n"));
}

/// A wait that ends before a person would notice says nothing.
#[test]
fn a_free_lock_says_nothing() {
    if !testkit::is_root() {
        return;
    }
    let host = lab();
    for verb in ["add", "check", "del"] {
        let mut command = Command::new(OURS.join("netloom"));
        let child = start(&host, command.args([verb, "lab", "/run/netns/c1"]));
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{verb}");
    }
}
