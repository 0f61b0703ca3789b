//! RPM packages, built with `rpmbuild` from `packaging/rpm/netloom.spec`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::{Layout, Release, tree::Tree};
use crate::{Outcome, files, programs::found, read, root, run_with, say};

const LAYOUT: Layout = Layout {
    cni: "usr/libexec/cni",
    zsh: "usr/share/zsh/site-functions",
    licences: "usr/share/licenses/@",
    doc: "usr/share/doc/@",
};

/// Builds both packages.
pub(super) fn build(release: &Release) -> Outcome {
    if !found("rpmbuild") {
        say("SKIPPED: .rpm packages: rpmbuild is not installed (package rpm or rpm-build)");
        return Ok(());
    }
    let mut netloom = release.tree_netloom(&LAYOUT)?;
    let mut netloomd = release.tree_netloomd(&LAYOUT)?;
    release.add_systemd(&mut netloom, &mut netloomd, &LAYOUT)?;
    for (package, tree) in [("netloom", &mut netloom), ("netloomd", &mut netloomd)] {
        tree.file(&format!("usr/share/licenses/{package}/LICENSE"), 0o644, read(&root().join("LICENSE"))?);
    }
    let dir = release.out.join("rpm.d");
    let lists = dir.join("files");
    fs::create_dir_all(&lists).map_err(|error| format!("{}: {error}", lists.display()))?;
    for (package, tree) in [("netloom", &netloom), ("netloomd", &netloomd)] {
        let path = lists.join(package);
        fs::write(&path, list(tree)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    netloom.append(netloomd);
    netloom.write(&dir.join("tree"))?;
    let spec = release
        .template("packaging/rpm/netloom.spec")?
        .replace("@TREE@", &dir.join("tree").display().to_string())
        .replace("@FILES@", &lists.display().to_string());
    let path = dir.join("netloom.spec");
    fs::write(&path, spec).map_err(|error| format!("{}: {error}", path.display()))?;
    rpmbuild(release, &dir, &path)?;
    for package in files(&dir.join("top/RPMS"), &[".rpm"]) {
        let to = release.out.join(package.file_name().unwrap_or_default());
        fs::rename(&package, &to).map_err(|error| format!("{}: {error}", to.display()))?;
        let mut query = Command::new("rpm");
        run_with(query.args(["-qpl"]).arg(&to).stdout(Stdio::null()))?;
    }
    fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))
}

/// Lists a package's files as `%files` wants them.
fn list(tree: &Tree) -> String {
    let line = |path: &str| {
        let kind = match path.split('/').next() {
            Some("etc") => "%config(noreplace) ",
            _ if path.contains("/share/licenses/") => "%license ",
            _ if path.contains("/share/doc/") => "%doc ",
            _ => "",
        };
        format!("{kind}/{path}\n")
    };
    tree.paths().map(line).collect()
}

fn rpmbuild(release: &Release, dir: &Path, spec: &Path) -> Outcome {
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--quiet", "--target", release.arch()]);
    for define in [
        format!("_topdir {}", dir.join("top").display()),
        // As on Fedora, wherever it is built.
        "_binary_payload w19.zstdio".to_owned(),
        "use_source_date_epoch_as_buildtime 1".to_owned(),
        "clamp_mtime_to_source_date_epoch 1".to_owned(),
        "_buildhost localhost".to_owned(),
    ] {
        build.args(["--define", &define]);
    }
    run_with(build.arg(spec).env("SOURCE_DATE_EPOCH", release.epoch.to_string()))
}
