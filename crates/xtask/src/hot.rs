//! `cargo xtask hot`: writes down which functions plugins' calls run, so that the linker puts them side by side.
//!
//! The kernel maps a program by windows of 64 KiB as they are touched. Spread over all of the binary, what one ADD runs
//! touches nearly all windows; side by side, a third of them, which is a tenth of the time and half of the memory.
//!
//! A breakpoint at each function says which are called ([`call`], a process between this one and the plugin); the
//! linker's map says in which section each lies. `crates/netloom/hot.ld` names the sections: what most calls run, then plugin by plugin.

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
    bench::{self, Call, Host, Side},
    read, root, say,
};

pub(crate) fn hot() -> Outcome {
    let scratch = root().join("target/hot");
    drop(fs::remove_dir_all(&scratch));
    fs::create_dir_all(&scratch).map_err(|error| error.to_string())?;
    let map = scratch.join("map");
    let arguments = ["-Cstrip=none".to_owned(), format!("-Clink-arg=-Wl,-Map={}", map.display())];
    let binary = bench::dist_with(&arguments)?;
    let sections = sections(&read(&map)?);
    let functions = functions(&binary)?;
    let list: String = functions.iter().map(|address| format!("{address:x}\n")).collect();
    fs::write(scratch.join("functions"), list).map_err(|error| error.to_string())?;
    let starter = std::env::current_exe().map_err(|error| error.to_string())?;
    let starter = [starter.display().to_string(), "hot-call".into(), scratch.display().to_string()];
    let side = Side::started_by("netloom", bench::links_to(&binary)?, &starter);
    call_all(&side)?;
    // By how many calls a section is run, and in which order it is first met.
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
    // What most calls run, then what one plugin runs beside another's.
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

/// Calls every plugin that can be called here, first on a new host, then on one that has a network.
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

/// What the linker moves as one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Section {
    name: String,
    object: String,
}

impl Section {
    /// Names the section in a linker script, whatever hashes the next compiler gives to its name.
    fn pattern(&self) -> String {
        if self.name == ".text" {
            // All of one object, of the C library's.
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
        // The same in the newer way of naming: Cs, 62 digits, _.
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

/// Reads which sections of code lie where: ` NAME ADDRESS SIZE OBJECT`, with a line's end after a long name.
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

/// Returns the addresses of all functions of a program.
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
        "/* What plugins' calls run, side by side. Written by `cargo xtask hot`; a name that is not met does no harm. */\n\
         SECTIONS\n{{\n  .text.hot :\n  {{\n{lines}  }}\n}}\nINSERT BEFORE .text;\n"
    )
}

const BREAKPOINT: u8 = 0xcc;

/// Runs a program with a breakpoint at each of its functions, as this process would be run: same input, same output, same
/// end. Which functions were called it adds to the folder's list, a line for a call.
pub(crate) fn call(folder: &str, program: &str) -> Outcome {
    let folder = PathBuf::from(folder);
    let functions: Vec<u64> = read(&folder.join("functions"))?
        .lines()
        .filter_map(|line| u64::from_str_radix(line, 16).ok())
        .collect();
    // It goes on when it is traced.
    let child = Command::new("sh").args(["-c", "kill -STOP $$; exec \"$0\"", program]).spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    let root = Pid::from_raw(child.id().cast_signed());
    let met = trace(root, &functions).map_err(|error| format!("trace {program}: {error}"))?;
    let line: String = met.iter().map(|address| format!("{address:x} ")).collect();
    let list = OpenOptions::new().create(true).append(true).open(folder.join("met"));
    list.and_then(|mut list| writeln!(list, "{line}")).map_err(|error| error.to_string())?;
    // The tracer has waited for it already.
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
                let begun = [
                    ptrace::Event::PTRACE_EVENT_FORK,
                    ptrace::Event::PTRACE_EVENT_VFORK,
                    ptrace::Event::PTRACE_EVENT_CLONE,
                ];
                alive += u32::from(begun.into_iter().any(|it| it as i32 == event));
                ptrace::cont(pid, None)?;
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                let mut registers = ptrace::getregs(pid)?;
                let at = registers.rip - 1;
                let Some(byte) = original.get(&at) else { return Err(format!("trap at {at:x}").into()) };
                memory(pid)?.write_all_at(&[*byte], at)?;
                registers.rip = at;
                ptrace::setregs(pid, registers)?;
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
    if failed { Err("it failed".into()) } else { Ok(met) }
}

/// Returns what was where the breakpoints are now.
fn set_breakpoints(pid: Pid, functions: &[u64]) -> std::io::Result<HashMap<u64, u8>> {
    let memory = memory(pid)?;
    let mut original = HashMap::new();
    for at in functions {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, *at)?;
        memory.write_all_at(&[BREAKPOINT], *at)?;
        original.insert(*at, byte[0]);
    }
    Ok(original)
}

fn memory(pid: Pid) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))
}
