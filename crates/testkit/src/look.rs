//! Inspection of a host and its containers. Starting programs takes most of the time, so each call answers many questions.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{Host, said};

impl Host {
    /// Runs `ip -j -d` once for several queries, on this host or in one of its containers.
    pub fn ip(&self, container: Option<&str>, lines: &[&str]) -> Vec<Value> {
        self.inside(container, || ip(&[], lines))
    }
}

/// Runs `ip -j -d` once for several queries, in the calling thread's network namespace.
pub fn ip(options: &[&str], lines: &[&str]) -> Vec<Value> {
    let mut asked = tempfile();
    asked.write_all(lines.join("\n").as_bytes()).expect("the questions are written");
    std::io::Seek::rewind(&mut asked).expect("a file");
    let mut command = Command::new("ip");
    command.args(["-j", "-d"]).args(options).args(["-b", "-"]).stdin(Stdio::from(asked));
    let text = said(&mut command, "ip -b");
    serde_json::Deserializer::from_str(&text).into_iter().map(|it| it.expect("ip prints JSON")).collect()
}

fn tempfile() -> fs::File {
    rustix::fs::memfd_create("ip", rustix::fs::MemfdFlags::CLOEXEC).expect("there is memory").into()
}

/// Runs a program in the calling thread's network namespace and returns its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    said(Command::new(program).args(arguments), program)
}

/// Lists the tables of iptables-legacy, without counters. Reading the names of existing tables creates none.
pub(crate) fn legacy_tables() -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["ip", "ip6"] {
        let names = format!("/proc/thread-self/net/{family}_tables_names");
        if !fs::read_to_string(names).unwrap_or_default().is_empty() {
            let text = run(&format!("{family}tables-legacy-save"), &[]);
            let text = text.lines().filter(|line| !line.starts_with('#'));
            lines.extend(text.map(|line| line.split('[').next().unwrap_or_default().to_owned()));
        }
    }
    lines
}

/// Lists the regular files below a folder, if the folder exists.
pub(crate) fn files_below(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
            files_below(&path, found);
        } else if kind.is_ok_and(|kind| kind.is_file()) {
            found.push(path.display().to_string());
        }
    }
}

/// Reads settings of the calling thread's network namespace as `FOLDER/…:VALUE`, below `/proc/sys/net`.
pub fn sysctls(folders: &[&str]) -> Vec<String> {
    let root = Path::new("/proc/sys/net");
    let mut files = Vec::new();
    for folder in folders {
        let path = root.join(folder);
        if path.is_dir() { files_below(&path, &mut files) } else { files.push(path.display().to_string()) }
    }
    let mut lines = Vec::new();
    for file in files {
        // Some settings cannot be read until they are written.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let name = file.trim_start_matches("/proc/sys/net/");
        lines.extend(text.lines().map(|line| format!("{name}:{line}")));
    }
    lines
}
