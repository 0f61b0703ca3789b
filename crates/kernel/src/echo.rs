//! ICMP echo requests (RFC 792, RFC 4443), so that nothing depends on `ping`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket},
};

/// Size in bytes of the smallest request with its IP header.
pub const SMALLEST: usize = IPV6_HEADER + ICMP_HEADER + TOKEN;

const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
const TOKEN: usize = 8;

/// An echo request to one address. Its content distinguishes it from all others, also after NAT has changed addresses and the
/// identifier.
#[derive(Debug)]
pub struct Echo {
    fd: OwnedFd,
    to: IpAddr,
    token: [u8; TOKEN],
}

impl Echo {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// If the process lacks the capability, or the kernel has no IPv6.
    pub fn open(to: IpAddr) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let mut token = [0; TOKEN];
        token[..4].copy_from_slice(&std::process::id().to_be_bytes());
        token[4..].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        Ok(Self { fd: socket(family, SocketType::RAW, Some(protocol))?, to, token })
    }

    /// Sends requests from this address.
    ///
    /// # Errors
    /// If the address is none of the namespace, or tentative.
    pub fn bind(&self, source: IpAddr) -> io::Result<()> {
        Ok(rustix::net::bind(&self.fd, &SocketAddr::new(source, 0))?)
    }

    /// Returns the identifier in the header of the request.
    pub fn identifier() -> u16 {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// Sends the request as an IP packet of `size` bytes. The kernel does not fragment it if the link's MTU suffices.
    ///
    /// # Errors
    /// If there is no route, or the packet is too large.
    pub fn send(&self, size: usize) -> io::Result<()> {
        let (kind, header) = if self.to.is_ipv4() { (8, 20) } else { (128, IPV6_HEADER) };
        let [high, low] = Self::identifier().to_be_bytes();
        let mut packet = vec![kind, 0, 0, 0, high, low, 0, 1];
        packet.extend_from_slice(&self.token);
        packet.resize(size.saturating_sub(header).max(packet.len()), 0);
        if self.to.is_ipv4() {
            // The kernel computes the ICMPv6 checksum, which covers the source address that the kernel selects.
            let sum = checksum(&packet).to_be_bytes();
            packet[2..4].copy_from_slice(&sum);
        }
        sendto(&self.fd, &packet, SendFlags::empty(), &SocketAddr::new(self.to, 0))?;
        Ok(())
    }

    /// Waits for the reply.
    ///
    /// # Errors
    /// If no reply arrives within `limit`.
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        let reply = if self.to.is_ipv4() { 0 } else { 129 };
        let started = Instant::now();
        // The payload beyond the token does not matter.
        let mut buffer = [0u8; 128];
        loop {
            let left = limit.checked_sub(started.elapsed()).ok_or(io::ErrorKind::TimedOut)?;
            if !readable(&self.fd, left)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let (_, length) = recv(&self.fd, &mut buffer, RecvFlags::empty())?;
            let packet = &buffer[..length.min(buffer.len())];
            // A raw IPv4 socket delivers the IP header as well.
            let skip = if self.to.is_ipv4() { header_length(packet) } else { 0 };
            if packet.get(skip) == Some(&reply) && self.has_token(packet, skip) {
                return Ok(());
            }
        }
    }

    /// Returns the source address of a captured packet, if it is this request.
    pub fn source_of(&self, packet: &[u8]) -> Option<IpAddr> {
        let (kind, skip, source): (u8, usize, IpAddr) = match packet.first()? >> 4 {
            4 => (8, header_length(packet), Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?).into()),
            6 => (128, IPV6_HEADER, Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?).into()),
            _ => return None,
        };
        (packet.get(skip) == Some(&kind) && self.has_token(packet, skip)).then_some(source)
    }

    fn has_token(&self, packet: &[u8], skip: usize) -> bool {
        packet.get(skip + ICMP_HEADER..).is_some_and(|payload| payload.starts_with(&self.token))
    }
}

/// Sends one echo request from the calling thread's namespace and waits for the reply.
///
/// # Errors
/// If the request cannot be sent, or no reply arrives within `limit`.
pub fn ping(to: IpAddr, limit: Duration) -> io::Result<()> {
    let echo = Echo::open(to)?;
    echo.send(SMALLEST)?;
    echo.wait(limit)
}

/// Waits until a descriptor can be read. Returns false after `limit`.
pub(crate) fn readable(fd: impl std::os::fd::AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    Ok(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit))? > 0)
}

fn header_length(packet: &[u8]) -> usize {
    packet.first().map_or(0, |first| usize::from(first & 0xf) * 4)
}

/// Returns the Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
