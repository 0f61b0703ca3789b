//! `cargo xtask kernel`: a kernel of Debian's that this machine does not run, made ready for `other_kernel.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Outcome, peers, programs, root, run_with, say};

/// The kernel that the tests take: that of the Debian of this machine.
pub(crate) const USUAL: &str = "linux-image-amd64";

/// What the first program in the machine does: takes this machine's files, read only, as its own, with what it writes
/// kept in its memory; and goes on with the script that the kernel's command line names.
const INIT: &str = r"#!/bin/busybox sh
busybox mkdir -p /proc /low /up /root
busybox mount -t proc none /proc
for module in /modules/*; do busybox insmod $module; done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro root /low
busybox mount -t tmpfs none /up
busybox mkdir /up/upper /up/work
busybox mount -t overlay -o lowerdir=/low,upperdir=/up/upper,workdir=/up/work none /root
for word in $(busybox cat /proc/cmdline); do
    case $word in then=*) exec busybox switch_root /root ${word#then=} ;; esac
done
";

/// Runs tests of `crates/netloom/tests/it` on a kernel by its package's name.
pub(crate) fn kernel(arguments: &[String]) -> Outcome {
    let package = arguments.first().map_or(USUAL, String::as_str);
    programs::install_packages()?;
    let dir = prepare(package)?;
    let mut tests = Command::new("cargo");
    tests.args(["test", "--package", "netloom", "--test", "it", "--", "--nocapture", "other_kernel::"]);
    tests
        .env("NETLOOM_KERNEL", dir)
        .env("NETLOOM_KERNEL_TESTS", arguments.get(1..).unwrap_or_default().join(" "));
    if let Some(peers) = peers::variable() {
        tests.env("NETLOOM_PEERS", peers);
    }
    run_with(&mut tests)
}

/// Gets a kernel's package, takes it apart in a folder of its own, and puts beside it what the kernel starts with.
pub(crate) fn prepare(package: &str) -> Result<PathBuf, String> {
    let dir = root().join("target/kernels").join(package);
    if dir.join("initrd").exists() {
        return Ok(dir);
    }
    say(&format!("getting {package}"));
    let failure = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let ground = dir.join("initrd.d");
    drop(fs::remove_dir_all(&dir));
    for folder in ["bin", "modules"] {
        fs::create_dir_all(ground.join(folder)).map_err(|error| failure(&ground, error))?;
    }
    fs::write(ground.join("init"), INIT).map_err(|error| failure(&ground, error))?;
    // The package that has the kernel may be one that another depends on.
    let script = r#"
set -eu
cd "$1"
package=$(apt-cache depends "$2" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -1)
apt-get download -qq -o APT::Sandbox::User=root "${package:-$2}"
dpkg -x ./*.deb .
rm ./*.deb
cp boot/vmlinuz-* vmlinuz
version=$(ls lib/modules)
depmod -b "$PWD" "$version"
n=10
for module in virtio_pci 9p 9pnet_virtio overlay; do
    modprobe -d "$PWD" -S "$version" --show-depends "$module" | sed -n 's/^insmod //p'
done | awk '!seen[$0]++' | while read -r file _; do
    n=$((n + 1))
    case $file in *.xz) xz -dc "$file" ;; *) cat "$file" ;; esac >"initrd.d/modules/$n.ko"
done
cp "$(command -v busybox)" initrd.d/bin/busybox
chmod +x initrd.d/init
(cd initrd.d && find . | busybox cpio -o -H newc 2>/dev/null) >initrd.new
mv initrd.new initrd
"#;
    run_with(Command::new("sh").args(["-c", script, "sh"]).arg(&dir).arg(package).stdout(Stdio::null()))?;
    Ok(dir)
}
