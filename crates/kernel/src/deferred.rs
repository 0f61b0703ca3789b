//! Leaving the kernel's grace periods to a process that nobody waits for.
//!
//! The answer to a link's removal comes 15 to 60 ms after the link is gone for everybody (`rcu_barrier` in
//! `netdev_run_todo`), and closing a netfilter socket waits as long after something was removed from the ruleset
//! (`nft_rcv_nl_event`). A child made by a plain `fork` makes those calls: it holds nothing of its parent's but the
//! sockets that it needs, belongs to a session of its own, and ends by itself.

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

/// Has everything here waited for after all, as somebody wants who looks at what the kernel frees.
pub fn wait_always() {
    WAIT.store(true, Ordering::Relaxed);
}

/// Removes a link as [`link::remove`] does, and returns once it is gone for everybody. Absent is fine.
///
/// `socket` belongs to the calling thread's namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_link(socket: &Socket, link: &Link) -> Result<()> {
    let Some(orphan) = permit() else { return link::remove(socket, link) };
    inject::point("remove link", &link.name)?;
    // The announcement cannot be missed: the ear is open before the child begins.
    let events = Events::of_links()?;
    let (mut message, object) = (link::removal(link), format!("`{}`", link.name));
    let sequence = socket.reserve();
    let bytes = message.finish(sequence).to_vec();
    let error = |errno| Error::new("remove link", &object, errno);
    let (ended, end) = pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
    // SAFETY: the child makes system calls alone, on what was made ready before, and does not return.
    match unsafe { libc::fork() } {
        -1 => return link::remove(socket, link),
        0 => {
            let fd = socket.as_fd().as_raw_fd();
            keep_only(&mut [fd, end.as_raw_fd()]);
            // SAFETY: the buffer is alive and as long as is said.
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
            // It has done its work and more was announced than was read, or somebody killed it.
            return link::remove(socket, link);
        }
    }
}

/// Opens a netfilter socket whose last close is left to a child. It waits, with the ruleset's lock held, for whatever was
/// removed by anybody a moment ago, so this is as good for who adds and who looks as it is for who removes.
///
/// Where no child can be made the caller is the last, and only waits.
///
/// # Errors
/// When the kernel has no netfilter, or file descriptors or memory have run out.
pub fn netfilter() -> Result<Socket> {
    let socket = Socket::open(Protocol::Netfilter)?;
    if let Some(orphan) = permit() {
        leave(&socket, orphan);
    }
    Ok(socket)
}

/// Returns the permission to create a child that outlives this process, unless everything is waited for or nobody would reap it.
fn permit() -> Option<Orphan> {
    if WAIT.load(Ordering::Relaxed) { None } else { Orphan::permit() }
}

fn leave(socket: &Socket, orphan: Orphan) {
    let Ok((parent_lives, held)) = pipe_with(PipeFlags::CLOEXEC) else { return };
    // SAFETY: the child makes system calls alone, on what was made ready before, and does not return.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let (fd, parent) = (socket.as_fd().as_raw_fd(), parent_lives.as_raw_fd());
        let mut end = libc::pollfd { fd: parent, events: 0, revents: 0 };
        // SAFETY: the descriptors are open, and one is what is polled. Nothing ever comes but the end, when the parent has
        // ended: this one's own copy of the other side is closed first, and must not be all that is waited for if it was not.
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
    // Closed when this process ends, before the child may go on.
    std::mem::forget(held);
}

/// How long a child keeps the socket after its parent's end, in milliseconds: until what was removed has been freed, and on
/// to a time at which all children close theirs. The first close waits, with the ruleset's lock held (`commit_mutex`), for
/// what is removed all the time on a busy host, and any other change of the ruleset and any new link with it; the others
/// then find nothing to wait for. Each at its own time, it is that wait that limits how many containers come and go.
fn until_close(now: &libc::timespec) -> libc::c_int {
    let now = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    let freed = now + GRACE;
    let close = (freed / TOGETHER + 1) * TOGETHER;
    libc::c_int::try_from(close - now).unwrap_or(0)
}

/// How long it takes at most, most of the time, until what was removed has been freed, in milliseconds.
const GRACE: i64 = 50;
/// How often sockets are closed, in milliseconds of the monotonic clock.
const TOGETHER: i64 = 200;

/// How long a child waits for its parent's end, in milliseconds. A parent that lives longer waits itself.
const PATIENCE: libc::c_int = 30_000;

/// Closes everything but two descriptors, in a session of its own. For the child alone.
fn keep_only(fds: &mut [RawFd; 2]) {
    fds.sort_unstable();
    let [a, b] = fds.map(RawFd::cast_unsigned);
    let ranges = [(0, a.checked_sub(1)), (a + 1, b.checked_sub(1)), (b + 1, Some(u32::MAX))];
    // SAFETY: plain system calls; nothing in the child uses what is closed.
    unsafe {
        libc::setsid();
        for (first, last) in ranges {
            if let Some(last) = last.filter(|last| first <= *last) {
                libc::syscall(libc::SYS_close_range, first, last, 0);
            }
        }
    }
}
