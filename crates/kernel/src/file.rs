//! Files opened with one system call, and files that appear atomically.

use std::{
    fs::{self, File},
    io,
    io::Write,
    os::fd::AsRawFd,
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

/// Opens a file with close-on-exec set. A created file is accessible by its owner alone. The C library would set close-on-exec
/// twice.
pub fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?))
}

/// Replaces a file atomically: `write` fills a new file at `beside`, which is then renamed to `path`. `beside` must be in the
/// same folder. The file is readable and writable by its owner alone, and a symbolic link at `beside` is not followed.
///
/// Nothing is synced to disk: after a power loss the file may be empty. This is for state that a reboot makes worthless.
///
/// # Errors
/// If the file cannot be created or renamed, or `write` fails. The new file is then removed and `path` is unchanged.
pub fn replace<T>(path: &Path, beside: &Path, write: impl FnOnce(File) -> io::Result<T>) -> io::Result<T> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
    let file = open(beside, flags)?;
    let written = write(file).and_then(|value| fs::rename(beside, path).map(|()| value));
    if written.is_err() {
        drop(fs::remove_file(beside));
    }
    written
}

/// Creates a file that gets its name once its content is complete (`O_TMPFILE`, open(2)), so a killed writer leaves no file.
/// The file is readable and writable by its owner alone.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the file exists, and other kinds if the file system lacks `O_TMPFILE`.
pub fn create_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut unnamed = open(dir, OFlags::TMPFILE | OFlags::WRONLY)?;
    unnamed.write_all(content)?;
    // Link the descriptor itself if the process may (`CAP_DAC_READ_SEARCH`): the path via `/proc` takes longer than all other
    // steps.
    match rustix::fs::linkat(&unnamed, "", CWD, path, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT) => {
            let descriptor = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
            Ok(rustix::fs::linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
        }
        outcome => Ok(outcome?),
    }
}
