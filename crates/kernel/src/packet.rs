//! Packet sockets (packet(7)), for interfaces without an address.

use std::{
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::io::Errno;

use crate::{
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
        let error = |errno| Error::new("open a packet socket on", format!("`{}`", link.name), errno);
        let protocol = (libc::ETH_P_IP as u16).to_be();
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0: the socket receives nothing before the filter is attached.
        // SAFETY: a plain system call, whose descriptor is ours if it is one.
        let fd =
            unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_PACKET, flags, 0)).map_err(error)?) };
        let mut filter = for_port(port);
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
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: link.index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        };
        // SAFETY: the address is a whole `sockaddr_ll`.
        checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const to).cast(), LENGTH) }).map_err(error)?;
        Ok(Self { fd, to })
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
        match rustix::net::recv(&self.fd, &mut *buffer, rustix::net::RecvFlags::empty()) {
            Ok((_, length)) => Ok(Some(&buffer[..length.min(buffer.len())])),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(Error::new("receive a packet", "", errno)),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const LENGTH: u32 = size_of::<libc::sockaddr_ll>() as u32;

/// Returns a classic BPF filter that accepts unfragmented UDP packets to a port. Packets begin with the IPv4 header.
fn for_port(port: u16) -> [libc::sock_filter; 9] {
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
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
