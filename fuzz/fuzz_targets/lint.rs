//! `cargo +nightly fuzz run lint`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::linted(bytes));

#[cfg(not(fuzzing))]
fn main() {}
