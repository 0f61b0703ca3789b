//! Selects the network and the folders in which its plugins are found.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use kernel::waiting::{self, Lock};
use netloom_runtime::{LockKind, LoggedProcesses, load, types::NetworkList};

use super::{Failure, Outcome, Places, note};

/// A runtime that passes the plugins' logs on, and names a lock that it waits for.
pub(crate) type Runtime = netloom_runtime::Runtime<LoggedProcesses>;

/// The network that is used if none is configured: a bridge with addresses of both families, masquerade, published ports, and
/// `firewall`, since hosts with Docker, ufw or firewalld drop forwarded packets.
pub(crate) const DEFAULT: &str = include_str!("default.conflist");

/// Parses the embedded network, without its IPv6 range if the kernel has no IPv6.
pub(crate) fn embedded() -> Outcome<NetworkList> {
    let parse = |text: &str| {
        NetworkList::parse(text.as_bytes())
            .map_err(|error| Failure::new(format!("cannot parse the embedded network: {error}")))
    };
    if Path::new("/proc/sys/net/ipv6").exists() {
        return parse(DEFAULT);
    }
    parse(&DEFAULT.lines().filter(|line| !line.contains("fd6e:")).collect::<Vec<_>>().join("\n"))
}

impl Places {
    /// Creates a runtime that looks for plugins in the folders of --bin-path.
    pub(crate) fn runtime(&self) -> Runtime {
        Runtime {
            paths: netloom_invoke::split_path(&self.bin_path),
            state: self.state_dir.clone(),
            timeout: None,
            executor: LoggedProcesses { log },
            lock_file: |file, path, kind| {
                let kind = match kind {
                    LockKind::Shared => Lock::Shared,
                    LockKind::Exclusive => Lock::Exclusive,
                };
                Ok(waiting::lock(file, path, kind)?)
            },
        }
    }

    /// Creates a runtime that falls back to this binary's plugins if none are installed.
    pub(crate) fn runtime_with_own_plugins(&self) -> Outcome<Runtime> {
        let mut runtime = self.runtime();
        runtime.paths.push(self.own_plugins()?);
        Ok(runtime)
    }

    /// Creates a runtime that finds only this binary's plugins.
    pub(crate) fn own_runtime(&self) -> Outcome<Runtime> {
        let mut runtime = self.runtime();
        runtime.paths = vec![self.own_plugins()?];
        Ok(runtime)
    }

    /// Returns the network with a name; without one, the first configured network, or else the embedded one.
    pub(crate) fn network(&self, name: Option<&str>) -> Outcome<(NetworkList, Source)> {
        if let Some(name) = name {
            let embedded = embedded()?;
            return match load::network(&self.conf_dir, name) {
                Ok(list) => Ok((list, Source::Configured)),
                Err(_) if name == embedded.name => Ok((embedded, Source::Embedded)),
                Err(error) => {
                    Err(Failure::from(error).hint("list the configured networks with `netloom list`"))
                }
            };
        }
        let configured = load::networks(&self.conf_dir)?;
        match configured.into_iter().find_map(|(_, list)| list.ok()) {
            Some(list) => Ok((list, Source::Configured)),
            None => Ok((embedded()?, Source::Embedded)),
        }
    }

    /// Creates a folder in which every plugin is a symbolic link to this binary.
    fn own_plugins(&self) -> Outcome<PathBuf> {
        let dir = self.state_dir.join("netloom/bin");
        let context = |doing: &str, path: &Path, error: &std::io::Error| {
            Failure::new(format!("cannot {doing} {}: {error}", path.display()))
                .hint("run as root, or set --state-dir to a writable folder")
        };
        fs::create_dir_all(&dir).map_err(|error| context("create folder", &dir, &error))?;
        let program = std::env::current_exe()?;
        for plugin in plugins::ALL {
            let link = dir.join(plugin.name());
            if fs::read_link(&link).is_ok_and(|target| target == program) {
                continue;
            }
            // The rename replaces the link atomically: a concurrent call finds the old or the new one.
            let fresh = dir.join(format!(".{}.{}", plugin.name(), std::process::id()));
            symlink(&program, &fresh)
                .and_then(|()| fs::rename(&fresh, &link))
                .map_err(|error| context("create", &link, &error))?;
        }
        Ok(dir)
    }
}

/// Shows a line of a plugin's log behind the plugin's name.
fn log(program: &Path, line: &str) {
    let plugin = program.file_name().unwrap_or_default().to_string_lossy();
    note(format!("{plugin}: {}", line.strip_prefix("netloom: ").unwrap_or(line)));
}

/// The origin of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A configuration file.
    Configured,
    /// The list that this binary contains.
    Embedded,
}
