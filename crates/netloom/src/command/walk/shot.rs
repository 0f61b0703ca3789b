//! One probe: an echo request, a TCP connection or a UDP datagram from a namespace, and what comes back.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use kernel::{IpFamily, Netns, echo::Echo};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, getsockname, recv, send,
        socket_with, sockopt,
    },
};

use super::super::Outcome;

/// The kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An echo request of this size in bytes, with its IP header.
    Echo(usize),
    /// A connection to this TCP port.
    Tcp(u16),
    /// A datagram to this UDP port.
    Udp(u16),
}

impl Kind {
    /// The number of the transport protocol.
    pub(crate) fn protocol(self, to: IpAddr) -> u8 {
        match self {
            Self::Echo(_) if to.is_ipv4() => 1,
            Self::Echo(_) => 58,
            Self::Tcp(_) => 6,
            Self::Udp(_) => 17,
        }
    }

    /// The port, if the probe has one.
    pub(crate) fn port(self) -> Option<u16> {
        match self {
            Self::Echo(_) => None,
            Self::Tcp(port) | Self::Udp(port) => Some(port),
        }
    }

    /// What is sent, for a sentence.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Echo(_) => "echo request",
            Self::Tcp(_) => "connection",
            Self::Udp(_) => "datagram",
        }
    }
}

/// What comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// An answer.
    Answered,
    /// The destination answers that nothing listens there.
    Refused,
    /// Nothing, or an error of the way.
    Lost(Option<Errno>),
}

/// A probe that can be sent repeatedly, with the same source port or identifier.
#[derive(Debug)]
pub(crate) struct Shot {
    to: IpAddr,
    kind: Kind,
    echo: Option<Echo>,
    source: Option<IpAddr>,
    /// Reserves the source port between the shots.
    local: u16,
}

impl Shot {
    /// Prepares a probe from the calling thread's namespace.
    pub(crate) fn open(to: IpAddr, kind: Kind, source: Option<IpAddr>) -> Outcome<Self> {
        let echo = match kind {
            Kind::Echo(_) => {
                let echo = Echo::open(to)?;
                source.map(|source| echo.bind(source)).transpose()?;
                Some(echo)
            }
            _ => None,
        };
        let local = match kind {
            Kind::Echo(_) => Echo::identifier(),
            _ => bound(to, kind, source, 0)?.1.port(),
        };
        Ok(Self { to, kind, echo, source, local })
    }

    /// The source port, or the identifier of an echo request.
    pub(crate) fn local(&self) -> u16 {
        self.local
    }

    /// The echo request, to recognize it in a capture.
    pub(crate) fn echo(&self) -> Option<&Echo> {
        self.echo.as_ref()
    }

    /// Sends the probe once from `netns`, and waits for what comes back.
    pub(crate) fn fire(&self, netns: &Netns, limit: Duration) -> Outcome<Reply> {
        match (&self.echo, self.kind) {
            (Some(echo), Kind::Echo(size)) => {
                if let Err(error) = echo.send(size) {
                    return Ok(Reply::Lost(Errno::from_io_error(&error)));
                }
                match echo.wait(limit) {
                    Ok(()) => Ok(Reply::Answered),
                    Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(Reply::Lost(None)),
                    Err(error) => Ok(Reply::Lost(Errno::from_io_error(&error))),
                }
            }
            _ => netns.run(|| self.call(limit))?,
        }
    }

    fn call(&self, limit: Duration) -> Outcome<Reply> {
        let port = self.kind.port().unwrap_or_default();
        let (socket, _) = bound(self.to, self.kind, self.source, self.local)?;
        let is_udp = matches!(self.kind, Kind::Udp(_));
        match connect(&socket, &SocketAddr::new(self.to, port)) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(Errno::CONNREFUSED) => return Ok(Reply::Refused),
            Err(errno) => return Ok(Reply::Lost(Some(errno))),
        }
        if is_udp {
            let query = if port == 53 { QUERY } else { &[] };
            if let Err(errno) = send(&socket, query, SendFlags::empty()) {
                return Ok(if errno == Errno::CONNREFUSED {
                    Reply::Refused
                } else {
                    Reply::Lost(Some(errno))
                });
            }
        }
        let wanted = if is_udp { PollFlags::IN } else { PollFlags::OUT };
        let limit = Timespec::try_from(limit).map_err(std::io::Error::other)?;
        if poll(&mut [PollFd::new(&socket, wanted)], Some(&limit))? == 0 {
            return Ok(Reply::Lost(None));
        }
        let error = sockopt::socket_error(&socket)?.err();
        match error {
            Some(Errno::CONNREFUSED) => Ok(Reply::Refused),
            Some(errno) => Ok(Reply::Lost(Some(errno))),
            None if is_udp => match recv(&socket, &mut [0; 64], RecvFlags::empty()) {
                Err(Errno::CONNREFUSED) => Ok(Reply::Refused),
                Err(errno) => Ok(Reply::Lost(Some(errno))),
                Ok(_) => Ok(Reply::Answered),
            },
            None => Ok(Reply::Answered),
        }
    }
}

/// A query for the name servers of the root (RFC 1035, section 4), which every name server answers.
const QUERY: &[u8] = &[0x4e, 0x6c, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

fn bound(to: IpAddr, kind: Kind, source: Option<IpAddr>, port: u16) -> Outcome<(OwnedFd, SocketAddr)> {
    let family = match IpFamily::of(to) {
        IpFamily::V4 => AddressFamily::INET,
        IpFamily::V6 => AddressFamily::INET6,
    };
    let form = if matches!(kind, Kind::Udp(_)) { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = socket_with(family, form, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::new(source.unwrap_or(IpFamily::of(to).unspecified()), port))?;
    let local = SocketAddr::try_from(getsockname(&socket)?).map_err(|_| Errno::AFNOSUPPORT)?;
    Ok((socket, local))
}
