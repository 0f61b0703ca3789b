//! File locks (flock(2)) that say on standard error what they wait for if it takes longer than a second.
//!
//! A lock that is free costs one system call, as without the message. Standard error is the plugin's log: runtimes keep it or
//! show it. The message is written with one call to the descriptor, since the main thread may hold the standard library's lock.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock, fstat, major, minor},
    io::{Errno, Result},
};

use crate::printable;

/// The time after which a wait is reported.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// The number of holders that a message names.
const NAMED: usize = 3;

/// The locks of other processes that a lock allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Other shared ones.
    Shared,
    /// None.
    Exclusive,
}

/// Takes the lock of the open file at `path`. Waits for it, and after [`PATIENCE`] says so, with the holders' names if
/// `/proc/locks` has them.
///
/// # Errors
/// If the kernel refuses the lock, or a signal ends the wait ([`Errno::INTR`]).
pub fn lock(file: impl AsFd, path: &Path, lock: Lock) -> Result<()> {
    let (attempt, wait) = match lock {
        Lock::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
        Lock::Exclusive => (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive),
    };
    let file = file.as_fd();
    match flock(file, attempt) {
        Err(Errno::WOULDBLOCK) => {}
        outcome => return outcome,
    }
    thread::scope(|scope| {
        let (done, waiting) = mpsc::channel::<()>();
        let report = move || {
            if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                note(&format!("waiting for the lock {}{}", path.display(), holders(file)));
            }
        };
        // Without a thread the wait is as silent as it was.
        let reporter = thread::Builder::new().spawn_scoped(scope, report);
        let outcome = flock(file, wait);
        drop((done, reporter));
        outcome
    })
}

/// Writes a line to standard error.
pub fn note(text: &str) {
    let line = format!("netloom: {}\n", printable(text));
    // There is nobody to tell about a closed standard error.
    let _ = rustix::io::write(std::io::stderr().as_fd(), line.as_bytes());
}

/// Returns a process as `name (PID 1234)`, or nothing if it is not in this process's PID namespace.
pub fn process(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (PID {pid})", name.trim_end_matches('\n')))
}

/// Returns `, held by NAME (PID 1234)`, or nothing if the kernel does not tell: another PID namespace, or a file system such as
/// btrfs whose files show another device than their locks.
fn holders(file: BorrowedFd<'_>) -> String {
    let Ok(stat) = fstat(file) else { return String::new() };
    let id = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut pids: Vec<u32> = locks.lines().filter_map(|line| holder(line, &id)).collect();
    pids.sort_unstable();
    pids.dedup();
    let mut names: Vec<String> = pids.into_iter().filter_map(process).collect();
    if names.is_empty() {
        return String::new();
    }
    let others = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let more = if others > 0 { format!(" and {others} more") } else { String::new() };
    format!(", held by {}{more}", names.join(", "))
}

/// Reads `1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF` (`lock_get_status` in the kernel's `fs/locks.c`). Waiting processes
/// have `->` after the number.
fn holder(line: &str, id: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let is_flock = words.next() == Some("FLOCK");
    let pid = words.nth(2)?;
    (is_flock && words.next() == Some(id)).then(|| pid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_holders_of_the_file_are_read() {
        let lines = [
            ("1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF", Some(1234)),
            ("1: -> FLOCK  ADVISORY  WRITE 1235 fd:01:5678 0 EOF", None),
            ("2: FLOCK  ADVISORY  READ  77 00:1a:5678 0 EOF", None),
            ("3: POSIX  ADVISORY  WRITE 1234 fd:01:5678 0 EOF", None),
            ("4: OFDLCK ADVISORY  WRITE -1 fd:01:5678 0 EOF", None),
            ("", None),
        ];
        for (line, pid) in lines {
            assert_eq!(holder(line, "fd:01:5678"), pid, "{line}");
        }
    }
}
