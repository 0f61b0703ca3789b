//! Execution of a plugin as a process (SPEC, "Section 2: Execution Protocol").

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

/// A verb of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach the container to the network.
    Add,
    /// Detach the container from the network.
    Del,
    /// Check that the attachment still matches the result of ADD.
    Check,
    /// Report whether the plugin can service ADD.
    Status,
    /// Remove resources that belong to no valid attachment.
    Gc,
    /// Report the supported versions.
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

    /// Parses the value of `CNI_COMMAND`, with this exact spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The `CNI_*` variables of one call, without `CNI_COMMAND` (SPEC, "Parameters").
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

/// One call of a plugin.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The plugin's executable file.
    pub program: &'a Path,
    /// The value of `CNI_COMMAND`.
    pub verb: Verb,
    /// The `CNI_*` variables, which override those of the calling process.
    pub environment: &'a Environment,
    /// The plugin's standard input.
    pub stdin: &'a [u8],
    /// The time limit, or `None` for no limit.
    pub timeout: Option<Duration>,
}

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit status.
    pub status: ExitStatus,
    /// The plugin's standard output: a result or an error object.
    pub stdout: Vec<u8>,
    /// The plugin's log.
    pub stderr: String,
}

/// Explains an ENOENT of execve(2): the plugin was found, so what does not exist is the program that the kernel starts for it.
fn missing_part(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::NotFound {
        ": if the file exists, its dynamic loader or the interpreter in its first line does not"
    } else {
        ""
    }
}

/// The reason a call did not complete.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The program did not start.
    #[error("cannot run {}: {source}{}", program.display(), missing_part(source))]
    Start {
        /// The plugin's executable file.
        program: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The plugin exceeded the time limit, and its whole process group was terminated.
    #[error("{} did not end within {limit:?}; it and its children were terminated{}", program.display(), said(stderr))]
    Timeout {
        /// The plugin's executable file.
        program: PathBuf,
        /// The time limit.
        limit: Duration,
        /// The plugin's log up to then.
        stderr: String,
    },
    /// Reading from or writing to the plugin failed.
    #[error("cannot exchange data with {}: {source}", program.display())]
    Pipe {
        /// The plugin's executable file.
        program: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it logged {stderr:?}") }
}

/// A means of running plugins. [`Processes`] starts processes; a test may count or replace calls.
pub trait Executor {
    /// Runs one call and waits for its end.
    ///
    /// # Errors
    /// If the program does not start or exceeds the time limit. The failure of a plugin is an [`Outcome`].
    fn execute(&self, call: &Call<'_>) -> Result<Outcome, ExecError>;
}

/// An executor that runs each plugin as a process in its own process group.
#[derive(Debug, Clone, Copy, Default)]
pub struct Processes;

/// Time limit between SIGTERM and SIGKILL, enough for a plugin to run its undo steps.
const GRACE: Duration = Duration::from_secs(2);
/// Size limit of each output stream. A result has some kilobytes.
const MOST_OUTPUT: usize = 16 << 20;
/// Time limit for a program that another process holds open for writing.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// An executor as [`Processes`] that passes on each line of a plugin's log when the plugin writes it, and leaves
/// [`Outcome::stderr`] empty.
#[derive(Debug, Clone, Copy)]
pub struct LoggedProcesses {
    /// Receives the plugin's executable file and a line without its end.
    pub log: fn(&Path, &str),
}

impl Executor for Processes {
    fn execute(&self, call: &Call<'_>) -> Result<Outcome, ExecError> {
        execute(call, None)
    }
}

impl Executor for LoggedProcesses {
    fn execute(&self, call: &Call<'_>) -> Result<Outcome, ExecError> {
        execute(call, Some(self.log))
    }
}

fn execute(call: &Call<'_>, log: Option<fn(&Path, &str)>) -> Result<Outcome, ExecError> {
    let started = Instant::now();
    let deadline = call.timeout.map(|limit| started + limit);
    let child = start(call, deadline.map_or(started + BUSY_LIMIT, |at| at.min(started + BUSY_LIMIT)))
        .map_err(|source| ExecError::Start { program: call.program.to_owned(), source })?;
    let pipe = |source: io::Error| ExecError::Pipe { program: call.program.to_owned(), source };
    let mut running = Running::new(child, call, log).map_err(pipe)?;
    if !running.pump(deadline).map_err(pipe)? {
        running.end().map_err(pipe)?;
        return Err(ExecError::Timeout {
            program: call.program.to_owned(),
            limit: call.timeout.unwrap_or_default(),
            stderr: String::from_utf8_lossy(&running.stderr).trim().to_owned(),
        });
    }
    let status = running.child.wait().map_err(pipe)?;
    running.pass_on(true);
    Ok(Outcome {
        status,
        stdout: running.stdout,
        stderr: String::from_utf8_lossy(&running.stderr).into_owned(),
    })
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
            // Another process, such as an upgrade, is writing the file.
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < busy_until =>
            {
                wait_until_written(call.program, busy_until)?;
            }
            other => return other,
        }
    }
}

/// Waits until a writer closes the file, but at most 50 ms: the writer may have closed it before the watch was added.
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
    /// The plugin's pidfd. It becomes readable when the plugin has ended, even if other processes still hold its pipes.
    ended: OwnedFd,
    program: &'a Path,
    input: &'a [u8],
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    log: Option<fn(&Path, &str)>,
}

impl<'a> Running<'a> {
    fn new(child: Child, call: &Call<'a>, log: Option<fn(&Path, &str)>) -> io::Result<Self> {
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
        Ok(Self { child, group, ended, program: call.program, input: call.stdin, stdout, stderr, log })
    }

    /// Writes input and reads output until the plugin has ended and its pipes are empty. Returns false at the deadline.
    fn pump(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        let mut gone = false;
        loop {
            self.feed()?;
            let open_out = drain(&mut self.child.stdout, &mut self.stdout)?;
            let open_err = drain(&mut self.child.stderr, &mut self.stderr)?;
            self.pass_on(false);
            // A child that outlives the plugin may hold the pipes, so the plugin's end counts, not that of the pipes.
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

    /// Passes on the complete lines of the log, and at the end the rest.
    fn pass_on(&mut self, at_end: bool) {
        let Some(log) = self.log else { return };
        let end = match self.stderr.iter().rposition(|byte| *byte == b'\n') {
            _ if at_end => self.stderr.len(),
            Some(last) => last + 1,
            None => return,
        };
        let lines: Vec<u8> = self.stderr.drain(..end).collect();
        String::from_utf8_lossy(&lines).lines().for_each(|line| log(self.program, line));
    }

    fn feed(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.child.stdin else { return Ok(()) };
        while !self.input.is_empty() {
            match pipe.write(self.input) {
                Ok(count) => self.input = &self.input[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A plugin may leave input unread, as VERSION does.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Err(error) => return Err(error),
            }
        }
        self.child.stdin = None;
        Ok(())
    }

    /// Sends SIGTERM to the process group, and SIGKILL after the grace period.
    fn end(&mut self) -> io::Result<()> {
        // The group may have ended already.
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

/// Reads the available output. Returns false if the pipe is closed.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(open) = pipe else { return Ok(false) };
    let mut buffer = [0; 8192];
    loop {
        match open.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                return Ok(false);
            }
            // Output beyond the limit is read and discarded, so that the writer can end.
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

/// Returns the error of a failed plugin: its error object if it printed one, with its log in the details.
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
