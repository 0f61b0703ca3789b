//! The container runtimes of a host and the folders in which their configurations let them look for plugins.
//!
//! | runtime | key | default |
//! |---|---|---|
//! | containerd | `cni.bin_dirs`, `cni.bin_dir` of the CRI plugin (`internal/cri/config`) | `/opt/cni/bin`; Debian's package `/usr/lib/cni` |
//! | CRI-O | `plugin_dirs` and `plugin_dir` of `[crio.network]` (`pkg/config`) | `/opt/cni/bin` |
//! | podman | `cni_plugin_dirs` of `[network]` (`containers.conf(5)`) | five folders |
//! | Nomad | `cni_path` of `client` | `/opt/cni/bin` |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use toml::{Table, Value};

/// A container runtime that calls CNI plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContainerRuntime {
    /// containerd
    Containerd,
    /// CRI-O
    Crio,
    /// podman
    Podman,
    /// Nomad
    Nomad,
}

/// Where a runtime looks for plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plugins {
    /// In these folders, in this order.
    In(Vec<PathBuf>),
    /// Nowhere: podman calls netavark instead, as this file says.
    Netavark(PathBuf),
}

/// The folder of plugins that most runtimes have as default.
pub(crate) const DEFAULT_DIR: &str = "/opt/cni/bin";
const PROGRAM_DIRS: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/opt/bin"];
/// `defaultCNIPluginDirs` of `common/pkg/config`.
const PODMAN_DIRS: [&str; 5] =
    ["/usr/local/libexec/cni", "/usr/libexec/cni", "/usr/local/lib/cni", "/usr/lib/cni", DEFAULT_DIR];

impl ContainerRuntime {
    /// The runtime's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "CRI-O",
            Self::Podman => "podman",
            Self::Nomad => "Nomad",
        }
    }

    /// The name of the program, which is also the value of `--for`.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::Podman => "podman",
            Self::Nomad => "nomad",
        }
    }

    /// Lists the runtimes whose program is on the host with this root of the file system.
    pub(crate) fn found(root: &Path) -> Vec<Self> {
        let has = |runtime: &Self| {
            PROGRAM_DIRS.iter().any(|dir| within(root, Path::new(dir)).join(runtime.program()).exists())
        };
        Self::value_variants().iter().copied().filter(has).collect()
    }

    /// Reads where the runtime looks for plugins.
    ///
    /// # Errors
    /// If a configuration file cannot be read or parsed.
    pub(crate) fn plugins(self, root: &Path) -> Result<Plugins, String> {
        match self {
            Self::Containerd => containerd(root),
            Self::Crio => crio(root),
            Self::Podman => podman(root),
            Self::Nomad => nomad(root),
        }
    }
}

