//! The hosts, the wire that connects them, their daemons and pods.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::servers::{self, Servers};
use crate::{
    Outcome,
    cluster::{POD_PREFIXES, Running, add_segments, plugins, segment, until},
    deadline::ends_within,
    host::Host,
    say,
};

/// The lease of the nodes in seconds.
const LEASE: u64 = 10;
/// How long a daemon may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod.
pub(super) struct Pod {
    /// The index of its host.
    pub(super) host: usize,
    /// Its name, which is that of its namespace too.
    pub(super) name: String,
    /// Its IPv4 and its IPv6 address.
    pub(super) addresses: Vec<String>,
}

/// A host of the cluster.
pub(super) struct Node {
    pub(super) host: Host,
    daemon: Mutex<Option<Running>>,
    /// The first three octets of its IPv4 address, and its IPv6 prefix.
    net: (&'static str, &'static str),
    number: usize,
}

impl Node {
    /// Returns the node's IPv4 address.
    pub(super) fn v4(&self) -> String {
        format!("{}.{}", self.net.0, self.number)
    }

    /// Returns a script with its placeholders replaced.
    pub(super) fn script(&self, script: &str, other: &Self, device: &str) -> String {
        let (v4, v6) = self.net;
        [
            ("@gw4", format!("{v4}.254")),
            ("@gw6", format!("{v6}:fe")),
            ("@v4", self.v4()),
            ("@v6", format!("{v6}:{}", self.number)),
            ("@w4", other.v4()),
            ("@n", self.number.to_string()),
            ("@m", other.number.to_string()),
            ("@d", "netloom4".to_owned()),
            ("@e", device.to_owned()),
        ]
        .into_iter()
        .fold(script.to_owned(), |script, (mark, text)| script.replace(mark, &text))
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Running>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the daemon.
    pub(super) fn kill(&self) {
        drop(self.daemon().take());
    }

    /// Ends the daemon in order.
    pub(super) fn terminate(&self) -> Outcome {
        self.signal(Signal::TERM);
        let mut daemon = self.daemon();
        let Some(running) = daemon.as_ref() else { return Ok(()) };
        let has_ended = ends_within(Pid::from_child(&running.0), PATIENCE);
        if !has_ended.map_err(|error| error.to_string())? {
            return Err(format!("the daemon of host{} does not end", self.number));
        }
        *daemon = None;
        Ok(())
    }

    /// Sends a signal to the daemon.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(daemon) = &*self.daemon() {
            // The process is not reaped yet, so the number is its own still.
            kill_process(Pid::from_child(&daemon.0), signal).ok();
        }
    }
}

/// The cluster.
pub(super) struct Place {
    pub(super) wire: Host,
    /// The hosts. The last one is a spare, which has no daemon of its own.
    pub(super) nodes: Vec<Node>,
    pub(super) servers: Servers,
    /// The mode of the daemons.
    pub(super) mode: String,
    dir: PathBuf,
    built: PathBuf,
    /// The folder of another build's binaries.
    other: PathBuf,
    bin: PathBuf,
}

impl Place {
    /// Creates hosts and store. With mode `auto`, the last host is behind a router.
    pub(super) fn new(
        hosts: usize,
        mode: &str,
        built: PathBuf,
        other: PathBuf,
        dir: PathBuf,
    ) -> Result<Self, String> {
        let bin = plugins(&built, &dir)?;
        let wire = Host::bare()?;
        add_segments(&wire)?;
        let servers = Servers::start(&wire, &dir)?;
        let mut nodes = Vec::new();
        for number in 1..=hosts + 1 {
            let is_behind = mode == "auto" && number == hosts;
            nodes.push(node(&wire, number, is_behind)?);
        }
        Ok(Self { wire, nodes, servers, mode: mode.to_owned(), dir, built, other, bin })
    }

    /// Returns the number of hosts with a daemon of their own.
    pub(super) fn count(&self) -> usize {
        self.nodes.len() - 1
    }

    /// Returns the spare host.
    pub(super) fn spare(&self) -> &Node {
        &self.nodes[self.count()]
    }

