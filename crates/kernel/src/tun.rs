//! TAP links, whose frames a program reads and writes (Documentation/networking/tuntap.rst).

use std::{
    ffi::c_ulong,
    fs::{self, OpenOptions},
};

use crate::{
    error::{Error, Result},
    inject,
    ioctl::{LinkRequest, call},
};

/// The parameters of a new TAP link.
#[derive(Debug, Clone, Copy)]
pub struct Tap<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether several programs or threads may read and write it at once.
    pub multi_queue: bool,
    /// The user that may open it besides root.
    pub owner: Option<u32>,
    /// The group that may open it.
    pub group: Option<u32>,
    /// The SELinux context of the link.
    pub context: Option<&'a str>,
}

/// Creates a persistent TAP link in the calling thread's namespace.
///
/// # Errors
/// [`crate::Kind::Busy`] if the name is taken. Also fails without `/dev/net/tun` or the driver.
#[doc(alias = "TUNSETIFF")]
pub fn create(tap: &Tap<'_>) -> Result<()> {
    let error = |errno| Error::new("create TAP link", format!("`{}`", tap.name), errno);
    inject::point("create TAP link", tap.name)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|source| Error::from_io("open", "/dev/net/tun", &source))?;
    // The link gets the context of the thread that creates it. A process with one thread may change its context without running
    // another program, if the policy allows it (`process dyntransition`).
    let _back = tap.context.map(Context::enter).transpose()?;
    let mut request = LinkRequest::of(tap.name).map_err(error)?;
    let mut flags: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    if tap.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.subject()[..2].copy_from_slice(&(flags.cast_unsigned() as u16).to_ne_bytes());
    // SAFETY: this request takes the flags after the name.
    unsafe { request.ask(&device, TUNSETIFF) }.map_err(error)?;
    let numbers = [(TUNSETOWNER, tap.owner), (TUNSETGROUP, tap.group), (TUNSETPERSIST, Some(1))];
    for (request, number) in numbers {
        if let Some(number) = number {
            // SAFETY: these requests take a number in place of a pointer.
            unsafe { call(&device, request, number.into()) }.map_err(error)?;
        }
    }
    Ok(())
}

/// The previous context of the thread, restored on drop.
struct Context(String);

const CONTEXT: &str = "/proc/thread-self/attr/current";

impl Context {
    fn enter(context: &str) -> Result<Self> {
        let error = |doing| move |source: std::io::Error| Error::from_io(doing, CONTEXT, &source);
        let before = fs::read_to_string(CONTEXT).map_err(error("read"))?;
        fs::write(CONTEXT, context).map_err(error("write the SELinux context to"))?;
        Ok(Self(before))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // If the policy forbids the return, the thread keeps the context of the link.
        drop(fs::write(CONTEXT, &self.0));
    }
}

/// `_IOW('T', …, int)` of `linux/if_tun.h`.
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETPERSIST: c_ulong = 0x4004_54cb;
const TUNSETOWNER: c_ulong = 0x4004_54cc;
const TUNSETGROUP: c_ulong = 0x4004_54ce;
