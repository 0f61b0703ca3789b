//! `netloom install` and `uninstall`: the binary and its plugins in the folder where runtimes look for them.
//!
//! Each name is replaced by one rename, so that a runtime that calls a plugin meanwhile finds the old or the new one.
//! Each plugin is an inode of its own: `cp -f` to one name writes into the existing inode, and with hard links it would
//! replace all plugins at once. The copies share blocks on file systems with reflinks.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use clap::Args;
use netloom_invoke::FileId;

use super::{
    Failure, Outcome, networks, note,
    runtimes::{self, ContainerRuntime, Plugins, within},
    say,
};

/// Options of `netloom install`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstallOptions {
    /// Folder for the binary and the plugins
    #[arg(long, value_name = "DIR", default_value = runtimes::DEFAULT_DIR, conflicts_with = "runtimes")]
    bin_dir: PathBuf,
    /// Install to the folder in which this container runtime looks for plugins by its configuration: the first that exists. May
    /// be repeated
    #[arg(long = "for", value_name = "RUNTIME", value_enum)]
    runtimes: Vec<ContainerRuntime>,
    /// Root of the file system with the configurations and the folders.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
    /// Write the embedded network to --conf-dir, unless the file exists
    #[arg(long)]
    with_default_network: bool,
    /// Replace foreign plugins, keeping them for `netloom uninstall` to restore
    #[arg(long)]
    force: bool,
}

/// Options of `netloom uninstall`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UninstallOptions {
    /// Folder with the binary and the plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
}

const BINARY: &str = "netloom";
/// The folder with the foreign plugins that were replaced.
const BACKUP_DIR: &str = ".netloom-replaced";
const NETWORK_FILE: &str = "87-netloom.conflist";

pub(crate) fn install(conf_dir: &Path, options: &InstallOptions) -> Outcome {
    let dirs = chosen_dirs(options)?;
    for dir in &dirs {
        install_in(&within(&options.root, dir), options.force)?;
    }
    if options.with_default_network {
        write_network(&within(&options.root, conf_dir))?;
    }
    report_runtimes(&options.root, &dirs);
    Ok(())
}

/// Returns the folders to install to. A runtime looks in several folders for a plugin and takes the first: a folder that comes
/// before all others that exist is used whatever they hold.
fn chosen_dirs(options: &InstallOptions) -> Outcome<Vec<PathBuf>> {
    if options.runtimes.is_empty() {
        return Ok(vec![options.bin_dir.clone()]);
    }
    let mut chosen: Vec<PathBuf> = Vec::new();
    for runtime in &options.runtimes {
        let hint = "correct the file, or name the folder with --bin-dir";
        let dirs = match runtime.plugins(&options.root).map_err(|error| Failure::new(error).hint(hint))? {
            Plugins::In(dirs) => dirs,
            Plugins::Netavark(file) => {
                return Err(Failure::new(format!(
                    "{} calls netavark, not CNI plugins, by {}",
                    runtime.name(),
                    file.display()
                ))
                .hint("set `network_backend = \"cni\"` in [network] of containers.conf, or leave out this --for"));
            }
        };
        let existing = dirs.iter().find(|dir| within(&options.root, dir).is_dir());
        let dir = existing.or(dirs.first()).cloned().ok_or_else(|| {
            Failure::new(format!("{} has no folder of plugins in its configuration", runtime.name()))
                .hint(hint)
        })?;
        if !chosen.contains(&dir) {
            chosen.push(dir);
        }
    }
    Ok(chosen)
}

/// Says for each container runtime of this host whether it uses the plugins in `dirs`.
fn report_runtimes(root: &Path, dirs: &[PathBuf]) {
    for runtime in ContainerRuntime::found(root) {
        match runtime.plugins(root) {
            Ok(Plugins::In(searched)) => say(verdict(root, dirs, runtime, &searched)),
            Ok(Plugins::Netavark(file)) => {
                say(format!("{} calls netavark, not CNI plugins, by {}", runtime.name(), file.display()));
            }
            Err(error) => {
                note(format!("netloom: where {} looks for plugins is unknown: {error}", runtime.name()))
            }
        }
    }
}

