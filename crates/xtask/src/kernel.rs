//! `cargo xtask kernel`: prepares a Debian kernel, other than the running one, for the tests in `other_kernel.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Outcome, peers, programs, root, run_with, say};

/// The package of the default kernel: the one of the installed Debian release.
pub(crate) const USUAL: &str = "linux-image-amd64";

/// The init script of the virtual machine.
///
/// It mounts the host's files read only, with an overlay in memory for writes, and runs the script that the kernel's command
/// line names.
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

/// Runs tests of `crates/netloom/tests/it` on the kernel of a Debian package.
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

/// Downloads and unpacks a kernel's package, and builds the initial RAM disk next to it. Returns the folder.
pub(crate) fn prepare(package: &str) -> Result<PathBuf, String> {
    let dir = root().join("target/kernels").join(package);
    if dir.join("initrd").exists() {
        return Ok(dir);
    }
    say(&format!("downloading {package}"));
    let failure = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let ramdisk = dir.join("initrd.d");
    drop(fs::remove_dir_all(&dir));
    for folder in ["bin", "modules"] {
        fs::create_dir_all(ramdisk.join(folder)).map_err(|error| failure(&ramdisk, error))?;
    }
    fs::write(ramdisk.join("init"), INIT).map_err(|error| failure(&ramdisk, error))?;
    // A metapackage has the kernel in a dependency.
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
