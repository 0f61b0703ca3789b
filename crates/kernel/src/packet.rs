//! Packet sockets (packet(7)), for interfaces without an address.

use std::{
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::io::Errno;

use crate::{
    echo::readable,
    error::{Error, Result, checked},
    link::Link,
};

/// A socket that broadcasts IPv4 packets on a link's segment, and receives those for one UDP port.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    to: libc::sockaddr_ll,
}

impl PacketSocket {
    /// Opens a socket in the calling thread's namespace, for packets to this UDP port.
    ///
    /// # Errors
    /// If the process lacks the capability, or the link does not exist.
    pub fn open(link: &Link, port: u16) -> Result<Self> {
        let mut to = address(link, libc::ETH_P_IP as u16);
        to.sll_halen = 6;
        to.sll_addr[..6].fill(0xff);
        Ok(Self { fd: bound(link, to, &mut for_port(port))?, to })
    }

    /// Broadcasts a packet that begins with its IPv4 header.
    ///
    /// # Errors
    /// If the link is down or gone.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        // SAFETY: buffer and address are alive and have the given lengths.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const self.to).cast(),
                LENGTH,
            )
        };
        checked(sent).map(drop).map_err(|errno| Error::new("send a packet", "to everybody", errno))
    }

    /// Returns a received packet that begins with its IPv4 header, or `None` if there is none.
    ///
    /// # Errors
    /// If the link is down or gone.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        received(&self.fd, buffer)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The packets of one IP protocol that enter or leave a link, of both families.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    /// Opens a capture in the calling thread's namespace, for packets of this IP protocol (`IPPROTO_*`). IPv6 packets with
    /// extension headers are left out.
    ///
    /// # Errors
    /// If the process lacks the capability, or the link does not exist.
    pub fn open(link: &Link, protocol: u8) -> Result<Self> {
        bound(link, address(link, libc::ETH_P_ALL as u16), &mut of_protocol(protocol)).map(Self)
    }

    /// Waits until a packet was captured. Returns false after `limit`.
    ///
    /// # Errors
    /// If the wait is interrupted by a signal.
    pub fn wait(&self, limit: Duration) -> std::io::Result<bool> {
        readable(&self.0, limit)
    }

    /// Returns a captured packet that begins with its IP header, or `None` if there is none.
    ///
    /// # Errors
    /// If the link is down or gone.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        received(&self.0, buffer)
    }
}

fn address(link: &Link, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: link.index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Opens a socket that receives a link's packets from their IP header on, if the filter accepts them.
fn bound(link: &Link, address: libc::sockaddr_ll, filter: &mut [libc::sock_filter]) -> Result<OwnedFd> {
    let error = |errno| Error::new("open a packet socket on", format!("`{}`", link.name), errno);
    let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0: the socket receives nothing before the filter is attached.
    // SAFETY: a plain system call, whose descriptor is ours if it is one.
    let fd =
        unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, flags, 0)).map_err(error)?) };
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and what it points to live until the call returns.
    checked(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    })
    .map_err(error)?;
    // SAFETY: the address is a whole `sockaddr_ll`.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), LENGTH) }).map_err(error)?;
    Ok(fd)
}

fn received<'a>(fd: &OwnedFd, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
    match rustix::net::recv(fd, &mut *buffer, rustix::net::RecvFlags::empty()) {
        Ok((_, length)) => Ok(Some(&buffer[..length.min(buffer.len())])),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(Error::new("receive a packet", "", errno)),
    }
}

const LENGTH: u32 = size_of::<libc::sockaddr_ll>() as u32;

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Returns a classic BPF filter that accepts packets of an IP protocol. Packets begin with the IP header.
fn of_protocol(protocol: u8) -> [libc::sock_filter; 10] {
    [
        op(0x30, 0, 0, 0),                   // load the first byte
        op(0x54, 0, 0, 0xf0),                // keep the version
        op(0x15, 0, 2, 0x40),                // IPv4?
        op(0x30, 0, 0, 9),                   // load its protocol
        op(0x05, 0, 0, 2),                   // skip to the comparison
        op(0x15, 0, 3, 0x60),                // IPv6?
        op(0x30, 0, 0, 6),                   // load its next header
        op(0x15, 0, 1, u32::from(protocol)), // ours?
        op(0x06, 0, 0, 0xffff),
        op(0x06, 0, 0, 0),
    ]
}

/// Returns a classic BPF filter that accepts unfragmented UDP packets to a port. Packets begin with the IPv4 header.
fn for_port(port: u16) -> [libc::sock_filter; 9] {
    [
        op(0x30, 0, 0, 9),               // load the protocol
        op(0x15, 0, 6, 17),              // UDP?
        op(0x28, 0, 0, 6),               // load flags and offset
        op(0x45, 4, 0, 0x1fff),          // a later fragment?
        op(0xb1, 0, 0, 0),               // length of the header
        op(0x48, 0, 0, 2),               // load the destination port
        op(0x15, 0, 1, u32::from(port)), // ours?
        op(0x06, 0, 0, 0xffff),
        op(0x06, 0, 0, 0),
    ]
}