    /// Prepares a daemon's command, without a subcommand.
    fn daemon(&self, index: usize, mode: &str, built: &Path) -> Command {
        let mut command = self.nodes[index].host.command(&built.join("netloomd").to_string_lossy());
        command
            .args(["--node", &format!("host{}", index + 1), "--mode", mode, "--pods", POD_PREFIXES])
            .args(["--store", "etcd", "--etcd-endpoints", &servers::endpoints()])
            .args(["--lease", &LEASE.to_string(), "--conf-dir", "/run/net.d", "--config", "/nowhere"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Starts a daemon, unless another fault has started one meanwhile.
    fn start(&self, index: usize, mode: &str, built: &Path) -> Outcome {
        let mut daemon = self.nodes[index].daemon();
        let is_alive = |running: &mut Running| matches!(running.0.try_wait(), Ok(None));
        if daemon.as_mut().is_some_and(is_alive) {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.log(index));
        let mut command = self.daemon(index, mode, built);
        command.stderr(log.map_err(|error| error.to_string())?);
        *daemon = Some(Running(command.spawn().map_err(|error| format!("netloomd: {error}"))?));
        Ok(())
    }

    /// Starts a daemon as it is to be.
    pub(super) fn start_usual(&self, index: usize) -> Outcome {
        self.start(index, &self.mode, &self.built)
    }

    /// Starts a daemon in another mode.
    pub(super) fn start_as(&self, index: usize, mode: &str) -> Outcome {
        self.start(index, mode, &self.built)
    }

    /// Starts the other binary.
    pub(super) fn start_other(&self, index: usize) -> Outcome {
        self.start(index, &self.mode, &self.other)
    }

    /// Starts the members of etcd that do not run.
    pub(super) fn start_servers(&self) -> Outcome {
        self.servers.start_missing(&self.wire, &self.dir)
    }

    /// Returns the path of a daemon's log.
    pub(super) fn log(&self, index: usize) -> PathBuf {
        self.dir.join(format!("log{}", index + 1))
    }

    /// Returns a daemon's status, or `None` if it does not answer.
    pub(super) fn status(&self, index: usize) -> Option<Value> {
        let netloom = self.bin.join("netloom");
        let text = self.nodes[index]
            .host
            .output(&format!("{} cluster --json 2>/dev/null", netloom.display()))
            .ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Returns why a daemon is not as it is to be, or `None` if it is.
    pub(super) fn unwell(&self, index: usize) -> Option<String> {
        let Some(status) = self.status(index) else { return Some("the daemon does not answer".into()) };
        let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_well = status["ready"] == true
            && status["store"]["connected"] == true
            && status["store"]["refused"].as_array().is_none_or(Vec::is_empty)
            && peers.len() == self.count() - 1
            && peers.iter().all(|peer| peer["answers"] == true && peer["problem"].is_null())
            && peers.iter().all(|peer| peer["silentSeconds"].is_null());
        (!is_well).then(|| {
            let of = |key: &str| status[key].to_string();
            format!(
                "ready {}, problems {}, store {}, peers {}",
                of("ready"),
                of("problems"),
                of("store"),
                of("peers")
            )
        })
    }

    /// Starts all daemons, and waits until each knows the others.
    pub(super) fn start_all(&self) -> Outcome {
        for index in 0..self.count() {
            self.start_usual(index)?;
        }
        for index in 0..self.count() {
            until(&format!("host{} is ready", index + 1), || self.unwell(index).is_none())
                .map_err(|error| format!("{error}: {}", self.unwell(index).unwrap_or_default()))?;
        }
        Ok(())
    }

    /// Starts a pod.
    pub(super) fn add_pod(&self, host: usize, name: &str) -> Result<Pod, String> {
        let node = &self.nodes[host].host;
        node.sh(&format!("ip netns add {name} && ip -n {name} link set lo up"))?;
        let output = self.call(host, "add", name).output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let result: Value = serde_json::from_str(&text).unwrap_or_default();
        if !output.status.success() {
            return Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        }
        let addresses = result["ips"].as_array().into_iter().flatten();
        let addresses: Vec<String> =
            addresses.filter_map(|ip| Some(ip["address"].as_str()?.split('/').next()?.to_owned())).collect();
        if addresses.len() != 2 {
            return Err(format!("{name} lacks an address of one family: {text}"));
        }
        Ok(Pod { host, name: name.to_owned(), addresses })
    }

    /// Ends a pod. Succeeds if there is none.
    pub(super) fn delete_pod(&self, host: usize, name: &str) -> Outcome {
        let output = self.call(host, "del", name).output().map_err(|error| error.to_string())?;
        self.nodes[host].host.succeeds(&format!("ip netns del {name}"));
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn call(&self, host: usize, verb: &str, name: &str) -> Command {
        let mut command = self.nodes[host].host.command(&self.bin.join("netloom").to_string_lossy());
        command
            .args(["--conf-dir", "/run/net.d", "--bin-path"])
            .arg(&self.bin)
            .args([verb, "netloom", &format!("/run/netns/{name}")])
            .env("CNI_CONTAINERID", name)
            .stdin(Stdio::null());
        command
    }

    /// Returns the daemon's objects in a host's kernel, its settings and its network file, for comparison.
    pub(super) fn dump(&self, index: usize) -> String {
        self.nodes[index].host.output(DUMP).unwrap_or_default()
    }

    /// Returns the owner of each block in the store with the revisions of its key, or `None` if the store does not answer.
    pub(super) fn blocks(&self) -> Option<BTreeMap<String, String>> {
        let line = servers::script("$E get --prefix /netloom/blocks/ -w json");
        let line = format!(
            "{line} | jq -r '.kvs[]? | \"\\(.key | @base64d) \\(.value | @base64d) \\(.create_revision) \\(.version)\"'"
        );
        let text = self.wire.output(&line).ok()?;
        let blocks: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("/netloom/blocks/")?.split_once(' '))
            .map(|(block, owner)| (block.to_owned(), owner.to_owned()))
            .collect();
        (!blocks.is_empty()).then_some(blocks)
    }

    /// Uninstalls all daemons.
    pub(super) fn uninstall(&self) -> Outcome {
        for index in 0..self.count() {
            self.nodes[index].terminate()?;
            let mut command = self.daemon(index, &self.mode, &self.built);
            crate::run_with(command.arg("uninstall").stderr(Stdio::null()))?;
        }
        Ok(())
    }

    /// Returns what there is on a host.
    pub(super) fn state(&self, index: usize) -> String {
        self.nodes[index].host.output(STATE).unwrap_or_default()
    }

    /// Prints the end of a daemon's log.
    pub(super) fn print_log(&self, index: usize) {
        const LINES: usize = 15;
        let text = std::fs::read_to_string(self.log(index)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            say(&format!("    host{}: {line}", index + 1));
        }
    }
}

/// The daemon's objects, in as few programs as possible: it runs often.
const DUMP: &str = "ip route show proto 95; ip -6 route show proto 95; ip -o link show type veth group 0 | cut -d: -f2; ip -o link show type vxlan | cut -d: -f2- | sed 's/ state .*link/ link/' | sort
    for d in netloom4 netloom6; do
        ip link show $d >/dev/null 2>&1 || continue
        ip -6 neigh show dev $d nud permanent | sort; bridge fdb show dev $d | grep dst | sort; ip -o addr show dev $d | cut -d: -f2- | sort
        cd /proc/sys/net; grep . ipv4/conf/$d/rp_filter ipv6/conf/$d/disable_ipv6 ipv6/conf/$d/accept_ra
    done
    cd /proc/sys/net; grep . ipv4/ip_forward ipv6/conf/all/forwarding
    nft -s list ruleset; cat /run/net.d/* 2>&1";

/// What a daemon or a plugin could leave. Omits what stays after the last pod: locks, the index, what host-local knows of released
/// addresses, and whether orphans are reaped.
const STATE: &str = "ip -o link | cut -d: -f2 | cut -d@ -f1 | sort; ip -o addr | awk '{print $2, $4}' | grep -v ' fe80:' | sort
    ip -4 route show table all | sort; ip -6 route show table all | grep -v -e fe80 -e ff00 -e anycast | sort; ip rule; ip -6 rule; nft -s list ruleset
    find /var/lib/cni /var/lib/netloom /run/netloom /run/net.d /run/netns -type f 2>/dev/null | grep -v -e /locks/ -e '/lock$' \\
        -e /.netloom-index -e last_reserved -e /.netloom-resting -e /run/netloom/orphan | sort";

/// Creates a host and connects it.
fn node(wire: &Host, number: usize, is_behind: bool) -> Result<Node, String> {
    let host = Host::bare()?;
    let (segment, v4, v6) = segment(is_behind);
    wire.sh(&format!(
        "ip link add n{number} type veth peer name up0 netns {}; ip link set n{number} master {segment} up",
        host.pid()
    ))?;
    // The host's firewall drops what it forwards, and the reverse-path filter is strict. Disks are small.
    host.sh(&format!(
        "for c in default up0; do echo 1 >/proc/sys/net/ipv4/conf/$c/rp_filter; done
         echo 0 >/proc/sys/net/ipv6/conf/up0/accept_dad; ip link set up0 up
         ip addr add {v4}.{number}/24 dev up0; ip -6 addr add {v6}:{number}/64 dev up0 nodad
         ip route add default via {v4}.254; ip -6 route add default via {v6}:fe
         nft 'table inet own {{ chain f {{ type filter hook forward priority 0; policy drop; }}; }}'
         mkdir -p /run/net.d /var/lib/netloom /var/lib/cni
         for d in /run/net.d /var/lib/netloom /var/lib/cni; do mount -t tmpfs -o size=1m none $d; done"
    ))?;
    Ok(Node { host, daemon: Mutex::default(), net: (v4, v6), number })
}
