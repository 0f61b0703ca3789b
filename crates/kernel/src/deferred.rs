//! Calls that wait for the kernel's grace periods, made by a child process that the caller does not wait for.
//!
//! The kernel acknowledges a link's removal 15 to 60 ms after the link is gone (`rcu_barrier` in `netdev_run_todo`). Closing a
//! netfilter socket waits as long if anything was removed from the ruleset (`nft_rcv_nl_event`). A forked child makes these
//! calls: it keeps no descriptor of its parent but the sockets that it needs, runs in a session of its own, and ends by itself.

mod reaper;

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use reaper::Orphan;

use crate::{
    error::{Error, Result, absent_is_none},
    events::Events,
    inject,
    link::{self, Link},
    socket::{Protocol, Socket},
};

static WAIT: AtomicBool = AtomicBool::new(false);

/// Makes every call in this module wait in the calling process, for callers that examine what the kernel frees.
pub fn wait_always() {
    WAIT.store(true, Ordering::Relaxed);
}

/// Removes a link as [`link::remove`] does, and returns when the kernel announces that it is gone. Succeeds if the link does not
/// exist.
///
/// `socket` must belong to the namespace of the calling thread.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove_link(socket: &Socket, link: &Link) -> Result<()> {
    let Some(orphan) = permit() else { return link::remove(socket, link) };
    inject::point("remove link", &link.name)?;
    // The socket listens before the child starts, so the announcement cannot be missed.
    let events = Events::of_links()?;
    let (mut message, object) = (link::removal(link), format!("`{}`", link.name));
    let sequence = socket.reserve();
    let bytes = message.finish(sequence).to_vec();
    let error = |errno| Error::new("remove link", &object, errno);
    let (ended, end) = pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
    // SAFETY: the child only makes system calls, with arguments prepared before the fork, and does not return.
    match unsafe { libc::fork() } {
        -1 => return link::remove(socket, link),
        0 => {
            let fd = socket.as_fd().as_raw_fd();
            keep_only(&mut [fd, end.as_raw_fd()]);
            // SAFETY: the buffer is alive and has the given length.
            unsafe {
                libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0);
                libc::_exit(0);
            }
        }
        child => {
            orphan.created(child);
            drop(end);
        }
    }
    loop {
        let mut fds = [
            PollFd::new(&events, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            other => other.map_err(error)?,
        };
        let [announced, answered, child_ended] = fds.map(|fd| !fd.revents().is_empty());
        if answered && let Some(refusal) = socket.refusal_of(sequence).map_err(error)? {
            return absent_is_none(Err::<(), _>(refusal.into_error("remove link", object))).map(drop);
        }
        if announced && events.announces_removal(link.index).map_err(error)? {
            return Ok(());
        }
        if child_ended {
            // The child was killed, or its announcement was among those that overflowed the socket.
            return link::remove(socket, link);
        }
    }
}

/// Opens a netfilter socket that a child closes last. The last close waits, with the ruleset's lock held, for everything that any
/// process removed a moment ago, so this helps callers that add or list as much as those that remove.
///
/// If no child can be created the caller's own close waits.
///
/// # Errors
/// If the kernel has no netfilter, or descriptors or memory have run out.
pub fn netfilter() -> Result<Socket> {
    let socket = Socket::open(Protocol::Netfilter)?;
    if let Some(orphan) = permit() {
        leave(&socket, orphan);
    }
    Ok(socket)
}

/// Returns the permission to create a child that outlives this process, or `None` if the caller must wait itself.
fn permit() -> Option<Orphan> {
    if WAIT.load(Ordering::Relaxed) { None } else { Orphan::permit() }
}

fn leave(socket: &Socket, orphan: Orphan) {
    let Ok((parent_lives, held)) = pipe_with(PipeFlags::CLOEXEC) else { return };
    // SAFETY: the child only makes system calls, with arguments prepared before the fork, and does not return.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let (fd, parent) = (socket.as_fd().as_raw_fd(), parent_lives.as_raw_fd());
        let mut end = libc::pollfd { fd: parent, events: 0, revents: 0 };
        // SAFETY: the descriptors are open. The pipe carries no data; it ends when the parent does, since the child's own copy
        // of the writing end is closed first.
        unsafe {
            libc::close(held.as_raw_fd());
            keep_only(&mut [fd, parent]);
            libc::poll(&raw mut end, 1, PATIENCE);
            let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
            libc::poll(std::ptr::null_mut(), 0, until_close(&now));
            libc::_exit(0);
        }
    }
    if child > 0 {
        orphan.created(child);
    }
    // Open until this process ends, which lets the child go on.
    std::mem::forget(held);
}

/// Returns how long a child keeps the socket after its parent's end, in milliseconds: until what was removed has been freed, and
/// on to the next time at which all children close theirs.
///
/// On a busy host something is always being removed, and a close waits for it with the ruleset's lock (`commit_mutex`) held,
/// which blocks all changes of the ruleset and the creation of links. If all children close at the same time the first one waits
/// and the others find nothing left. If each closes at its own time, this wait limits the rate of containers.
fn until_close(now: &libc::timespec) -> libc::c_int {
    let now = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    let freed = now + GRACE;
    let close = (freed / TOGETHER + 1) * TOGETHER;
    libc::c_int::try_from(close - now).unwrap_or(0)
}

/// Time until the kernel has usually freed what was removed, in milliseconds.
const GRACE: i64 = 50;
/// Interval at which children close their sockets, in milliseconds of the monotonic clock.
const TOGETHER: i64 = 200;

/// Time that a child waits for its parent's end, in milliseconds. The close of a parent that lives longer waits itself.
const PATIENCE: libc::c_int = 30_000;

/// Closes all but two descriptors and starts a new session. Only for the child.
fn keep_only(fds: &mut [RawFd; 2]) {
    fds.sort_unstable();
    let [a, b] = fds.map(RawFd::cast_unsigned);
    let ranges = [(0, a.checked_sub(1)), (a + 1, b.checked_sub(1)), (b + 1, Some(u32::MAX))];
    // SAFETY: plain system calls; the child uses none of the closed descriptors.
    unsafe {
        libc::setsid();
        for (first, last) in ranges {
            if let Some(last) = last.filter(|last| first <= *last) {
                libc::syscall(libc::SYS_close_range, first, last, 0);
            }
        }
    }
}
