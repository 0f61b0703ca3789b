//! The cache of attachments, in the place and format of Go's libcni: `STATE/results/NETWORK-CONTAINERID-IFNAME`, JSON of kind
//! `cniCacheV1`.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use netloom_types::{CniResult, NetworkList, Object, SpecVersion, json};
use serde::Deserialize;
use serde_json::Value;

use crate::{Container, Error};

/// A cached attachment.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The network's name.
    pub network: String,
    /// The container's ID.
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
    /// The namespace's path, or empty: older versions of libcni do not record it. [`Self::sandbox`] may know it still.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// The runtime's values for capabilities.
    pub capability_args: Object,
    /// The text of the network configuration at ADD.
    pub config: Vec<u8>,
    /// The final result, or `None` if the file contains none.
    pub result: Option<Object>,
}

impl Entry {
    /// Returns the network as it was configured at ADD, or `None` if the file does not contain a usable configuration of it.
    pub fn network_list(&self) -> Option<NetworkList> {
        NetworkList::parse(&self.config)
            .or_else(|_| NetworkList::parse_single(&self.config))
            .ok()
            .filter(|list| !list.plugins.is_empty() && list.name == self.network)
    }

    /// Returns the namespace's path: the recorded one, else that of the interface in the result. Empty if neither is known.
    pub fn sandbox(&self) -> &str {
        if !self.netns.is_empty() {
            return &self.netns;
        }
        let interfaces = self.result.as_ref().and_then(|result| json::lookup(result, "interfaces"));
        let is_own = |interface: &&Value| interface["name"].as_str() == Some(&self.ifname);
        let own = interfaces.and_then(Value::as_array).into_iter().flatten().filter(is_own);
        own.filter_map(|interface| interface["sandbox"].as_str()).find(|path| !path.is_empty()).unwrap_or("")
    }
}

const KIND: &str = "cniCacheV1";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "containerId")]
    container_id: String,
    #[serde(default)]
    config: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    network_name: String,
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
}

/// The content of a cache file.
#[derive(Debug, Clone, PartialEq)]
pub enum Cached {
    /// The file does not exist.
    Absent,
    /// An attachment.
    Entry(Box<Entry>),
    /// A bare result, the format of libcni before 0.8.
    Legacy(Object),
    /// A file that is neither, such as an empty one after a crash.
    Damaged(String),
}

impl Cached {
    /// Returns the result, converted to `version`, or `None` if no result is cached.
    ///
    /// # Errors
    /// If the file is damaged, or its result has an unknown version or cannot be converted.
    pub fn result(&self, version: SpecVersion) -> Result<Option<CniResult>, String> {
        let object = match self {
            Self::Absent => return Ok(None),
            Self::Damaged(reason) => return Err(format!("decoding version from network config: {reason}")),
            Self::Legacy(object) => object,
            Self::Entry(entry) => match &entry.result {
                Some(object) => object,
                None => return Ok(None),
            },
        };
        let result =
            CniResult::from_object(object, SpecVersion::V0_1_0).map_err(|error| error.to_string())?;
        result.convert(version).map(Some).map_err(|error| {
            format!("failed to convert cached result to config version \"{version}\": {error}")
        })
    }
}

/// Returns the path of an attachment's cache file.
///
/// # Errors
/// If network, container ID or interface name is empty.
pub fn path(state: &Path, network: &str, container_id: &str, ifname: &str) -> Result<PathBuf, Error> {
    if network.is_empty() || container_id.is_empty() || ifname.is_empty() {
        return Err(Error::Cache {
            network: network.to_owned(),
            reason: format!(
                "cache file path requires network name ({network:?}), container ID ({container_id:?}), and interface name ({ifname:?})"
            ),
        });
    }
    Ok(state.join("results").join(format!("{network}-{container_id}-{ifname}")))
}

/// Reads the cache file of an attachment. The file of another attachment counts as absent: names that contain `-` can lead to the
/// same file name.
pub fn read(path: &Path, network: &str, container: &Container) -> Cached {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Cached::Absent,
        Err(error) => return Cached::Damaged(error.to_string()),
    };
    match parse(&bytes) {
        Cached::Entry(entry)
            if entry.container_id != container.id
                || entry.network != network
                || (!entry.ifname.is_empty() && entry.ifname != container.ifname) =>
        {
            Cached::Absent
        }
        other => other,
    }
}

