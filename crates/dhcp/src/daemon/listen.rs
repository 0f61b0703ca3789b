//! The socket on which the daemon accepts calls.

use std::{
    fs, io,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

use rustix::fs::Mode;

/// Opens the socket that systemd passed, or a new one. Returns true with a new one.
pub(super) fn listen(socket: &Path) -> io::Result<(UnixListener, bool)> {
    let mut given = listenfd::ListenFd::from_env();
    match given.len() {
        0 => {}
        1 => {
            let listener = given.take_unix_listener(0)?;
            return listener
                .map(|it| (it, false))
                .ok_or_else(|| io::Error::other("LISTEN_FDS names no socket"));
        }
        more => return Err(io::Error::other(format!("{more} sockets were passed, where one is expected"))),
    }
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    // A socket left by a daemon that was killed refuses connections.
    match UnixStream::connect(socket) {
        Ok(_) => return Err(io::Error::other(format!("another daemon listens at {}", socket.display()))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(socket)?,
        Err(_) => {}
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    listener.map(|listener| (listener, true)).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen at {}: {error}", socket.display()))
    })
}
