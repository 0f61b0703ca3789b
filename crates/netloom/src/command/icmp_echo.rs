//! One ICMP echo request (RFC 792, RFC 4443), so that the demo does not depend on `ping`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket},
};

/// Sends one echo request from the calling thread's namespace, waits for the reply and returns the round-trip time.
///
/// # Errors
/// If the request cannot be sent, or no reply arrives within `limit`.
pub(crate) fn ping(to: IpAddr, limit: Duration) -> io::Result<Duration> {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let fd = socket(family, SocketType::RAW, Some(protocol))?;
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let mut packet = [request, 0, 0, 0, high, low, 0, 1, b'n', b'e', b't', b'l', b'o', b'o', b'm', b'!'];
    if to.is_ipv4() {
        // The kernel computes the ICMPv6 checksum, which covers the source address that the kernel selects.
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    let started = Instant::now();
    sendto(&fd, &packet, SendFlags::empty(), &SocketAddr::new(to, 0))?;
    let mut buffer = [0u8; 512];
    loop {
        let left = limit.checked_sub(started.elapsed()).ok_or(io::ErrorKind::TimedOut)?;
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (length, _) = recv(&fd, &mut buffer, RecvFlags::empty())?;
        // A raw IPv4 socket delivers the IP header as well.
        let skip = if to.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        if let Some([kind, _, _, _, a, b, ..]) = buffer[..length].get(skip..)
            && (*kind, *a, *b) == (reply, high, low)
        {
            return Ok(started.elapsed());
        }
    }
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
