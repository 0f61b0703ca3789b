//! One call of `netloom`, undisturbed, killed at some moment, or with little memory.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

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
    /// SIGKILL to all processes of the call after a time.
    Kill {
        after: Duration,
    },
    /// SIGKILL to `netloom` alone after a time: its plugin goes on.
    KillRuntime {
        after: Duration,
    },
    /// A limit of memory, in bytes, that is too small at some moment of many calls.
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

/// Calls `netloom` on the storm's host and waits for its end. After a fault it also waits for the end of the plugins.
pub(super) fn call(
    place: &Place,
    groups: &Groups,
    arguments: &[&str],
    fault: Fault,
) -> Result<Answer, String> {
    let error = |error: std::io::Error| format!("netloom {}: {error}", arguments.join(" "));
    let group = if matches!(fault, Fault::None) { None } else { Some(groups.create(fault)?) };
    let mut command = group.as_deref().map_or_else(|| place.netloom(), |group| in_group(place, group, fault));
    let (mut stdout, mut stderr) = (anonymous()?, anonymous()?);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(error)?)
        .stderr(stderr.try_clone().map_err(error)?);
    let started = Instant::now();
    let mut child = command.spawn().map_err(error)?;
    if let Fault::Kill { after } | Fault::KillRuntime { after } = fault {
        // The moment is random by design; there is no event to wait for.
        std::thread::sleep(after);
        // The process is not reaped yet, so the number is its own still.
        kill_process(Pid::from_child(&child), Signal::KILL).ok();
    }
    if let (Fault::Kill { .. }, Some(group)) = (fault, &group) {
        kill_all(group);
    }
    let status = child.wait().map_err(error)?;
    let took = started.elapsed();
    if let Some(group) = group {
        wait_until_empty(&group)?;
        groups.leave(group);
    }
    let ended = match (status.success(), status.signal()) {
        (true, _) => Ended::Succeeded,
        (_, Some(_)) => Ended::Killed,
        _ => Ended::Failed,
    };
    Ok(Answer { ended, stdout: text(&mut stdout)?, stderr: text(&mut stderr)?, took })
}

/// Prepares a call in a control group.
fn in_group(place: &Place, group: &Path, fault: Fault) -> Command {
    let limit = match fault {
        Fault::Memory { bytes } if !has_limit(group) => format!("ulimit -v {} && ", bytes * 4 / 1024),
        _ => String::new(),
    };
    let line = format!("echo 0 >{}/cgroup.procs && {limit} exec \"$@\"", group.display());
    let mut command = place.host.command("sh");
    command.args(["-c", &line, "sh"]).arg(place.binary()).args(place.options());
    command
}

/// Returns the processes in a control group. Those that wait to be reaped are not among them.
fn processes(group: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

fn kill_all(group: &Path) {
    loop {
        let left = processes(group);
        if left.is_empty() {
            return;
        }
        for process in left {
            kill_process(process, Signal::KILL).ok();
        }
        // One of them may be in a system call that completes first. Version 1 announces no end of a group.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the plugins of a dead runtime, and the children that wait for the kernel, have ended.
fn wait_until_empty(group: &Path) -> Result<(), String> {
    const LIMIT: Duration = Duration::from_mins(2);
    let started = Instant::now();
    while !processes(group).is_empty() {
        if started.elapsed() > LIMIT {
            return Err(format!("a process of {} does not end", group.display()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
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

/// The files of a group that hold its limit of memory: of cgroup v2, of version 1.
const LIMITS: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];

/// The control groups of disturbed calls, one for each.
pub(super) struct Groups {
    folder: PathBuf,
    number: AtomicU64,
    /// Groups in which a process still ends.
    left: Mutex<Vec<PathBuf>>,
}

impl Groups {
    /// Finds a hierarchy of control groups, preferably one that can limit memory.
    pub(super) fn find(place: &Place) -> Result<Self, String> {
        let name = format!("netloom-storm-{}", place.host.pid());
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"];
        let folder = mounts.into_iter().find_map(|mount| folder_in(Path::new(mount), &name));
        let folder = folder.ok_or("the storm needs control groups, of cgroup v2 or of version 1")?;
        Ok(Self { folder, number: AtomicU64::new(0), left: Mutex::default() })
    }

    /// Returns how calls run out of memory.
    pub(super) fn describe(&self) -> String {
        let limit = LIMITS.iter().find(|limit| self.folder.join(limit).exists());
        limit.map_or_else(
            || "RLIMIT_AS (no memory controller)".to_owned(),
            |limit| format!("OOM killer, {}/*/{limit}", self.folder.display()),
        )
    }

    fn create(&self, fault: Fault) -> Result<PathBuf, String> {
        let group = self.folder.join(self.number.fetch_add(1, Ordering::Relaxed).to_string());
        let error = |error: std::io::Error| format!("{}: {error}", group.display());
        fs::create_dir(&group).map_err(error)?;
        if let Fault::Memory { bytes } = fault {
            for limit in LIMITS.into_iter().filter(|limit| group.join(limit).exists()) {
                fs::write(group.join(limit), bytes.to_string()).map_err(error)?;
            }
        }
        Ok(group)
    }

    /// Removes a group, or later if a process in it still ends.
    fn leave(&self, group: PathBuf) {
        let Ok(mut left) = self.left.lock() else { return };
        left.push(group);
        left.retain(|folder| fs::remove_dir(folder).is_err());
    }

    /// Removes all groups.
    pub(super) fn remove(&self) {
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
        drop(fs::remove_dir(&self.folder));
    }
}

fn has_limit(group: &Path) -> bool {
    LIMITS.iter().any(|limit| group.join(limit).exists())
}

/// Creates a folder for groups below a mount. The hierarchy without a memory controller is the last to be tried.
fn folder_in(mount: &Path, name: &str) -> Option<PathBuf> {
    // Version 1 has a tmpfs at the place where version 2 would be.
    if !mount.join("cgroup.procs").exists() {
        return None;
    }
    let folder = mount.join(name);
    fs::create_dir(&folder).ok()?;
    // Version 1 has no such file, and version 2 may have no such controller.
    let enable = fs::OpenOptions::new().write(true).open(folder.join("cgroup.subtree_control"));
    drop(enable.and_then(|mut file| std::io::Write::write_all(&mut file, b"+memory")));
    Some(folder)
}
