//! One call of `netloom`, undisturbed, killed at some moment, or with little memory.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use super::place::Place;

/// What `netloom` is called for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Check,
    Del,
    Gc,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Check => "check",
            Self::Del => "del",
            Self::Gc => "gc",
        }
    }
}

/// What disturbs a call.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    None,
    /// SIGKILL to all its processes after a time.
    Kill {
        after: Duration,
    },
    /// A limit of memory, in bytes, that is too small at some moment of most calls.
    Memory {
        bytes: u64,
    },
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Succeeded,
    Failed,
    Killed,
}

/// What came of a call.
pub(super) struct Answer {
    pub(super) ended: Ended,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) took: Duration,
}

/// Calls `netloom` on the storm's host and waits for its end.
pub(super) fn call(
    place: &Place,
    memory: &Memory,
    arguments: &[&str],
    fault: Fault,
) -> Result<Answer, String> {
    let error = |error: std::io::Error| format!("netloom {}: {error}", arguments.join(" "));
    let group = match fault {
        Fault::Memory { bytes } => Some(memory.group(bytes)?),
        _ => None,
    };
    let mut command = match (fault, &group) {
        (Fault::Memory { .. }, Some(group)) => limited(place, group),
        _ => place.netloom(),
    };
    let (mut stdout, mut stderr) = (anonymous()?, anonymous()?);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(error)?)
        .stderr(stderr.try_clone().map_err(error)?)
        .process_group(0);
    let started = Instant::now();
    let mut child = command.spawn().map_err(error)?;
    let processes = Pid::from_child(&child);
    if let Fault::Kill { after } = fault {
        // The moment is random by design; there is no event to wait for.
        std::thread::sleep(after);
        // The leader is not reaped yet, so the number of the group is its own still.
        let _ = kill_process_group(processes, Signal::KILL);
    }
    let status = wait(&mut child, fault, processes).map_err(error)?;
    let took = started.elapsed();
    if let Some(group) = group {
        memory.leave(group);
    }
    let ended = match (status.success(), status.signal()) {
        (true, _) => Ended::Succeeded,
        (_, Some(_)) => Ended::Killed,
        _ => Ended::Failed,
    };
    Ok(Answer { ended, stdout: text(&mut stdout)?, stderr: text(&mut stderr)?, took })
}

/// Waits for the call. If a signal ended it, kills its plugins too and waits until they are gone: one of them may be in a system
/// call that completes first.
fn wait(child: &mut Child, fault: Fault, processes: Pid) -> std::io::Result<std::process::ExitStatus> {
    let status = child.wait()?;
    if status.signal().is_some() && !matches!(fault, Fault::None) {
        // No event announces the end of orphans.
        while test_kill_process_group(processes).is_ok() {
            let _ = kill_process_group(processes, Signal::KILL);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(status)
}

fn limited(place: &Place, group: &Group) -> Command {
    let line = match group {
        Group::Folder(folder) => format!("echo 0 >{}/cgroup.procs && exec \"$@\"", folder.display()),
        Group::AddressSpace(bytes) => format!("ulimit -v {} && exec \"$@\"", bytes / 1024),
    };
    let mut command = place.host.command("sh");
    command.args(["-c", &line, "sh"]).arg(place.binary()).args(place.options());
    command
}

fn anonymous() -> Result<File, String> {
    rustix::fs::memfd_create("storm", rustix::fs::MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|error| error.to_string())
}

fn text(file: &mut File) -> Result<String, String> {
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// How calls are made to run out of memory.
pub(super) struct Memory {
    kind: Kind,
    number: AtomicU64,
    /// Groups in which a process still ends.
    left: Mutex<Vec<PathBuf>>,
}

enum Kind {
    /// A folder for groups, and the file of a group that holds its limit.
    Groups(PathBuf, &'static str),
    /// No memory controller: a limit of the address space, where allocations fail instead.
    AddressSpace,
}

enum Group {
    Folder(PathBuf),
    AddressSpace(u64),
}

impl Memory {
    /// Finds the memory controller: of cgroup v2, or of version 1.
    pub(super) fn find(place: &Place) -> Self {
        let name = format!("netloom-storm-{}", place.host.pid());
        let found = [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/unified", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ]
        .into_iter()
        .find_map(|(mount, limit)| usable(&Path::new(mount).join(&name), limit));
        let kind = found.map_or(Kind::AddressSpace, |(folder, limit)| Kind::Groups(folder, limit));
        Self { kind, number: AtomicU64::new(0), left: Mutex::default() }
    }

    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Groups(folder, limit) => format!("OOM killer, {}/*/{limit}", folder.display()),
            Kind::AddressSpace => "RLIMIT_AS (no memory controller)".to_owned(),
        }
    }

    fn group(&self, bytes: u64) -> Result<Group, String> {
        let Kind::Groups(folder, limit) = &self.kind else { return Ok(Group::AddressSpace(bytes * 4)) };
        let group = folder.join(self.number.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&group)
            .and_then(|()| fs::write(group.join(limit), bytes.to_string()))
            .map_err(|error| format!("{}: {error}", group.display()))?;
        Ok(Group::Folder(group))
    }

    /// Removes a group, or later if a process in it still ends.
    fn leave(&self, group: Group) {
        let (Group::Folder(folder), Ok(mut left)) = (group, self.left.lock()) else { return };
        left.push(folder);
        left.retain(|folder| fs::remove_dir(folder).is_err());
    }

    /// Removes all groups.
    pub(super) fn remove(&self) {
        let Kind::Groups(folder, _) = &self.kind else { return };
        const ATTEMPTS: usize = 100;
        for _ in 0..ATTEMPTS {
            let Ok(mut left) = self.left.lock() else { return };
            left.retain(|folder| fs::remove_dir(folder).is_err());
            if left.is_empty() {
                break;
            }
            drop(left);
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(fs::remove_dir(folder));
    }
}

/// Creates a folder for groups below a mount, if groups in it have a limit of memory.
fn usable(folder: &Path, limit: &'static str) -> Option<(PathBuf, &'static str)> {
    fs::create_dir(folder).ok()?;
    drop(fs::write(folder.join("cgroup.subtree_control"), "+memory"));
    let tried = folder.join("try");
    let usable = fs::create_dir(&tried).is_ok() && tried.join(limit).exists();
    drop(fs::remove_dir(tried));
    if usable {
        return Some((folder.to_owned(), limit));
    }
    drop(fs::remove_dir(folder));
    None
}
