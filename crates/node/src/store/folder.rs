//! A directory as a store: `nodes/NAME.json` is a node's record, `blocks/ADDRESS-LENGTH` holds the owner's name.
//!
//! For a lab, for hosts that share a directory, and for configuration management that distributes one. Files are replaced
//! atomically. A node claims a block by creating its file with link(2), which is exclusive over NFS too.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use rustix::fs::inotify::WatchFlags;

use super::{
    api::{Store, StoreError},
    update::{Contents, OnUpdate, Update},
};
use crate::{block_name, file, folder_watch::FolderWatch, record::Record};

pub(super) struct Folder {
    dir: PathBuf,
}

/// The pause before a watch that ended is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// The interval at which the directory is read even without a notification, which NFS does not send.
const POLL: Duration = Duration::from_secs(10);

impl Folder {
    pub(super) fn open(dir: &Path, on_update: OnUpdate) -> Result<Self, StoreError> {
        let parts = ["nodes", "blocks"].map(|part| dir.join(part));
        for part in &parts {
            fs::create_dir_all(part).map_err(error("create directory", part))?;
        }
        let changes = WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE;
        let mut watch =
            Some(FolderWatch::open(&parts, changes).map_err(|why| error("watch directory", dir)(why))?);
        let folder = dir.to_owned();
        std::thread::spawn(move || {
            let mut last = None;
            loop {
                let update = match read(&folder) {
                    Ok(contents) if last.as_ref() == Some(&contents) => None,
                    Ok(contents) => {
                        last = Some(contents.clone());
                        Some(Update::All(contents))
                    }
                    Err(error) => {
                        last = None;
                        Some(Update::Lost(error.to_string()))
                    }
                };
                if let Some(update) = update
                    && !on_update(update)
                {
                    return;
                }
                // A directory that was replaced is watched again.
                watch = watch.filter(|watch| watch.wait(Some(POLL), |_| true).is_ok());
                watch = watch.or_else(|| FolderWatch::open(&parts, changes).ok());
                if watch.is_none() {
                    std::thread::sleep(REOPEN);
                }
            }
        });
        Ok(Self { dir: dir.to_owned() })
    }

    fn node(&self, name: &str) -> PathBuf {
        self.dir.join("nodes").join(format!("{name}.json"))
    }

    /// Locks the ownership of all blocks; the lock ends with the value, or with the process.
    fn lock(&self) -> Result<fs::File, StoreError> {
        let path = self.dir.join(".lock");
        let file = fs::File::create(&path).map_err(error("open", &path))?;
        file.lock().map_err(error("lock", &path))?;
        Ok(file)
    }

    fn owner(&self, block: IpNet) -> Result<Option<String>, StoreError> {
        let path = self.block(block);
        match fs::read_to_string(&path) {
            Ok(owner) => Ok(Some(owner.trim().to_owned())),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(other) => Err(error("read", &path)(other)),
        }
    }

    fn block(&self, block: IpNet) -> PathBuf {
        self.dir.join("blocks").join(block_name::key(block))
    }
}

fn error(doing: &str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let doing = format!("{doing} {}", path.display());
    move |error| StoreError::new(doing.clone(), error)
}

fn read(dir: &Path) -> Result<Contents, StoreError> {
    let entries = |part: &str| -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        let dir = dir.join(part);
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(error("read directory", &dir))? {
            let path = entry.map_err(error("read directory", &dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // A temporary file of a writer.
            if name.starts_with('.') {
                continue;
            }
            match fs::read(&path) {
                Ok(text) => drop(found.insert(name.to_owned(), text)),
                // Removed since the directory was listed.
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
                Err(other) => return Err(error("read", &path)(other)),
            }
        }
        Ok(found)
    };
    let nodes = entries("nodes")?.into_iter();
    let blocks = entries("blocks")?.into_iter();
    Ok(Contents {
        alive: None,
        nodes: nodes
            .filter_map(|(name, text)| Some((name.strip_suffix(".json")?.to_owned(), text)))
            .collect(),
        blocks: blocks
            .filter_map(|(name, owner)| {
                Some((block_name::parse(&name)?, String::from_utf8_lossy(&owner).trim().to_owned()))
            })
            .collect(),
    })
}

impl Store for Folder {
    fn publish(&mut self, node: &Record, _rewrite: bool) -> Result<(), StoreError> {
        let path = self.node(&node.name);
        let text = serde_json::to_vec_pretty(node).unwrap_or_default();
        file::write(&path, &text, 0o644).map(drop).map_err(error("write", &path))
    }

    fn claim(&mut self, block: IpNet, node: &str) -> Result<bool, StoreError> {
        let path = self.block(block);
        let temporary = path.with_file_name(format!(".{}.{node}", block_name::key(block)));
        fs::write(&temporary, node).map_err(error("write", &temporary))?;
        let linked = fs::hard_link(&temporary, &path);
        drop(fs::remove_file(&temporary));
        match linked {
            Ok(()) => Ok(true),
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => {
                Ok(self.owner(block)?.as_deref() == Some(node))
            }
            Err(other) => Err(error("claim a block as", &path)(other)),
        }
    }

    fn take(&mut self, block: IpNet, from: &str, node: &str) -> Result<bool, StoreError> {
        let path = self.block(block);
        let _lock = self.lock()?;
        if self.owner(block)?.as_deref() != Some(from) {
            return Ok(false);
        }
        // The file exists throughout, so that no third node can claim the block.
        let temporary = path.with_file_name(format!(".{}.{node}", block_name::key(block)));
        fs::write(&temporary, node).map_err(error("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(error("replace", &path))?;
        Ok(true)
    }

    fn release(&mut self, block: IpNet, node: &str) -> Result<(), StoreError> {
        let path = self.block(block);
        let _lock = self.lock()?;
        if self.owner(block)?.as_deref() == Some(node) {
            file::remove(&path).map_err(error("remove", &path))?;
        }
        Ok(())
    }

    fn withdraw(&mut self, node: &str) -> Result<(), StoreError> {
        let path = self.node(node);
        file::remove(&path).map_err(error("remove", &path))
    }
}
