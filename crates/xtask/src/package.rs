//! `cargo xtask package`: everything that a person or a distribution installs, made from two static binaries.
//!
//! The same inputs give the same bytes: files are sorted, owned by root and dated by `SOURCE_DATE_EPOCH`, or else by the
//! last commit. docs/packaging.md describes the results.

mod check;
mod deb;
mod image;
mod licences;
mod rpm;
mod sbom;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Outcome, programs::found, read, root, run_with, say};
use tree::Tree;

/// The names under which the binary is a plugin.
const PLUGINS: [&str; 18] = [
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
];

/// What all formats are made from.
struct Release {
    version: String,
    /// The target triple that the binaries were compiled for.
    target: String,
    /// Seconds since 1970 that all files are dated with.
    epoch: u64,
    netloom: PathBuf,
    netloomd: PathBuf,
    /// The licences of all linked crates.
    licences: String,
    /// The software bill of materials.
    sbom: String,
    /// Manual pages: file name and text.
    man: Vec<(String, String)>,
    /// Shell completions: shell and text.
    completions: Vec<(&'static str, String)>,
    /// The folder of the results.
    out: PathBuf,
}

/// Where one distribution keeps things.
struct Layout {
    /// Folder with the plugins.
    cni: &'static str,
    zsh: &'static str,
    /// Folder with licence texts; `@` stands for the package.
    licences: &'static str,
    /// Folder with documentation; `@` stands for the package.
    doc: &'static str,
}

/// Builds all packages; with `--check`, also installs, upgrades and purges the Debian packages in a clean root.
pub(crate) fn package(arguments: &[String]) -> Outcome {
    let mut arguments = arguments.iter();
    let (mut binaries, mut checks) = (None, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--check" => checks = true,
            "--binaries" => binaries = Some(arguments.next().ok_or("--binaries needs a folder")?.into()),
            other => return Err(format!("unknown option {other}")),
        }
    }
    let release = Release::prepare(binaries)?;
    tarball(&release)?;
    root_tarball(&release)?;
    let packages = deb::build(&release)?;
    rpm::build(&release)?;
    image::build(&release)?;
    if checks {
        check::check(&release, &packages)?;
    }
    for path in fs::read_dir(&release.out).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_file() {
            let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            say(&format!("{:>10}  {}", size, path.display()));
        }
    }
    Ok(())
}

impl Release {
    /// Compiles the binaries, or takes those in a folder, and generates what goes with them.
    fn prepare(binaries: Option<PathBuf>) -> Result<Self, String> {
        let (netloom, netloomd, target) = match binaries {
            Some(dir) => {
                let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
                (dir.join("netloom"), dir.join("netloomd"), target)
            }
            None => compile()?,
        };
        let out = root().join("target/package");
        drop(fs::remove_dir_all(&out));
        fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
        let metadata = licences::metadata(&target)?;
        let version = metadata.version("netloom")?;
        let epoch = epoch()?;
        let man = manual_pages(&netloom, &out, &version)?;
        let shells = ["bash", "fish", "zsh"];
        let completions = shells
            .into_iter()
            .map(|shell| Ok((shell, output(Command::new(&netloom).args(["completions", shell]))?)))
            .collect::<Result<Vec<_>, String>>()?;
        Ok(Self {
            licences: licences::collect(&metadata)?,
            sbom: sbom::cyclonedx(&metadata, epoch)?,
            version,
            target,
            epoch,
            netloom,
            netloomd,
            man,
            completions,
            out,
        })
    }

    fn arch(&self) -> &str {
        self.target.split('-').next().unwrap_or_default()
    }

    /// Reads a file of the repository and fills in the release's values.
    fn template(&self, path: &str) -> Result<String, String> {
        let arch = match self.arch() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let date = output(
            Command::new("date").args(["--utc", "--rfc-email", "--date"]).arg(format!("@{}", self.epoch)),
        )?;
        Ok(read(&root().join(path))?
            .replace("@VERSION@", &self.version)
            .replace("@DEBARCH@", arch)
            .replace("@DATE@", date.trim())
            .replace("@PLUGINS@", &PLUGINS.join(" ")))
    }

