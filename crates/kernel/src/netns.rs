//! Network namespaces: opening by path, running code inside, and creation and removal of named ones.

use std::{
    ffi::c_ulong,
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, UnshareFlags},
};

use crate::{
    error::{Error, Kind, Result},
    inject, ioctl,
    message::{Attrs, Message, read_u32},
    socket::{REQUEST, Socket},
    waiting::{self, Lock},
};

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    path: PathBuf,
}

const NSFS_MAGIC: u64 = 0x6e73_6673;
const OWN: &str = "/proc/thread-self/ns/net";

impl Netns {
    /// Opens the namespace that is mounted at a path, or that a link in `/proc` leads to.
    ///
    /// # Errors
    /// If the path does not exist or is not a namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let error = |errno| Error::new("open network namespace", path.display(), errno);
        // Without blocking, in case the path leads to a pipe.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(error)?;
        let magic = rustix::fs::fstatfs(&fd).map_err(error)?.f_type;
        if u64::try_from(magic) != Ok(NSFS_MAGIC) {
            return Err(Error {
                extack: Some("this path is no namespace, or the namespace there is gone".into()),
                ..error(Errno::NOENT)
            });
        }
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the calling thread's namespace.
    ///
    /// # Errors
    /// If the process lacks the capability to administer it, and `/proc` is not mounted.
    pub fn own() -> Result<Self> {
        // A socket knows its namespace. A lookup in `/proc` makes the kernel create five entries for this process, and free
        // them at its end.
        match of_new_socket() {
            Ok(fd) => Ok(Self { fd, path: OWN.into() }),
            Err(_) => Self::open(Path::new(OWN)),
        }
    }

    /// Returns the path that the namespace was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether both are the same namespace.
    ///
    /// # Errors
    /// If one of them cannot be examined.
    pub fn is(&self, other: &Self) -> Result<bool> {
        Ok(self.identity()? == other.identity()?)
    }

    /// Returns device and inode, which are unique as long as the namespace exists.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub fn identity(&self) -> Result<(u64, u64)> {
        rustix::fs::fstat(&self.fd)
            .map(|stat| (stat.st_dev, stat.st_ino))
            .map_err(|errno| Error::new("examine network namespace", self.path.display(), errno))
    }

    /// Runs `work` on this thread in this namespace, and returns to the previous one.
    ///
    /// A [`crate::Socket`] opened meanwhile stays in this namespace. If the thread cannot return, the process ends, because it
    /// would change the wrong namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.run_from(&Self::own()?, work)
    }

    /// Acts as [`Self::run`], for a caller that has its own namespace open already.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run_from<T>(&self, host: &Self, work: impl FnOnce() -> T) -> Result<T> {
        self.enter()?;
        let back = Back(host);
        let result = work();
        drop(back);
        Ok(result)
    }

    /// Locks the namespace until the returned descriptor is dropped. Other callers of this function wait.
    ///
    /// # Errors
    /// If it cannot be locked.
    pub fn lock(&self) -> Result<OwnedFd> {
        let error = |errno| Error::new("lock network namespace", self.path.display(), errno);
        // A lock belongs to an open file description, so the file is opened again.
        let fd =
            rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(error)?;
        rustix::io::retry_on_intr(|| waiting::lock(&fd, &self.path, Lock::Exclusive)).map_err(error)?;
        Ok(fd)
    }

    /// Moves the calling thread into this namespace permanently, for a thread or process that runs a command.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn enter(&self) -> Result<()> {
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| Error::new("enter network namespace", self.path.display(), errno))
    }

    /// Creates a namespace and mounts it at `path`, as `ip netns add` does.
    ///
    /// The calling thread returns to its previous namespace.
    ///
    /// # Errors
    /// If the path exists, or the process may not create namespaces.
    pub fn create(path: &Path) -> Result<Self> {
        let error = |doing| move |errno| Error::new(doing, path.display(), errno);
        let io = |doing| move |error: std::io::Error| Error::from_io(doing, path.display(), &error);
        inject::point("create network namespace", &path.display().to_string())?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io("create the folder of"))?;
        }
        fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(io("create file"))?;
        let host = Self::own()?;
        // SAFETY: only the network namespace of this thread changes, and `Back` restores it.
        let made = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(error("create network namespace"))
            .and_then(|()| {
                let back = Back(&host);
                let mounted =
                    rustix::mount::mount_bind(OWN, path).map_err(error("mount network namespace at"));
                drop(back);
                mounted
            })
            .and_then(|()| Self::open(path));
        if made.is_err() {
            // The first error is the one to report. Who may not mount may not unmount, but owns the file.
            drop(Self::remove(path));
            drop(fs::remove_file(path));
        }
        made
    }

    /// Unmounts and removes a named namespace. The kernel frees it when its last user ends. Succeeds if it is already gone.
    ///
    /// # Errors
    /// If it cannot be unmounted or the file cannot be removed.
    pub fn remove(path: &Path) -> Result<()> {
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(Error::new("unmount network namespace", path.display(), errno)),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::from_io("remove file", path.display(), &error))
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves this thread to a new mount namespace, whose mounts do not propagate to the host.
///
/// # Errors
/// If the process lacks the capability.
pub fn unshare_mounts() -> Result<()> {
    // SAFETY: the caller requests a mount namespace for its own thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .and_then(|()| {
            rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        })
        .map_err(|errno| Error::new("create", "a mount namespace", errno))
}

