//! Has the linker of a release put side by side what plugins' calls run: see `cargo xtask hot`.

fn main() {
    println!("cargo::rerun-if-changed=hot.ld");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if is_release {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{dir}/hot.ld");
    }
}
