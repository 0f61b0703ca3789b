//! What a link leaves to the network card (ethtool(8)): the checksums of what it sends.

use std::{ffi::c_ulong, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use crate::{
    error::{Error, Result},
    tun::call,
};

/// Tells whether a link of the calling thread's namespace leaves checksums to the card.
///
/// # Errors
/// When it is not there.
#[doc(alias = "ETHTOOL_GTXCSUM")]
pub fn checksums(name: &str) -> Result<bool> {
    ask(name, ETHTOOL_GTXCSUM, 0).map(|value| value != 0)
}

/// Has a link leave checksums to the card, or not.
///
/// # Errors
/// When it is not there, or cannot.
#[doc(alias = "ETHTOOL_STXCSUM")]
pub fn set_checksums(name: &str, on: bool) -> Result<()> {
    ask(name, ETHTOOL_STXCSUM, on.into()).map(drop)
}

fn ask(name: &str, command: u32, value: u32) -> Result<u32> {
    let error = |errno| Error::new("set the offloads of", format!("`{name}`"), errno);
    if name.len() >= libc::IFNAMSIZ {
        return Err(error(Errno::NAMETOOLONG));
    }
    let socket: OwnedFd =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(error)?;
    // `struct ethtool_value`: the command and its value; and `struct ifreq`: the name, and here where that is.
    let mut pair = [command, value];
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let at = pair.as_mut_ptr() as usize;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + size_of::<usize>()].copy_from_slice(&at.to_ne_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, which is 40 bytes, and the two numbers it leads to; both live on.
    unsafe { call(&socket, SIOCETHTOOL, request.as_mut_ptr() as c_ulong) }.map_err(error)?;
    Ok(std::hint::black_box(pair)[1])
}

const SIOCETHTOOL: c_ulong = 0x8946;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
