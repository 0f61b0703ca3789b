//! Passes `hot.ld`, the order of the functions, to the linker if `NETLOOM_SECTION_ORDER` is set, as `cargo xtask dist` does.
//!
//! A plain build passes no argument to the linker: mold and old versions of lld refuse a script that inserts sections.

fn main() {
    println!("cargo::rerun-if-env-changed=NETLOOM_SECTION_ORDER");
    println!("cargo::rerun-if-changed=hot.ld");
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if std::env::var_os("NETLOOM_SECTION_ORDER").is_some() {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{dir}/hot.ld");
    }
}
