//! Container runtimes from Debian packages with our plugins: containerd through `ctr` and through its CRI socket, and podman
//! with its CNI backend. Each container reaches its gateway and another container. Nothing is left behind.

mod cri;

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::NETLOOM;

/// Returns a host with our plugins from `netloom install`, and a busybox image.
fn host_with_image() -> Host {
    let host = Host::new();
    host.sh(&format!("rm -f /etc/cni/net.d/*; {NETLOOM} install --with-default-network"));
    host.sh(include_str!("clients/image.sh"));
    host
}

fn ready(programs: &[&str]) -> bool {
    testkit::is_root() && programs.iter().all(|program| testkit::has(program))
}

/// A containerd process that ends with the test.
struct Containerd<'a> {
    host: &'a Host,
    process: Child,
}

const CTR: &str = "ctr --address /run/c/sock";

impl<'a> Containerd<'a> {
    fn start(host: &'a Host) -> Self {
        fs::create_dir_all(host.path("/run/c")).unwrap();
        fs::write(host.path("/run/c/config.toml"), include_str!("clients/containerd.toml")).unwrap();
        let log = fs::File::create(host.path("/run/c/log")).unwrap();
        let mut command: Command = host.command("containerd");
        let process = command
            .args(["--config", "/run/c/config.toml"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { host, process };
        host.sh(&format!("timeout 20 sh -c 'until {CTR} version >/dev/null 2>&1; do sleep 0.1; done'"));
        host.sh(&format!("{CTR} --namespace k8s.io image import --snapshotter native /run/image.tar"));
        host.sh(&format!("{CTR} image import --snapshotter native /run/image.tar"));
        containerd
    }

    fn log(&self) -> String {
        self.host.sh("tail -20 /run/c/log")
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        drop(self.process.wait());
    }
}

fn attached(host: &Host) -> Vec<Value> {
    host.json(&format!("{NETLOOM} list --json"))["attachments"].as_array().unwrap().clone()
}

fn assert_nothing_left(host: &Host) {
    assert!(attached(host).is_empty());
    assert_eq!(host.sh("ip -br link | grep -c veth || true").trim(), "0");
    assert_eq!(host.sh("find /var/lib/cni/networks -name '10.*' -o -name 'fd*' | wc -l").trim(), "0");
    assert_eq!(host.sh("nft list ruleset | grep -c 'elements = ' || true").trim(), "0");
    assert_eq!(host.sh("ls /run/netns /var/run/netns | grep -c cni || true").trim(), "0");
}

/// R70, R73: `ctr run --cni`.
#[test]
fn containerd_by_ctr() {
    if !ready(&["containerd", "ctr", "runc", "busybox"]) {
        return;
    }
    let host = host_with_image();
    let containerd = Containerd::start(&host);
    // Not detached: `ctr` stays and detaches the container from its network when the task ends.
    let run = |name: &str| {
        let line = format!(
            "exec {CTR} run --rm --snapshotter native --cni docker.io/library/lab:latest {name} >>/run/c/log 2>&1"
        );
        let child = host.command("sh").args(["-c", &line]).spawn().unwrap();
        host.sh(&format!("timeout 20 sh -c 'until {CTR} task ls | grep {name} | grep -q RUNNING; do sleep 0.05; done' || (cat /run/c/log >&2; exit 1)"));
        child
    };
    let mut running = ["c1", "c2"].map(|name| (name, run(name)));
    let address = |name: &str| {
        let text = host.sh(&format!("{CTR} task exec --exec-id a{name} {name} ip -4 -o addr show dev eth0"));
        text.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned()
    };
    let (one, two) = (address("c1"), address("c2"));
    assert!(one.starts_with("10.89.") && two.starts_with("10.89.") && one != two, "{one} {two}");
    for (index, to) in [two.as_str(), "10.89.64.1"].into_iter().enumerate() {
        host.sh(&format!("{CTR} task exec --exec-id p{index} c1 ping -c 1 -W 2 {to}"));
    }
    for (name, ctr) in &mut running {
        host.sh(&format!("{CTR} task kill --signal KILL {name}"));
        ctr.wait().unwrap();
    }
    assert_nothing_left(&host);
    drop(containerd);
}

/// The CRI socket, as the kubelet uses it: RunPodSandbox, status with the address, a port, StopPodSandbox.
#[test]
fn containerd_by_cri() {
    if !ready(&["containerd", "ctr", "runc", "busybox", "nc"]) {
        return;
    }
    let host = host_with_image();
    let containerd = Containerd::start(&host);
    let client = cri::Client::connect(&host.path("/run/c/sock"));
    let first = client
        .run_pod("first", Some((8080, 80)))
        .unwrap_or_else(|error| panic!("{error}\n{}", containerd.log()));
    let second = client.run_pod("second", None).unwrap();
    let (of_first, of_second) = (client.addresses(&first), client.addresses(&second));
    assert!(of_first[0].starts_with("10.89.") && of_first[1].starts_with("fd6e:"), "{of_first:?}");
    assert_ne!(of_first, of_second);
    let entries = attached(&host);
    let entry = |entry: &&Value| entry["containerID"] == json!(first) && entry["network"] == "netloom";
    assert_eq!(entries.iter().find(entry).unwrap()["ports"], json!(["8080->80/tcp"]));
    // The cached result of this containerd version does not contain the namespace's path.
    let netns = host.sh(&format!(
        "for netns in /run/netns/cni-*; do nsenter --net=$netns ip -4 addr show eth0 | grep -q ' {}/' && echo $netns; done; true",
        of_first[0]
    ));
    let netns = netns.trim();
    host.sh(&format!("nsenter --net={netns} ping -c 1 -W 2 {}", of_second[0]));
    host.sh(&format!("nsenter --net={netns} ping -c 1 -W 2 {}", of_second[1]));
    host.sh(&format!("nsenter --net={netns} ping -c 1 -W 2 10.89.64.1"));
    let mut server = host.command("sh");
    let line = format!("echo hello | nsenter --net={netns} nc -l -p 80");
    let mut server = server.args(["-c", &line]).stdout(Stdio::null()).spawn().unwrap();
    host.sh(&format!(
        "timeout 5 sh -c \"until nsenter --net={netns} ss -Htln | grep -q ':80 '; do :; done\""
    ));
    assert_eq!(host.sh("nc -w 1 127.0.0.1 8080 </dev/null"), "hello\n");
    server.wait().unwrap();
    for pod in [&first, &second] {
        client.stop_pod(pod);
        client.stop_pod(pod);
        client.remove_pod(pod);
    }
    assert_nothing_left(&host);
    drop(containerd);
}

/// podman 4.3 with the CNI backend and Debian's network file, which uses four plugins. All of them are ours.
#[test]
fn podman_with_its_own_network_file() {
    if !ready(&["podman", "runc", "busybox"]) {
        return;
    }
    let host = Host::new();
    host.sh(&format!("{NETLOOM} install; test -e /etc/cni/net.d/87-podman-bridge.conflist"));
    host.sh(include_str!("clients/image.sh"));
    fs::create_dir_all(host.path("/etc/containers")).unwrap();
    fs::write(host.path("/etc/containers/containers.conf"), include_str!("clients/containers.conf")).unwrap();
    let podman = |line: &str| {
        host.sh(&format!("podman --storage-driver vfs --root /run/p/root --runroot /run/p/run {line}"))
    };
    podman("load --quiet --input /run/image.tar");
    let limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --cap-add NET_RAW";
    podman(&format!("run --detach --name c1 --network podman {limits} lab:latest"));
    podman(&format!("run --detach --name c2 --network podman {limits} -p 8080:80 lab:latest"));
    let address = podman("inspect --format '{{.NetworkSettings.Networks.podman.IPAddress}}' c2");
    podman(&format!("exec c1 ping -c 1 -W 2 {}", address.trim()));
    podman("exec c1 ping -c 1 -W 2 10.88.0.1");
    assert!(host.sh("nft list map ip netloom ports").contains("tcp . 8080"));
    assert_eq!(attached(&host).len(), 2);
    // podman's cached result does not contain the namespace's path, so GC must treat no attachment as stale.
    host.sh(&format!("{NETLOOM} gc podman"));
    podman(&format!("exec c1 ping -c 1 -W 2 {}", address.trim()));
    podman("rm --force --time 0 c1 c2");
    assert_nothing_left(&host);
    // podman keeps the parent cgroup of its containers.
    host.sh("find /sys/fs/cgroup -maxdepth 2 -name libpod_parent -exec rmdir {} + 2>/dev/null || true");
}