/// Returns the path in the file system with this root.
pub(crate) fn within(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn containerd(root: &Path) -> Result<Plugins, String> {
    let main = Path::new("/etc/containerd/config.toml");
    let mut tables = Vec::new();
    if let Some(table) = parse(root, main)? {
        let imports = strings(table.get("imports"));
        tables.push(table);
        for import in imports {
            for path in matching(root, &Path::new("/etc/containerd").join(import))? {
                tables.extend(parse(root, &path)?);
            }
        }
    }
    // Versions 1, 2 and 3 of the configuration. A later file overrides an earlier one.
    let sections = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
    let mut dirs = Vec::new();
    for table in &tables {
        for section in sections {
            let Some(cni) = lookup(table, &["plugins", section, "cni"]) else { continue };
            for found in [strings(cni.get("bin_dir")), strings(cni.get("bin_dirs"))] {
                if !found.is_empty() {
                    dirs = found;
                }
            }
        }
    }
    if dirs.is_empty() {
        dirs.push(if has_debians_containerd(root) { "/usr/lib/cni" } else { DEFAULT_DIR }.to_owned());
    }
    Ok(folders(dirs))
}

/// Docker's package is `containerd.io`, and Ubuntu's has upstream's default.
fn has_debians_containerd(root: &Path) -> bool {
    let release = fs::read_to_string(within(root, Path::new("/etc/os-release"))).unwrap_or_default();
    release.lines().any(|line| line.trim() == "ID=debian")
        && within(root, Path::new("/var/lib/dpkg/info/containerd.list")).exists()
}

fn crio(root: &Path) -> Result<Plugins, String> {
    let mut paths = vec![PathBuf::from("/etc/crio/crio.conf")];
    paths.extend(list(root, Path::new("/etc/crio/crio.conf.d"), |_| true)?);
    let (mut dirs, mut older) = (vec![DEFAULT_DIR.to_owned()], Vec::new());
    for path in paths {
        let Some(table) = parse(root, &path)? else { continue };
        let Some(network) = lookup(&table, &["crio", "network"]) else { continue };
        if network.contains_key("plugin_dirs") {
            dirs = strings(network.get("plugin_dirs"));
        }
        if network.contains_key("plugin_dir") {
            older = strings(network.get("plugin_dir"));
        }
    }
    dirs.extend(older);
    Ok(folders(dirs))
}

fn podman(root: &Path) -> Result<Plugins, String> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for dir in ["/usr/share/containers", "/etc/containers"] {
        paths.push(Path::new(dir).join("containers.conf"));
        let drop_ins = Path::new(dir).join("containers.conf.d");
        paths.extend(list(root, &drop_ins, |name| ending(name) == "conf")?);
    }
    let mut dirs: Vec<String> = PODMAN_DIRS.map(str::to_owned).to_vec();
    // podman writes its choice there if the configuration has none.
    let chosen = PathBuf::from("/var/lib/containers/storage/defaultNetworkBackend");
    let mut backend = fs::read_to_string(within(root, &chosen)).unwrap_or_default().trim().to_owned();
    let mut backend_from = chosen;
    for path in paths {
        let Some(table) = parse(root, &path)? else { continue };
        let Some(network) = lookup(&table, &["network"]) else { continue };
        if let Some(value) = network.get("cni_plugin_dirs") {
            let appends = value.as_array().is_some_and(|items| items.iter().any(is_append));
            let found = strings(Some(value));
            if appends { dirs.extend(found) } else { dirs = found }
        }
        if let Some(value) = strings(network.get("network_backend")).pop().filter(|value| !value.is_empty()) {
            (backend, backend_from) = (value, path);
        }
    }
    Ok(if backend == "netavark" { Plugins::Netavark(backend_from) } else { folders(dirs) })
}

/// The element `{append = true}` of an array in containers.conf(5).
fn is_append(item: &Value) -> bool {
    item.get("append").and_then(Value::as_bool) == Some(true)
}

/// Nomad's configuration is HCL or JSON. The one key is searched for, without a parser for the rest.
fn nomad(root: &Path) -> Result<Plugins, String> {
    let is_config = |name: &str| ["hcl", "json"].contains(&ending(name));
    let mut dirs = DEFAULT_DIR.to_owned();
    for path in list(root, Path::new("/etc/nomad.d"), is_config)? {
        let text = read(root, &path)?.unwrap_or_default();
        dirs = text.lines().filter_map(cni_path).next_back().map_or(dirs, str::to_owned);
    }
    Ok(folders(dirs.split(':').map(str::to_owned).collect()))
}

/// Reads `cni_path = "DIRS"`, or in JSON `"cni_path": "DIRS"`. Comments begin with `#` or `//`.
fn cni_path(line: &str) -> Option<&str> {
    let line = line.trim_start();
    if line.starts_with('#') || line.starts_with("//") {
        return None;
    }
    let (before, rest) = line.split_once("cni_path")?;
    if before.ends_with(|char: char| char.is_alphanumeric() || char == '_') {
        return None;
    }
    let value = rest.trim_start_matches('"').trim_start().strip_prefix(['=', ':'])?.trim_start();
    value.strip_prefix('"')?.split_once('"').map(|(value, _)| value)
}

