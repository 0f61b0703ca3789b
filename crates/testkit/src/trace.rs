//! Runs a program under ptrace(2), lists its system calls, and kills the program at one of them or makes it fail.

#![cfg_attr(
    not(all(target_arch = "x86_64", target_env = "gnu")),
    expect(dead_code, unused_imports, reason = "system calls are not traced on this target")
)]

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{Read, Write},
    ops::Range,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use syscalls::Sysno;

use crate::Host;

/// The outcome of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The program and its children are killed before the call.
    Kill,
    /// The calling process is killed before the call, if it is a child of the program.
    KillChild,
    /// The call is skipped and returns this error.
    Fail(Errno),
}

/// A system call, recorded at its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syscall {
    /// The number of the call.
    pub number: Sysno,
    /// Whether a child of the program made it.
    pub by_child: bool,
}

/// The system calls and the outcome of a program.
#[derive(Debug)]
pub struct Traced {
    /// System calls of the program and its children, in order.
    pub syscalls: Vec<Syscall>,
    /// The exit status.
    pub status: ExitStatus,
    /// The standard output.
    pub stdout: String,
}

impl Traced {
    /// Returns the name of the system call at this index.
    pub fn name(&self, at: usize) -> &'static str {
        self.syscalls.get(at).map_or("(none)", |call| call.number.name())
    }
}

impl Host {
    /// Runs a program on this host under ptrace, with a fate for its system call at index `at` (from 0).
    ///
    /// # Panics
    /// If ptrace is not allowed.
    pub fn trace(
        &self,
        program: &std::path::Path,
        environment: &[(&str, &str)],
        stdin: &[u8],
        fate: Option<(usize, Fate)>,
    ) -> Traced {
        let mut command = self.command("sh");
        // The shell waits until the tracer has attached.
        command.args(["-c", "read go; exec \"$0\""]).arg(program).envs(environment.iter().copied());
        trace(command, program, stdin, fate)
    }
}

fn trace(
    mut command: Command,
    program: &std::path::Path,
    stdin: &[u8],
    fate: Option<(usize, Fate)>,
) -> Traced {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program is started");
    let root = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(root, options).expect("ptrace is allowed");
    let mut pipe = child.stdin.take().expect("stdin is piped");
    let mut printed = child.stdout.take().expect("stdout is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program may exit without reading all of stdin.
            drop(pipe.write_all(b"go\n").and_then(|()| pipe.write_all(stdin)));
        });
        let reader = scope.spawn(move || {
            let mut text = String::new();
            drop(printed.read_to_string(&mut text));
            text
        });
        let tracer = Tracer {
            root,
            program,
            fate,
            begun: false,
            loader: Vec::new(),
            alive: HashSet::from([root]),
            failing: HashMap::new(),
            syscalls: Vec::new(),
            status: None,
        };
        let (syscalls, status) = tracer.run();
        // The tracer has reaped the child already.
        drop(child.wait());
        Traced { syscalls, status, stdout: reader.join().unwrap_or_default() }
    })
}

/// System calls that do not fail on any kernel, even when resources are short.
const NEVER_FAIL: [Sysno; 5] =
    [Sysno::exit, Sysno::exit_group, Sysno::rt_sigreturn, Sysno::getrandom, Sysno::uname];

struct Tracer<'a> {
    root: Pid,
    program: &'a std::path::Path,
    fate: Option<(usize, Fate)>,
    /// Whether the program has replaced the shell that starts it.
    begun: bool,
    /// The dynamic loader's code, whose system calls are not counted as the program's.
    loader: Vec<Range<u64>>,
    alive: HashSet<Pid>,
    /// Processes in a system call that will return an error.
    failing: HashMap<Pid, Errno>,
    syscalls: Vec<Syscall>,
    status: Option<ExitStatus>,
}

