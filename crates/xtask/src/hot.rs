//! `cargo xtask hot`: lists the functions that plugin calls run, for the linker to place them next to each other.
//!
//! The kernel maps a program in windows of 64 KiB, at the first access to each. The functions of one ADD, spread over the
//! binary, touch nearly all windows; placed next to each other they touch a third, which saves a tenth of the time and half
//! of the memory.
//!
//! A breakpoint at each function records which are called ([`call`], a process between this one and the plugin). The linker's
//! map names the section of each. `crates/netloom/hot.ld` lists the sections: those that most calls run, then plugin by plugin.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    Outcome,
    bench::{self, Call, Side},
    dist::Dist,
    host::Host,
    read, root, say, target,
};

/// Runs `cargo xtask hot`: builds the binary with symbols, traces calls of each plugin and writes `hot.ld`.
pub(crate) fn hot() -> Outcome {
    if BREAKPOINT.is_empty() {
        return Err(format!("`cargo xtask hot` does not support {}", std::env::consts::ARCH));
    }
    let scratch = target().join("hot");
    drop(fs::remove_dir_all(&scratch));
    fs::create_dir_all(&scratch).map_err(|error| error.to_string())?;
    // At a fixed address, functions run where the file has them, and a breakpoint is an address.
    let dist = Dist { fixed: true, more: vec!["-Cstrip=none".to_owned()], ..Dist::default() };
    let binary = dist.build()?;
    let sections = sections(&read(&target().join("dist.map"))?);
    let functions = functions(&binary)?;
    let list: String = functions.iter().map(|address| format!("{address:x}\n")).collect();
    fs::write(scratch.join("functions"), list).map_err(|error| error.to_string())?;
    let starter = std::env::current_exe().map_err(|error| error.to_string())?;
    let starter = [starter.display().to_string(), "hot-call".into(), scratch.display().to_string()];
    let side = Side::started_by("netloom", bench::links_to(&binary, "bench-bin")?, &starter);
    call_all(&side)?;
    // By section: the number of calls that run it, and the order of the first of them.
    let mut met: HashMap<&Section, (usize, usize)> = HashMap::new();
    let calls = read(&scratch.join("met"))?;
    for line in calls.lines() {
        let mut of_this = HashSet::new();
        for address in line.split_whitespace().filter_map(|word| u64::from_str_radix(word, 16).ok()) {
            let Some((_, section)) = sections.range(..=address).next_back() else { continue };
            if of_this.insert(section) {
                let order = met.len();
                met.entry(section).or_insert((0, order)).0 += 1;
            }
        }
    }
    let mut hot: Vec<(&Section, (usize, usize))> = met.into_iter().collect();
    // First the sections that most calls run, then those of few calls in the order of the plugins.
    let few = calls.lines().count() / 3;
    hot.sort_by_key(|(_, (calls, order))| (*calls < few, *order));
    let mut patterns: Vec<String> = Vec::new();
    for (section, _) in hot {
        let pattern = section.pattern();
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    let path = root().join("crates/netloom/hot.ld");
    fs::write(&path, script(&patterns)).map_err(|error| error.to_string())?;
    say(&format!("{}: {} of {} functions", path.display(), patterns.len(), functions.len()));
    Ok(())
}

/// Calls every plugin that this kernel supports, on a new host and again once the network exists.
fn call_all(side: &Side) -> Outcome {
    let host = Host::new()?;
    bench::version(std::slice::from_ref(side), std::slice::from_ref(&host), 1)?;
    for case in bench::cases().iter().filter(|case| case.can_run(&host)) {
        host.sh("ip netns add c0")?;
        for _ in 0..2 {
            let mut chain = case.on(&host);
            for verb in ["ADD", "CHECK", "DEL"] {
                let call = Call { side, host: &host, container: "c0".into() };
                bench::run_chain(&call, verb, &mut chain)?;
            }
        }
        host.sh("ip -all netns delete; ip link del cbr0 2>/dev/null || true")?;
    }
    Ok(())
}

/// An input section: the unit that the linker places.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Section {
    name: String,
    object: String,
}

impl Section {
    /// Returns the section's pattern in a linker script, with wildcards for the hashes that change with the compiler.
    fn pattern(&self) -> String {
        if self.name == ".text" {
            // A whole object of the C library.
            let object = self.object.rsplit('/').next().unwrap_or_default();
            return match object.split_once('(') {
                Some((_, member)) => format!("*:{}(.text)", member.trim_end_matches(')')),
                None => format!("*{object}(.text)"),
            };
        }
        let mut name = self.name.clone();
        if let Some(at) = name.rfind("17h").filter(|at| name.len() == at + 20 && name.ends_with('E')) {
            name.replace_range(at + 3.., "*");
        }
        // The hash of a crate in v0 mangling: `Cs`, base-62 digits, `_`.
        let mut parts = name.split("Cs");
        let mut pattern = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits =
                part.find(|c: char| !c.is_ascii_alphanumeric()).filter(|at| part[*at..].starts_with('_'));
            match digits {
                Some(at) => write!(pattern, "Cs*{}", &part[at..]).unwrap_or_default(),
                None => write!(pattern, "Cs{part}").unwrap_or_default(),
            }
        }
        format!("*({})", pattern.replace('$', "?"))
    }
}

