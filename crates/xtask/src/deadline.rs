//! Waits for processes with a deadline.

use std::{io, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// Waits until a process has ended, and leaves it to be reaped. Returns false after `limit`.
pub(crate) fn ends_within(process: Pid, limit: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(process, PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    Ok(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))? > 0)
}
