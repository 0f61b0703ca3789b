//! Checks of the packages: lintian, and `packaging/debian/check` in a clean Debian root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Release, deb};
use crate::{Outcome, programs::found, root, run_with, say};

/// Installs, upgrades and purges the Debian packages, and reads the image with podman.
pub(super) fn check(release: &Release, packages: &[PathBuf]) -> Outcome {
    lint(packages)?;
    load_image(release)?;
    if packages.is_empty() || !found("debootstrap") || !rustix::process::geteuid().is_root() {
        say("SKIPPED: installing the packages: that needs root and debootstrap");
        return Ok(());
    }
    let clean = clean_root()?;
    let scratch = release.out.join("check.d");
    drop(fs::remove_dir_all(&scratch));
    run_with(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(&clean).arg(&scratch))?;
    let folder = |name: &str| -> Result<PathBuf, String> {
        let dir = scratch.join("packages").join(name);
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(dir)
    };
    let (old, new, reference) = (folder("old")?, folder("new")?, folder("reference")?);
    for package in packages {
        let to = old.join(package.file_name().unwrap_or_default());
        fs::copy(package, &to).map_err(|error| format!("{}: {error}", to.display()))?;
    }
    for package in deb::build_version(release, &format!("{}+next", release.version))? {
        let to = new.join(package.file_name().unwrap_or_default());
        fs::rename(&package, &to).map_err(|error| format!("{}: {error}", to.display()))?;
    }
    let mut download = Command::new("apt-get");
    download.args(["download", "-qq", "-o", "APT::Sandbox::User=root", "containernetworking-plugins"]);
    let status = download.current_dir(&reference).status().map_err(|error| format!("apt-get: {error}"))?;
    if !status.success() {
        return Err("the package containernetworking-plugins cannot be downloaded".to_owned());
    }
    let script = scratch.join("packages/check");
    fs::write(&script, release.template("packaging/debian/check")?).map_err(|error| error.to_string())?;
    say("packages in a clean Debian root:");
    // Namespaces of its own, so that nothing of this machine is seen or mounted.
    run_with(
        Command::new("unshare")
            .args(["--mount", "--pid", "--net", "--fork", "--propagation", "private", "sh", "-euc"])
            .arg("mount -t proc proc \"$1/proc\"; exec chroot \"$1\" sh /packages/check")
            .arg("sh")
            .arg(&scratch)
            .stdin(Stdio::null()),
    )?;
    fs::remove_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))
}

/// Fails for what lintian calls an error.
fn lint(packages: &[PathBuf]) -> Outcome {
    if !found("lintian") {
        say("SKIPPED: lintian is not installed");
        return Ok(());
    }
    let mut lintian = Command::new("lintian");
    run_with(lintian.args(["--fail-on", "error", "--allow-root"]).args(packages))
}

/// Reads the image with podman, with a store of its own, and starts both binaries.
fn load_image(release: &Release) -> Outcome {
    if !found("podman") || !rustix::process::geteuid().is_root() {
        say("SKIPPED: loading the image: that needs root and podman");
        return Ok(());
    }
    let store = release.out.join("podman.d");
    let podman = |arguments: &[&str]| {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
        podman.args(["--storage-driver", "vfs"]).args(arguments);
        podman
    };
    let archive = release.name("oci.tar").display().to_string();
    let loaded = super::output(podman(&["load", "--quiet", "--input", &archive]).stdin(Stdio::null()))?;
    let image = loaded.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    let inspected =
        super::output(&mut podman(&["image", "inspect", "--format", "{{.Config.Entrypoint}}", &image]))?;
    say(&format!("podman loads the image; it starts {}", inspected.trim()));
    let folder = super::output(&mut podman(&["image", "mount", &image]))?;
    for binary in ["netloom", "netloomd"] {
        // Nothing but the image is there: a dynamic linker, for instance, is not.
        run_with(
            Command::new("chroot")
                .args([folder.trim(), &format!("/usr/local/bin/{binary}"), "--version"])
                .stdin(Stdio::null()),
        )?;
    }
    run_with(podman(&["image", "unmount", &image]).stdout(Stdio::null()))?;
    fs::remove_dir_all(&store).map_err(|error| format!("{}: {error}", store.display()))
}

/// Returns a minimal Debian of this machine's release, made once.
fn clean_root() -> Result<PathBuf, String> {
    let dir = root().join("target/debian");
    if dir.join("complete").is_file() {
        return Ok(dir.join("root"));
    }
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("stable");
    say(&format!("making a minimal Debian {suite} in {}", dir.display()));
    run_with(debootstrap(suite, &dir.join("root")).stdout(Stdio::null()))?;
    fs::write(dir.join("complete"), "").map_err(|error| error.to_string())?;
    Ok(dir.join("root"))
}

fn debootstrap(suite: &str, dir: &Path) -> Command {
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", suite]).arg(dir);
    command
}