/// Parses the code sections of a linker map by address: ` NAME ADDRESS SIZE OBJECT`, with a line break after a long name.
fn sections(map: &str) -> BTreeMap<u64, Section> {
    let mut found = BTreeMap::new();
    let mut words = map.split_whitespace().peekable();
    let number = |word: &str| word.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    while let Some(name) = words.next() {
        if name != ".text" && !name.starts_with(".text.") {
            continue;
        }
        let Some(address) = words.peek().and_then(|word| number(word)) else { continue };
        words.next();
        let Some(size) = words.peek().and_then(|word| number(word)) else { continue };
        words.next();
        let Some(object) = words.peek().filter(|word| word.starts_with('/')) else { continue };
        if address > 0 && size > 0 {
            found.insert(address, Section { name: name.to_owned(), object: (*object).to_owned() });
        }
    }
    found
}

/// Lists the addresses of all functions of a program.
fn functions(program: &Path) -> Result<Vec<u64>, String> {
    let listed = Command::new("nm").arg(program).output().map_err(|error| format!("nm: {error}"))?;
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        if let [address, "t" | "T" | "w" | "W", _] = line.split_whitespace().collect::<Vec<_>>()[..] {
            found.extend(u64::from_str_radix(address, 16).ok());
        }
    }
    found.sort_unstable();
    found.dedup();
    if found.is_empty() { Err("nm names no functions".to_owned()) } else { Ok(found) }
}

fn script(patterns: &[String]) -> String {
    let lines: String = patterns.iter().map(|pattern| format!("    {pattern}\n")).collect();
    format!(
        "/* The functions that plugin calls run. Written by `cargo xtask hot`. A name that matches nothing does no harm. */\n\
         SECTIONS\n{{\n  .text.hot :\n  {{\n{lines}  }}\n}}\nINSERT BEFORE .text;\n"
    )
}

/// The instruction that traps: `int3`, `brk #0`.
const BREAKPOINT: &[u8] = if cfg!(target_arch = "x86_64") {
    &[0xcc]
} else if cfg!(target_arch = "aarch64") {
    &[0x00, 0x00, 0x20, 0xd4]
} else {
    &[]
};

/// Moves a thread that trapped back to its breakpoint and returns the address.
///
/// x86-64 reports the address after the instruction, aarch64 that of the instruction.
#[cfg(target_arch = "x86_64")]
fn rewind(pid: Pid) -> nix::Result<u64> {
    let mut registers = ptrace::getregs(pid)?;
    registers.rip -= 1;
    ptrace::setregs(pid, registers)?;
    Ok(registers.rip)
}

#[cfg(target_arch = "aarch64")]
fn rewind(pid: Pid) -> nix::Result<u64> {
    Ok(ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(pid)?.pc)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn rewind(_pid: Pid) -> nix::Result<u64> {
    Err(nix::errno::Errno::ENOSYS)
}

/// Runs a program with a breakpoint at each of its functions: same input, output and exit as without.
///
/// Appends the addresses of the called functions to the list in `folder`, one line per call.
pub(crate) fn call(folder: &str, program: &str) -> Outcome {
    let folder = PathBuf::from(folder);
    let functions: Vec<u64> = read(&folder.join("functions"))?
        .lines()
        .filter_map(|line| u64::from_str_radix(line, 16).ok())
        .collect();
    // The shell waits until it is traced.
    let child = Command::new("sh").args(["-c", "kill -STOP $$; exec \"$0\"", program]).spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    let root = Pid::from_raw(child.id().cast_signed());
    let met = trace(root, &functions).map_err(|error| format!("trace {program}: {error}"))?;
    let line: String = met.iter().map(|address| format!("{address:x} ")).collect();
    let list = OpenOptions::new().create(true).append(true).open(folder.join("met"));
    list.and_then(|mut list| writeln!(list, "{line}")).map_err(|error| error.to_string())?;
    // The tracer has reaped it already.
    drop(child.wait());
    Ok(())
}

fn trace(root: Pid, functions: &[u64]) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    waitpid(root, Some(WaitPidFlag::WUNTRACED))?;
    let options = Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(root, options)?;
    kill(root, Signal::SIGCONT)?;
    let (mut met, mut original) = (Vec::new(), HashMap::new());
    let (mut alive, mut failed) = (1_u32, false);
    while alive > 0 {
        match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(pid, _, event) => {
                if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 && pid == root {
                    original = set_breakpoints(pid, functions)?;
                }
                let births = [
                    ptrace::Event::PTRACE_EVENT_FORK,
                    ptrace::Event::PTRACE_EVENT_VFORK,
                    ptrace::Event::PTRACE_EVENT_CLONE,
                ];
                alive += u32::from(births.into_iter().any(|birth| birth as i32 == event));
                ptrace::cont(pid, None)?;
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                let at = rewind(pid)?;
                let Some(code) = original.get(&at) else { return Err(format!("trap at {at:x}").into()) };
                memory(pid)?.write_all_at(code, at)?;
                met.push(at);
                ptrace::cont(pid, None)?;
            }
            WaitStatus::Stopped(pid, signal) => ptrace::cont(pid, Some(signal))?,
            WaitStatus::Exited(pid, code) => {
                failed |= pid == root && code != 0;
                alive -= 1;
            }
            WaitStatus::Signaled(..) => alive -= 1,
            _ => {}
        }
    }
    if failed { Err("the program failed".into()) } else { Ok(met) }
}

/// Sets breakpoints and returns the code that they replace.
fn set_breakpoints(pid: Pid, functions: &[u64]) -> std::io::Result<HashMap<u64, Vec<u8>>> {
    let memory = memory(pid)?;
    let mut original = HashMap::new();
    for at in functions {
        let mut code = vec![0; BREAKPOINT.len()];
        memory.read_exact_at(&mut code, *at)?;
        memory.write_all_at(BREAKPOINT, *at)?;
        original.insert(*at, code);
    }
    Ok(original)
}

fn memory(pid: Pid) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))
}