    /// Returns the files that a package with the binary `netloom` has in every distribution.
    fn tree_netloom(&self, layout: &Layout) -> Result<Tree, String> {
        let mut tree = Tree::new();
        tree.file("usr/bin/netloom", 0o755, fs::read(&self.netloom).map_err(|error| error.to_string())?);
        let up = "../".repeat(layout.cni.split('/').count() - 1);
        for plugin in PLUGINS {
            tree.link(&format!("{}/{plugin}", layout.cni), &format!("{up}bin/netloom"));
        }
        for (name, text) in self.man.iter().filter(|(name, _)| !name.starts_with("netloomd")) {
            tree.file(&format!("usr/share/man/man1/{name}.gz"), 0o644, gzip(text.as_bytes())?);
        }
        for (shell, text) in &self.completions {
            let path = match *shell {
                "bash" => "usr/share/bash-completion/completions/netloom".to_owned(),
                "zsh" => format!("{}/_netloom", layout.zsh),
                _ => "usr/share/fish/vendor_completions.d/netloom.fish".to_owned(),
            };
            tree.file(&path, 0o644, text.clone());
        }
        self.add_documents(&mut tree, "netloom", layout)?;
        Ok(tree)
    }

    /// Returns the files that a package with the binary `netloomd` has in every distribution.
    fn tree_netloomd(&self, layout: &Layout) -> Result<Tree, String> {
        let mut tree = Tree::new();
        tree.file("usr/bin/netloomd", 0o755, fs::read(&self.netloomd).map_err(|error| error.to_string())?);
        for (name, text) in self.man.iter().filter(|(name, _)| name.starts_with("netloomd")) {
            tree.file(&format!("usr/share/man/man1/{name}.gz"), 0o644, gzip(text.as_bytes())?);
        }
        let configuration = output(Command::new(&self.netloomd).arg("config"))?;
        tree.file("etc/netloom/netloomd.toml", 0o644, configuration);
        self.add_documents(&mut tree, "netloomd", layout)?;
        Ok(tree)
    }

    fn add_documents(&self, tree: &mut Tree, package: &str, layout: &Layout) -> Outcome {
        let (licences, doc) = (layout.licences.replace('@', package), layout.doc.replace('@', package));
        tree.file(&format!("{licences}/THIRD-PARTY-LICENCES.gz"), 0o644, gzip(self.licences.as_bytes())?);
        tree.file(&format!("{doc}/netloom.cdx.json.gz"), 0o644, gzip(self.sbom.as_bytes())?);
        tree.file(
            &format!("{doc}/changelog.gz"),
            0o644,
            gzip(read(&root().join("CHANGELOG.md"))?.as_bytes())?,
        );
        Ok(())
    }

    /// Adds the units and the settings of network managers, for distributions with systemd.
    fn add_systemd(&self, netloom: &mut Tree, netloomd: &mut Tree, layout: &Layout) -> Outcome {
        for unit in
            ["netloom-dhcp.service", "netloom-dhcp.socket", "netloom-relay@.service", "netloom-relay@.socket"]
        {
            let text = self.template(&format!("packaging/systemd/{unit}"))?;
            let text = text.replace("/usr/lib/netloom/cni/", &format!("/{}/", layout.cni));
            netloom.file(&format!("usr/lib/systemd/system/{unit}"), 0o644, text);
        }
        let unit = self.template("deploy/systemd/netloomd.service")?.replace("/usr/local/bin/", "/usr/bin/");
        netloomd.file("usr/lib/systemd/system/netloomd.service", 0o644, unit);
        for (from, to) in [
            ("systemd/network/50-netloom.link", "systemd/network/50-netloom.link"),
            ("systemd/networkd.conf.d/netloom.conf", "systemd/networkd.conf.d/netloom.conf"),
            ("NetworkManager/netloom.conf", "NetworkManager/conf.d/netloom.conf"),
        ] {
            netloomd.file(&format!("usr/lib/{to}"), 0o644, self.template(&format!("deploy/{from}"))?);
        }
        Ok(())
    }

    fn name(&self, what: &str) -> PathBuf {
        self.out.join(format!("netloom-{}-{}-{what}", self.version, self.arch()))
    }
}

