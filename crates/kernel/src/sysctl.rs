//! `/proc/sys/net` of the calling thread's namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{
    error::{Error, Kind, Result},
    fault,
};

/// Names one of the settings that plugins use. Interface names may contain dots, so parts are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting<'a> {
    /// `net/ipv4/ip_forward`
    Ipv4Forward,
    /// `net/ipv6/conf/all/forwarding`
    Ipv6Forward,
    /// `net/ipv4/conf/IF/KEY`
    Ipv4(&'a str, &'a str),
    /// `net/ipv6/conf/IF/KEY`
    Ipv6(&'a str, &'a str),
    /// `net/ipv6/neigh/IF/KEY`
    Ipv6Neighbour(&'a str, &'a str),
    /// Any below `net`, as a path whose parts are plain names.
    Net(&'a str),
}

impl Setting<'_> {
    fn path(self) -> PathBuf {
        let tail: [&str; 4] = match self {
            Self::Ipv4Forward => ["ipv4", "ip_forward", "", ""],
            Self::Ipv6Forward => ["ipv6", "conf", "all", "forwarding"],
            Self::Ipv4(link, key) => ["ipv4", "conf", link, key],
            Self::Ipv6(link, key) => ["ipv6", "conf", link, key],
            Self::Ipv6Neighbour(link, key) => ["ipv6", "neigh", link, key],
            Self::Net(path) => [path, "", "", ""],
        };
        let mut path = ROOT.get().map_or_else(|| PathBuf::from("/proc/sys/net"), Clone::clone);
        path.extend(tail.iter().filter(|part| !part.is_empty()));
        path
    }
}

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Has the process find `/proc/sys/net` elsewhere: in a container it can only be read, but for a mount of the host's. Once.
pub fn found_at(dir: &Path) {
    drop(ROOT.set(dir.to_owned()));
}

/// Reads a setting, without the newline; none when the kernel does not have it (IPv6 may be off).
///
/// # Errors
/// When it cannot be read.
pub fn read(setting: Setting<'_>) -> Result<Option<String>> {
    let path = setting.path();
    // One read gives all: a setting is a line. `read_to_string` would ask for the size, which is 0, and read twice.
    let mut line = [0; 256];
    match fs::File::open(&path).and_then(|mut file| io::Read::read(&mut file, &mut line)) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&line[..length]).trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from_io("read", path.display(), &error)),
    }
}

/// Writes a setting. It must exist.
///
/// # Errors
/// When the kernel does not have it or refuses the value.
pub fn write(setting: Setting<'_>, value: &str) -> Result<()> {
    let path = setting.path();
    fault::point("write", &path.display().to_string())?;
    // Opened without O_CREAT and O_TRUNC: procfs wants neither.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|error| Error::from_io("write", path.display(), &error))
}

/// Writes a setting unless it has the value or the kernel does not have the setting.
///
/// # Errors
/// When it is there and cannot be read or written.
pub fn ensure(setting: Setting<'_>, value: &str) -> Result<()> {
    match read(setting)? {
        Some(current) if current != value => match write(setting, value) {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            other => other,
        },
        _ => Ok(()),
    }
}

/// Writes a setting of a link that has just been made, without looking at what it is; fine when the kernel does
/// not have the setting.
///
/// # Errors
/// When it is there and cannot be written.
pub fn set(setting: Setting<'_>, value: &str) -> Result<()> {
    match write(setting, value) {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}
