//! The time and the random numbers that the clients receive.

use std::time::Duration;

use rustix::{
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_gettime},
};

use crate::lease::Time;

/// Returns the time since the machine started, sleep included.
pub(super) fn boottime() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// Returns a random number.
pub(super) fn random() -> u32 {
    let mut bytes = [0; 4];
    // Early at boot the kernel may have no random numbers yet: use the clock instead.
    if getrandom(&mut bytes[..], GetRandomFlags::NONBLOCK).is_err() {
        return boottime().subsec_nanos();
    }
    u32::from_ne_bytes(bytes)
}
