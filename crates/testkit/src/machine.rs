//! Tests on another kernel, in QEMU, with this machine's file system.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Host, is_root, say_skipped};

/// The init script of the other kernel. It mounts folders of its own over those that must not be this machine's, runs some
/// tests of the program that started it, and powers off.
const INIT: &str = r#"#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t tmpfs none /run; mount -t tmpfs none /var/lib
mount -t devtmpfs none /dev; mount -t cgroup2 none /sys/fs/cgroup
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# The kernel loads modules with this program, which knows their folder.
printf '#!/bin/sh\nexec /sbin/modprobe -d @KERNEL@ "$@"\n' >/usr/local/sbin/modprobe-here
chmod +x /usr/local/sbin/modprobe-here
echo /usr/local/sbin/modprobe-here >/proc/sys/kernel/modprobe
modprobe-here tun
# Starting programs takes most of the time. Static programs take a third of it.
for program in mount mkdir; do ln -s "$(command -v busybox)" /usr/local/sbin/$program; done
ip link set lo up
mkdir -p /run/netns
cd /
for test in @TESTS@; do
    env @SETTINGS@ @PROGRAM@ --exact $test --nocapture
    echo "$test ended with $?"
done
poweroff -f
"#;

/// Runs tests of the calling program on the kernel in the folder `NETLOOM_KERNEL` and returns their output. Returns `None`
/// without such a folder, or if the shell line `lacks` succeeds on this machine's kernel: the tests have run there already.
///
/// `scratch` is a folder for temporary files; `settings` is the environment of the tests.
pub fn on_other_kernel(
    lacks: &str,
    scratch: &Path,
    settings: &[(&str, &str)],
    tests: &[&str],
) -> Option<String> {
    let kernel = std::env::var_os("NETLOOM_KERNEL").map(PathBuf::from).filter(|_| is_root());
    let Some(kernel) = kernel else {
        say_skipped("NETLOOM_KERNEL does not name the folder of a kernel; `cargo xtask kernel` makes one");
        return None;
    };
    let host = Host::new();
    if std::env::var_os("NETLOOM_KERNEL_TESTS").is_none() && host.succeeds(lacks) {
        return None;
    }
    let shown = |path: &Path| path.canonicalize().expect("a path that is there").display().to_string();
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name}='{value}'")).collect();
    let script = INIT
        .replace("@KERNEL@", &shown(&kernel))
        .replace("@SETTINGS@", &settings.join(" "))
        .replace("@TESTS@", &tests.join(" "))
        .replace("@PROGRAM@", &shown(&std::env::current_exe().expect("the program of the tests")));
    let init = scratch.join("init");
    std::fs::write(&init, script).expect("the script is written");
    host.sh(&format!("chmod +x {}", init.display()));
    // The emulated processor is slow, so QEMU has priority over other tests.
    let output = Command::new("nice")
        .args(["-n", "-15", "timeout"])
        // Two emulated machines share two processors. With one each, neither waits for a lock whose holder is not running.
        .args(["1800", "qemu-system-x86_64", "-accel", "tcg", "-smp", "1", "-m", "2048"])
        .args(["-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio", "-virtfs"])
        // Read-only, so that the other kernel cannot change this machine.
        .arg("local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap")
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(kernel.join("initrd"))
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 then={}", init.display()))
        .stdin(Stdio::null())
        .output()
        .expect("QEMU runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for test in tests {
        assert!(said.contains(&format!("{test} ended with 0")), "{said}");
    }
    Some(said)
}
