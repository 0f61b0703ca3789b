//! Another kernel, in QEMU, with this machine's files in view.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Host, is_root, say_skipped};

/// What the other kernel does when it is up: makes the folders that are not to be this machine's its own, runs some tests
/// of the program that started it, and ends.
const INIT: &str = r#"#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t tmpfs none /run; mount -t tmpfs none /var/lib
mount -t devtmpfs none /dev; mount -t cgroup2 none /sys/fs/cgroup
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# Modules come as the kernel asks for them, by a program that has to know where they are.
printf '#!/bin/sh\nexec /sbin/modprobe -d @KERNEL@ "$@"\n' >/usr/local/sbin/modprobe-here
chmod +x /usr/local/sbin/modprobe-here
echo /usr/local/sbin/modprobe-here >/proc/sys/kernel/modprobe
modprobe-here tun
# Starting programs is what most of the time goes to, and static ones take a third of it.
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

/// Runs tests of the calling program on the kernel whose folder `NETLOOM_KERNEL` names, and gives what they said; none where
/// there is no such folder, or this machine's kernel does the line `lacks`, so that they have been run already.
///
/// `scratch` is a folder for what is made on the way, `settings` the tests' environment.
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
    // An emulated processor is slow enough: other tests wait for it rather than it for them.
    let output = Command::new("nice")
        .args(["-n", "-15", "timeout"])
        // Two of them share two processors: with one each, none waits for a lock whose holder does not run.
        .args(["1800", "qemu-system-x86_64", "-accel", "tcg", "-smp", "1", "-m", "2048"])
        .args(["-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio", "-virtfs"])
        // Read only: whatever it does, it cannot do to this machine.
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