/// Compiles both binaries for the target that `cargo xtask dist` chooses.
fn compile() -> Result<(PathBuf, PathBuf, String), String> {
    let netloom = crate::dist::Dist::default().build()?;
    let folder = netloom.parent().ok_or("the binary has no folder")?;
    let target = folder.iter().rev().nth(1).unwrap_or_default().to_string_lossy().into_owned();
    if target.ends_with("musl") && !found("musl-gcc") {
        return Err(
            "netloomd contains C (ring): install musl-gcc, which is Debian's package musl-tools".to_owned()
        );
    }
    run_with(Command::new("cargo").args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "netloomd",
        "--target",
        &target,
    ]))?;
    Ok((netloom.clone(), folder.join("netloomd"), target))
}

/// Returns the time that all files are dated with.
fn epoch() -> Result<u64, String> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()))?,
    };
    text.trim().parse().map_err(|_| format!("no time to date the files with: {text:?}"))
}

fn manual_pages(netloom: &Path, out: &Path, version: &str) -> Result<Vec<(String, String)>, String> {
    let dir = out.join("man");
    fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    run_with(Command::new(netloom).arg("man").arg(&dir).stdout(Stdio::null()))?;
    let mut pages = Vec::new();
    for path in crate::files(&dir, &[".1"]) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        pages.push((name, read(&path)?));
    }
    let daemon = read(&root().join("packaging/man/netloomd.1"))?.replace("@VERSION@", version);
    pages.push(("netloomd.1".to_owned(), daemon));
    drop(fs::remove_dir_all(&dir));
    Ok(pages)
}

/// Makes the archive for people: unpacked anywhere, read, and installed by hand.
fn tarball(release: &Release) -> Outcome {
    let top = format!("netloom-{}-{}", release.version, release.arch());
    let mut tree = Tree::new();
    for (name, binary) in [("netloom", &release.netloom), ("netloomd", &release.netloomd)] {
        tree.file(&format!("{top}/bin/{name}"), 0o755, fs::read(binary).map_err(|error| error.to_string())?);
    }
    for (name, text) in &release.man {
        tree.file(&format!("{top}/share/man/man1/{name}"), 0o644, text.clone());
    }
    for (shell, text) in &release.completions {
        tree.file(&format!("{top}/share/completions/netloom.{shell}"), 0o644, text.clone());
    }
    for path in crate::files(&root().join("deploy"), &[".service", ".socket", ".link", ".conf", ".yaml"]) {
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        tree.file(&format!("{top}/{name}"), 0o644, read(&path)?);
    }
    for name in ["LICENSE", "README.md", "CHANGELOG.md"] {
        tree.file(&format!("{top}/{name}"), 0o644, read(&root().join(name))?);
    }
    tree.file(&format!("{top}/THIRD-PARTY-LICENCES"), 0o644, release.licences.clone());
    tree.file(&format!("{top}/netloom.cdx.json"), 0o644, release.sbom.clone());
    tree.tar_gz(&release.name("linux.tar.gz"), release.epoch)
}

/// Makes the archive that is unpacked over `/` of a distribution without a package of its own, such as Alpine.
fn root_tarball(release: &Release) -> Outcome {
    let layout = Layout {
        cni: "usr/libexec/cni",
        zsh: "usr/share/zsh/site-functions",
        licences: "usr/share/licenses/@",
        doc: "usr/share/doc/@",
    };
    let mut tree = release.tree_netloom(&layout)?;
    tree.append(release.tree_netloomd(&layout)?);
    tree.file("usr/share/licenses/netloom/LICENSE", 0o644, read(&root().join("LICENSE"))?);
    tree.file("etc/init.d/netloomd", 0o755, release.template("packaging/openrc/netloomd")?);
    tree.tar_gz(&release.name("root.tar.gz"), release.epoch)
}

/// Returns what a program prints.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name} failed: {}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{name} prints no UTF-8"))
}

/// Compresses without a name and a time, so that the same input gives the same output.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let scratch = root().join("target/package").join(format!(".gzip.{}", std::process::id()));
    let failed = |error: std::io::Error| format!("{}: {error}", scratch.display());
    fs::write(&scratch, bytes).map_err(failed)?;
    let output = Command::new("gzip").args(["-9", "-n", "-c"]).arg(&scratch).output().map_err(failed)?;
    fs::remove_file(&scratch).map_err(failed)?;
    if output.status.success() { Ok(output.stdout) } else { Err(format!("gzip failed: {}", output.status)) }
}