/// Removes empty and repeated entries and slashes at the end.
fn folders(dirs: Vec<String>) -> Plugins {
    let mut found: Vec<PathBuf> = Vec::new();
    for dir in dirs.iter().filter(|dir| !dir.is_empty()) {
        let dir: PathBuf = Path::new(dir).components().collect();
        if !found.contains(&dir) {
            found.push(dir);
        }
    }
    Plugins::In(found)
}

fn lookup<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Table> {
    keys.iter().try_fold(table, |table, key| table.get(*key)?.as_table())
}

/// Returns a string, or the strings of an array.
fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => {
            items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    }
}

fn parse(root: &Path, path: &Path) -> Result<Option<Table>, String> {
    let Some(text) = read(root, path)? else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|error: toml::de::Error| format!("{}: {}", path.display(), error.message()))
}

/// Reads a file, or returns `None` if it does not exist.
fn read(root: &Path, path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(within(root, path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(|error| format!("cannot read {}: {error}", path.display())),
    }
}

/// Lists the files of a folder with a name that `is_wanted` selects, sorted.
fn list(root: &Path, dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(within(root, dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| format!("cannot read folder {}: {error}", dir.display()))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.') && is_wanted(name)).collect();
    names.sort_unstable();
    Ok(names.into_iter().map(|name| dir.join(name)).filter(|path| within(root, path).is_file()).collect())
}

fn ending(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, ending)| ending)
}

