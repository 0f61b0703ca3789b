//! `cargo xtask peers`: downloads or builds the reference plugins that the parity tests compare with.
//!
//! Each version has a folder of its own, `target/peers/VERSION`, which appears only when it is complete. The tests receive
//! all folders in `NETLOOM_PEERS`, separated by colons; see `testkit::peers`.
//!
//! - 1.9.1 is Debian's package, so that no Go toolchain is needed for it. Package index and download are private to this
//!   chore: the machine's own apt sources and packages do not change. Elsewhere Go builds the same version.
//! - 1.10.0 is in no distribution yet. Go builds it from `tests/peers`, whose `go.sum` pins every source.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Outcome, programs::found, root, run_with, say};

/// The version that all parity tests compare with.
const DEBIAN: &str = "1.9.1";
/// The version in `tests/peers/go.mod`; the parity tests of results, hosts and chains compare with it too.
const GO: &str = "1.10.0";

const MODULE: &str = "github.com/containernetworking/plugins";
const PLUGINS: [&str; 18] = [
    "ipam/dhcp",
    "ipam/host-local",
    "ipam/static",
    "main/bridge",
    "main/dummy",
    "main/host-device",
    "main/ipvlan",
    "main/loopback",
    "main/macvlan",
    "main/ptp",
    "main/tap",
    "main/vlan",
    "meta/bandwidth",
    "meta/firewall",
    "meta/portmap",
    "meta/sbr",
    "meta/tuning",
    "meta/vrf",
];

/// Fetches every version and prints the value for `NETLOOM_PEERS`.
pub(crate) fn peers() -> Outcome {
    let dirs = [DEBIAN, GO].map(fetch).into_iter().collect::<Result<Vec<_>, _>>()?;
    say(&format!("NETLOOM_PEERS={}", joined(&dirs)?));
    Ok(())
}

/// Returns the folder of the version that all parity tests compare with, for chores that need one peer.
pub(crate) fn first() -> Option<PathBuf> {
    match env::var_os("NETLOOM_PEERS") {
        Some(dirs) => env::split_paths(&dirs).next(),
        None => fetch(DEBIAN).map_err(|error| say(&error)).ok(),
    }
}

/// Returns the value for `NETLOOM_PEERS`: the environment's own, or the versions that can be fetched here. Prints why one
/// cannot be; the tests that need it skip, or fail if `CI` is set.
pub(crate) fn variable() -> Option<String> {
    if let Ok(dirs) = env::var("NETLOOM_PEERS") {
        return Some(dirs);
    }
    let fetched = [DEBIAN, GO].map(fetch).into_iter().filter_map(|dir| dir.map_err(|error| say(&error)).ok());
    let dirs: Vec<PathBuf> = fetched.collect();
    joined(&dirs).ok().filter(|dirs| !dirs.is_empty())
}

fn joined(dirs: &[PathBuf]) -> Result<String, String> {
    let joined = env::join_paths(dirs).map_err(|error| error.to_string())?;
    joined.into_string().map_err(|_| "the repository's path is not UTF-8".to_owned())
}

/// Returns the folder of one version, filling it first if it does not exist.
fn fetch(version: &str) -> Result<PathBuf, String> {
    let dir = root().join("target/peers").join(version);
    let is_complete = |dir: &Path| {
        PLUGINS.iter().all(|plugin| dir.join(Path::new(plugin).file_name().unwrap_or_default()).is_file())
    };
    if is_complete(&dir) {
        return Ok(dir);
    }
    say(&format!("fetching the reference plugins {version}"));
    let scratch = root().join("target/peers").join(format!(".{version}"));
    drop(fs::remove_dir_all(&scratch));
    let bin = scratch.join("bin");
    fs::create_dir_all(&bin).map_err(|error| format!("{}: {error}", bin.display()))?;
    let fetched = if version == GO {
        build(&scratch, &bin)
    } else {
        download(&scratch, &bin).or_else(|error| {
            say(&format!("{error}; building the reference plugins {version} with Go"));
            install(version, &scratch, &bin)
        })
    };
    fetched.map_err(|error| format!("reference plugins {version}: {error}"))?;
    if !is_complete(&bin) {
        return Err(format!("reference plugins {version}: {} lacks some of them", bin.display()));
    }
    drop(fs::remove_dir_all(&dir));
    fs::rename(&bin, &dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    drop(fs::remove_dir_all(&scratch));
    Ok(dir)
}

/// Copies the plugins from Debian unstable's package.
fn download(scratch: &Path, bin: &Path) -> Outcome {
    let unstable = Unstable::open(scratch)?;
    // A later version in unstable must not pass for this one.
    unstable.unpack(&format!("containernetworking-plugins={DEBIAN}*"), &scratch.join("root"))?;
    let from = scratch.join("root/usr/lib/cni");
    for plugin in PLUGINS {
        let name = Path::new(plugin).file_name().unwrap_or_default();
        fs::copy(from.join(name), bin.join(name)).map_err(|error| format!("{plugin}: {error}"))?;
    }
    Ok(())
}

/// Builds the version that `tests/peers` pins.
fn build(scratch: &Path, bin: &Path) -> Outcome {
    let mut go = go(scratch)?;
    go.args(["build", "-trimpath", "-o"]).arg(bin).arg("tool");
    let status =
        go.current_dir(root().join("tests/peers")).status().map_err(|error| format!("go: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`go build` in tests/peers failed: {status}")) }
}

