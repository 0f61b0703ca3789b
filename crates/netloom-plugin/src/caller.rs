//! Whether the runtime that called the plugin still exists.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Returns whether the runtime has died since it created the pipe for this call's answer: nothing reads the answer any more.
///
/// GC removes what its list of valid attachments does not name. The list is complete only while the runtime holds its ADDs back,
/// and the locks of a dead runtime are released. GC therefore asks between reading what exists and removing it, with the lock of
/// the store held, or in a transaction that fails after another change: what was added since is then not removed.
pub fn is_abandoned() -> bool {
    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}