/// Mounts the `/sys` of the calling thread's network namespace.
///
/// # Errors
/// If it cannot be mounted.
pub fn mount_sys() -> Result<()> {
    rustix::mount::mount("sysfs", "/sys", "sysfs", rustix::mount::MountFlags::empty(), None)
        .map_err(|errno| Error::new("mount", "/sys", errno))
}

/// Bind-mounts one file over another, in the calling thread's mount namespace.
///
/// # Errors
/// If one of them does not exist.
pub fn mount_file(file: &Path, over: &Path) -> Result<()> {
    rustix::mount::mount_bind(file, over)
        .map_err(|errno| Error::new("mount a file over", over.display(), errno))
}

/// Returns the number of another namespace in the socket's namespace, or `None` if it has none: no link there has its peer in
/// `netns`. Source: `include/uapi/linux/net_namespace.h`.
///
/// # Errors
/// If the kernel refuses the request.
#[doc(alias = "RTM_GETNSID")]
pub fn number_in(socket: &Socket, netns: &Netns) -> Result<Option<i32>> {
    // `struct rtgenmsg`, padded to the alignment of attributes.
    let mut message = Message::new(libc::RTM_GETNSID, REQUEST, &[0; 4]);
    message.attr(NETNSA_FD, &netns.fd.as_raw_fd().to_ne_bytes());
    let mut number = None;
    socket.ask(message, "find number of network namespace", &netns.path.display(), |received| {
        number = Attrs::after(received.payload, 4).find(NETNSA_NSID).and_then(read_u32).map(u32::cast_signed);
    })?;
    Ok(number.filter(|number| *number >= 0))
}

const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Returns whether an error means that a namespace is gone, which DEL must tolerate.
pub fn is_gone(error: &Error) -> bool {
    error.kind() == Kind::NotFound || error.errno == Errno::NOTDIR
}

/// Opens the calling thread's namespace via a new socket (`linux/sockios.h`, Linux 4.9).
fn of_new_socket() -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: this request takes no argument.
    let fd = unsafe { ioctl::call(&socket, SIOCGSKNS, 0) }?;
    // SAFETY: the kernel created this descriptor for this call, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const SIOCGSKNS: c_ulong = 0x894c;

struct Back<'a>(&'a Netns);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if self.0.enter().is_err() {
            std::process::abort();
        }
    }
}