fn verdict(root: &Path, dirs: &[PathBuf], runtime: ContainerRuntime, searched: &[PathBuf]) -> String {
    let name = runtime.name();
    let also = format!("`netloom install --for {}`", runtime.program());
    if !searched.iter().any(|dir| dirs.contains(dir)) {
        let searched: Vec<String> = searched.iter().map(|dir| dir.display().to_string()).collect();
        return format!(
            "{name} does not use these plugins: it looks in {}; type {also} to install there",
            searched.join(", ")
        );
    }
    let first_with = |plugin: &str| searched.iter().find(|dir| within(root, dir).join(plugin).is_file());
    let elsewhere =
        names().filter_map(|plugin| Some((plugin, first_with(plugin).filter(|dir| !dirs.contains(dir))?)));
    let elsewhere: Vec<(&str, &PathBuf)> = elsewhere.collect();
    match elsewhere.first() {
        None => format!("{name} uses these plugins"),
        Some((_, dir)) => {
            let plugins: Vec<&str> = elsewhere.iter().map(|(plugin, _)| *plugin).collect();
            format!(
                "{name} looks in {} first and uses the plugins there: {}; type `netloom install --for {} --force` to replace them",
                dir.display(),
                plugins.join(", "),
                runtime.program()
            )
        }
    }
}

fn install_in(dir: &Path, force: bool) -> Outcome {
    fs::create_dir_all(dir).map_err(|error| failure("create folder", dir, &error))?;
    let binary = dir.join(BINARY);
    let program = std::env::current_exe()?;
    // An installation that was interrupted has plugins of both versions.
    let is_ours = |path: &Path| same_content(path, &binary) || same_content(path, &program);
    let foreign: Vec<&str> = names()
        .filter(|name| {
            let path = dir.join(name);
            fs::symlink_metadata(&path).is_ok() && !is_ours(&path)
        })
        .collect();
    if !foreign.is_empty() && !force {
        return Err(Failure::new(format!(
            "{} has plugins that are not Netloom's: {}",
            dir.display(),
            foreign.join(", ")
        ))
        .hint("replace them with --force; `netloom uninstall` restores them"));
    }
    for name in foreign {
        back_up(dir, name)?;
    }
    let in_place = FileId::of(&program).is_some_and(|id| Some(id) == FileId::of(&binary));
    // The size and this time identify the copies to a plugin that calls another one (netloom_invoke::is_this_program).
    let stamp = if in_place { fs::metadata(&binary)?.modified()? } else { SystemTime::now() };
    let mut reflinks = true;
    for name in names() {
        replace(&dir.join(name), |fresh| copy(&program, fresh, stamp).map(|shared| reflinks &= shared))?;
    }
    // The binary is last: until then it identifies the plugins of the version before.
    if !in_place {
        replace(&binary, |fresh| copy(&program, fresh, stamp).map(|shared| reflinks &= shared))?;
    }
    let size = fs::metadata(&binary)?.len();
    let files = plugins::ALL.len() as u64 + 1;
    let used = if reflinks { size } else { size * files };
    say(format!(
        "installed {BINARY} and {} plugins in {} ({} MB on disk{})",
        plugins::ALL.len(),
        dir.display(),
        used.div_ceil(1_000_000),
        if reflinks { ", shared by reflinks" } else { "" }
    ));
    Ok(())
}

pub(crate) fn uninstall(conf_dir: &Path, options: &UninstallOptions) -> Outcome {
    let dir = &options.bin_dir;
    let binary = dir.join(BINARY);
    if !binary.is_file() {
        return Err(Failure::new(format!("netloom is not installed in {}", dir.display()))
            .hint("set --bin-dir to the folder where it is installed"));
    }
    let backups = dir.join(BACKUP_DIR);
    for name in names() {
        let path = dir.join(name);
        if !same_content(&path, &binary) {
            continue;
        }
        let backup = backups.join(name);
        let restored = if fs::symlink_metadata(&backup).is_ok() {
            fs::rename(&backup, &path)
        } else {
            fs::remove_file(&path)
        };
        restored.map_err(|error| failure("remove", &path, &error))?;
    }
    fs::remove_file(&binary).map_err(|error| failure("remove", &binary, &error))?;
    say(format!("removed {BINARY} and its plugins from {}", dir.display()));
    if backups.exists() && fs::remove_dir(&backups).is_err() {
        say(format!("kept older replaced plugins in {}", backups.display()));
    }
    remove_network(conf_dir)
}

/// Lists the plugin files that differ from the `netloom` installed beside them, in words.
pub(crate) fn foreign_plugins(dirs: &[PathBuf]) -> Vec<String> {
    let mut problems = Vec::new();
    for dir in dirs {
        let binary = dir.join(BINARY);
        if !binary.is_file() {
            continue;
        }
        for path in names().map(|name| dir.join(name)) {
            if fs::symlink_metadata(&path).is_ok() && !same_content(&path, &binary) {
                problems.push(format!(
                    "{} is foreign or damaged: replace it with `netloom install --force --bin-dir {}`",
                    path.display(),
                    dir.display()
                ));
            }
        }
    }
    problems
}

