//! Signals on their way to the command.
//!
//! The command stays in this process's group, so that both are one job of the shell. A terminal sends ^C, ^Z and changes of its
//! size to the whole group, hence to the command itself. Signals that a process sends to this process alone are forwarded. Of
//! `SIGCONT` nothing tells whether the whole group has it: it is forwarded if `SIGTSTP` was.

use std::{
    fs,
    thread::{self, JoinHandle},
};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::{Handle, SignalsInfo, exfiltrator::WithRawSiginfo},
};

use super::super::Outcome;

/// The signals that ask a process to end.
const ENDING: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
/// The others that are forwarded.
const OTHERS: [i32; 5] = [SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP];

/// The signals since a moment, none of which ends or stops this process.
pub(crate) struct Caught(SignalsInfo<WithRawSiginfo>);

impl Caught {
    /// Catches signals from now on, also after the value is dropped. Signals that this process ignores stay ignored, as `nohup`
    /// wants it.
    pub(crate) fn new() -> Outcome<Self> {
        let ignored = ignored();
        let caught = ENDING.into_iter().chain(OTHERS).filter(|signal| ignored >> (signal - 1) & 1 == 0);
        Ok(Self(SignalsInfo::new(caught)?))
    }

    /// Returns a signal that has asked this process to end.
    pub(crate) fn ending(&mut self) -> Option<i32> {
        self.0.pending().map(|info| info.si_signo).find(|signal| ENDING.contains(signal))
    }

    /// Forwards signals to a process until the returned value is ended.
    pub(crate) fn forward_to(mut self, to: Pid) -> Forwarding {
        let handle = self.0.handle();
        let thread = thread::spawn(move || {
            let mut has_stopped = false;
            for info in self.0.forever() {
                // Positive codes are the kernel's own signals: the terminal has sent them to the command too.
                let is_for_command = info.si_code <= 0
                    && match info.si_signo {
                        SIGTSTP => {
                            has_stopped = true;
                            true
                        }
                        // A shell continues the whole group. Forwarded, its signal could undo the next ^Z.
                        SIGCONT => std::mem::take(&mut has_stopped),
                        _ => true,
                    };
                if is_for_command && let Some(signal) = Signal::from_named_raw(info.si_signo) {
                    // The command may have ended.
                    kill_process(to, signal).ok();
                }
            }
        });
        Forwarding { handle, thread }
    }
}

/// A thread that forwards signals.
pub(crate) struct Forwarding {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Forwarding {
    /// Ends the forwarding. The caller must not have waited for the process yet: its number may then be another's.
    pub(crate) fn end(self) {
        self.handle.close();
        drop(self.thread.join());
    }
}

/// Reads the set of ignored signals; bit 0 is signal 1.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