impl Tracer<'_> {
    fn run(mut self) -> (Vec<Syscall>, ExitStatus) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        while !self.alive.is_empty() {
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid, code << 8),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.ended(pid, signal as i32),
                Ok(WaitStatus::PtraceSyscall(pid)) => self.syscall(pid),
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => self.event(pid, event),
                Ok(WaitStatus::Stopped(pid, signal)) => self.go_on(pid, Some(signal)),
                Err(Errno::EINTR) | Ok(_) => {}
                Err(_) => break,
            }
        }
        (self.syscalls, self.status.expect("the program ended"))
    }

    fn ended(&mut self, pid: Pid, status: i32) {
        self.alive.remove(&pid);
        if pid == self.root {
            self.status = Some(ExitStatus::from_raw(status));
        }
    }

    fn event(&mut self, pid: Pid, event: i32) {
        if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 && pid == self.root {
            let runs = std::fs::read_link(format!("/proc/{pid}/exe"));
            if let Ok(path) = runs
                && path.file_name() == self.program.file_name()
            {
                self.begun = true;
                self.loader = file_mappings(pid, &path);
            }
        }
        let births = [
            ptrace::Event::PTRACE_EVENT_FORK,
            ptrace::Event::PTRACE_EVENT_VFORK,
            ptrace::Event::PTRACE_EVENT_CLONE,
        ];
        if births.iter().any(|birth| event == *birth as i32)
            && let Some(child) = ptrace::getevent(pid).ok().and_then(|child| i32::try_from(child).ok())
        {
            // Registered now, because the child may have to be killed before its first stop is reported.
            self.alive.insert(Pid::from_raw(child));
        }
        self.go_on(pid, None);
    }

    #[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
    fn syscall(&mut self, pid: Pid) {
        self.go_on(pid, None);
    }

    // nix has registers and system call information on this target only.
    #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
    fn syscall(&mut self, pid: Pid) {
        let info = ptrace::syscall_info(pid);
        if info.is_ok_and(|info| self.loader.iter().any(|code| code.contains(&info.instruction_pointer))) {
            return self.go_on(pid, None);
        }
        let at_entry = info.is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY);
        let Ok(mut registers) = ptrace::getregs(pid) else { return self.go_on(pid, None) };
        if !at_entry {
            if let Some(error) = self.failing.remove(&pid) {
                registers.rax = i64::from(-(error as i32)).cast_unsigned();
                let _ = ptrace::setregs(pid, registers);
            }
            return self.go_on(pid, None);
        }
        let number = usize::try_from(registers.orig_rax).ok().and_then(Sysno::new);
        let Some(number) = number else { return self.go_on(pid, None) };
        let fate = self.fate.filter(|(at, _)| *at == self.syscalls.len()).map(|(_, fate)| fate);
        self.syscalls.push(Syscall { number, by_child: pid != self.root });
        match fate {
            Some(Fate::Kill) => {
                for pid in &self.alive {
                    let _ = kill(*pid, Signal::SIGKILL);
                }
                return;
            }
            Some(Fate::KillChild) if pid != self.root => {
                let _ = kill(pid, Signal::SIGKILL);
                return;
            }
            Some(Fate::Fail(error)) if !NEVER_FAIL.contains(&number) => {
                self.failing.insert(pid, error);
                registers.orig_rax = u64::MAX;
                let _ = ptrace::setregs(pid, registers);
            }
            // A poll without descriptors only waits, possibly thousands of times, so it returns at once.
            _ if number == Sysno::poll && registers.rsi == 0 => {
                registers.rdx = 0;
                let _ = ptrace::setregs(pid, registers);
            }
            _ => {}
        }
        self.go_on(pid, None);
    }

    fn go_on(&self, pid: Pid, signal: Option<Signal>) {
        // The process may have been killed in the meantime.
        let _ = if self.begun { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
    }
}

/// Lists the file mappings except the program's own. Right after the start, those are the dynamic loader's, if there is one.
fn file_mappings(pid: Pid, program: &std::path::Path) -> Vec<Range<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines()
        .filter_map(|line| {
            let (range, path) = (line.split_once(' ')?.0, line.find('/').map(|at| &line[at..])?);
            let (start, end) = range.split_once('-')?;
            let bounds = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
            (std::path::Path::new(path) != program).then_some(bounds.0..bounds.1)
        })
        .collect()
}

/// Returns whether this process may use ptrace. Some containers forbid it, and it works only on x86-64 with glibc.
pub fn can_trace() -> bool {
    let mut scope = String::new();
    let read =
        File::open("/proc/sys/kernel/yama/ptrace_scope").and_then(|mut file| file.read_to_string(&mut scope));
    cfg!(all(target_arch = "x86_64", target_env = "gnu")) && (read.is_err() || scope.trim() != "3")
}
