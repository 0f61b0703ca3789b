//! The command: its start in the namespace, its stops and its end.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus},
    thread,
};

use kernel::{Kind, Netns};
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, getpid, kill_process, waitid},
};

use super::{
    super::{Failure, Outcome, note},
    signals::Caught,
};

/// Exit codes, as those of `docker run`: the command cannot be executed, the command does not exist.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a command in a namespace and forwards signals to it. Returns its exit code, or 128 plus the number of the signal that ended
/// it, as shells do. A signal that came before the command started counts as such.
pub(crate) fn run(
    command: &[String],
    netns: &Netns,
    resolv_conf: Option<&str>,
    mut signals: Caught,
) -> Outcome<u8> {
    if let Some(signal) = signals.ending() {
        return Ok(after_signal(signal));
    }
    // The thread enters the namespace, starts the command and ends.
    let mut child = thread::scope(|scope| {
        let spawned = scope.spawn(|| spawn(command, netns, resolv_conf));
        spawned.join().unwrap_or_else(|_| Err(Failure::new("the thread that starts the command panicked")))
    })?;
    let pid = Pid::from_child(&child);
    let forwarding = signals.forward_to(pid);
    let ended = wait_until_ended(pid);
    forwarding.end();
    ended?;
    Ok(exit_code(child.wait()?))
}

fn spawn(command: &[String], netns: &Netns, resolv_conf: Option<&str>) -> Outcome<Child> {
    netns.enter()?;
    // /sys shows the network namespace in which it was mounted, so the command needs a mount namespace with its own.
    kernel::netns::unshare_mounts()?;
    match kernel::netns::mount_sys() {
        // In a user namespace the kernel refuses if parts of /sys are hidden, as in most containers.
        Err(error) if error.kind() == Kind::Denied => {
            note(format!("netloom: {error}: the command sees the links of the host there"));
        }
        other => other?,
    }
    if let Some(text) = resolv_conf
        && Path::new("/etc/resolv.conf").exists()
    {
        mount_resolv_conf(text)?;
    }
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::new("no command was given"))?;
    Command::new(program).args(arguments).spawn().map_err(|error| {
        let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        Failure::new(format!("cannot run `{program}`: {error}")).or_code(code)
    })
}

fn mount_resolv_conf(text: &str) -> Outcome {
    let path = std::env::temp_dir().join(format!("netloom-resolv-{}", std::process::id()));
    let context = |error: io::Error| Failure::new(format!("cannot write {}: {error}", path.display()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(context)?;
    let mounted = file
        .write_all(text.as_bytes())
        .map_err(context)
        .and_then(|()| Ok(kernel::netns::mount_file(&path, Path::new("/etc/resolv.conf"))?));
    // The mount keeps the file alive without its name.
    let removed = fs::remove_file(&path).map_err(context);
    mounted.and(removed)
}

/// Waits until a child has ended, and leaves its exit status to be read. Stops with it if the terminal stops it.
fn wait_until_ended(pid: Pid) -> Outcome {
    let events = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), events) {
            Ok(Some(status)) if status.stopped() => {
                waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG).ok();
                let signal = status.stopping_signal().and_then(Signal::from_named_raw);
                if [Some(Signal::TSTP), Some(Signal::TTIN), Some(Signal::TTOU)].contains(&signal)
                    && is_in_foreground()
                {
                    // The shell waits for this process. Its `fg` wakes the whole group.
                    kill_process(getpid(), Signal::STOP).ok();
                }
            }
            Ok(Some(_)) => return Ok(()),
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::new(format!("cannot wait for the command: {errno}"))),
        }
    }
}

/// Returns whether this process has a terminal and belongs to the group that it sends signals to.
fn is_in_foreground() -> bool {
    let terminal = fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
}

fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => after_signal(signal),
        (None, None) => 1,
    }
}

fn after_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(1)
}
