//! Real traffic (TCP, UDP and SCTP) between the host, its containers and other hosts.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketFlags, SocketType},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::Host;

/// Time limit for an answer. A lost first packet is retransmitted after a second.
const PATIENCE: Duration = Duration::from_millis(1500);
const WORD: &[u8] = b"hello";

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: one INIT chunk and its answer, which is enough for every router and firewall on the path.
    Sctp,
}

impl Transport {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Returns the name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A server at an address until it is dropped. It records the addresses of its callers.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<IpAddr>>>,
}

impl Server {
    /// Stops the server and lists its callers, in order.
    pub fn callers(mut self) -> Vec<IpAddr> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().expect("the server ends")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Host {
    /// Runs a closure on a temporary thread in the network namespace of the host or of a container.
    pub fn inside<T: Send>(&self, container: Option<&str>, work: impl FnOnce() -> T + Send) -> T {
        let netns = match container {
            None => format!("/proc/{}/ns/net", self.pid()).into(),
            Some(name) => self.path(&format!("/run/netns/{name}")),
        };
        let inside = || {
            let netns = File::open(netns).expect("the namespace is there");
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the namespace can be entered");
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("the work does not fail"))
    }

    /// Starts a server at an address, on the host or in a container.
    pub fn serve(&self, container: Option<&str>, transport: Transport, at: SocketAddr) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = match transport {
            Transport::Tcp => {
                let listener = self.inside(container, || free(|| TcpListener::bind(at)));
                listener.set_nonblocking(true).expect("it can be set");
                std::thread::spawn(move || {
                    answer(&stopped, || {
                        let (mut stream, from) = listener.accept()?;
                        stream.write_all(WORD)?;
                        Ok(from.ip())
                    })
                })
            }
            Transport::Udp => {
                let socket = self.inside(container, || free(|| UdpSocket::bind(at)));
                socket.set_read_timeout(Some(Duration::from_millis(20))).expect("it can be set");
                std::thread::spawn(move || {
                    answer(&stopped, || {
                        let (_, from) = socket.recv_from(&mut [0; 64])?;
                        socket.send_to(WORD, from)?;
                        Ok(from.ip())
                    })
                })
            }
            Transport::Sctp => {
                let socket = self.inside(container, || raw_sctp(at.ip()));
                std::thread::spawn(move || {
                    answer(&stopped, || {
                        let (from, packet) = receive_sctp(&socket, Duration::from_millis(20))?;
                        if packet.get(2..4) != Some(&at.port().to_be_bytes()) || packet.get(12) != Some(&1) {
                            return Err(ErrorKind::WouldBlock.into());
                        }
                        let port = u16::from_be_bytes([packet[0], packet[1]]);
                        send_sctp(&socket, at.port(), SocketAddr::new(from, port), INIT_ACK)?;
                        Ok(from)
                    })
                })
            }
        };
        Server { stop, thread: Some(thread) }
    }

    /// Returns whether the host or a container gets an answer from an address.
    pub fn reaches(&self, container: Option<&str>, transport: Transport, to: SocketAddr) -> bool {
        self.inside(container, || match transport {
            Transport::Tcp => {
                let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { return false };
                stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
                let mut heard = [0; WORD.len()];
                stream.read_exact(&mut heard).is_ok() && heard == *WORD
            }
            Transport::Udp => {
                let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
                let socket = UdpSocket::bind(any).expect("a port is free");
                socket.set_read_timeout(Some(PATIENCE)).expect("it can be set");
                let mut heard = [0; WORD.len()];
                // The socket is connected, so that an answer from another address does not count.
                socket.connect(to).is_ok()
                    && socket.send(WORD).is_ok()
                    && socket.recv(&mut heard).is_ok_and(|length| heard[..length] == *WORD)
            }
            Transport::Sctp => {
                let socket = raw_sctp(to.ip());
                let own = 40_000 + u16::try_from(std::process::id() % 10_000).unwrap_or_default();
                if send_sctp(&socket, own, to, INIT).is_err() {
                    return false;
                }
                let until = Instant::now() + PATIENCE;
                while Instant::now() < until {
                    if let Ok((_, packet)) = receive_sctp(&socket, Duration::from_millis(20))
                        && packet.get(..4) == Some(&[to.port().to_be_bytes(), own.to_be_bytes()].concat())
                        && packet.get(12) == Some(&INIT_ACK)
                    {
                        return true;
                    }
                }
                false
            }
        })
    }
}

/// Binds to a port and retries while the port is in use. A forked child of another test holds a copy of every socket, even
/// of a closed one, until it executes its program.
pub fn free<T>(mut bind: impl FnMut() -> std::io::Result<T>) -> T {
    let until = Instant::now() + 10 * PATIENCE;
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other.expect("the port is free"),
        }
    }
}

fn answer(stop: &AtomicBool, mut one: impl FnMut() -> std::io::Result<IpAddr>) -> Vec<IpAddr> {
    let mut callers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match one() {
            Ok(from) => callers.push(from),
            // No caller, or one that has gone already.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    callers
}

const SCTP: u32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

fn raw_sctp(like: IpAddr) -> OwnedFd {
    let family = if like.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = RawProtocol::new(SCTP).map(Protocol::from_raw);
    rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
        .expect("raw sockets can be opened")
}

fn send_sctp(socket: &OwnedFd, from: u16, to: SocketAddr, chunk: u8) -> std::io::Result<()> {
    // Common header: ports, verification tag (0 with INIT), checksum (RFC 9260, 3.1).
    let mut packet = [&from.to_be_bytes()[..], &to.port().to_be_bytes(), &[0; 8]].concat();
    if chunk == INIT_ACK {
        packet[4..8].copy_from_slice(&1_u32.to_be_bytes());
    }
    // INIT and INIT ACK: tag, window, streams out and in, first sequence number (RFC 9260, 3.3.2).
    packet.extend([chunk, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    // Raw IPv6 sockets take no port.
    let to = SocketAddr::new(to.ip(), 0);
    rustix::net::sendto(socket, &packet, SendFlags::empty(), &to)?;
    Ok(())
}

fn receive_sctp(socket: &OwnedFd, within: Duration) -> std::io::Result<(IpAddr, Vec<u8>)> {
    rustix::net::sockopt::set_socket_timeout(socket, rustix::net::sockopt::Timeout::Recv, Some(within))?;
    let mut buffer = [0; 1500];
    let (length, _, from) = rustix::net::recvfrom(socket, &mut buffer[..], RecvFlags::empty())?;
    let from: SocketAddr =
        from.ok_or(ErrorKind::InvalidData)?.try_into().map_err(|_| ErrorKind::InvalidData)?;
    // Raw IPv4 sockets return the network header too.
    let header = if from.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
    Ok((from.ip(), buffer[header..length.max(header)].to_vec()))
}

/// Returns the checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let carry = if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            crc >> 1 ^ carry
        })
    })
}
