//! `cargo +nightly fuzz run netlink`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::netlink(bytes));

#[cfg(not(fuzzing))]
fn main() {}
