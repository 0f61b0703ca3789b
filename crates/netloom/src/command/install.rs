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

use super::{Failure, Outcome, networks, say};

/// Options of `netloom install`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstallOptions {
    /// Folder for the binary and the plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
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
    let dir = &options.bin_dir;
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
    if !foreign.is_empty() && !options.force {
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
    if options.with_default_network {
        write_network(conf_dir)?;
    }
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
