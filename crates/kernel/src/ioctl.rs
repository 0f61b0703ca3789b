//! What is asked of links by `ioctl` (netdevice(7)).

use std::{
    ffi::{c_int, c_ulong},
    os::fd::AsRawFd,
};

use rustix::io::Errno;

use crate::error::checked;

/// A `struct ifreq`: the name of a link, and behind it what the request is about.
pub(crate) struct LinkRequest([u8; 40]);

impl LinkRequest {
    /// Names the link; fails as the kernel would when no link can be called so.
    pub(crate) fn of(name: &str) -> Result<Self, Errno> {
        if name.len() >= libc::IFNAMSIZ {
            return Err(Errno::NAMETOOLONG);
        }
        let mut request = [0; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self(request))
    }

    /// Returns what is behind the name, to be written before the call and read after it.
    pub(crate) fn subject(&mut self) -> &mut [u8] {
        &mut self.0[libc::IFNAMSIZ..]
    }

    /// Asks.
    ///
    /// # Safety
    /// The request must be one that takes a `struct ifreq`; where it takes one that points elsewhere, that must be there.
    pub(crate) unsafe fn ask(&mut self, device: &impl AsRawFd, request: c_ulong) -> Result<(), Errno> {
        // SAFETY: the kernel reads and writes a `struct ifreq`, which is 40 bytes, and the buffer lives on.
        unsafe { call(device, request, self.0.as_mut_ptr() as c_ulong) }.map(drop)
    }

    /// Asks the link's driver (ethtool(8)).
    ///
    /// # Safety
    /// The first number is the command, and there must be as many as the structure that it takes is long.
    pub(crate) unsafe fn ask_driver(
        &mut self,
        device: &impl AsRawFd,
        numbers: &mut [u32],
    ) -> Result<(), Errno> {
        // Behind the name is where the structure is.
        let at = numbers.as_mut_ptr().expose_provenance();
        self.subject()[..size_of::<usize>()].copy_from_slice(&at.to_ne_bytes());
        // SAFETY: the kernel reads and writes the numbers, which live on; the caller vouches for their count.
        unsafe { self.ask(device, SIOCETHTOOL) }
    }
}

/// `linux/sockios.h`.
const SIOCETHTOOL: c_ulong = 0x8946;

/// # Safety
/// The argument must be what the request takes.
pub(crate) unsafe fn call(
    device: &impl AsRawFd,
    request: c_ulong,
    argument: c_ulong,
) -> Result<c_int, Errno> {
    // SAFETY: the descriptor is open; the caller vouches for the argument.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request as _, argument) })
}
