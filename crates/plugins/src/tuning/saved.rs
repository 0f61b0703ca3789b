//! What an interface was before it was tuned: a file for each, as the reference has it.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kernel::link::{Change, Link};
use netloom_plugin::{Code, Error};
use serde::{Deserialize, Serialize};

/// Where the files are, unless the configuration says otherwise.
pub(super) const DIR: &str = "/run/cni/tuning";

/// The content of the file. `network` is ours, so that GC knows whose it is; the reference passes it over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_q_len: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
}

/// Names the file of an interface.
pub(super) fn file_name(container: &str, ifname: &str) -> String {
    format!("{container}_{ifname}.json")
}

impl Saved {
    /// Takes from a link what is about to be changed.
    pub(super) fn of(link: &Link, change: &Change<'_>, network: &str) -> Self {
        Self {
            mac: change.mac.and(link.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            promisc: change.promiscuous.map(|_| link.promiscuity > 0),
            mtu: change.mtu.map(|_| link.mtu),
            allmulti: change.all_multicast.map(|_| link.all_multicast),
            tx_q_len: change.queue.map(|_| link.queue),
            network: network.to_owned(),
        }
    }

    /// Returns the change that makes the interface so again.
    pub(super) fn change(&self) -> Change<'static> {
        Change {
            mac: self.mac.parse().ok(),
            promiscuous: self.promisc,
            mtu: self.mtu.filter(|mtu| *mtu != 0),
            all_multicast: self.allmulti,
            queue: self.tx_q_len,
            ..Change::default()
        }
    }

    /// Returns whether it was saved for a network.
    pub(super) fn is_of(&self, network: &str) -> bool {
        self.network == network
    }

    /// Reads a file; none when it is not there. One that is damaged restores nothing.
    pub(super) fn read(file: &Path) -> Result<Option<Self>, Error> {
        match fs::read(file) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content).unwrap_or_default())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", file, &error)),
        }
    }

    /// Writes a file, whole or not at all.
    pub(super) fn write(&self, file: &Path) -> Result<(), Error> {
        let failed = |error: std::io::Error| failed("write", file, &error);
        let content = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        if let Some(dir) = file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        if kernel::file::create_whole(file, &content).is_ok() {
            return Ok(());
        }
        // There is one from an ADD before, or the file system has no files without names.
        let fresh = file.with_extension(format!("{}.new", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|mut out| out.write_all(&content))
            .and_then(|()| fs::rename(&fresh, file));
        written.map_err(|error| {
            drop(fs::remove_file(&fresh));
            failed(error)
        })
    }
}

/// Returns whether a file is one that an ADD was about to write when it was killed.
pub(super) fn is_abandoned(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let writer = name.strip_suffix(".new").and_then(|name| name.rsplit_once('.')).map(|(_, pid)| pid);
    writer.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// Removes a file. Absent is fine.
pub(super) fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", file, &error)),
        _ => Ok(()),
    }
}

/// Lists the files of a folder with what they say; what a killed ADD left half-made is one that says nothing.
pub(super) fn list(dir: &Path) -> Result<Vec<(PathBuf, Saved)>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| failed("list", dir, &error))?,
    };
    let files = entries.filter_map(Result::ok).map(|entry| entry.path());
    files.filter_map(|file| Saved::read(&file).map(|saved| saved.map(|it| (file, it))).transpose()).collect()
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Io, format!("cannot {doing} {}: {error}", path.display()))
        .details("tuning keeps there what interfaces were; `dataDir` says where")
}