fn names() -> impl Iterator<Item = &'static str> {
    plugins::ALL.into_iter().map(netloom_plugin::Plugin::name)
}

/// Returns whether both paths are readable files with the same bytes.
fn same_content(a: &Path, b: &Path) -> bool {
    let compare = || -> io::Result<bool> {
        let (mut a, mut b) = (File::open(a)?, File::open(b)?);
        let (of_a, of_b) = (a.metadata()?, b.metadata()?);
        if !of_a.is_file() || !of_b.is_file() || of_a.len() != of_b.len() {
            return Ok(false);
        }
        let (mut from_a, mut from_b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut left = of_a.len();
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(from_a.len());
            a.read_exact(&mut from_a[..length])?;
            b.read_exact(&mut from_b[..length])?;
            if from_a[..length] != from_b[..length] {
                return Ok(false);
            }
            left -= length as u64;
        }
        Ok(true)
    };
    compare().unwrap_or(false)
}

/// Keeps a foreign plugin. An older backup of the same name is numbered, so that uninstalling restores the newest.
fn back_up(dir: &Path, name: &str) -> Outcome {
    let backups = dir.join(BACKUP_DIR);
    fs::create_dir_all(&backups).map_err(|error| failure("create folder", &backups, &error))?;
    let (plugin, backup) = (dir.join(name), backups.join(name));
    if same_content(&plugin, &backup) {
        return Ok(());
    }
    if fs::symlink_metadata(&backup).is_ok() {
        let older = (1..=u16::MAX)
            .map(|number| backups.join(format!("{name}.{number}")))
            .find(|path| fs::symlink_metadata(path).is_err())
            .ok_or_else(|| Failure::new(format!("{} has too many backups of {name}", backups.display())))?;
        fs::rename(&backup, &older).map_err(|error| failure("rename the older backup to", &older, &error))?;
    }
    // A second link keeps the plugin while its name passes to the new one.
    fs::hard_link(&plugin, &backup).map_err(|error| failure("back up the plugin as", &backup, &error))
}

/// Copies the program to a new executable file, and returns whether both share their blocks.
fn copy(program: &Path, fresh: &Path, stamp: SystemTime) -> io::Result<bool> {
    let mut source = File::open(program)?;
    let mut file = File::create_new(fresh)?;
    let shared = rustix::fs::ioctl_ficlone(&file, &source).is_ok();
    if !shared {
        io::copy(&mut source, &mut file)?;
    }
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.set_modified(stamp)?;
    file.sync_all()?;
    Ok(shared)
}

fn write_network(conf_dir: &Path) -> Outcome {
    let path = conf_dir.join(NETWORK_FILE);
    if path.exists() {
        say(format!("kept the existing {}", path.display()));
        return Ok(());
    }
    fs::create_dir_all(conf_dir).map_err(|error| failure("create folder", conf_dir, &error))?;
    replace(&path, |fresh| fs::write(fresh, networks::DEFAULT))?;
    say(format!("wrote {}", path.display()));
    Ok(())
}

/// Removes the network file that `install` wrote. A file that was edited stays.
fn remove_network(conf_dir: &Path) -> Outcome {
    let path = conf_dir.join(NETWORK_FILE);
    match fs::read(&path) {
        Ok(bytes) if bytes == networks::DEFAULT.as_bytes() => {
            fs::remove_file(&path).map_err(|error| failure("remove", &path, &error))?;
            say(format!("removed {}", path.display()));
        }
        Ok(_) => say(format!("kept {}, which was edited", path.display())),
        Err(_) => {}
    }
    Ok(())
}

/// Creates a file under a temporary name and renames it, so that `path` never misses or is incomplete.
fn replace(path: &Path, create: impl FnOnce(&Path) -> io::Result<()>) -> Outcome {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fresh = path.with_file_name(format!(".{name}.{}", std::process::id()));
    drop(fs::remove_file(&fresh));
    let placed = create(&fresh).and_then(|()| fs::rename(&fresh, path));
    drop(fs::remove_file(&fresh));
    placed.map_err(|error| failure("write", path, &error))
}

fn failure(doing: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {doing} {}: {error}", path.display()))
        .hint("run as root, or choose another folder with --bin-dir")
}
