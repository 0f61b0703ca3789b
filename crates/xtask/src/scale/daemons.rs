//! The daemons of a measurement, and what `/proc` tells of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cluster::{ETCD, Running},
    host::Host,
};

/// Connects a host to the segment `seg` of another one.
pub(super) fn attach(wire: &Host, host: &Host, number: usize) -> Result<(), String> {
    let (pid, high, low) = (host.pid(), number / 250, number % 250 + 1);
    wire.sh(&format!(
        "ip link add n{number} type veth peer name eth0 netns {pid}; ip link set n{number} master seg up"
    ))?;
    host.sh(&format!(
        "ip link set eth0 up; ip addr add 192.0.{high}.{low}/20 dev eth0; ip -6 addr add 2001:db8:a::{number:x}/64 dev eth0 nodad
         ip route add default via 192.0.15.254; ip -6 route add default via 2001:db8:a::fffe"
    ))
}

/// A daemon on a host of its own.
pub(super) struct Daemon<'a> {
    pub(super) host: &'a Host,
    binaries: &'a Path,
    log: PathBuf,
    arguments: Vec<String>,
    is_measured: bool,
    running: Option<Running>,
}

impl<'a> Daemon<'a> {
    /// Prepares a daemon. One that is not measured reads the store as others do, but programs no routes to other nodes, and leaves the
    /// processors to the store.
    pub(super) fn new(host: &'a Host, name: &str, is_measured: bool, binaries: &'a Path, dir: &Path) -> Self {
        let mode = if is_measured { "overlay" } else { "bgp" };
        let arguments = [
            "--node",
            name,
            "--mode",
            mode,
            "--pods",
            "10.128.0.0/9,fd44::/32",
            "--store",
            "etcd",
            "--lease",
            "60",
            "--etcd-endpoints",
            &format!("http://{ETCD}"),
            "--conf-dir",
            "/run/net.d",
            "--config",
            "/nowhere",
        ];
        let arguments = arguments.map(str::to_owned).to_vec();
        Self { host, binaries, log: dir.join(format!("{name}.log")), arguments, is_measured, running: None }
    }

    pub(super) fn start(&mut self) -> Result<(), String> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| error.to_string())?;
        let priority = if self.is_measured { "0" } else { "19" };
        let mut command = self.host.command("nice");
        command.args(["-n", priority]).arg(self.binaries.join("netloomd")).args(&self.arguments).stderr(log);
        self.running = Some(Running(command.spawn().map_err(|error| error.to_string())?));
        Ok(())
    }

    /// Kills the daemon.
    pub(super) fn kill(&mut self) {
        self.running = None;
    }

    fn proc(&self, file: &str) -> Result<String, String> {
        let pid = self.running.as_ref().map_or(0, |running| running.0.id());
        fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| error.to_string())
    }

    /// Returns the processor time that the daemon has used, in seconds.
    pub(super) fn used(&self) -> Result<f64, String> {
        let text = self.proc("stat")?;
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        Ok(fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0)
    }

    /// Returns the daemon's memory in MiB: now, and at most.
    pub(super) fn memory(&self) -> Result<(f64, f64), String> {
        let text = self.proc("status")?;
        let line = |key: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            rest.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()).unwrap_or_default()
        };
        Ok((line("VmRSS:") / 1024.0, line("VmHWM:") / 1024.0))
    }

    /// Returns a value of the daemon's status.
    pub(super) fn status(&self, filter: &str) -> Result<String, String> {
        let netloom = self.binaries.join("netloom");
        let text = self
            .host
            .output(&format!("{} cluster --json 2>/dev/null | jq -r '{filter}'", netloom.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Returns the number of the host's IPv6 routes, which the kernel knows without walking through them.
    pub(super) fn routes(&self) -> usize {
        let text = fs::read_to_string(format!("/proc/{}/net/rt6_stats", self.host.pid())).unwrap_or_default();
        let entries = text.split_whitespace().nth(3);
        entries.and_then(|text| usize::from_str_radix(text, 16).ok()).unwrap_or_default()
    }
}
