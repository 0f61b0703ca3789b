//! A host for chores: a process that holds a network and a mount namespace.

use std::{
    fs::File,
    io::Read,
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Outcome, run_with};

/// A process that holds a network and a mount namespace of its own. The namespaces end with it.
pub(crate) struct Host {
    holder: Child,
}

impl Host {
    /// Creates a host with the links that the bench cases use: `up0` (a parent link) and `dev0` (a device to move).
    pub(crate) fn new() -> Result<Self, String> {
        let host = Self::bare()?;
        host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
                 ip link add dev0 type veth peer name dev1; ip link set dev0 up; ip link set dev1 up")?;
        Ok(host)
    }

    /// Creates a host with no link but `lo`.
    pub(crate) fn bare() -> Result<Self, String> {
        const HOLD: &str = "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /run/netns && ip link set lo up \
            && echo ready && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "private", "sh", "-c", HOLD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut ready = [0; 6];
        let stdout = holder.stdout.as_mut().ok_or("no stdout")?;
        stdout.read_exact(&mut ready).map_err(|_| "cannot create namespaces: run as root")?;
        Ok(Self { holder })
    }

    /// Returns the ID of the process that holds the namespaces.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs a shell line on the host.
    pub(crate) fn sh(&self, line: &str) -> Outcome {
        run_with(self.command("sh").args(["-c", line]))
    }

    /// Returns what a shell line prints.
    pub(crate) fn output(&self, line: &str) -> Result<String, String> {
        let output = self.command("sh").args(["-c", line]).output().map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns whether a shell line succeeds.
    pub(crate) fn succeeds(&self, line: &str) -> bool {
        let mut command = self.command("sh");
        command.args(["-c", line]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Prepares a program to be run on the host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--net", "--", program]);
        command
    }

    /// Does work on a thread that has entered the host's network namespace and ends with the work.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        Self::enter(&format!("/proc/{}/ns/net", self.pid()), work)
    }

    /// Returns a path of the host as seen from outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.pid()).into()
    }

    /// Does work on a thread that has entered a container's namespace.
    pub(crate) fn inside_of<T: Send>(
        &self,
        container: &str,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, String> {
        Self::enter(&format!("/proc/{}/root/run/netns/{container}", self.pid()), work)
    }

    fn enter<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let net = File::open(netns).map_err(|error| error.to_string())?;
                    move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))
                        .map_err(|error| error.to_string())?;
                    Ok(work())
                })
                .join()
                .map_err(|_| "a measuring thread panicked".to_owned())?
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}