/// Lists the files that an import names, which may have one `*` in the file name.
fn matching(root: &Path, import: &Path) -> Result<Vec<PathBuf>, String> {
    let name = import.file_name().unwrap_or_default().to_string_lossy();
    let Some((start, end)) = name.split_once('*') else { return Ok(vec![import.to_owned()]) };
    let is_wanted =
        |name: &str| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end);
    list(root, import.parent().unwrap_or(Path::new("/")), is_wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plugin folders of a runtime on a host with these files.
    fn plugins(runtime: ContainerRuntime, files: &[(&str, &str)]) -> Result<Plugins, String> {
        let root = tempfile::tempdir().map_err(|error| error.to_string())?;
        for (path, content) in files {
            let path = within(root.path(), Path::new(path));
            let written = fs::create_dir_all(path.parent().unwrap_or(root.path()));
            written.and_then(|()| fs::write(path, content)).map_err(|error| error.to_string())?;
        }
        runtime.plugins(root.path())
    }

    /// A runtime, its files, and the folders that it looks in.
    type Case = (ContainerRuntime, &'static [(&'static str, &'static str)], &'static [&'static str]);

    const CASES: &[Case] = &[
        (ContainerRuntime::Containerd, &[], &["/opt/cni/bin"]),
        (
            ContainerRuntime::Containerd,
            &[("/etc/os-release", "ID=debian\n"), ("/var/lib/dpkg/info/containerd.list", "")],
            &["/usr/lib/cni"],
        ),
        (
            ContainerRuntime::Containerd,
            &[("/etc/os-release", "ID=ubuntu\n"), ("/var/lib/dpkg/info/containerd.list", "")],
            &["/opt/cni/bin"],
        ),
        (
            ContainerRuntime::Containerd,
            &[("/etc/containerd/config.toml", "[plugins.cri.cni]\nbin_dir = '/v1'\n")],
            &["/v1"],
        ),
        (
            ContainerRuntime::Containerd,
            &[(
                "/etc/containerd/config.toml",
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni/\"\n",
            )],
            &["/usr/lib/cni"],
        ),
        (
            ContainerRuntime::Containerd,
            &[(
                "/etc/containerd/config.toml",
                "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = ''\nbin_dirs = ['/a', '/b']\n",
            )],
            &["/a", "/b"],
        ),
        (
            ContainerRuntime::Containerd,
            &[
                (
                    "/etc/containerd/config.toml",
                    "version = 2\nimports = ['/etc/containerd/conf.d/*.toml', 'last']\n\
                     [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = '/main'\n",
                ),
                (
                    "/etc/containerd/conf.d/a.toml",
                    "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = '/a'\n",
                ),
                ("/etc/containerd/conf.d/b.txt", "not TOML"),
            ],
            &["/a"],
        ),
        (ContainerRuntime::Crio, &[], &["/opt/cni/bin"]),
        (
            ContainerRuntime::Crio,
            &[
                (
                    "/etc/crio/crio.conf",
                    "[crio.network]\nplugin_dirs = ['/usr/libexec/cni', '/opt/cni/bin/']\n",
                ),
                ("/etc/crio/crio.conf.d/10-crio.conf", "[crio.runtime]\nx = 1\n"),
            ],
            &["/usr/libexec/cni", "/opt/cni/bin"],
        ),
        (
            ContainerRuntime::Crio,
            &[
                ("/etc/crio/crio.conf.d/10-a.conf", "[crio.network]\nplugin_dirs = ['/a']\n"),
                (
                    "/etc/crio/crio.conf.d/20-b.conf",
                    "[crio.network]\nplugin_dirs = ['/b']\nplugin_dir = '/older'\n",
                ),
            ],
            &["/b", "/older"],
        ),
        (ContainerRuntime::Podman, &[], &PODMAN_DIRS),
        (
            ContainerRuntime::Podman,
            &[
                (
                    "/usr/share/containers/containers.conf",
                    "[network]\ncni_plugin_dirs = ['/usr/libexec/cni']\n",
                ),
                ("/etc/containers/containers.conf", "[network]\nnetwork_backend = 'cni'\n"),
                ("/var/lib/containers/storage/defaultNetworkBackend", "netavark"),
            ],
            &["/usr/libexec/cni"],
        ),
        (
            ContainerRuntime::Podman,
            &[
                ("/etc/containers/containers.conf", "[network]\ncni_plugin_dirs = ['/a']\n"),
                (
                    "/etc/containers/containers.conf.d/b.conf",
                    "[network]\ncni_plugin_dirs = ['/b', {append=true}]\n",
                ),
                ("/etc/containers/containers.conf.d/ignored", "not TOML"),
            ],
            &["/a", "/b"],
        ),
        (ContainerRuntime::Nomad, &[], &["/opt/cni/bin"]),
        (
            ContainerRuntime::Nomad,
            &[(
                "/etc/nomad.d/nomad.hcl",
                "client {\n  enabled = true\n  # cni_path = \"/comment\"\n  old_cni_path = \"/no\"\n  cni_path   = \"/a:/b\" # two\n}\n",
            )],
            &["/a", "/b"],
        ),
        (
            ContainerRuntime::Nomad,
            &[("/etc/nomad.d/client.json", "{\"client\": {\"cni_path\": \"/json\"}}")],
            &["/json"],
        ),
    ];

    /// Each runtime's configuration leads to the folders in which it looks for plugins.
    #[test]
    fn folders_are_those_of_the_configuration() {
        for (runtime, files, expected) in CASES {
            let expected = expected.iter().map(PathBuf::from).collect();
            assert_eq!(plugins(*runtime, files), Ok(Plugins::In(expected)), "{} {files:?}", runtime.name());
        }
    }

    /// podman with netavark, chosen by the configuration or earlier by podman itself, calls no plugin.
    #[test]
    fn podman_may_call_no_plugins() {
        let cases = [
            ("/etc/containers/containers.conf", "[network]\nnetwork_backend = \"netavark\"\n"),
            ("/var/lib/containers/storage/defaultNetworkBackend", "netavark"),
        ];
        for (path, content) in cases {
            let found = plugins(ContainerRuntime::Podman, &[(path, content)]);
            assert_eq!(found, Ok(Plugins::Netavark(path.into())));
        }
    }

    /// A damaged file is named. Guessing the default would lead to plugins that the runtime does not find.
    #[test]
    fn a_damaged_file_is_named() {
        for (runtime, path) in [
            (ContainerRuntime::Containerd, "/etc/containerd/config.toml"),
            (ContainerRuntime::Crio, "/etc/crio/crio.conf"),
            (ContainerRuntime::Podman, "/etc/containers/containers.conf"),
        ] {
            let found = plugins(runtime, &[(path, "= wrong")]);
            assert!(found.as_ref().is_err_and(|error| error.starts_with(path)), "{found:?}");
        }
    }
}
