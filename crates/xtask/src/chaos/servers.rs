//! The store: three members of etcd on the wire's host, each with an address of its own.

use std::{
    fs::File,
    path::Path,
    process::Stdio,
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Outcome,
    cluster::{Running, until},
    host::Host,
};

/// The number of members.
pub(super) const MEMBERS: usize = 3;

/// The members of etcd.
pub(super) struct Servers(Vec<Mutex<Option<Running>>>);

/// Returns the URL of a member's port.
fn url(member: usize, port: u16) -> String {
    format!("http://192.0.2.{}:{port}", 250 + member)
}

/// Returns the members' URLs for clients.
pub(super) fn endpoints() -> String {
    (0..MEMBERS).map(|member| url(member, 2379)).collect::<Vec<_>>().join(",")
}

/// Returns a script that runs on the wire, in which `$E` calls `etcdctl`.
pub(super) fn script(script: &str) -> String {
    format!(
        "export ETCDCTL_API=3; E='etcdctl --dial-timeout=2s --command-timeout=4s --endpoints {}'; {script}",
        endpoints()
    )
}

impl Servers {
    /// Starts all members, and waits until they answer.
    pub(super) fn start(wire: &Host, dir: &Path) -> Result<Self, String> {
        for member in 0..MEMBERS {
            wire.sh(&format!("ip addr add 192.0.2.{}/32 dev sega", 250 + member))?;
        }
        let servers = Self((0..MEMBERS).map(|_| Mutex::default()).collect());
        servers.start_missing(wire, dir)?;
        until("etcd answers", || wire.succeeds(&script("$E endpoint health")))?;
        Ok(servers)
    }

    /// Starts the members that do not run.
    pub(super) fn start_missing(&self, wire: &Host, dir: &Path) -> Outcome {
        let peers: Vec<String> =
            (0..MEMBERS).map(|member| format!("m{member}={}", url(member, 2380))).collect();
        for (member, slot) in self.0.iter().enumerate() {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.is_some() {
                continue;
            }
            let log = File::options().create(true).append(true).open(dir.join(format!("etcd{member}.log")));
            let mut command = wire.command("etcd");
            let (clients, peer) = (url(member, 2379), url(member, 2380));
            command
                .args(["--name", &format!("m{member}"), "--data-dir", &format!("/run/etcd{member}")])
                .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &peers.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log.map_err(|error| error.to_string())?);
            *slot = Some(Running(command.spawn().map_err(|error| format!("etcd: {error}"))?));
        }
        Ok(())
    }

    /// Kills members.
    pub(super) fn kill(&self, members: &[usize]) {
        for member in members {
            drop(self.0[*member].lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// Sends a signal to members.
    pub(super) fn signal(&self, members: &[usize], signal: Signal) {
        for member in members {
            let slot = self.0[*member].lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(server) = &*slot {
                // The process is not reaped yet, so the number is its own still.
                kill_process(Pid::from_child(&server.0), signal).ok();
            }
        }
    }
}
