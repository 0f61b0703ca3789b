//! `netloom install` and `uninstall`: the binary and the plugins' names, where runtimes look for them.
//!
//! Every name is put in place by one rename, so that a runtime that calls a plugin at that moment finds the old
//! one or the new one, and never none.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use netloom_invoke::FileId;

use super::{Failure, Outcome, networks, say};

/// Where to install.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstallOptions {
    /// Folder for the binary and the plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Write the embedded network to --conf-dir, if no file of that name is there.
    #[arg(long)]
    with_default_network: bool,
    /// Replace plugins that are not Netloom's; they are kept, and `uninstall` puts them back.
    #[arg(long)]
    force: bool,
}

/// Where to uninstall from.
#[derive(Debug, Clone, Args)]
pub(crate) struct UninstallOptions {
    /// Folder with the binary and the plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
}

const BINARY: &str = "netloom";
const KEPT: &str = ".netloom-replaced";
const NETWORK_FILE: &str = "87-netloom.conflist";

pub(crate) fn install(conf_dir: &Path, options: &InstallOptions) -> Outcome {
    let dir = &options.bin_dir;
    fs::create_dir_all(dir).map_err(|error| failure("create folder", dir, &error))?;
    let binary = dir.join(BINARY);
    let old = FileId::of(&binary);
    let strangers: Vec<&str> = names().filter(|name| is_strange(&dir.join(name), old)).collect();
    if !strangers.is_empty() && !options.force {
        return Err(Failure::new(format!(
            "{} has plugins that are not Netloom's: {}",
            dir.display(),
            strangers.join(", ")
        ))
        .hint("--force replaces them; they are kept, and `netloom uninstall` puts them back"));
    }
    let kept = dir.join(KEPT);
    for name in strangers {
        // A second link keeps the old plugin while its name goes over to the new one.
        fs::create_dir_all(&kept).map_err(|error| failure("create folder", &kept, &error))?;
        let copy = kept.join(name);
        match fs::hard_link(dir.join(name), &copy) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failure("keep the old plugin as", &copy, &error));
            }
            _ => {}
        }
    }
    put_binary(&binary)?;
    for name in names() {
        replace(&dir.join(name), |fresh| fs::hard_link(&binary, fresh))?;
    }
    say(format!("installed {BINARY} and {} plugins in {}", plugins::ALL.len(), dir.display()));
    if options.with_default_network {
        put_network(conf_dir)?;
    }
    Ok(())
}

pub(crate) fn uninstall(options: &UninstallOptions) -> Outcome {
    let dir = &options.bin_dir;
    let binary = dir.join(BINARY);
    let Some(own) = FileId::of(&binary) else {
        return Err(Failure::new(format!("netloom is not installed in {}", dir.display()))
            .hint("--bin-dir says where it is"));
    };
    let kept = dir.join(KEPT);
    for name in names() {
        let path = dir.join(name);
        if FileId::of(&path) != Some(own) {
            continue;
        }
        let old = kept.join(name);
        let moved = if old.exists() { fs::rename(&old, &path) } else { fs::remove_file(&path) };
        moved.map_err(|error| failure("take away", &path, &error))?;
    }
    fs::remove_file(&binary).map_err(|error| failure("remove", &binary, &error))?;
    if kept.exists() {
        // Not empty only if somebody else put a plugin in the place of one of ours since.
        drop(fs::remove_dir(&kept));
    }
    say(format!("removed {BINARY} and its plugins from {}", dir.display()));
    Ok(())
}

fn names() -> impl Iterator<Item = &'static str> {
    plugins::ALL.into_iter().map(netloom_plugin::Plugin::name)
}

fn is_strange(path: &Path, own: Option<FileId>) -> bool {
    fs::symlink_metadata(path).is_ok() && (own.is_none() || FileId::of(path) != own)
}

fn put_binary(binary: &Path) -> Outcome {
    let program = std::env::current_exe()?;
    if FileId::of(&program) == FileId::of(binary) {
        return Ok(());
    }
    replace(binary, |fresh| {
        fs::copy(&program, fresh)?;
        fs::set_permissions(fresh, fs::Permissions::from_mode(0o755))?;
        fs::File::open(fresh)?.sync_all()
    })
}

fn put_network(conf_dir: &Path) -> Outcome {
    let path = conf_dir.join(NETWORK_FILE);
    if path.exists() {
        say(format!("{} is there and stays as it is", path.display()));
        return Ok(());
    }
    fs::create_dir_all(conf_dir).map_err(|error| failure("create folder", conf_dir, &error))?;
    replace(&path, |fresh| fs::write(fresh, networks::DEFAULT))?;
    say(format!("wrote {}", path.display()));
    Ok(())
}

/// Makes a file under a passing name and gives it the final one in one step.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Outcome {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fresh = path.with_file_name(format!(".{name}.{}", std::process::id()));
    drop(fs::remove_file(&fresh));
    let placed = make(&fresh).and_then(|()| fs::rename(&fresh, path));
    // Renaming one link of a file over another of the same file does nothing, and leaves the passing name.
    drop(fs::remove_file(&fresh));
    placed.map_err(|error| failure("write", path, &error))
}

fn failure(doing: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {doing} {}: {error}", path.display()))
        .hint("run it as root, or choose another folder with --bin-dir")
}
