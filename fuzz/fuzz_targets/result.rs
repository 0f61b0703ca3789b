//! `cargo +nightly fuzz run result`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::result(bytes));

#[cfg(not(fuzzing))]
fn main() {}
