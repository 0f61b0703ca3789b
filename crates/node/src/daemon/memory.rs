//! The files in the state directory that survive a restart of the daemon.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use ipnet::IpNet;
use ruleset::cluster::Known;

use crate::{file, start_error::StartError};

/// The file with this node's blocks.
pub(super) const BLOCKS: &str = "blocks.json";
/// The file with this node's identity.
pub(super) const INCARNATION: &str = "incarnation";

/// Returns the blocks that this node owned when they were last written.
pub(super) fn blocks(dir: &Path) -> Vec<IpNet> {
    let text = std::fs::read(dir.join(BLOCKS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Writes this node's blocks.
pub(super) fn set_blocks(dir: &Path, blocks: &[IpNet]) -> io::Result<()> {
    let text = serde_json::to_vec(blocks).unwrap_or_default();
    file::write(&dir.join(BLOCKS), &text, 0o600).map(drop)
}

/// The file with the hash of the ruleset's chains.
pub(super) const RULES: &str = "rules";

/// Returns what is known of the ruleset's chains from an earlier start.
pub(super) fn rules(dir: &Path) -> Known {
    Known::new(std::fs::read_to_string(dir.join(RULES)).ok().and_then(|text| text.trim().parse().ok()))
}

/// Writes what is known of the ruleset's chains.
pub(super) fn set_rules(dir: &Path, chains: Option<u64>) -> io::Result<()> {
    let text = chains.map(|hash| hash.to_string()).unwrap_or_default();
    file::write(&dir.join(RULES), text.as_bytes(), 0o600).map(drop)
}

/// The file whose lock a daemon holds.
pub(super) const LOCK: &str = "lock";

/// Acquires the host's lock, so that only one daemon runs.
pub(super) fn lock(dir: &Path) -> Result<File, StartError> {
    std::fs::create_dir_all(dir).map_err(StartError::io(format!("create directory {}", dir.display())))?;
    let path = dir.join(LOCK);
    loop {
        let file = File::create(&path).map_err(StartError::io(format!("open {}", path.display())))?;
        file.try_lock().map_err(|_| {
            StartError::new(format!("lock {}", path.display()), "another netloomd runs on this host")
        })?;
        // An uninstall that held the lock has removed the file. The next daemon locks another one.
        let inode = |metadata: io::Result<Metadata>| metadata.map(|it| it.ino()).ok();
        if inode(std::fs::metadata(&path)) == inode(file.metadata()) {
            return Ok(file);
        }
    }
}

/// Returns this node's identity, which is created at the first start. A damaged file counts as none: an empty identity would equal
/// that of any other node with a damaged file.
pub(super) fn incarnation(dir: &Path) -> Result<String, StartError> {
    let path = dir.join(INCARNATION);
    let is_id =
        |text: &str| text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if let Ok(text) = std::fs::read_to_string(&path)
        && is_id(text.trim())
    {
        return Ok(text.trim().to_owned());
    }
    let id = random_id()?;
    file::write(&path, id.as_bytes(), 0o600).map_err(StartError::io(format!("write {}", path.display())))?;
    Ok(id)
}

/// Returns a random UUID.
pub(super) fn random_id() -> Result<String, StartError> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_err(StartError::io("create an identity for this node"))?;
    Ok(uuid.trim().to_owned())
}
