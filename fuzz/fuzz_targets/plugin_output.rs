//! `cargo +nightly fuzz run plugin_output`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::plugin_output(bytes));

#[cfg(not(fuzzing))]
fn main() {}
