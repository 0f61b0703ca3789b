//! Checksums of sent packets: computed by the kernel, offloaded to the network card (ethtool(8)), or disabled.

use std::{
    ffi::c_int,
    net::UdpSocket,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{
    error::{Error, Result, checked},
    ioctl::LinkRequest,
};

/// Returns whether a link of the calling thread's namespace leaves checksums to the card.
///
/// # Errors
/// If the link does not exist.
#[doc(alias = "ETHTOOL_GTXCSUM")]
pub fn checksums(name: &str) -> Result<bool> {
    ask(name, ETHTOOL_GTXCSUM, 0).map(|value| value != 0)
}

/// Enables or disables checksum offload of a link.
///
/// # Errors
/// If the link does not exist or does not support the change.
#[doc(alias = "ETHTOOL_STXCSUM")]
pub fn set_checksums(name: &str, on: bool) -> Result<()> {
    ask(name, ETHTOOL_STXCSUM, on.into()).map(drop)
}

/// Enables or disables checksums of the datagrams that a socket sends (RFC 768; in IPv6 RFC 6935).
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "SO_NO_CHECK")]
pub fn send_unchecked(socket: &UdpSocket, on: bool) -> Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, on)?;
    set(socket, libc::SOL_UDP, libc::UDP_NO_CHECK6_TX, on)
}

/// Lets a socket receive IPv6 datagrams without a checksum.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "UDP_NO_CHECK6_RX")]
pub fn hear_unchecked(socket: &UdpSocket) -> Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_NO_CHECK6_RX, true)
}

fn set(socket: &UdpSocket, level: c_int, option: c_int, on: bool) -> Result<()> {
    let value = c_int::from(on);
    // SAFETY: the value is an int, which lives until the call returns.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as u32,
        )
    };
    checked(answer).map(drop).map_err(|errno| Error::new("say who makes the checksums of", "a socket", errno))
}

fn ask(name: &str, command: u32, value: u32) -> Result<u32> {
    let error = |errno| Error::new("set the offloads of", format!("`{name}`"), errno);
    let mut request = LinkRequest::of(name).map_err(error)?;
    let socket: OwnedFd =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(error)?;
    // `struct ethtool_value`: the command and its value.
    let mut pair = [command, value];
    // SAFETY: these commands take the two numbers.
    unsafe { request.ask_driver(&socket, &mut pair) }.map_err(error)?;
    Ok(pair[1])
}

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
