//! The multi-call binary: the name it is called by selects a plugin, `cnitool` or the command line.
#![forbid(unsafe_code)]

mod command;
mod dhcp_daemon;

use std::{ffi::OsStr, path::Path, process::ExitCode};

/// The C library's allocator took half of a plugin's user time and made some thirty calls of mmap and munmap.
#[global_allocator]
static HEAP: kernel::heap::Heap = kernel::heap::Heap::new();

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or_default();
    if name == "dhcp" && std::env::args_os().nth(1).is_some_and(|argument| argument == "daemon") {
        return dhcp_daemon::main();
    }
    match plugins::by_name(name) {
        Some(plugin) => {
            // By default DEL lets a child process wait for the kernel's grace periods. Tests and benchmarks that inspect
            // what the kernel has freed make it wait itself.
            if std::env::var_os("NETLOOM_WAIT").is_some_and(|value| value == "1") {
                kernel::deferred::wait_always();
            }
            let code = netloom_plugin::main_with(&plugins::WaitForRemoval(plugin), plugins::LINKED);
            drop(std::io::Write::flush(&mut std::io::stdout()));
            kernel::process::end((code != ExitCode::SUCCESS).into())
        }
        None => command::main(name == "cnitool"),
    }
}
