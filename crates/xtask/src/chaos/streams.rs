//! Long TCP streams between pods. Whatever happens, none breaks, and each continues when the fault is over.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    place::{Place, Pod},
    traffic::Traffic,
};

/// The port of the servers.
const PORT: u16 = 9998;
/// The bytes of a message.
const MESSAGE: usize = 1000;
/// The pause between two messages.
const INTERVAL: Duration = Duration::from_millis(20);
/// How often a thread that waits looks whether the traffic is over.
const LOOK: Duration = Duration::from_millis(200);

/// A stream: messages that come back.
pub(super) struct Stream {
    /// The names of both pods.
    pub(super) name: String,
    client: TcpStream,
    server: TcpStream,
    /// When the last message came back, and how many did.
    progress: Mutex<(Instant, u64)>,
}

/// Opens streams between neighbouring pods of the list, in turn over IPv4 and IPv6.
pub(super) fn open(place: &Place, pods: &[Pod]) -> Result<Vec<Stream>, String> {
    let mut streams = Vec::new();
    for (number, from) in pods.iter().enumerate() {
        let to = &pods[(number + 1) % pods.len()];
        let address: IpAddr = to.addresses[number % 2].parse().map_err(|_| "not an address")?;
        let error = |error: std::io::Error| format!("stream from {} to {}: {error}", from.name, to.name);
        let listener = place.nodes[to.host]
            .host
            .inside_of(&to.name, || TcpListener::bind(("::", PORT)))?
            .map_err(error)?;
        let client = place.nodes[from.host]
            .host
            .inside_of(&from.name, || TcpStream::connect(SocketAddr::new(address, PORT)))?
            .map_err(error)?;
        let (server, _) = listener.accept().map_err(error)?;
        for end in [&client, &server] {
            end.set_nodelay(true).and_then(|()| end.set_read_timeout(Some(LOOK))).map_err(error)?;
        }
        let name = format!("{} to {} at {address}", from.name, to.name);
        streams.push(Stream { name, client, server, progress: Mutex::new((Instant::now(), 0)) });
    }
    Ok(streams)
}

impl Stream {
    /// Sends messages until the traffic is over. Returns why the stream broke.
    pub(super) fn send(&self, traffic: &Traffic) -> Result<(), String> {
        let mut number = 0_u64;
        while !traffic.is_over() {
            let message = number.to_be_bytes().repeat(MESSAGE / 8);
            write(&self.client, &message).map_err(|error| format!("write: {error}"))?;
            let mut back = vec![0; message.len()];
            if !read(&self.client, &mut back, traffic).map_err(|error| format!("read: {error}"))? {
                return Ok(());
            }
            if back != message {
                return Err(format!("message {number} came back changed"));
            }
            number += 1;
            *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), number);
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Sends back what arrives until the traffic is over. Returns why the stream broke.
    pub(super) fn send_back(&self, traffic: &Traffic) -> Result<(), String> {
        let mut message = vec![0; MESSAGE / 8 * 8];
        while read(&self.server, &mut message, traffic).map_err(|error| format!("read: {error}"))? {
            write(&self.server, &message).map_err(|error| format!("write: {error}"))?;
        }
        Ok(())
    }

    /// Returns when the last message came back, and how many did.
    pub(super) fn progress(&self) -> (Instant, u64) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(mut stream: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)
}

/// Reads a whole message. Returns false if the traffic ends first.
fn read(mut stream: &TcpStream, bytes: &mut [u8], traffic: &Traffic) -> std::io::Result<bool> {
    let mut done = 0;
    while done < bytes.len() {
        match stream.read(&mut bytes[done..]) {
            Ok(0) if traffic.is_over() => return Ok(false),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted]
                    .contains(&error.kind()) =>
            {
                // `ETIMEDOUT` is of that kind too, but ends a stream.
                if error.raw_os_error() == Some(rustix::io::Errno::TIMEDOUT.raw_os_error()) {
                    return Err(error);
                }
                if traffic.is_over() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
