//! The properties of an interface before ADD changed them: one file per interface, in the reference plugin's format.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kernel::link::{Change, Link};
use netloom_plugin::{Code, Error};
use serde::{Deserialize, Serialize};

/// Default folder of the files.
pub(super) const DIR: &str = "/run/cni/tuning";

/// The content of a file. `network` is an addition for GC, which the reference plugin ignores.
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

/// Returns the name of an interface's file.
pub(super) fn file_name(container: &str, ifname: &str) -> String {
    format!("{container}_{ifname}.json")
}

impl Saved {
    /// Returns those properties of a link that a change is about to overwrite.
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

    /// Returns the change that restores the properties.
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

    /// Returns whether the file belongs to a network.
    pub(super) fn is_of(&self, network: &str) -> bool {
        self.network == network
    }

    /// Reads a file. Returns `None` if there is none; a damaged file restores nothing.
    pub(super) fn read(file: &Path) -> Result<Option<Self>, Error> {
        match fs::read(file) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content).unwrap_or_default())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", file, &error)),
        }
    }

    /// Writes a file atomically.
    pub(super) fn write(&self, file: &Path) -> Result<(), Error> {
        let failed = |error: std::io::Error| failed("write", file, &error);
        let content = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        if let Some(dir) = file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        if kernel::file::create_whole(file, &content).is_ok() {
            return Ok(());
        }
        // An earlier ADD left one, or the file system does not support `O_TMPFILE`.
        let temporary = file.with_extension(format!("{}.new", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut out| out.write_all(&content))
            .and_then(|()| fs::rename(&temporary, file));
        written.map_err(|error| {
            drop(fs::remove_file(&temporary));
            failed(error)
        })
    }
}

/// Returns whether a file is the temporary file of an ADD that was killed.
pub(super) fn is_abandoned(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let writer = name.strip_suffix(".new").and_then(|name| name.rsplit_once('.')).map(|(_, pid)| pid);
    writer.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// Removes a file. Succeeds if it is already gone.
pub(super) fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", file, &error)),
        _ => Ok(()),
    }
}

/// Lists the files of a folder with their content. Temporary files of a killed ADD have an empty one.
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
        .details("make that folder writable, or set `dataDir` to one that is: tuning saves interfaces' properties there")
}
