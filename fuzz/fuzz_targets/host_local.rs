//! `cargo +nightly fuzz run host_local`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::host_local(bytes));

#[cfg(not(fuzzing))]
fn main() {}
