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
    match plugin_for(name) {
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

/// Finds the plugin for a program name. A plugin may be installed under a longer name, such as `cnv-bridge` or `bridge-v1`: in a
/// call by a runtime, the longest plugin name at either end counts.
fn plugin_for(name: &str) -> Option<&'static dyn netloom_plugin::Plugin> {
    let is_end_of = |plugin: &str| {
        let apart = |rest: &str| rest.starts_with(['-', '_', '.']) || rest.ends_with(['-', '_', '.']);
        name.strip_prefix(plugin).is_some_and(apart) || name.strip_suffix(plugin).is_some_and(apart)
    };
    plugins::by_name(name).or_else(|| {
        let is_call = !["netloom", "cnitool"].contains(&name) && std::env::var_os("CNI_COMMAND").is_some();
        let candidates = plugins::ALL.into_iter().filter(|plugin| is_call && is_end_of(plugin.name()));
        candidates.max_by_key(|plugin| plugin.name().len())
    })
}
