//! Running a plugin as a process (SPEC, "Section 2: Execution Protocol").

use std::{
    fmt,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use netloom_types::{CniError, Code};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// The operation that a plugin is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Put the container on the network.
    Add,
    /// Take it off.
    Del,
    /// See whether it is still as ADD left it.
    Check,
    /// Say whether ADD would work.
    Status,
    /// Clean up what belongs to no valid attachment.
    Gc,
    /// Say which versions are supported.
    Version,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// Returns the value of `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// Parses the value of `CNI_COMMAND`, exactly.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The `CNI_*` variables of one call (SPEC, "Parameters").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`
    pub args: String,
    /// `CNI_PATH`
    pub path: String,
}

/// A call of a plugin.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The program.
    pub program: &'a Path,
    /// What it is to do.
    pub verb: Verb,
    /// The `CNI_*` variables, which override the process's own.
    pub environment: &'a Environment,
    /// What it reads.
    pub stdin: &'a [u8],
    /// How long it may take; none for as long as it likes.
    pub timeout: Option<Duration>,
}

/// The outcome of a plugin's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed: a result or an error object.
    pub stdout: Vec<u8>,
    /// What it logged.
    pub stderr: String,
}

/// The reason why a plugin could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It did not start.
    #[error("cannot run {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not end in time, and was ended with its whole process group.
    #[error("{} did not end within {limit:?}; it and its children were ended{}", program.display(), said(stderr))]
    Timeout {
        /// The program.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
        /// What it had logged by then.
        stderr: String,
    },
    /// Talking to it failed.
    #[error("cannot talk to {}: {source}", program.display())]
    Pipe {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it said {stderr:?}") }
}

/// Runs plugins. [`Processes`] is the real one; a test may count or replace calls.
pub trait Executor {
    /// Runs one call to its end.
    ///
    /// # Errors
    /// If the program does not start, or not end in time. A plugin that *fails* is an [`Outcome`].
    fn execute(&self, call: &Call<'_>) -> Result<Outcome, ExecError>;
}

/// Runs plugins as processes, each in a process group of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Processes;

/// How long a plugin has between being asked to end and being killed; enough to undo what it did.
const GRACE: Duration = Duration::from_secs(2);
/// How long a program may stay busy being written before that is an error.
/// A result has some kilobytes.
const MOST_OUTPUT: usize = 16 << 20;
const BUSY_LIMIT: Duration = Duration::from_secs(5);

impl Executor for Processes {
    fn execute(&self, call: &Call<'_>) -> Result<Outcome, ExecError> {
        let started = Instant::now();
        let deadline = call.timeout.map(|limit| started + limit);
        let child = start(call, deadline.map_or(started + BUSY_LIMIT, |at| at.min(started + BUSY_LIMIT)))
            .map_err(|source| ExecError::Start { program: call.program.to_owned(), source })?;
        let pipe = |source: io::Error| ExecError::Pipe { program: call.program.to_owned(), source };
        let mut running = Running::new(child, call.stdin).map_err(pipe)?;
        if !running.pump(deadline).map_err(pipe)? {
            running.end().map_err(pipe)?;
            return Err(ExecError::Timeout {
                program: call.program.to_owned(),
                limit: call.timeout.unwrap_or_default(),
                stderr: String::from_utf8_lossy(&running.stderr).trim().to_owned(),
            });
        }
        let status = running.child.wait().map_err(pipe)?;
        Ok(Outcome {
            status,
            stdout: running.stdout,
            stderr: String::from_utf8_lossy(&running.stderr).into_owned(),
        })
    }
}

fn start(call: &Call<'_>, busy_until: Instant) -> io::Result<Child> {
    let environment = call.environment;
    loop {
        let spawned = Command::new(call.program)
            .env("CNI_COMMAND", call.verb.as_str())
            .env("CNI_CONTAINERID", &environment.container_id)
            .env("CNI_NETNS", &environment.netns)
            .env("CNI_IFNAME", &environment.ifname)
            .env("CNI_ARGS", &environment.args)
            .env("CNI_PATH", &environment.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        match spawned {
            // Somebody is writing the file, as an upgrade does: wait until it is closed.
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < busy_until =>
            {
                wait_until_written(call.program, busy_until)?;
            }
            other => return other,
        }
    }
}

/// Waits for a writer to close the file, at most 50 ms, since it may have done so before this began to listen.
fn wait_until_written(program: &Path, until: Instant) -> io::Result<()> {
    let listener = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&listener, program, inotify::WatchFlags::CLOSE_WRITE)?;
    let left = until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50));
    wait_for(&mut [PollFd::new(&listener, PollFlags::IN)], Some(left))?;
    Ok(())
}

