//! A cluster for tests: hosts on a wire, a store, a daemon on each host, and pods.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use testkit::Host;

use crate::{cluster::dump, kubernetes};

pub(crate) const NETLOOMD: &str = env!("CARGO_BIN_EXE_netloomd");

/// The daemons' lease.
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// The path of `netloom`, which is built beside `netloomd`.
pub(crate) fn netloom() -> PathBuf {
    let path = Path::new(NETLOOMD).with_file_name("netloom");
    assert!(path.exists(), "{} is missing: cargo build --package netloom", path.display());
    path
}

/// How hosts are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// All on one segment.
    OneSegment,
    /// The third host behind a router.
    Router,
}

/// The running store.
enum Store {
    File,
    Etcd(Child),
    Kubernetes(Child),
}

/// The kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Etcd,
    Kubernetes,
}

pub(crate) struct Lab {
    pub(crate) wire: Host,
    pub(crate) hosts: Vec<Host>,
    daemons: Vec<Option<Child>>,
    store: Store,
    plan: Plan,
    dir: tempfile::TempDir,
}

/// The shape of a lab.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) wire: Wire,
    pub(crate) hosts: usize,
    /// The number of hosts on which a daemon is started at once.
    pub(crate) started: usize,
    pub(crate) store: Kind,
    pub(crate) mode: &'static str,
    pub(crate) pods: &'static str,
    pub(crate) mtu: u32,
    /// Further flags for the daemons.
    pub(crate) flags: &'static [&'static str],
    /// The daemons' configuration file.
    pub(crate) file: &'static str,
    /// A shell script that runs on the wire before the daemons start.
    pub(crate) first: &'static str,
    /// Whether daemons run as in an unprivileged container.
    pub(crate) bare: bool,
    /// The first three octets of the hosts' addresses, and their prefix length.
    pub(crate) segment: (&'static str, u8),
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            wire: Wire::OneSegment,
            hosts: 3,
            started: usize::MAX,
            store: Kind::File,
            mode: "overlay",
            pods: "10.244.0.0/16,fd44::/48",
            mtu: 1500,
            flags: &[],
            file: "",
            first: "true",
            bare: false,
            segment: ("192.0.2", 24),
        }
    }
}

/// Starts a daemon with its two capabilities and a read-only `/proc/sys`, except for a mount of the host's.
const BARE: &str = "mkdir -p /run/sysctl && mount --bind /proc/sys/net /run/sysctl && mount --bind /proc/sys /proc/sys \
     && mount -o remount,ro,bind /proc/sys \
     && exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+net_admin,+net_raw -- \"$0\" \"$@\"";

/// The client of etcd, on the wire's host.
pub(crate) const ETCDCTL: &str = "ETCDCTL_API=3 etcdctl --endpoints http://192.0.2.254:2379";
/// The address of etcd, on the wire's host.
const ETCD: &str = "192.0.2.254";
/// The address of the Kubernetes API, on the wire's host.
pub(crate) const SERVER: &str = "192.0.2.254:8080";
const PATIENCE: Duration = Duration::from_secs(40);

impl Lab {
    pub(crate) fn new(wire: Wire, etcd: bool, mode: &'static str, mtu: u32) -> Self {
        let store = if etcd { Kind::Etcd } else { Kind::File };
        Self::of(Plan { wire, store, mode, mtu, ..Plan::default() })
    }

