//! Files that are opened by one system call, or are there whole or not at all.

use std::{fs::File, io, io::Write, os::fd::AsRawFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

/// Opens a file, one that it makes for its owner alone. The C library would say twice that it is not for children.
pub fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?))
}

/// Makes a file that has its name when its content is whole (`O_TMPFILE`, open(2)): a writer that is killed leaves
/// none. Readable and writable by its owner alone.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when there is one, and others on a file system that has no files without names.
pub fn create_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut unnamed = open(dir, OFlags::TMPFILE | OFlags::WRONLY)?;
    unnamed.write_all(content)?;
    // By the descriptor itself, where the process may (`CAP_DAC_READ_SEARCH`): `/proc` takes longer than all the rest.
    match rustix::fs::linkat(&unnamed, "", CWD, path, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT) => {
            let descriptor = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
            Ok(rustix::fs::linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
        }
        outcome => Ok(outcome?),
    }
}
