//! Which network, and with which plugins.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use netloom_runtime::{Runtime, load, types::NetworkList};

use super::{Failure, Outcome, Places};

/// The network that is used where none is configured: a bridge, addresses of both families, published ports,
/// masquerade. The host's own firewall is left as it is.
pub(crate) const DEFAULT: &str = include_str!("default.conflist");

/// Loads the embedded network. A kernel without IPv6 gets IPv4 alone.
pub(crate) fn embedded() -> Outcome<NetworkList> {
    let parse = |text: &str| {
        NetworkList::parse(text.as_bytes())
            .map_err(|error| Failure::new(format!("embedded network: {error}")))
    };
    if Path::new("/proc/sys/net/ipv6").exists() {
        return parse(DEFAULT);
    }
    parse(&DEFAULT.lines().filter(|line| !line.contains("fd6e:")).collect::<Vec<_>>().join("\n"))
}

impl Places {
    /// Makes a runtime that looks for plugins in the folders that are configured.
    pub(crate) fn runtime(&self) -> Runtime {
        let mut runtime = Runtime::new(netloom_invoke::split_path(&self.bin_path));
        runtime.state.clone_from(&self.state_dir);
        runtime
    }

    /// Makes a runtime that finds this binary's own plugins too, where none are installed.
    pub(crate) fn runtime_with_own_plugins(&self) -> Outcome<Runtime> {
        let mut runtime = self.runtime();
        runtime.paths.push(self.own_plugins()?);
        Ok(runtime)
    }

    /// Makes a runtime that finds this binary's own plugins and no others.
    pub(crate) fn own_runtime(&self) -> Outcome<Runtime> {
        let mut runtime = self.runtime();
        runtime.paths = vec![self.own_plugins()?];
        Ok(runtime)
    }

    /// Finds a network by name, or takes the first one that is configured, or the embedded one.
    pub(crate) fn network(&self, name: Option<&str>) -> Outcome<(NetworkList, Source)> {
        if let Some(name) = name {
            let embedded = embedded()?;
            return match load::network(&self.conf_dir, name) {
                Ok(list) => Ok((list, Source::Configured)),
                Err(_) if name == embedded.name => Ok((embedded, Source::Embedded)),
                Err(error) => {
                    Err(Failure::from(error).hint("`netloom list` shows the networks that there are"))
                }
            };
        }
        let configured = load::networks(&self.conf_dir)?;
        match configured.into_iter().find_map(|(_, list)| list.ok()) {
            Some(list) => Ok((list, Source::Configured)),
            None => Ok((embedded()?, Source::Embedded)),
        }
    }

    /// Makes a folder in which every plugin is a link to this binary.
    fn own_plugins(&self) -> Outcome<PathBuf> {
        let dir = self.state_dir.join("netloom/bin");
        let context = |doing: &str, path: &Path, error: &std::io::Error| {
            Failure::new(format!("cannot {doing} {}: {error}", path.display()))
                .hint("run it as root, or set --state-dir to a folder that is writable")
        };
        fs::create_dir_all(&dir).map_err(|error| context("create folder", &dir, &error))?;
        let program = std::env::current_exe()?;
        for plugin in plugins::ALL {
            let link = dir.join(plugin.name());
            if fs::read_link(&link).is_ok_and(|target| target == program) {
                continue;
            }
            // A new link takes the old one's place in one step, so that a call at this moment finds one.
            let fresh = dir.join(format!(".{}.{}", plugin.name(), std::process::id()));
            symlink(&program, &fresh)
                .and_then(|()| fs::rename(&fresh, &link))
                .map_err(|error| context("create", &link, &error))?;
        }
        Ok(dir)
    }
}

/// Says where a network came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file.
    Configured,
    /// This binary.
    Embedded,
}