struct Running<'a> {
    child: Child,
    group: Pid,
    /// Becomes readable when the plugin itself has ended, whoever still holds its pipes.
    ended: OwnedFd,
    input: &'a [u8],
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl<'a> Running<'a> {
    fn new(child: Child, input: &'a [u8]) -> io::Result<Self> {
        let group = Pid::from_child(&child);
        let ended = pidfd_open(group, PidfdFlags::empty())?;
        let (stdout, stderr) = (Vec::new(), Vec::new());
        for fd in [
            child.stdin.as_ref().map(AsFd::as_fd),
            child.stdout.as_ref().map(AsFd::as_fd),
            child.stderr.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Self { child, group, ended, input, stdout, stderr })
    }

    /// Feeds and reads until the plugin has ended and its pipes are empty; false at the deadline.
    fn pump(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        let mut gone = false;
        loop {
            self.feed()?;
            let open_out = drain(&mut self.child.stdout, &mut self.stdout)?;
            let open_err = drain(&mut self.child.stderr, &mut self.stderr)?;
            // A child that the plugin left behind may hold the pipes: once the plugin is gone, and what it
            // wrote is read, there is nothing to wait for.
            if gone || !(open_out || open_err) {
                return Ok(true);
            }
            let left = match deadline {
                None => None,
                Some(at) => match at.checked_duration_since(Instant::now()) {
                    Some(left) => Some(left),
                    None => return Ok(false),
                },
            };
            let mut fds = vec![PollFd::new(&self.ended, PollFlags::IN)];
            fds.extend(self.child.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)));
            fds.extend(self.child.stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            fds.extend(self.child.stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            wait_for(&mut fds, left)?;
            gone = !fds[0].revents().is_empty();
        }
    }

    fn feed(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.child.stdin else { return Ok(()) };
        while !self.input.is_empty() {
            match pipe.write(self.input) {
                Ok(count) => self.input = &self.input[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A plugin need not read all of it, as with VERSION.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Err(error) => return Err(error),
            }
        }
        self.child.stdin = None;
        Ok(())
    }

    /// Asks the whole group to end, and kills it when it does not.
    fn end(&mut self) -> io::Result<()> {
        // The group may be gone already.
        kill_process_group(self.group, Signal::TERM).ok();
        let ended = self.pump(Some(Instant::now() + GRACE))?;
        kill_process_group(self.group, Signal::KILL).ok();
        if !ended {
            self.pump(Some(Instant::now() + GRACE))?;
        }
        self.child.wait()?;
        Ok(())
    }
}

/// Reads what is there; false once the pipe is closed.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(open) = pipe else { return Ok(false) };
    let mut buffer = [0; 8192];
    loop {
        match open.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                return Ok(false);
            }
            // What is too long for a result is read all the same, so that its writer can end, and is none.
            Ok(count) => into.extend_from_slice(&buffer[..count.min(MOST_OUTPUT.saturating_sub(into.len()))]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait_for(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Creates the error of a plugin that ended badly: its own error object where it printed one, with what it
/// logged in the details.
pub fn error_of(outcome: &Outcome) -> CniError {
    let stderr = outcome.stderr.trim();
    let ended = ending(outcome.status);
    if outcome.stdout.iter().all(u8::is_ascii_whitespace) {
        let msg = if stderr.is_empty() {
            format!("netplugin failed with no error message: {ended}")
        } else {
            format!("netplugin failed: {stderr:?}: {ended}")
        };
        return CniError::new(Code::Unknown, msg);
    }
    match CniError::parse(&outcome.stdout) {
        Ok(mut error) => {
            if !stderr.is_empty() {
                let gap = if error.details.is_empty() { "" } else { "; " };
                error.details = format!("{}{gap}it logged {stderr:?}", error.details);
            }
            error
        }
        Err(error) => {
            let printed = String::from_utf8_lossy(&outcome.stdout);
            let shown: String = printed.chars().take(200).collect();
            CniError::new(
                Code::Unknown,
                format!("netplugin failed but error parsing its diagnostic message {shown:?}: {error}"),
            )
            .details(if stderr.is_empty() {
                ended
            } else {
                format!("{ended}; it logged {stderr:?}")
            })
        }
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
