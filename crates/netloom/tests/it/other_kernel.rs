//! What this machine's kernel may lack (bridges that filter VLANs, VRFs, ipvlan, 802.1q, dummy links), on a kernel that has
//! it: user-mode Linux, which runs as a process of this machine with its own files in view. Where this machine's kernel
//! has it, `parity.rs`, `vrf.rs` and `undo.rs` have done it already.

use std::process::{Command, Stdio};

use testkit::Host;

/// What the other kernel does when it is up: makes the folders of this machine that are written to its own, loads its
/// modules, runs some of this test program's comparisons, and ends.
const INIT: &str = r#"#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t tmpfs none /run; mount -t tmpfs none /var/lib
mount -t tmpfs none /dev; mkdir /dev/net; mount -t cgroup2 none /sys/fs/cgroup
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /usr/lib/uml/modules/$(uname -r)/kernel
for module in lib/crc-ccitt net/ipv6/ipv6 net/llc/llc net/802/stp net/bridge/bridge drivers/net/veth drivers/net/vrf fs/overlayfs/overlay \
    net/802/mrp net/802/garp net/8021q/8021q drivers/net/ipvlan/ipvlan drivers/net/dummy drivers/net/macvlan drivers/net/tun \
    net/netfilter/nfnetlink net/netfilter/nf_tables; do busybox insmod $module.ko; done
mknod /dev/null c 1 3; mknod /dev/zero c 1 5; mknod /dev/urandom c 1 9; mknod /dev/net/tun c 10 200
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

/// Runs tests of this program, and gives what they said; none where there is nothing to run or this machine's kernel
/// does the line that the other one is for.
fn on_other_kernel(lacks: &str, parity: &str, tests: &[&str]) -> Option<String> {
    let peers = testkit::peers().filter(|_| testkit::is_root())?;
    let host = Host::new();
    if host.succeeds(lacks) || !testkit::has("linux.uml") || !testkit::has("busybox") {
        return None;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let init = dir.path().join("init");
    let script = INIT
        .replace("@PEERS@", &peers.canonicalize().unwrap().display().to_string())
        .replace("@PARITY@", parity)
        .replace("@TESTS@", &tests.join(" "))
        .replace("@TEST@", &std::env::current_exe().unwrap().display().to_string());
    std::fs::write(&init, script).unwrap();
    host.sh(&format!("chmod +x {}", init.display()));
    let output = Command::new("timeout")
        .args(["400", "linux.uml", "mem=1024M", "rootfstype=hostfs", "rootflags=/", "rw"])
        .args(["con=null", "con0=null,fd:1", "quiet"])
        .arg(format!("init={}", init.display()))
        .env("TMPDIR", dir.path())
        .env("HOME", dir.path())
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for test in tests {
        assert!(said.contains(&format!("{test} ended with 0")), "{said}");
    }
    Some(said)
}
