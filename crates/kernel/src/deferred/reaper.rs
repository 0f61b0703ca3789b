//! Whether a child that outlives this process is reaped.
//!
//! An orphan is reparented to the init process of its PID namespace, or to a subreaper among its ancestors. Where that
//! process never waits, as in a container whose PID 1 is not written for it, each orphan stays a zombie until no process can
//! be created any more. The kernel does not tell whether it waits, so this module creates one
//! orphan and checks that it vanishes. The answer is kept in a file in `/run`, until the next boot, and the last child is checked
//! once a minute. Until there is an answer no child is created.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use rustix::{
    event::{Timespec, poll},
    fs::FlockOperation,
    pipe::{PipeFlags, pipe_with},
};

const DIR: &str = "/run/netloom";
/// Interval at which the last child is checked.
const INTERVAL: Duration = Duration::from_mins(1);
/// Time that the call with the trial waits for its orphan to be reaped, in milliseconds. Most reapers take less than one. A later
/// call finds out about a slower one.
const TRIAL_LIMIT_MS: i64 = 5;

/// The permission to create one orphan.
#[derive(Debug)]
pub(super) struct Orphan {
    /// The file for the child's process ID; `None` if this child is not the one to check.
    record: Option<File>,
}

impl Orphan {
    /// Returns the permission to create a child, or `None` if orphans are not known to be reaped.
    pub(super) fn permit() -> Option<Self> {
        static KNOWN: AtomicBool = AtomicBool::new(false);
        if KNOWN.load(Ordering::Relaxed) {
            return Some(Self { record: None });
        }
        let permit = Self::permit_in(Path::new(DIR));
        KNOWN.store(permit.is_some(), Ordering::Relaxed);
        permit
    }

    fn permit_in(dir: &Path) -> Option<Self> {
        // Each PID namespace has a `/proc` of its own.
        let namespace = fs::metadata("/proc").ok()?.dev();
        let reaps = dir.join(format!("orphans-are-reaped-{namespace}"));
        let known = fs::metadata(&reaps).and_then(|known| known.modified()).ok();
        if known.is_some_and(is_recent) {
            return Some(Self { record: None });
        }
        let record = open_record(&dir.join(format!("orphan-{namespace}"))).ok()?;
        if rustix::fs::flock(&record, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Another process checks it, or makes the trial.
            if known.is_some() {
                return Some(Self { record: None });
            }
            rustix::fs::flock(&record, FlockOperation::LockExclusive).ok()?;
            return reaps.exists().then_some(Self { record: None });
        }
        let works = match last_orphan(&record) {
            Some(pid) => match state(pid) {
                State::Gone => true,
                State::Zombie => false,
                // The child still waits for the kernel, or another process has its ID by now.
                State::Alive => return known.is_some().then_some(Self { record: None }),
            },
            None => try_one(&record),
        };
        if works {
            File::create(&reaps).and_then(|file| file.set_modified(SystemTime::now())).ok()?;
            Some(Self { record: Some(record) })
        } else {
            drop(fs::remove_file(&reaps));
            None
        }
    }

    /// Records the child that was created.
    pub(super) fn created(self, pid: i32) {
        if let Some(record) = self.record {
            write_orphan(&record, pid);
        }
    }
}

fn is_recent(time: SystemTime) -> bool {
    // After the clock was set back a time in the future is not recent.
    SystemTime::now().duration_since(time).is_ok_and(|age| age < INTERVAL)
}

fn open_record(path: &PathBuf) -> std::io::Result<File> {
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    open().or_else(|_| {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        open()
    })
}

/// Returns the process ID of the last orphan; none before the first.
fn last_orphan(mut record: &File) -> Option<i32> {
    let mut text = String::new();
    record.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_orphan(record: &File, pid: i32) {
    // If this fails, a later child is checked.
    drop(record.write_all_at(format!("{pid:<10}").as_bytes(), 0));
}

enum State {
    Gone,
    Zombie,
    Alive,
}

fn state(pid: i32) -> State {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return State::Gone };
    // The process name before it may contain any character.
    match text.rsplit_once(") ") {
        Some((_, rest)) if rest.starts_with('Z') => State::Zombie,
        _ => State::Alive,
    }
}

/// Creates an orphan that ends at once, and returns whether it is reaped in time.
fn try_one(record: &File) -> bool {
    let Ok((told, tell)) = pipe_with(PipeFlags::CLOEXEC) else { return false };
    // SAFETY: the child and its own child only make system calls, and do not return.
    let parent = unsafe {
        match libc::fork() {
            0 => {
                let orphan = libc::fork();
                if orphan > 0 {
                    let bytes = orphan.to_ne_bytes();
                    let fd = std::os::fd::AsRawFd::as_raw_fd(&tell);
                    libc::write(fd, bytes.as_ptr().cast(), bytes.len());
                }
                libc::_exit(0)
            }
            parent => parent,
        }
    };
    drop(tell);
    let mut bytes = [0; 4];
    let read = parent > 0 && File::from(told).read_exact(&mut bytes).is_ok();
    if parent > 0 {
        // SAFETY: waits for the child that this process just created.
        unsafe { libc::waitpid(parent, std::ptr::null_mut(), 0) };
    }
    let orphan = i32::from_ne_bytes(bytes);
    if !read || orphan <= 0 {
        return false;
    }
    write_orphan(record, orphan);
    for _ in 0..TRIAL_LIMIT_MS {
        if matches!(state(orphan), State::Gone) {
            return true;
        }
        // No event announces that another process's child was reaped.
        let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }));
    }
    false
}
