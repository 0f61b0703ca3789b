//! Watches folders (inotify(7)), and notices when it no longer can.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, ReadFlags, WatchFlags},
    io::Errno,
};

/// A watch of some folders.
#[derive(Debug)]
pub(crate) struct FolderWatch {
    listener: OwnedFd,
    folders: Vec<PathBuf>,
}

impl FolderWatch {
    /// Watches folders, which must exist, for the given events.
    pub(crate) fn open(folders: &[PathBuf], events: WatchFlags) -> io::Result<Self> {
        let listener = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let of_folder = WatchFlags::ONLYDIR | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        for folder in folders {
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
            inotify::add_watch(&listener, folder, events | of_folder).map_err(|errno| named(errno.into()))?;
        }
        Ok(Self { listener, folders: folders.to_owned() })
    }

    /// Waits until a folder exists. Returns at once if it does.
    pub(crate) fn wait_until_exists(folder: &Path) -> io::Result<()> {
        let nearest = || folder.ancestors().find(|ancestor| ancestor.is_dir()).map(Path::to_owned);
        while let Some(ancestor) = nearest().filter(|ancestor| ancestor != folder) {
            let watch =
                Self::open(std::slice::from_ref(&ancestor), WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
            // Unless it was created before the watch.
            if nearest().as_ref() == Some(&ancestor) {
                watch.wait(None, |_| true)?;
            }
        }
        Ok(())
    }

    /// Waits for events, and returns whether one of them is of a file for which `matters` holds. Returns true if events were lost.
    ///
    /// # Errors
    /// If a folder is gone or was replaced: the watch must be opened again.
    pub(crate) fn wait(&self, limit: Option<Duration>, matters: impl Fn(&Path) -> bool) -> io::Result<bool> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.listener, &mut buffer);
        let mut any = false;
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(any),
                Err(errno) => return Err(errno.into()),
            };
            let flags = event.events();
            if flags.intersects(
                ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF,
            ) {
                let folders: Vec<String> = self.folders.iter().map(|it| it.display().to_string()).collect();
                return Err(io::Error::other(format!("{} was moved or removed", folders.join(" or "))));
            }
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            any |= flags.contains(ReadFlags::QUEUE_OVERFLOW)
                || name.is_some_and(|name| matters(Path::new(&name)));
        }
    }
}