    pub(crate) fn of(plan: Plan) -> Self {
        let Plan { wire, mtu, .. } = plan;
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        for name in ["ptp", "macvlan", "ipvlan", "bridge", "host-local", "portmap", "bandwidth", "netloom"] {
            fs::hard_link(netloom(), bin.join(name))
                .or_else(|_| fs::copy(netloom(), bin.join(name)).map(drop))
                .unwrap();
        }
        let middle = Host::new();
        fs::write(dir.path().join("netloomd.toml"), plan.file).unwrap();
        let hosts: Vec<Host> = (0..plan.hosts).map(|_| Host::new()).collect();
        middle.sh(&format!(
            "for seg in sega segb; do ip link add $seg type bridge; ip link set $seg mtu {mtu} up; done
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
             ip addr add 192.0.2.254/24 dev sega; ip -6 addr add 2001:db8:a::fe/64 dev sega nodad
             ip addr add 198.51.100.254/24 dev segb; ip -6 addr add 2001:db8:b::fe/64 dev segb nodad"
        ));
        for (index, host) in hosts.iter().enumerate() {
            let number = index + 1;
            let behind = wire == Wire::Router && index == 2;
            let (segment, (v4, length), v6) = if behind {
                ("segb", ("198.51.100", 24), "2001:db8:b:")
            } else {
                ("sega", plan.segment, "2001:db8:a:")
            };
            middle.sh(&format!(
                "ip link add n{number} mtu {mtu} type veth peer name up0 mtu {mtu} netns {}; ip link set n{number} master {segment} up",
                host.pid()
            ));
            // The host's firewall drops what it forwards, and the reverse-path filter is strict.
            host.sh(&format!(
                "for c in default up0; do echo 1 >/proc/sys/net/ipv4/conf/$c/rp_filter; done; echo 0 >/proc/sys/net/ipv6/conf/up0/accept_dad; ip link set up0 up; ip addr add {v4}.{number}/{length} dev up0; ip -6 addr add {v6}:{number}/64 dev up0 nodad
                 ip route add default via {v4}.254; ip -6 route add default via {v6}:fe
                 nft 'table inet own {{ chain f {{ type filter hook forward priority 0; policy drop; }}; }}'"
            ));
        }
        middle.sh(plan.first);
        let store = match plan.store {
            Kind::File => Store::File,
            Kind::Etcd => Store::Etcd(start_etcd(&middle, dir.path())),
            Kind::Kubernetes => {
                fs::write(dir.path().join("kubeconfig"), kubernetes::kubeconfig(SERVER)).unwrap();
                Store::Kubernetes(kubernetes::start(&middle, SERVER))
            }
        };
        let daemons = hosts.iter().map(|_| None).collect();
        let mut lab = Self { wire: middle, daemons, hosts, store, plan, dir };
        let started = plan.hosts.min(plan.started);
        for index in 0..started {
            lab.start(index);
        }
        for index in 0..started {
            lab.wait_for_peers(index, started - 1);
        }
        lab
    }

    /// Returns the daemon's command on a host, without a subcommand.
    pub(crate) fn daemon(&self, index: usize) -> Command {
        let host = &self.hosts[index];
        let mut command = if self.plan.bare { host.command("unshare") } else { host.command(NETLOOMD) };
        if self.plan.bare {
            command.args(["--mount", "sh", "-c", BARE, NETLOOMD, "--sysctl-dir", "/run/sysctl"]);
        }
        // A test's flags override these.
        command.env("NETLOOMD_MODE", self.plan.mode).env("NETLOOMD_PODS", self.plan.pods);
        command.env("NETLOOMD_NODE", format!("host{}", index + 1));
        let lease = LEASE.as_secs().to_string();
        command.args(["--conf-dir", "/run/net.d", "--lease", &lease, "--listen", "127.0.0.1:9470"]);
        command.arg("--config").arg(self.dir.path().join("netloomd.toml")).args(self.plan.flags);
        match self.store {
            Store::File => {
                command.args(["--store", "file", "--store-dir"]).arg(self.dir.path().join("store"))
            }
            Store::Etcd(_) => {
                command.args(["--store", "etcd", "--etcd-endpoints", &format!("http://{ETCD}:2379")])
            }
            Store::Kubernetes(_) => command
                .args(["--store", "kubernetes", "--kubeconfig"])
                .arg(self.dir.path().join("kubeconfig")),
        };
        command
    }

    pub(crate) fn start(&mut self, index: usize) {
        self.start_with(index, &[]);
    }

    /// Starts a daemon with further flags.
    pub(crate) fn start_with(&mut self, index: usize, flags: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log(index)).unwrap();
        self.daemons[index] =
            Some(self.daemon(index).args(flags).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Stops the store's process with SIGSTOP, or continues it.
    pub(crate) fn freeze_store(&self, frozen: bool) {
        let (Store::Etcd(server) | Store::Kubernetes(server)) = &self.store else {
            panic!("there is no server")
        };
        self.wire.sh(&format!("kill -{} {}", if frozen { "STOP" } else { "CONT" }, server.id()));
    }

    fn log(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("log{}", index + 1))
    }

    pub(crate) fn daemon_pid(&self, index: usize) -> u32 {
        self.daemons[index].as_ref().unwrap().id()
    }

