//! A process that may run for a limited time, and what it and its descendants were doing when that time had passed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    process::Command,
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, Signal, kill_process},
};

use crate::deadline::ends_within;

/// Runs a command and returns whether it succeeded, with what it wrote to both outputs.
///
/// A command that takes longer than `limit` is killed with its descendants, and the text ends with their states. The outputs are
/// files, not pipes: a descendant that outlives the command does not delay the return.
pub(super) fn run(command: &mut Command, limit: Duration) -> io::Result<(bool, String)> {
    let mut written = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
    let mut child = command.stdout(written.try_clone()?).stderr(written.try_clone()?).spawn()?;
    let process = Pid::from_child(&child);
    let in_time = ends_within(process, limit)?;
    let mut late = String::new();
    if !in_time {
        let family = descendants(process);
        late = format!("\ndoes not end within {} s; its processes:\n{}", limit.as_secs(), states(&family));
        for process in family {
            kill_process(process, Signal::KILL).ok();
        }
    }
    let status = child.wait()?;
    let mut text = Vec::new();
    written.rewind()?;
    written.read_to_end(&mut text)?;
    Ok((in_time && status.success(), String::from_utf8_lossy(&text).into_owned() + &late))
}

/// Returns a process and its descendants, parents first.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<Pid>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?))
        else {
            continue;
        };
        // PID (NAME) STATE PARENT ...; the name may contain parentheses and spaces.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        children.entry(parent.unwrap_or_default()).or_default().push(process);
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(process) = family.get(next) {
        let found = children.remove(&process.as_raw_nonzero().get()).unwrap_or_default();
        family.extend(found);
        next += 1;
    }
    family
}

/// Describes where each thread of some processes waits, by `/proc/PID/task/TID/stack` (proc(5)).
fn states(processes: &[Pid]) -> String {
    let mut text = String::new();
    for process in processes {
        let folder = format!("/proc/{process}");
        let read = |file: &str| fs::read_to_string(format!("{folder}/{file}")).unwrap_or_default();
        let _ = writeln!(text, "  {process}: {}", read("cmdline").replace('\0', " ").trim_end());
        for task in fs::read_dir(format!("{folder}/task")).into_iter().flatten().flatten() {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let stack: Vec<String> = read("stack").lines().take(4).map(function).collect();
            let _ = writeln!(text, "    {} in {}", read("comm").trim(), stack.join(" < "));
        }
    }
    text
}

/// Takes the name from a line such as `[<0>] futex_wait_queue+0x60/0x90`.
fn function(line: &str) -> String {
    line.split([' ', '+']).nth(1).unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_command_is_described_and_killed() {
        let mut command = Command::new("sh");
        let (passed, text) =
            run(command.args(["-c", "echo begun; sleep 600 & wait"]), Duration::from_secs(1)).unwrap();
        assert!(!passed);
        assert!(text.starts_with("begun\n"), "{text}");
        let sleep = text.lines().find_map(|line| line.trim().strip_suffix(": sleep 600")).expect(&text);
        // Reaped already, or it ends now.
        let sleep = Pid::from_raw(sleep.parse().unwrap()).unwrap();
        assert!(ends_within(sleep, Duration::from_mins(1)).unwrap_or(true));
    }

    #[test]
    fn a_descendant_that_lives_on_delays_nothing() {
        let mut command = Command::new("sh");
        let script = "sleep 600 & echo $!";
        let (passed, text) = run(command.args(["-c", script]), Duration::from_mins(2)).unwrap();
        assert!(passed);
        let sleep = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
        kill_process(sleep, Signal::KILL).unwrap();
    }
}