/// Builds a version that `tests/peers` does not pin; Go's checksum database vouches for it.
fn install(version: &str, scratch: &Path, bin: &Path) -> Outcome {
    let mut go = go(scratch)?;
    go.args(["install", "-trimpath"]).env("GOBIN", bin);
    go.args(PLUGINS.map(|plugin| format!("{MODULE}/plugins/{plugin}@v{version}")));
    run_with(&mut go)
}

/// Returns a `go` command: this machine's, or that of Debian unstable if there is none.
fn go(scratch: &Path) -> Result<Command, String> {
    let mut go = if found("go") {
        Command::new("go")
    } else {
        Command::new(toolchain(scratch).map_err(|error| {
            format!("no Go toolchain on this machine (install Go 1.26 or later), and Debian's cannot be used: {error}")
        })?)
    };
    // Whatever flags the environment has for Go are not meant for this.
    go.env("GOFLAGS", "-mod=readonly").env("GOWORK", "off").env("CGO_ENABLED", "0");
    Ok(go)
}

/// Unpacks Debian unstable's Go toolchain below `target`, and returns its `go`.
fn toolchain(scratch: &Path) -> Result<PathBuf, String> {
    const SERIES: &str = "1.26";
    let dir = root().join("target/peers/go");
    let program = dir.join(format!("usr/lib/go-{SERIES}/bin/go"));
    if program.is_file() {
        return Ok(program);
    }
    let unstable = Unstable::open(scratch)?;
    let unpacked = scratch.join("go");
    for package in ["src", "go"] {
        unstable.unpack(&format!("golang-{SERIES}-{package}"), &unpacked)?;
    }
    drop(fs::remove_dir_all(&dir));
    fs::rename(&unpacked, &dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(program)
}

/// Debian unstable's package index, in a folder of its own.
struct Unstable {
    dir: PathBuf,
}

impl Unstable {
    /// Downloads the index, from the mirror that this machine uses.
    fn open(scratch: &Path) -> Result<Self, String> {
        for program in ["apt-get", "dpkg-deb"] {
            if !found(program) {
                return Err(format!("Debian's packages cannot be read without {program}"));
            }
        }
        let unstable = Self { dir: scratch.join("apt") };
        if unstable.dir.join("lists").is_dir() {
            return Ok(unstable);
        }
        for dir in ["lists/partial", "cache/archives/partial", "download"] {
            let dir = unstable.dir.join(dir);
            fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let source = format!("deb [signed-by={keyring}] {} sid main\n", mirror()?);
        let list = unstable.dir.join("sources.list");
        fs::write(&list, source).map_err(|error| format!("{}: {error}", list.display()))?;
        run_with(unstable.apt_get().arg("update"))?;
        Ok(unstable)
    }

    /// Unpacks a package without installing it.
    fn unpack(&self, package: &str, into: &Path) -> Outcome {
        let dir = self.dir.join("download");
        let status = self
            .apt_get()
            .args(["download", package])
            .current_dir(&dir)
            .status()
            .map_err(|error| format!("apt-get: {error}"))?;
        if !status.success() {
            return Err(format!("Debian unstable has no package {package}"));
        }
        let files = crate::files(&dir, &[".deb"]);
        let file = files.first().ok_or("apt-get downloaded nothing")?;
        run_with(Command::new("dpkg-deb").arg("--extract").arg(file).arg(into))?;
        fs::remove_file(file).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn apt_get(&self) -> Command {
        let mut apt = Command::new("apt-get");
        apt.arg("-qq").stdout(Stdio::null());
        let own = |name: &str, path: &str| format!("{name}={}", self.dir.join(path).display());
        for option in [
            own("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            own("Dir::State::Lists", "lists"),
            own("Dir::Cache", "cache"),
            // Root downloads into folders that apt's own user cannot enter.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            apt.args(["-o", &option]);
        }
        apt
    }
}

/// Returns the first mirror of Debian that this machine's apt is configured for.
fn mirror() -> Result<String, String> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Origin: Debian",
            "Label: Debian",
        ])
        .output();
    let uris = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    uris.lines()
        .next()
        .map(str::to_owned)
        .ok_or_else(|| "apt has no index of Debian on this machine: run `apt-get update` first".to_owned())
}
