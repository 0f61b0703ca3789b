//! Hosts and containers for tests, built from namespaces.
//!
//! A [`Host`] is a process with its own network and mount namespace. `/run`, `/var/lib` and `/opt` are empty, and writes to
//! `/etc` stay in an overlay. A thread that enters the namespaces, or `nsenter`, starts programs on the host. When the test
//! ends, even by a panic, the process ends and the namespaces disappear with it. State is inspected with `ip -j` and
//! `nft -j` and never with code of this project, so that a bug in that code cannot hide itself.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, clippy::missing_panics_doc, reason = "a test is to fail where this fails")]

mod look;
mod machine;
mod random;
mod talk;
mod terminal;
mod trace;

pub use look::{ip, run, sysctls};
pub use machine::on_other_kernel;
pub use random::Random;
pub use talk::{Server, Transport, free};
pub use terminal::{Terminal, with_default_signals};
pub use trace::{Fate, Syscall, Traced, can_trace};

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::Value;

/// A throwaway host.
#[derive(Debug)]
pub struct Host {
    holder: Child,
}

/// Moves the calling thread to a network and a mount namespace of its own, with empty folders where plugins write.
fn become_host() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let bound = MsFlags::MS_REC | MsFlags::MS_BIND;
    let plain = MsFlags::empty();
    mount(NONE, "/", NONE, private, NONE)?;
    mount(NONE, "/run", Some("tmpfs"), plain, NONE)?;
    for dir in ["/run/netns", "/run/etc/up", "/run/etc/work", "/run/cgroup"] {
        std::fs::create_dir_all(dir)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    }
    let layers = "lowerdir=/etc,upperdir=/run/etc/up,workdir=/run/etc/work";
    mount(Some("none"), "/etc", Some("overlay"), plain, Some(layers))?;
    mount(Some("none"), "/var/lib", Some("tmpfs"), plain, NONE)?;
    mount(Some("none"), "/opt", Some("tmpfs"), plain, NONE)?;
    mount(Some("/sys/fs/cgroup"), "/run/cgroup", NONE, bound, NONE)?;
    mount(Some("none"), "/sys", Some("sysfs"), plain, NONE)?;
    mount(Some("/run/cgroup"), "/sys/fs/cgroup", NONE, bound, NONE)
}

/// Returns whether tests that need root can run. If not, prints that the test is skipped; with `CI=true` it fails instead.
pub fn is_root() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0");
    if !root {
        skip("this test needs root");
    }
    root
}

/// Returns whether a program is in `PATH`. If not, prints that the test is skipped; with `CI=true` it fails instead.
pub fn has(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        skip(&format!("this test needs the program {program}"));
    }
    found
}

/// Returns the folder with the reference plugins 1.9.1, the first entry of `NETLOOM_PEERS`. Without one, prints that the test
/// is skipped; with `CI=true` it fails instead.
pub fn peers() -> Option<PathBuf> {
    let dirs = std::env::var_os("NETLOOM_PEERS").unwrap_or_default();
    let first = std::env::split_paths(&dirs).next();
    require_peers(first, "1.9.1")
}

/// Returns the folder of another version of the reference plugins: the entry of `NETLOOM_PEERS` named after the version.
/// Without one, prints that the test is skipped; with `CI=true` it fails instead.
pub fn peers_of(version: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("NETLOOM_PEERS").unwrap_or_default();
    require_peers(std::env::split_paths(&dirs).find(|dir| dir.ends_with(version)), version)
}

fn require_peers(dir: Option<PathBuf>, version: &str) -> Option<PathBuf> {
    let dir = dir.filter(|dir| dir.join("bridge").is_file());
    if dir.is_none() {
        skip(&format!(
            "NETLOOM_PEERS names no folder with the reference plugins {version}; `cargo xtask peers` fetches them"
        ));
    }
    dir
}

fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: {reason}");
    say_skipped(reason);
}

/// Prints what a kernel or a machine cannot do, past the test harness's capture.
pub fn say_skipped(reason: &str) {
    drop(writeln!(std::io::stderr(), "SKIPPED: {reason}"));
}

impl Host {
    /// Creates a host.
    pub fn new() -> Self {
        // The thread ends. Its namespaces live as long as the program that it started, which waits for the end of its input.
        let thread = std::thread::spawn(|| {
            become_host().expect("root may make namespaces and mounts");
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
            assert!(up.success(), "`lo` cannot be set up");
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat runs")
        });
        let holder = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Self { holder }
    }

