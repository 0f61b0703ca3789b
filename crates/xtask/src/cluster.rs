//! `cargo xtask cluster`: starts three hosts made of namespaces, an etcd server, and a daemon and two pods on each host, in each
//! mode, and pings between all pods. In modes that work over routers, the third host is behind one.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{Outcome, host::Host, programs, run_with, say, target};

/// The pod prefixes of modes with prefixes of their own.
pub(crate) const POD_PREFIXES: &str = "10.244.0.0/16,fd44::/48";
/// The modes: name, whether the third host is behind a router, pod prefixes.
const MODES: [(&str, bool, &str); 4] = [
    ("overlay", true, POD_PREFIXES),
    ("routing", false, POD_PREFIXES),
    ("auto", true, POD_PREFIXES),
    ("underlay", false, "192.0.2.128/25,2001:db8:a::8000/113"),
];
/// The address of the etcd server.
pub(crate) const ETCD: &str = "192.0.2.254:2379";

/// A child process, killed when the value is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs `cargo xtask cluster`.
pub(crate) fn cluster() -> Outcome {
    let built = built()?;
    for (mode, behind_router, pods) in MODES {
        let dir = fresh_dir("cluster")?;
        let bin = plugins(&built, &dir)?;
        show((mode, pods), behind_router, &built, &dir, &bin)?;
    }
    Ok(())
}

/// Builds both binaries with a plain release build and returns their folder.
pub(crate) fn built() -> Result<PathBuf, String> {
    programs::install_packages()?;
    let build = ["build", "--release", "--quiet", "--package", "netloom", "--package", "netloomd"];
    run_with(Command::new("cargo").args(build))?;
    Ok(target().join("release"))
}

/// Creates an empty folder below the target folder.
pub(crate) fn fresh_dir(name: &str) -> Result<PathBuf, String> {
    let dir = target().join(name);
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    Ok(dir)
}

/// Creates the folder `bin` in `dir` with the plugins that the daemon's networks name, and returns it.
pub(crate) fn plugins(built: &Path, dir: &Path) -> Result<PathBuf, String> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).map_err(|error| error.to_string())?;
    for name in ["netloom", "ptp", "macvlan", "host-local", "portmap", "bandwidth"] {
        std::fs::hard_link(built.join("netloom"), bin.join(name)).map_err(|error| error.to_string())?;
    }
    Ok(bin)
}

