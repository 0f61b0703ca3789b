//! Debian packages, built with `dpkg-deb` from the templates in `packaging/debian`.

use std::{fmt::Write, fs, path::PathBuf, process::Command};

use super::{Layout, Release, gzip, tree::Tree};
use crate::{Outcome, files, programs::found, read, root, run_with, say};

const LAYOUT: Layout = Layout {
    cni: "usr/lib/netloom/cni",
    zsh: "usr/share/zsh/vendor-completions",
    licences: "usr/share/doc/@",
    doc: "usr/share/doc/@",
};

/// Builds both packages and returns their files, in the order of installation.
pub(super) fn build(release: &Release) -> Result<Vec<PathBuf>, String> {
    if !found("dpkg-deb") {
        say("SKIPPED: .deb packages: dpkg-deb is not installed");
        return Ok(Vec::new());
    }
    build_version(release, &release.version)
}

/// Builds both packages with another version number.
pub(super) fn build_version(release: &Release, version: &str) -> Result<Vec<PathBuf>, String> {
    let mut netloom = release.tree_netloom(&LAYOUT)?;
    let mut netloomd = release.tree_netloomd(&LAYOUT)?;
    release.add_systemd(&mut netloom, &mut netloomd, &LAYOUT)?;
    // Where runtimes of Debian look, and where the diverted reference plugins go.
    netloom.folder("usr/lib/cni");
    netloom.folder("usr/lib/containernetworking-plugins");
    Ok(vec![one(release, "netloom", version, netloom)?, one(release, "netloomd", version, netloomd)?])
}

fn one(release: &Release, package: &str, version: &str, mut tree: Tree) -> Result<PathBuf, String> {
    let from = format!("packaging/debian/{package}");
    let template = |path: &str| -> Result<String, String> {
        let text = release.template(path)?.replace("@PACKAGE@", package);
        Ok(text.replace(&format!("{}-1", release.version), &format!("{version}-1")))
    };
    let doc = format!("usr/share/doc/{package}");
    tree.file(&format!("{doc}/copyright"), 0o644, read(&root().join("packaging/debian/copyright"))?);
    tree.file(
        &format!("{doc}/changelog.Debian.gz"),
        0o644,
        gzip(template("packaging/debian/changelog")?.as_bytes())?,
    );
    let overrides = template(&format!("{from}/lintian-overrides"))?;
    tree.file(&format!("usr/share/lintian/overrides/{package}"), 0o644, overrides);

    let dir = release.out.join(format!("{package}.d"));
    let mut sums = Command::new("md5sum");
    tree.write(&dir)?;
    let paths: Vec<&str> =
        tree.contents().map(|(path, _)| path).filter(|path| !path.starts_with("etc/")).collect();
    let sums = super::output(sums.current_dir(&dir).args(paths))?;
    let bytes: usize = tree.contents().map(|(_, content)| content.len().next_multiple_of(1024)).sum();
    let size = bytes / 1024 + tree.paths().count();

    let mut control = Tree::new();
    control.file("md5sums", 0o644, sums);
    for path in files(&root().join(&from), &[""]) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "lintian-overrides" {
            continue;
        }
        let mut text = template(&format!("{from}/{name}"))?.replace("@SIZE@", &size.to_string());
        if name == "control" && !text.ends_with('\n') {
            let _ = writeln!(text);
        }
        let is_script = text.starts_with("#!");
        control.file(&name, if is_script { 0o755 } else { 0o644 }, text);
    }
    control.write(&dir.join("DEBIAN"))?;
    let architecture = release.template(&format!("{from}/control"))?;
    let architecture =
        architecture.lines().find_map(|line| line.strip_prefix("Architecture: ")).unwrap_or_default();
    let to = release.out.join(format!("{package}_{version}-1_{architecture}.deb"));
    pack(&dir, &to, release.epoch)?;
    fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(to)
}

fn pack(dir: &std::path::Path, to: &std::path::Path, epoch: u64) -> Outcome {
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(dir).arg(to);
    run_with(build.env("SOURCE_DATE_EPOCH", epoch.to_string()).stdout(std::process::Stdio::null()))
}