    /// Returns the ID of the process that keeps the namespaces alive.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Returns the path under which the test sees a path of this host.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid()))
    }

    /// Prepares a command that runs on this host.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--mount", "--net", "--wd=/", "--"]);
        command.arg(program.as_ref());
        command
    }

    /// Starts a program on this host directly, without `nsenter`.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let inside = || {
            // setns(2) accepts a mount namespace only from a thread that does not share its root and working folder.
            unshare(CloneFlags::CLONE_FS).expect("a thread may have its own root");
            for (name, kind) in [("net", CloneFlags::CLONE_NEWNET), ("mnt", CloneFlags::CLONE_NEWNS)] {
                let path = format!("/proc/{}/ns/{name}", self.pid());
                let namespace = std::fs::File::open(path).expect("the namespace is there");
                setns(namespace, kind).expect("the namespace can be entered");
            }
            command.spawn().expect("the program is there")
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("it starts"))
    }

    /// Runs a shell line on this host and returns its output. The test fails if the line fails.
    pub fn sh(&self, line: &str) -> String {
        self.said(Command::new("sh").args(["-c", line]), line)
    }

    fn said(&self, command: &mut Command, line: &str) -> String {
        let child = self.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
        printed(&child.wait_with_output().expect("it is waited for"), line)
    }

    /// Returns whether a shell line succeeds on this host.
    pub fn succeeds(&self, line: &str) -> bool {
        let mut command = Command::new("sh");
        command.args(["-c", line]).stdout(Stdio::null()).stderr(Stdio::null());
        self.spawn(&mut command).wait().expect("sh is waited for").success()
    }

    /// Runs a shell line that prints JSON, and parses its output.
    pub fn json(&self, line: &str) -> Value {
        let text = self.sh(line);
        if text.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).expect("the program prints JSON")
        }
    }

    /// Creates a container (a named network namespace) and returns its path on the host.
    pub fn container(&self, name: &str) -> String {
        self.said(Command::new("ip").args(["netns", "add", name]), "ip netns add");
        format!("/run/netns/{name}")
    }

    /// Returns the state that a plugin can leave behind, by kind.
    pub fn snapshot(&self) -> Snapshot {
        let parsed = |text: &str| -> Value {
            if text.trim().is_empty() {
                Value::Null
            } else {
                serde_json::from_str(text).expect("the program prints JSON")
            }
        };
        let (seen, rules6, mut rules, mut queues, legacy) = self.inside(None, || {
            (
                ip(&[], &["link", "addr", "route show table all", "rule"]),
                ip(&["-6"], &["rule"]),
                parsed(&run("nft", &["-j", "list", "ruleset"])),
                parsed(&run("tc", &["-j", "qdisc"])),
                look::legacy_tables(),
            )
        });
        let [mut links, mut addresses, mut routes, rules4]: [Value; 4] =
            seen.try_into().expect("as many answers as questions");
        let mut kinds = BTreeMap::new();
        let volatile = [
            "stats64",
            "stats",
            "promiscuity",
            "allmulti",
            "linkinfo",
            "valid_life_time",
            "preferred_life_time",
            "flags",
            "operstate",
            "group",
            "txqlen",
            "qdisc",
            "address",
            "link_netnsid",
            "link_index",
        ];
        for value in [&mut links, &mut addresses] {
            remove(value, &volatile);
        }
        drop_what_the_kernel_makes(&mut addresses);
        kinds.insert("links".to_owned(), links);
        kinds.insert("addresses".to_owned(), addresses);
        drop_what_the_kernel_makes(&mut routes);
        kinds.insert("routes".to_owned(), routes);
        remove(&mut rules, &["handle", "metainfo", "packets", "bytes"]);
        kinds.insert("ruleset".to_owned(), rules);
        remove(&mut queues, &["refcnt"]);
        kinds.insert("queues".to_owned(), queues);
        kinds.insert("routing rules".to_owned(), serde_json::json!([rules4, rules6]));
        kinds.insert("legacy".to_owned(), legacy.into());
        kinds.insert("files".to_owned(), self.files().into());
        Snapshot(kinds)
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let left = self.processes();
        if !left.is_empty() {
            // Only after a failed test. Only the processes of this host are killed.
            drop(Command::new("kill").arg("-KILL").args(left).stderr(Stdio::null()).status());
        }
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}

