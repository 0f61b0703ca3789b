//! Loads network configurations from a folder.
//!
//! `NAME.conflist` is a list of plugins; `NAME.conf` and `NAME.json` are the configuration of one plugin. A subfolder with the
//! network's name may contain `*.conf` files with further plugins. They follow the inlined plugins unless
//! `loadOnlyInlinedPlugins` is true (SPEC, "Plugin configuration objects").

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use netloom_types::{NetworkList, PluginConfig, config::ConfigError, json};

use crate::Error;

/// Size limit of a configuration file.
const SIZE_LIMIT: u64 = 2 * 1024 * 1024;

/// Lists the files of a folder with one of these extensions (without the dot), sorted. A folder that does not exist counts as
/// empty.
///
/// # Errors
/// If the folder cannot be read.
pub fn files(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let error = |source| Error::Io { doing: "read folder", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(error)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        let ending = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once('.'));
        if ending.is_some_and(|(_, ending)| endings.contains(&ending)) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Loads one file. Its extension determines the format.
///
/// # Errors
/// If the file cannot be read, is not a configuration, or contains no plugin.
pub fn file(path: &Path) -> Result<NetworkList, Error> {
    let bytes = read(path)?;
    let config = |source| Error::Config { path: path.to_owned(), source };
    if path.extension().is_some_and(|ending| ending == "conflist") {
        with_plugin_files(path, NetworkList::parse(&bytes).map_err(config)?)
    } else {
        NetworkList::parse_single(&bytes).map_err(config)
    }
}

/// Finds a network by name: first among the lists, then among single plugins, in order of file names.
///
/// An invalid file does not hide a network in another file.
///
/// # Errors
/// If there is no such network, or its file is invalid. The error names the files that could not be loaded.
pub fn network(dir: &Path, name: &str) -> Result<NetworkList, Error> {
    let (lists, singles) = (files(dir, &["conflist"])?, files(dir, &["conf", "json"])?);
    if lists.is_empty() && singles.is_empty() {
        return Err(Error::NoConfigs(dir.to_owned()));
    }
    let mut skipped = Vec::new();
    for path in lists.iter().chain(&singles) {
        match file(path) {
            Ok(list) if list.name == name => return Ok(list),
            Ok(_) => {}
            // The network's own file is invalid. A later file with the same network name must not replace it.
            Err(error) if name_in(path).is_some_and(|found| found == name) => return Err(error),
            Err(error) => skipped.push(error.to_string()),
        }
    }
    Err(Error::NotFound { name: name.to_owned(), dir: dir.to_owned(), skipped })
}

/// A file, with its network or its error.
pub type Loaded = (PathBuf, Result<NetworkList, Error>);

/// Loads every configuration file of a folder, in order of file names. The list includes invalid files.
///
/// # Errors
/// If the folder cannot be read.
pub fn networks(dir: &Path) -> Result<Vec<Loaded>, Error> {
    let files = files(dir, &["conflist", "conf", "json"])?;
    let load = |path: PathBuf| {
        let list = file(&path);
        (path, list)
    };
    Ok(files.into_iter().map(load).collect())
}

/// Returns the network's name in a file that may be invalid otherwise, or `None` if the file contains none.
pub fn name_in(path: &Path) -> Option<String> {
    let object = json::parse_object(&read(path).ok()?).ok()?;
    json::lookup(&object, "name").and_then(serde_json::Value::as_str).map(str::to_owned)
}

fn with_plugin_files(path: &Path, mut list: NetworkList) -> Result<NetworkList, Error> {
    // An invalid name must not lead to another folder. The error is reported when the list is used.
    if !list.load_only_inlined_plugins && netloom_types::name::NetworkName::parse(&list.name).is_ok() {
        let dir = path.with_file_name(&list.name);
        let mut added = Vec::new();
        for path in files(&dir, &["conf"])? {
            let config = |source: ConfigError| Error::Config { path: path.clone(), source };
            added.push(PluginConfig::parse(&read(&path)?).map_err(config)?);
        }
        if !added.is_empty() {
            list.plugins.extend(added);
            list.bytes = aggregated(&list);
        }
    }
    if list.plugins.is_empty() {
        return Err(Error::NoPlugins(list.name));
    }
    Ok(list)
}

/// Renders the list with all its plugins, so that the cached configuration is complete.
fn aggregated(list: &NetworkList) -> Vec<u8> {
    let Ok(mut object) = json::parse_object(&list.bytes) else { return list.bytes.clone() };
    let plugins: Vec<serde_json::Value> =
        list.plugins.iter().map(|plugin| plugin.object().clone().into()).collect();
    json::replace(&mut object, "plugins", plugins.into());
    json::replace(&mut object, "loadOnlyInlinedPlugins", true.into());
    serde_json::Value::Object(object).to_string().into_bytes()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let error = |source| Error::Io { doing: "read", path: path.to_owned(), source };
    if fs::metadata(path).map_err(error)?.len() > SIZE_LIMIT {
        return Err(error(io::Error::other("larger than 2 MiB, the limit of a configuration")));
    }
    fs::read(path).map_err(error)
}
