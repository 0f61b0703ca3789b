//! The file system of the state, which fills up and is freed at random.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use testkit::Random;

use super::{Storm, place::Place};
use crate::Outcome;

/// The thread number of the filler's random sequence.
const FILLER: u64 = u64::MAX;

/// The small file system below `/var/lib/cni`.
pub(super) struct Disk {
    root: PathBuf,
    /// Odd while the file system may be full.
    changes: AtomicU64,
}

impl Disk {
    pub(super) fn of(place: &Place) -> Self {
        Self { root: place.path("/var/lib/cni"), changes: AtomicU64::new(0) }
    }

    /// Returns a moment, for [`Self::was_full_since`].
    pub(super) fn now(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Returns whether the file system may have been full at any time since a moment.
    pub(super) fn was_full_since(&self, moment: u64) -> bool {
        moment % 2 == 1 || self.now() != moment
    }

    /// Fills and frees the file system until the storm is over, in turn its blocks and its inodes.
    pub(super) fn fill_at_random(&self, storm: &Storm) -> Outcome {
        let mut random = Random::of_thread(storm.options.seed, FILLER);
        while !storm.is_over() {
            // The moments are random by design; there is no event to wait for.
            std::thread::sleep(Duration::from_millis(2000 + random.below(10_000)));
            let fill = if random.below(2) == 0 { Self::fill_blocks } else { Self::fill_inodes };
            self.changes.fetch_add(1, Ordering::SeqCst);
            let filled = fill(self);
            std::thread::sleep(Duration::from_millis(100 + random.below(700)));
            let freed = std::fs::remove_dir_all(self.filling());
            self.changes.fetch_add(1, Ordering::SeqCst);
            filled.and(freed).map_err(|error| format!("fill the disk: {error}"))?;
            storm.tally.count("times that the disk was full");
        }
        Ok(())
    }

    fn filling(&self) -> PathBuf {
        self.root.join("filling")
    }

    fn fill_blocks(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.filling())?;
        let mut file = File::create(self.filling().join("blocks"))?;
        until_full(|| file.write_all(&[1; 4096]))
    }

    fn fill_inodes(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.filling())?;
        let mut number = 0;
        until_full(|| {
            number += 1;
            File::create(self.filling().join(number.to_string())).map(drop)
        })
    }
}

fn until_full(mut write: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    loop {
        match write() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
