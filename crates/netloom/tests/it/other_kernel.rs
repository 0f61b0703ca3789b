//! What this machine's kernel may lack (bridges that filter VLANs, VRFs, ipvlan, 802.1q, dummy links), on a kernel of
//! Debian's that has it, in QEMU, with this machine's files in view. Where this machine's kernel has it, `parity.rs`, `vrf.rs`
//! and `undo.rs` have done it already. `cargo xtask kernel PACKAGE` runs the same, or any tests by name, on a kernel by its name.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use testkit::Host;

/// What the other kernel does when it is up: makes the folders that are not to be this machine's its own, runs some of this
/// test program's comparisons, and ends.
const INIT: &str = r#"#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t tmpfs none /run; mount -t tmpfs none /var/lib
mount -t devtmpfs none /dev; mount -t cgroup2 none /sys/fs/cgroup
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# Modules come as the kernel asks for them, by a program that has to know where they are.
printf '#!/bin/sh\nexec /sbin/modprobe -d @KERNEL@ "$@"\n' >/usr/local/sbin/modprobe-here
chmod +x /usr/local/sbin/modprobe-here
echo /usr/local/sbin/modprobe-here >/proc/sys/kernel/modprobe
modprobe-here tun
ip link set lo up
mkdir -p /run/netns
cd /
export NETLOOM_PEERS=@PEERS@ NETLOOM_PARITY='@PARITY@' NETLOOM_KINDS='ipvlan vlan dummy'
for test in @TESTS@; do
    @TEST@ --exact $test --nocapture
    echo "$test ended with $?"
done
poweroff -f
"#;

const PARITY: &str = "parity::the_same_configuration_gives_the_same_host_and_container";
const VRF: &str = "vrf::vrfs_equal_the_references";
const UNDO: &str = "undo::single_links_are_undone_at_each_step";

/// VLANs, trunks, the gateway of a VLAN, and VRFs equal the reference's: result, ports, addresses, routes. Every kind of link
/// is undone.
#[test]
fn vlans_and_vrfs_equal_the_references() {
    let lacks = "ip link add vlans type bridge vlan_filtering 1";
    let Some(said) = on_other_kernel(lacks, r#""vlan": "vlanTrunk""#, &[PARITY, VRF, UNDO]) else { return };
    // Of the configurations with VLANs two are refused by both.
    assert!(said.contains("compared 8 configurations, 6 attached"), "{said}");
    assert!(said.contains("compared VRFs") && !said.contains("SKIPPED"), "{said}");
}

/// Links over others, and those over none, equal the reference's.
#[test]
fn ipvlan_vlan_and_dummy_equal_the_references() {
    let lacks = "ip link add d0 type dummy";
    let Some(said) = on_other_kernel(lacks, r#""ipvlan" "type":"vlan" "dummy""#, &[PARITY]) else { return };
    // Refused by both are an unknown mode, two bad VLANs or MTUs, and a dummy link without addresses.
    assert!(said.contains("compared 21 configurations, 17 attached"), "{said}");
}

/// Any tests, on request: names of them in `NETLOOM_KERNEL_TESTS`.
#[test]
fn others_on_request() {
    let Ok(tests) = std::env::var("NETLOOM_KERNEL_TESTS") else { return };
    let tests: Vec<&str> = tests.split_whitespace().collect();
    if let Some(said) = on_other_kernel("false", "", &tests).filter(|_| !tests.is_empty()) {
        println!("{said}");
    }
}

/// Runs tests of this program, and gives what they said; none where there is nothing to run or this machine's kernel
/// does the line that the other one is for.
fn on_other_kernel(lacks: &str, parity: &str, tests: &[&str]) -> Option<String> {
    let peers = testkit::peers().filter(|_| testkit::is_root())?;
    let Some(kernel) = std::env::var_os("NETLOOM_KERNEL").map(PathBuf::from) else {
        testkit::say_skipped(
            "NETLOOM_KERNEL does not name the folder of a kernel; `cargo xtask kernel` makes one",
        );
        return None;
    };
    let host = Host::new();
    let asked_for = std::env::var_os("NETLOOM_KERNEL_TESTS").is_some();
    if !asked_for && host.succeeds(lacks) {
        return None;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let init = dir.path().join("init");
    let shown = |path: &Path| path.canonicalize().unwrap().display().to_string();
    let script = INIT
        .replace("@KERNEL@", &shown(&kernel))
        .replace("@PEERS@", &shown(&peers))
        .replace("@PARITY@", parity)
        .replace("@TESTS@", &tests.join(" "))
        .replace("@TEST@", &shown(&std::env::current_exe().unwrap()));
    std::fs::write(&init, script).unwrap();
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
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for test in tests {
        assert!(said.contains(&format!("{test} ended with 0")), "{said}");
    }
    Some(said)
}
