//! `ioctl` requests for links (netdevice(7)).

use std::{
    ffi::{c_int, c_ulong},
    os::fd::AsRawFd,
};

use rustix::io::Errno;

use crate::error::checked;

/// A `struct ifreq`: the name of a link, followed by the data of the request.
pub(crate) struct LinkRequest([u8; 40]);

impl LinkRequest {
    /// Creates a request for a link. Fails as the kernel does if the name is invalid.
    pub(crate) fn of(name: &str) -> Result<Self, Errno> {
        if name.len() >= libc::IFNAMSIZ {
            return Err(Errno::NAMETOOLONG);
        }
        let mut request = [0; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self(request))
    }

    /// Returns the data after the name, which the caller writes before the call and reads after it.
    pub(crate) fn subject(&mut self) -> &mut [u8] {
        &mut self.0[libc::IFNAMSIZ..]
    }

    /// Sends the request.
    ///
    /// # Safety
    /// The request must take a `struct ifreq`. A pointer in it must be valid.
    pub(crate) unsafe fn ask(&mut self, device: &impl AsRawFd, request: c_ulong) -> Result<(), Errno> {
        // SAFETY: the kernel reads and writes a `struct ifreq`, which is 40 bytes, and the buffer outlives the call.
        unsafe { call(device, request, self.0.as_mut_ptr() as c_ulong) }.map(drop)
    }

    /// Sends a request to the link's driver (ethtool(8)).
    ///
    /// # Safety
    /// The first number is the command. The slice must be as long as the structure of that command.
    pub(crate) unsafe fn ask_driver(
        &mut self,
        device: &impl AsRawFd,
        numbers: &mut [u32],
    ) -> Result<(), Errno> {
        // The pointer to the structure follows the name.
        let at = numbers.as_mut_ptr().expose_provenance();
        self.subject()[..size_of::<usize>()].copy_from_slice(&at.to_ne_bytes());
        // SAFETY: the kernel reads and writes the numbers, which outlive the call; the caller guarantees their count.
        unsafe { self.ask(device, SIOCETHTOOL) }
    }
}

/// `linux/sockios.h`.
const SIOCETHTOOL: c_ulong = 0x8946;

/// # Safety
/// The argument must be valid for the request.
pub(crate) unsafe fn call(
    device: &impl AsRawFd,
    request: c_ulong,
    argument: c_ulong,
) -> Result<c_int, Errno> {
    // SAFETY: the descriptor is open; the caller guarantees the argument.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request as _, argument) })
}
