//! The files of a package, before they are written anywhere.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use super::gzip;
use crate::{Outcome, run_with};

enum Node {
    File(u32, Vec<u8>),
    Link(String),
    Folder,
}

/// Files by their path, which has no leading slash.
#[derive(Default)]
pub(super) struct Tree(BTreeMap<String, Node>);

impl Tree {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.0.insert(path.to_owned(), Node::File(mode, content.into()));
    }

    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.0.insert(path.to_owned(), Node::Link(to.to_owned()));
    }

    /// Adds a folder that the package owns although it puts nothing into it.
    pub(super) fn folder(&mut self, path: &str) {
        self.0.insert(path.to_owned(), Node::Folder);
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Lists files and links.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, node)| !matches!(node, Node::Folder)).map(|(path, _)| path.as_str())
    }

    /// Lists regular files with their content.
    pub(super) fn contents(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().filter_map(|(path, node)| match node {
            Node::File(_, content) => Some((path.as_str(), content.as_slice())),
            Node::Link(_) | Node::Folder => None,
        })
    }

    /// Writes everything into an empty folder.
    pub(super) fn write(&self, dir: &Path) -> Outcome {
        let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
        drop(fs::remove_dir_all(dir));
        fs::create_dir_all(dir).map_err(failed)?;
        for (path, node) in &self.0 {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(failed)?;
            match node {
                Node::File(mode, content) => {
                    fs::write(&path, content).map_err(failed)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).map_err(failed)?;
                }
                Node::Link(to) => std::os::unix::fs::symlink(to, &path).map_err(failed)?,
                Node::Folder => fs::create_dir_all(&path).map_err(failed)?,
            }
        }
        // Folders are made with the caller's mask; packages must not have it.
        run_with(Command::new("find").arg(dir).args(["-type", "d", "-exec", "chmod", "755", "{}", "+"]))
    }

    /// Returns an archive of everything, independent of who makes it and when.
    pub(super) fn tar(&self, scratch: &Path, epoch: u64) -> Result<Vec<u8>, String> {
        self.write(scratch)?;
        let output = Command::new("tar")
            .args(["--create", "--sort=name", "--format=posix", "--numeric-owner", "--owner=0", "--group=0"])
            .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
            .arg(format!("--mtime=@{epoch}"))
            .arg("--directory")
            .arg(scratch)
            // The members have no leading `./`, which some readers of image layers do not expect.
            .args(self.top())
            .output()
            .map_err(|error| format!("tar: {error}"))?;
        drop(fs::remove_dir_all(scratch));
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(format!("tar failed: {}", output.status))
        }
    }

    /// Writes a compressed archive.
    pub(super) fn tar_gz(&self, to: &Path, epoch: u64) -> Outcome {
        let scratch = to.with_extension("d");
        let archive = gzip(&self.tar(&scratch, epoch)?)?;
        fs::write(to, archive).map_err(|error| format!("{}: {error}", to.display()))
    }

    fn top(&self) -> Vec<String> {
        let mut top: Vec<String> =
            self.0.keys().filter_map(|path| path.split('/').next()).map(str::to_owned).collect();
        top.dedup();
        top
    }
}
