//! The sockets of one interface, open while an answer is expected.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use kernel::{Errno, Error, Result, link::Link, packet::PacketSocket};

use crate::{
    interface,
    v4::{self, Listening},
    v6,
};

/// A socket in the namespace of the interface.
#[derive(Debug)]
pub(crate) enum Exchange {
    /// Receives everything that is sent to the client's port, and sends without a source address.
    Everything(PacketSocket),
    /// Bound to the leased address. Receives broadcasts too, since a server broadcasts a refusal (RFC 2131, section 4.1).
    Address(Ipv4Addr, UdpSocket, PacketSocket),
    /// Bound to the interface's link-local address, with the index of the link.
    LinkLocal(u32, UdpSocket),
}

impl Exchange {
    /// Opens the socket that the IPv4 client needs, or returns `None` if it expects no answer.
    pub(crate) fn of_v4(link: &Link, listening: Listening) -> Result<Option<Self>> {
        Ok(match listening {
            Listening::No => None,
            Listening::ToEverything => Some(Self::Everything(PacketSocket::open(link, v4::PORT)?)),
            Listening::ToAddress(ip) => {
                let socket = udp((ip, v4::PORT).into())?;
                Some(Self::Address(ip, socket, PacketSocket::open(link, v4::PORT)?))
            }
        })
    }

    /// Opens the socket that the IPv6 client needs, or returns `None` while the link-local address is tentative.
    pub(crate) fn of_v6(link: &Link) -> Result<Option<Self>> {
        let Some(ip) = interface::link_local(link)? else { return Ok(None) };
        let socket = udp(SocketAddrV6::new(ip, v6::PORT, 0, link.index).into())?;
        Ok(Some(Self::LinkLocal(link.index, socket)))
    }

    /// Returns whether the socket is of the kind that the IPv4 client needs now.
    pub(crate) fn fits(&self, listening: Listening) -> bool {
        match (self, listening) {
            (Self::Everything(_), Listening::ToEverything) => true,
            (Self::Address(ip, ..), Listening::ToAddress(wanted)) => *ip == wanted,
            _ => false,
        }
    }

    /// Broadcasts without a source address.
    pub(crate) fn broadcast(&self, payload: &[u8]) -> Result<()> {
        let Self::Everything(socket) = self else { return Ok(()) };
        let error = |_| Error::new("build", "a DHCP packet", Errno::MSGSIZE);
        let builder = PacketBuilder::ipv4([0; 4], [0xff; 4], 64).udp(v4::PORT, v4::SERVER_PORT);
        let mut packet = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut packet, payload).map_err(error)?;
        socket.send(&packet)
    }

    /// Sends to an IPv4 server.
    pub(crate) fn unicast(&self, payload: &[u8], server: Ipv4Addr) -> Result<()> {
        let Self::Address(_, socket, _) = self else { return Ok(()) };
        send(socket, payload, (server, v4::SERVER_PORT).into())
    }

    /// Sends to all IPv6 servers on the link.
    pub(crate) fn multicast(&self, payload: &[u8]) -> Result<()> {
        let Self::LinkLocal(link, socket) = self else { return Ok(()) };
        send(socket, payload, SocketAddrV6::new(v6::SERVERS, v6::SERVER_PORT, 0, *link).into())
    }

    /// Returns the next received packet, or `None` if there is none. Skips malformed packets.
    pub(crate) fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 4096];
        match self {
            Self::Everything(socket) | Self::Address(_, _, socket) => loop {
                let Some(packet) = socket.receive(&mut buffer)? else { return Ok(None) };
                if let Some(payload) = udp_payload(packet) {
                    return Ok(Some(payload.to_vec()));
                }
            },
            Self::LinkLocal(_, socket) => match socket.recv_from(&mut buffer) {
                Ok((length, _)) => Ok(Some(buffer[..length].to_vec())),
                // Refused: no process listens on the server. The next attempt finds that out too.
                Err(error)
                    if [ErrorKind::WouldBlock, ErrorKind::ConnectionRefused].contains(&error.kind()) =>
                {
                    Ok(None)
                }
                Err(error) => Err(Error::from_io("receive", "from a DHCP server", &error)),
            },
        }
    }
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Everything(socket) | Self::Address(_, _, socket) => socket.as_fd(),
            Self::LinkLocal(_, socket) => socket.as_fd(),
        }
    }
}

/// Returns the UDP payload of an untrusted packet, or `None` if the packet is malformed or of another protocol.
pub fn udp_payload(packet: &[u8]) -> Option<&[u8]> {
    match SlicedPacket::from_ip(packet).ok()?.transport? {
        TransportSlice::Udp(udp) => Some(udp.payload()),
        _ => None,
    }
}

fn udp(at: SocketAddr) -> Result<UdpSocket> {
    let error = |error: std::io::Error| Error::from_io("listen at", at, &error);
    let socket = UdpSocket::bind(at).map_err(error)?;
    socket.set_nonblocking(true).map_err(error)?;
    Ok(socket)
}

fn send(socket: &UdpSocket, payload: &[u8], to: SocketAddr) -> Result<()> {
    socket.send_to(payload, to).map(drop).map_err(|error| Error::from_io("send to DHCP server", to, &error))
}