impl Host {
    /// Lists the files that plugins write. Omits those that stay after a network's last container: locks, the index, and
    /// host-local's last reserved address.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for folder in ["/var/lib", "/run/netns", "/run/cni"] {
            look::files_below(&self.path(folder), &mut files);
        }
        let root = self.path("").display().to_string();
        let stays = |path: &str| {
            let name = path.rsplit('/').next().unwrap_or_default();
            ["lock", ".netloom-index"].contains(&name)
                || name.starts_with("last_reserved_ip.")
                || path.contains("/locks/network-")
                || path.contains("/locks/turn-network-")
        };
        let mut files: Vec<String> = files
            .iter()
            .map(|path| path.strip_prefix(&root).unwrap_or(path).to_owned())
            .filter(|it| !stays(it))
            .collect();
        files.sort();
        files
    }

    /// Lists the processes in this host's mount namespace and their descendants, except the holder.
    fn processes(&self) -> Vec<String> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let own = self.pid().to_string();
        let host = namespace(&own);
        let parent = |pid: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some(stat.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned())
        };
        let all: Vec<(String, Option<String>)> = std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own)
            .map(|pid| {
                let parent = parent(&pid);
                (pid, parent)
            })
            .collect();
        let mut found: Vec<String> = all
            .iter()
            .filter(|(pid, _)| host.is_some() && namespace(pid) == host)
            .map(|(pid, _)| pid.clone())
            .collect();
        let mut index = 0;
        while index < found.len() {
            let children = all
                .iter()
                .filter(|(pid, parent)| parent.as_ref() == Some(&found[index]) && !found.contains(pid));
            let children: Vec<String> = children.map(|(pid, _)| pid.clone()).collect();
            found.extend(children);
            index += 1;
        }
        found
    }
}

/// The state of a host, by kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot(pub BTreeMap<String, Value>);

impl Snapshot {
    /// Fails with the kinds that differ.
    pub fn assert_same(&self, other: &Self, when: &str) {
        for (kind, before) in &self.0 {
            let after = &other.0[kind];
            assert!(before == after, "{when}: {kind} differ\nbefore: {before}\nafter:  {after}");
        }
    }
}

/// Returns the output of a program; fails if the program fails.
fn said(command: &mut Command, line: &str) -> String {
    printed(&command.output().expect("it runs"), line)
}

fn printed(output: &Output, line: &str) -> String {
    require_success(output, line);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails with a program's output if the program failed.
pub fn require_success(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what}: {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Removes keys from a JSON value, at any depth.
pub fn remove(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !keys.contains(&key.as_str()));
            object.values_mut().for_each(|value| remove(value, keys));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| remove(value, keys)),
        _ => {}
    }
}

/// Removes what follows a link's carrier with a delay: the operational state and the flags derived from it.
///
/// The kernel updates them from a work queue (`linkwatch_event`), up to a second after the carrier has changed.
pub fn remove_carrier(value: &mut Value) {
    remove(value, &["operstate"]);
    remove_flags(value, &["NO-CARRIER", "LOWER_UP"]);
}

fn remove_flags(value: &mut Value, flags: &[&str]) {
    match value {
        Value::Object(object) => {
            if let Some(Value::Array(list)) = object.get_mut("flags") {
                list.retain(|flag| flag.as_str().is_none_or(|flag| !flags.contains(&flag)));
            }
            object.values_mut().for_each(|value| remove_flags(value, flags));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| remove_flags(value, flags)),
        _ => {}
    }
}

/// Removes from `ip -j addr` or `ip -j route` what the kernel adds after a link is up.
pub fn drop_what_the_kernel_makes(list: &mut Value) {
    let Some(items) = list.as_array_mut() else { return };
    for link in items.iter_mut() {
        if let Some(addresses) = link["addr_info"].as_array_mut() {
            addresses.retain(|address| !address["local"].as_str().unwrap_or_default().starts_with("fe80"));
        }
        remove(link, &["flags"]);
    }
    items.retain(|item| {
        let dst = item["dst"].as_str().unwrap_or_default();
        let local6 = dst.contains(':') && matches!(item["type"].as_str(), Some("local" | "anycast"));
        !dst.starts_with("fe80") && !dst.starts_with("ff00") && !dst.starts_with("multicast") && !local6
    });
}

/// Sends SIGTERM to a process.
pub fn ask_to_end(child: &Child) {
    // The process may have ended already.
    let _ =
        rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
}
