//! The protocol between plugin and daemon: one line of JSON each way over a Unix socket.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use kernel::waiting::{PATIENCE, note, process};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
};
use serde::{Deserialize, Serialize};

use crate::{lease::Lease, v4, v6};

/// The default path of the daemon's socket.
pub const DEFAULT_SOCKET: &str = "/run/cni/dhcp.sock";

/// The attachment that a lease belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The network.
    pub network: String,
    /// The container.
    pub container: String,
    /// The interface in it.
    pub ifname: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}/{}", self.container, self.network, self.ifname)
    }
}

/// A request to the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Call {
    /// Acquire leases and keep them. Existing leases are returned.
    Acquire {
        /// The attachment. Named `who` in messages, as in earlier versions.
        #[serde(rename = "who")]
        owner: Owner,
        /// The namespace of the interface.
        netns: PathBuf,
        /// What to request of IPv4 servers, or `None` for no IPv4 lease.
        v4: Option<v4::Wishes>,
        /// What to request of IPv6 servers, or `None` for no IPv6 lease.
        v6: Option<v6::Wishes>,
        /// Metric of the routes.
        priority: u32,
    },
    /// Check that the leases exist.
    Check(Owner),
    /// Release the leases. Succeeds if there is none.
    Release(Owner),
    /// Release all leases of a network except those of the given containers and interfaces.
    Collect {
        /// The network.
        network: String,
        /// Container and interface.
        valid: Vec<(String, String)>,
    },
    /// Check that the daemon runs.
    Ping,
}

/// The daemon's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// The leases of the requested families.
    Leases(Vec<Lease>),
    /// The request succeeded.
    Done,
    /// The request failed, for this reason.
    Failed(String),
}

/// Limit of a line, in bytes.
const LONGEST: u64 = 1 << 20;

/// Sends a request to the daemon and waits for the answer.
///
/// # Errors
/// If the daemon cannot be reached, or ends without an answer.
pub fn ask(socket: &Path, call: &Call) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    write(&mut stream, call)?;
    note_wait(&stream, socket);
    read(&stream)
}

/// Waits for an answer as long as a person is patient, and then says what the wait is for.
fn note_wait(stream: &UnixStream, socket: &Path) {
    let limit = Timespec::try_from(PATIENCE).ok();
    if poll(&mut [PollFd::new(stream, PollFlags::IN)], limit.as_ref()) == Ok(0) {
        // The service manager, process 1, opens the socket but does not answer.
        let daemon = socket_peercred(stream).ok().map(|peer| peer.pid).filter(|pid| !pid.is_init());
        let daemon = daemon.and_then(|pid| process(pid.as_raw_nonzero().get().cast_unsigned()));
        let from = daemon.map(|name| format!(" from {name}")).unwrap_or_default();
        note(&format!("waiting for a DHCP lease{from} on {}", socket.display()));
    }
}

pub(crate) fn write(stream: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(stream: &UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream).take(LONGEST).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other end has gone without an answer"));
    }
    Ok(serde_json::from_slice(&line)?)
}
