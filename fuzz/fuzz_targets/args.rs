//! `cargo +nightly fuzz run args`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::args(bytes));

#[cfg(not(fuzzing))]
fn main() {}