/// Makes a host the router between two segments.
pub(crate) fn add_segments(wire: &Host) -> Outcome {
    wire.sh("for seg in sega segb; do ip link add $seg type bridge; ip link set $seg up; done
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
             ip addr add 192.0.2.254/24 dev sega; ip -6 addr add 2001:db8:a::fe/64 dev sega nodad
             ip addr add 198.51.100.254/24 dev segb; ip -6 addr add 2001:db8:b::fe/64 dev segb nodad")
}

/// Returns the bridge of a host's segment, the first three octets of its IPv4 addresses, and its IPv6 prefix.
pub(crate) fn segment(behind_router: bool) -> (&'static str, &'static str, &'static str) {
    if behind_router { ("segb", "198.51.100", "2001:db8:b:") } else { ("sega", "192.0.2", "2001:db8:a:") }
}

/// Starts a cluster in one mode and pings between its pods.
fn show((mode, pods): (&str, &str), behind_router: bool, built: &Path, dir: &Path, bin: &Path) -> Outcome {
    let third = if behind_router { ", the third behind a router" } else { "" };
    say(&format!("\n== mode {mode}: three hosts{third}, etcd, two pods on each host"));
    let wire = Host::new()?;
    add_segments(&wire)?;
    let _etcd = etcd(&wire, dir)?;
    let (mut hosts, mut daemons) = (Vec::new(), Vec::new());
    for number in 1..=3 {
        let host = Host::bare()?;
        let (segment, v4, v6) = segment(behind_router && number == 3);
        let pid = host.pid();
        wire.sh(&format!(
            "ip link add n{number} type veth peer name eth0 netns {pid}; ip link set n{number} master {segment} up"
        ))?;
        host.sh(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up; ip addr add {v4}.{number}/24 dev eth0
             ip -6 addr add {v6}:{number}/64 dev eth0 nodad; ip route add default via {v4}.254; ip -6 route add default via {v6}:fe"
        ))?;
        let log =
            std::fs::File::create(dir.join(format!("log{number}"))).map_err(|error| error.to_string())?;
        let mut daemon = host.command(&built.join("netloomd").display().to_string());
        daemon.args(["--node", &format!("host{number}"), "--mode", mode, "--pods", pods]);
        daemon.args([
            "--store",
            "etcd",
            "--etcd-endpoints",
            &format!("http://{ETCD}"),
            "--conf-dir",
            "/run/net.d",
        ]);
        daemon.args(["--config", "/nowhere"]).stderr(log);
        daemons.push(Running(daemon.spawn().map_err(|error| error.to_string())?));
        hosts.push(host);
    }
    let netloom = bin.join("netloom");
    for host in &hosts {
        let ready = format!(
            "test \"$({} cluster --json 2>/dev/null | jq '.ready and (.peers | length) == 2 and all(.peers[]; .answers)')\" = true",
            netloom.display()
        );
        until(&ready, || host.succeeds(&ready))?;
    }
    let mut started: Vec<(usize, String, Vec<String>)> = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        for letter in ["a", "b"] {
            let name = format!("{letter}{}", index + 1);
            let addresses = host.output(&format!(
                "ip netns add {name}; CNI_CONTAINERID={name} {} --conf-dir /run/net.d --bin-path {} add netloom /run/netns/{name} \
                 | jq -r '.ips[].address | split(\"/\")[0]'",
                netloom.display(),
                bin.display()
            ))?;
            let addresses: Vec<String> = addresses.lines().map(str::to_owned).collect();
            if addresses.len() != 2 {
                return Err(format!("pod {name} lacks an address of one family"));
            }
            started.push((index, name, addresses));
        }
    }
    say(&hosts[0].output(&format!("{} cluster", netloom.display()))?);
    ping_all(&hosts, &started)
}

/// Pings from every pod to each address of every other pod.
fn ping_all(hosts: &[Host], pods: &[(usize, String, Vec<String>)]) -> Outcome {
    let mut lost = Vec::new();
    let mut pings = 0;
    for (index, name, _) in pods {
        for (_, other, addresses) in pods.iter().filter(|(_, other, _)| other != name) {
            for to in addresses {
                pings += 1;
                if !hosts[*index].succeeds(&format!("ip netns exec {name} ping -c 1 -W 2 {to} >/dev/null")) {
                    lost.push(format!("{name} to {other} at {to}"));
                }
            }
        }
    }
    say(&format!("{pings} pings between all pods, IPv4 and IPv6: {} lost", lost.len()));
    if lost.is_empty() { Ok(()) } else { Err(lost.join("\n")) }
}

/// Starts etcd on a host and waits until it answers.
pub(crate) fn etcd(wire: &Host, dir: &Path) -> Result<Running, String> {
    let log = std::fs::File::create(dir.join("etcd.log")).map_err(|error| error.to_string())?;
    let data: PathBuf = dir.join("etcd");
    let mut command = wire.command("etcd");
    command.args([
        "--data-dir",
        &data.display().to_string(),
        "--listen-client-urls",
        &format!("http://{ETCD}"),
    ]);
    command.args(["--advertise-client-urls", &format!("http://{ETCD}")]);
    let etcd = Running(command.stdout(Stdio::null()).stderr(log).spawn().map_err(|error| error.to_string())?);
    let health = format!("ETCDCTL_API=3 etcdctl --endpoints http://{ETCD} endpoint health >/dev/null 2>&1");
    until("etcd answers", || wire.succeeds(&health))?;
    Ok(etcd)
}

/// Waits up to 20 s for a condition.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) -> Outcome {
    wait(what, Duration::from_secs(20), || Ok(holds())).map(drop)
}

/// Waits for a condition, and returns how long that took.
pub(crate) fn wait(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> Result<bool, String>,
) -> Result<Duration, String> {
    let started = Instant::now();
    while !holds()? {
        if started.elapsed() > limit {
            return Err(format!("timed out after {} s: {what}", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(started.elapsed())
}
