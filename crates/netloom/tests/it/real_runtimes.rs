//! Hosts on which other programs are at work for real: podman's containers seen and refused by the command line, and the
//! packet filters of dockerd and ufw.

use std::{
    fs,
    process::{Child, Stdio},
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{NETLOOM, dual_stack, netloom, reach_another_host, text};

fn ready(programs: &[&str]) -> bool {
    testkit::is_root() && programs.iter().all(|program| testkit::has(program))
}

/// Returns a host with our plugins and a root file system of busybox in `/run/image/root`.
fn host_with_root() -> Host {
    let host = Host::new();
    host.sh(&format!("rm -f /etc/cni/net.d/*; {NETLOOM} install"));
    host.sh(include_str!("clients/image.sh"));
    host
}

/// Resources of a container that a machine without swap accounting or with low limits grants.
const LIMITS: &str = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --cap-add NET_RAW";

fn podman(host: &Host, line: &str) -> String {
    host.sh(&format!(
        "podman --storage-driver vfs --root /run/p/root --runroot /run/p/run --network-config-dir /etc/cni/net.d {line}"
    ))
}

fn start_podman_container(host: &Host) -> String {
    let mut bridge = dual_stack();
    bridge.as_object_mut().unwrap().remove("cniVersion");
    bridge.as_object_mut().unwrap().remove("name");
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [bridge, portmap]});
    fs::write(host.path("/etc/cni/net.d/10-lab.conflist"), list.to_string()).unwrap();
    fs::create_dir_all(host.path("/etc/containers")).unwrap();
    fs::write(host.path("/etc/containers/containers.conf"), include_str!("clients/containers.conf")).unwrap();
    let run = "run --detach --name webfront --network lab -p 8080:80";
    let id = podman(host, &format!("{run} {LIMITS} --rootfs /run/image/root /bin/sleep 1000"));
    id.trim().to_owned()
}

/// `list` and `check` find podman's container by name, ID, prefix and process. `del` refuses each and names the owner, and the
/// container keeps its interface. With `--force` it detaches the container.
#[test]
fn podmans_containers_are_found_and_protected() {
    if !ready(&["podman", "runc", "busybox"]) {
        return;
    }
    let host = host_with_root();
    let id = start_podman_container(&host);
    let pid = podman(&host, "inspect --format '{{.State.Pid}}' webfront").trim().to_owned();
    let has_interface = || host.succeeds(&format!("nsenter --target {pid} --net ip link show eth0"));
    assert!(has_interface());
    let listed: Value =
        serde_json::from_slice(&netloom(&host, &["list", "--json", "webfront"]).stdout).unwrap();
    let entry = &listed["attachments"][0];
    assert_eq!((&entry["containerID"], &entry["network"]), (&json!(id), &json!("lab")), "{listed}");
    assert_eq!(entry["ports"], json!(["8080->80/tcp"]), "{listed}");
    for name in ["webfront", &id, &id[..12], &pid] {
        let shown = text(&netloom(&host, &["list", name]));
        assert!(shown.contains(&id[..12]), "list {name}: {shown}");
        testkit::require_success(&netloom(&host, &["check", "lab", name]), &format!("check {name}"));
        let refused = netloom(&host, &["del", "lab", name]);
        let shown = text(&refused);
        assert!(!refused.status.success(), "del {name}: {shown}");
        assert!(shown.contains(&id) && shown.contains("webfront"), "del {name}: {shown}");
        assert!(has_interface(), "del {name}: {shown}");
    }
    testkit::require_success(&netloom(&host, &["del", "lab", "webfront", "--force"]), "del --force");
    assert!(!has_interface());
    podman(&host, "rm --force --time 0 webfront");
    assert_eq!(host.sh("ip -br link | grep -c veth || true").trim(), "0");
    // podman keeps the parent cgroup of its containers.
    host.sh("find /sys/fs/cgroup -maxdepth 2 -name libpod_parent -exec rmdir {} + 2>/dev/null || true");
}

/// A Docker daemon with a containerd of its own, which ends with the test.
struct Dockerd<'a> {
    host: &'a Host,
    process: Child,
}

const DOCKER: &str = "docker --host unix:///run/docker.sock";

impl<'a> Dockerd<'a> {
    fn start(host: &'a Host) -> Self {
        let log = fs::File::create(host.path("/run/dockerd.log")).unwrap();
        let process = host
            .command("dockerd")
            .args(["--data-root", "/var/lib/docker", "--exec-root", "/run/docker", "--storage-driver", "vfs"])
            .args(["--host", "unix:///run/docker.sock", "--pidfile", "/run/docker.pid"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let dockerd = Self { host, process };
        host.sh(&format!(
            "timeout 60 sh -c 'until {DOCKER} version >/dev/null 2>&1; do sleep 0.1; done' || (tail -20 /run/dockerd.log >&2; exit 1)"
        ));
        dockerd
    }

    fn docker(&self, line: &str) -> String {
        self.host.sh(&format!("{DOCKER} {line}"))
    }
}

impl Drop for Dockerd<'_> {
    fn drop(&mut self) {
        // dockerd ends its containerd.
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        drop(self.process.wait());
    }
}

/// The demo and `run` work on a host where dockerd has set up its packet filter and runs a container, and Docker's container
/// keeps its network.
#[test]
fn demo_and_run_work_beside_dockerd() {
    if !ready(&["dockerd", "docker", "containerd", "runc", "busybox", "iptables", "ping"]) {
        return;
    }
    let host = host_with_root();
    // A new namespace may inherit 1 from the machine. dockerd sets the policy only if it enables forwarding itself.
    host.sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
    let dockerd = Dockerd::start(&host);
    assert!(host.sh("iptables -S FORWARD").contains("-P FORWARD DROP"));
    dockerd.docker("load --quiet --input /run/image.tar");
    dockerd.docker(&format!("run --detach --name d1 -p 8081:80 {LIMITS} lab:latest"));
    let rules = host.sh("iptables-save | grep DOCKER");
    reach_another_host(&host, "dockerd");
    dockerd.docker("exec d1 ping -c 1 -W 2 172.17.0.1");
    dockerd.docker("exec d1 ping -c 1 -W 2 192.0.2.2");
    let without_counters = |rules: &str| {
        rules.lines().map(|line| line.split('[').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let after = host.sh("iptables-save | grep DOCKER");
    assert_eq!(without_counters(&after), without_counters(&rules));
    dockerd.docker("rm --force d1");
}

/// The demo and `run` work on a host with ufw enabled.
#[test]
fn demo_and_run_work_beside_ufw() {
    if !ready(&["ufw", "iptables", "busybox", "ping"]) {
        return;
    }
    let host = host_with_root();
    host.sh("ufw --force enable");
    assert!(host.sh("ufw status").contains("Status: active"));
    reach_another_host(&host, "ufw");
}