fn parse(bytes: &[u8]) -> Cached {
    let object = match json::parse_object(bytes) {
        Ok(object) => object,
        Err(error) => return Cached::Damaged(error.to_string()),
    };
    let wire: Wire = match json::from_object(&object) {
        Ok(wire) => wire,
        Err(error) => return Cached::Damaged(error.to_string()),
    };
    if wire.kind != KIND {
        return if json::lookup(&object, "kind").is_none() {
            Cached::Legacy(object)
        } else {
            Cached::Damaged(format!("read cached network has wrong kind: {}", wire.kind))
        };
    }
    let member = |key| match json::lookup(&object, key) {
        Some(Value::Object(object)) => Some(object.clone()),
        _ => None,
    };
    let Ok(config) = BASE64_STANDARD.decode(&wire.config) else {
        return Cached::Damaged("`config` is not base64".into());
    };
    Cached::Entry(Box::new(Entry {
        network: wire.network_name,
        container_id: wire.container_id,
        ifname: wire.if_name,
        netns: wire.netns,
        args: wire.cni_args,
        capability_args: member("capabilityArgs").unwrap_or_default(),
        config,
        result: member("result"),
    }))
}

/// Writes the cache file of an attachment atomically.
///
/// # Errors
/// If the folder or the file cannot be written.
pub fn write(
    state: &Path,
    list: &NetworkList,
    container: &Container,
    result: &CniResult,
) -> Result<(), Error> {
    let path = path(state, &list.name, &container.id, &container.ifname)?;
    let mut object = Object::new();
    object.insert("kind".into(), KIND.into());
    object.insert("containerId".into(), container.id.as_str().into());
    object.insert("config".into(), BASE64_STANDARD.encode(&list.bytes).into());
    object.insert("ifName".into(), container.ifname.as_str().into());
    object.insert("networkName".into(), list.name.as_str().into());
    if !container.netns.is_empty() {
        object.insert("netns".into(), container.netns.as_str().into());
    }
    if !container.args.is_empty() {
        let args: Vec<Value> = container.args.iter().map(|(k, v)| serde_json::json!([k, v])).collect();
        object.insert("cniArgs".into(), args.into());
    }
    if !container.capability_args.is_empty() {
        object.insert("capabilityArgs".into(), container.capability_args.clone().into());
    }
    object.insert("result".into(), result.to_value());
    write_whole(&path, Value::Object(object).to_string().as_bytes()).map_err(|source| Error::Io {
        doing: "write",
        path,
        source,
    })
}

/// Removes a cache file. Succeeds if it does not exist.
///
/// # Errors
/// If the file cannot be removed.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { doing: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Lists the cached attachments, sorted by file name. Damaged and legacy files are skipped.
///
/// # Errors
/// If the folder cannot be read.
pub fn entries(state: &Path) -> Result<Vec<Entry>, Error> {
    let entry = |path: PathBuf| match parse(&fs::read(path).ok()?) {
        Cached::Entry(entry) if is_complete(&entry) => Some(*entry),
        _ => None,
    };
    Ok(files(state)?.into_iter().filter_map(entry).collect())
}

/// Lists every cached attachment of a network, for a caller that removes all others. A file that may belong to the network and
/// cannot be read is therefore an error. Go's libcni writes its files in place, so a file looks damaged during the write.
pub(crate) fn all_of(state: &Path, network: &str) -> Result<Vec<Entry>, Error> {
    let prefix = format!("{network}-");
    let mut found = Vec::new();
    for path in files(state)? {
        let name = path.file_name().unwrap_or_default();
        if !name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let unknown = |reason: String| Error::Unknown { path: path.clone(), reason };
        let bytes = match fs::read(&path) {
            // A DEL has removed the file meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| unknown(error.to_string()))?,
        };
        match parse(&bytes) {
            Cached::Entry(entry) if is_complete(&entry) => found.push(*entry),
            Cached::Damaged(reason) => return Err(unknown(reason)),
            _ => return Err(unknown("the file names no attachment".into())),
        }
    }
    found.retain(|entry| entry.network == network);
    Ok(found)
}

fn is_complete(entry: &Entry) -> bool {
    !entry.ifname.is_empty() && !entry.network.is_empty()
}

fn files(state: &Path) -> Result<Vec<PathBuf>, Error> {
    let dir = state.join("results");
    let error = |source| Error::Io { doing: "read folder", path: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(error)?,
    };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>().map_err(error)?;
    paths.sort();
    Ok(paths)
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // The dot makes readers of the folder skip the file if this process is killed before the rename.
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(crate::NO_LINK)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}