    /// Kills a daemon with SIGKILL.
    pub(crate) fn kill(&mut self, index: usize) {
        let mut daemon = self.daemons[index].take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn stop_store(&mut self) {
        let (Store::Etcd(server) | Store::Kubernetes(server)) = &mut self.store else {
            panic!("there is no server")
        };
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub(crate) fn start_store(&mut self) {
        self.store = match self.plan.store {
            Kind::File => Store::File,
            Kind::Etcd => Store::Etcd(start_etcd(&self.wire, self.dir.path())),
            Kind::Kubernetes => Store::Kubernetes(kubernetes::start(&self.wire, SERVER)),
        };
    }

    /// Returns the directory of the file store.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn status(&self, index: usize) -> Value {
        let host = &self.hosts[index];
        let output = host
            .command("bash")
            .args([
                "-c",
                "exec 3<>/dev/tcp/127.0.0.1/9470 && printf 'GET /status HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
            ])
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    /// Waits until a daemon's status satisfies a condition.
    pub(crate) fn wait(&self, index: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Duration {
        let started = Instant::now();
        loop {
            let status = self.status(index);
            // Null until the daemon listens.
            if !status.is_null() && holds(&status) {
                return started.elapsed();
            }
            assert!(
                started.elapsed() < PATIENCE,
                "host{}: not {what}: {status:#}\n{}",
                index + 1,
                fs::read_to_string(self.log(index)).unwrap_or_default()
            );
            std::thread::yield_now();
        }
    }

    /// Waits until a daemon is ready and has a number of peers.
    pub(crate) fn wait_for_peers(&self, index: usize, count: usize) -> Duration {
        self.wait(index, &format!("ready with {count} other nodes"), |status| {
            status["ready"] == true && status["peers"].as_array().is_some_and(|peers| peers.len() == count)
        })
    }

    /// Waits until a daemon has logged a text.
    pub(crate) fn logged(&self, index: usize, text: &str) {
        let started = Instant::now();
        loop {
            let log = fs::read_to_string(self.log(index)).unwrap_or_default();
            if log.contains(text) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "host{} did not log {text:?}:\n{log}", index + 1);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a shell command succeeds on a host.
    pub(crate) fn until(&self, index: usize, line: &str) -> Duration {
        let started = Instant::now();
        while !self.hosts[index].succeeds(line) {
            assert!(
                started.elapsed() < PATIENCE,
                "host{}: not {line}\n{}\n{}",
                index + 1,
                self.hosts[index].sh("ip route; ip -6 route; ip -br link; bridge fdb; ip neigh"),
                fs::read_to_string(self.log(index)).unwrap_or_default()
            );
        }
        started.elapsed()
    }

    /// Waits until the daemon's objects on a host are as before.
    pub(crate) fn until_as(&self, index: usize, before: &str) -> Duration {
        let started = Instant::now();
        loop {
            let now = dump(self, index);
            if now == before {
                return started.elapsed();
            }
            assert!(started.elapsed() < PATIENCE, "host{}:\n{before}\n{now}", index + 1);
        }
    }

    /// Starts a pod with the plugins; returns its addresses.
    pub(crate) fn pod(&self, index: usize, name: &str) -> Vec<String> {
        self.hosts[index].container(name);
        self.attach(index, name, "netloom").unwrap()
    }

    /// Attaches an existing pod to a network; returns its addresses, or the error.
    pub(crate) fn attach(&self, index: usize, name: &str, network: &str) -> Result<Vec<String>, String> {
        self.attach_with(index, name, network, "{}")
    }

    /// Attaches an existing pod to a network with capability arguments.
    pub(crate) fn attach_with(
        &self,
        index: usize,
        name: &str,
        network: &str,
        arguments: &str,
    ) -> Result<Vec<String>, String> {
        let bin = self.dir.path().join("bin");
        let output = self.hosts[index]
            .command(bin.join("netloom"))
            .args(["add", network, &format!("/run/netns/{name}")])
            .env("NETCONFPATH", "/run/net.d")
            .env("CNI_PATH", &bin)
            .env("CNI_CONTAINERID", name)
            .env("CAP_ARGS", arguments)
            .env("CNI_IFNAME", if network == "netloom" { "eth0" } else { network })
            .output()
            .unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
        }
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ips = result["ips"].as_array().unwrap().iter();
        Ok(ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect())
    }

    /// Calls the network's STATUS; returns the error if the network is not ready.
    pub(crate) fn network_status(&self, index: usize) -> Result<(), String> {
        let bin = self.dir.path().join("bin");
        let mut command = self.hosts[index].command(bin.join("netloom"));
        command.args(["status", "netloom"]).env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &bin);
        let output = command.output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// Detaches and removes a pod.
    pub(crate) fn end(&self, index: usize, name: &str) {
        let bin = self.dir.path().join("bin");
        self.hosts[index].sh(&format!(
            "NETCONFPATH=/run/net.d CNI_PATH={bin} CNI_CONTAINERID={name} {bin}/netloom del netloom /run/netns/{name}; ip netns del {name}",
            bin = bin.display()
        ));
    }

    /// Starts two pods on each host; returns the host, the name and the addresses of each.
    pub(crate) fn pods(&self) -> Vec<(usize, String, Vec<String>)> {
        let mut pods = Vec::new();
        for index in 0..self.hosts.len() {
            for letter in ["a", "b"] {
                let name = format!("{letter}{}", index + 1);
                let addresses = self.pod(index, &name);
                pods.push((index, name, addresses));
            }
        }
        pods
    }

    pub(crate) fn pings(&self, index: usize, pod: &str, flags: &str, to: &str) -> bool {
        self.hosts[index].succeeds(&format!("ip netns exec {pod} ping -c 1 -W 2 {flags} {to}"))
    }

    /// Waits until all pods reach all others.
    pub(crate) fn all_reach_all_again(&self, pods: &[(usize, String, Vec<String>)]) {
        for (index, name, _) in pods {
            for (_, _, addresses) in pods.iter().filter(|(_, other, _)| other != name) {
                for to in addresses {
                    self.until(*index, &format!("ip netns exec {name} ping -c 1 -W 1 {to}"));
                }
            }
        }
        self.all_reach_all(pods);
    }

    /// Asserts that all pods reach all others, in both families.
    pub(crate) fn all_reach_all(&self, pods: &[(usize, String, Vec<String>)]) {
        for (index, name, _) in pods {
            for (_, other, addresses) in pods.iter().filter(|(_, other, _)| other != name) {
                for to in addresses {
                    if !self.pings(*index, name, "", to) {
                        let look = "ip route; ip -6 route; ip neigh; nft list ruleset";
                        let (here, wire) =
                            (self.hosts[*index].sh(look), self.wire.sh("ip neigh; ip -6 neigh"));
                        let logs: Vec<String> = (0..self.hosts.len())
                            .map(|index| fs::read_to_string(self.log(index)).unwrap_or_default())
                            .collect();
                        panic!(
                            "{name} does not reach {other} at {to}\n{here}\n{wire}\n{}",
                            logs.join("\n--\n")
                        );
                    }
                }
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for mut daemon in self.daemons.iter_mut().filter_map(Option::take) {
            drop(daemon.kill());
            drop(daemon.wait());
        }
        if let Store::Etcd(server) | Store::Kubernetes(server) = &mut self.store {
            drop(server.kill());
            drop(server.wait());
        }
    }
}

fn start_etcd(host: &Host, dir: &Path) -> Child {
    let url = |port: u16| format!("http://{ETCD}:{port}");
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("etcd.log")).unwrap();
    let mut command = host.command("etcd");
    command.args(["--data-dir", dir.join("etcd").to_str().unwrap(), "--listen-client-urls", &url(2379)]);
    command.args(["--advertise-client-urls", &url(2379), "--listen-peer-urls", &url(2380)]);
    command.args([
        "--initial-advertise-peer-urls",
        &url(2380),
        "--initial-cluster",
        &format!("default={}", url(2380)),
    ]);
    let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let started = Instant::now();
    while !host.succeeds(&format!("ETCDCTL_API=3 etcdctl --endpoints {} endpoint health", url(2379))) {
        assert!(started.elapsed() < PATIENCE, "{}", fs::read_to_string(dir.join("etcd.log")).unwrap());
    }
    child
}

/// Replaces a file atomically.
pub(crate) fn write(path: &Path, text: &str) {
    let fresh = path.with_file_name(".by-a-test");
    fs::File::create(&fresh).unwrap().write_all(text.as_bytes()).unwrap();
    fs::rename(fresh, path).unwrap();
}
