//! Bridges that filter VLANs, and VRFs, on a kernel that has them: user-mode Linux, which runs as a process of this machine with
//! its own files in view. Where this machine's kernel filters VLANs, `parity.rs` and `undo.rs` have done it already.

use std::process::{Command, Stdio};

use testkit::Host;

/// What the other kernel does when it is up: makes the folders of this machine that are written to its own, loads what
/// bridges need, runs this test program's comparisons of these, and ends.
const INIT: &str = r#"#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t tmpfs none /run; mount -t tmpfs none /var/lib
mount -t devtmpfs none /dev; mount -t cgroup2 none /sys/fs/cgroup
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /usr/lib/uml/modules/$(uname -r)/kernel
for module in lib/crc-ccitt net/ipv6/ipv6 net/llc/llc net/802/stp net/bridge/bridge drivers/net/veth drivers/net/vrf fs/overlayfs/overlay \
    net/802/mrp net/802/garp net/8021q/8021q drivers/net/ipvlan/ipvlan drivers/net/dummy \
    net/netfilter/nfnetlink net/netfilter/nf_tables; do busybox insmod $module.ko; done
ip link set lo up
mkdir -p /run/netns
cd / && NETLOOM_PARITY='"vlan ipvlan "dummy' NETLOOM_PEERS=@PEERS@ @TEST@ --exact parity::the_same_configuration_gives_the_same_host_and_container --nocapture
echo "ended with $?"
NETLOOM_PEERS=@PEERS@ @TEST@ --exact vrf::vrfs_equal_the_references --nocapture
echo "VRFs ended with $?"
poweroff -f
"#;

/// VLANs, trunks, the gateway of a VLAN, and VRFs equal the reference's: result, ports, addresses, routes.
#[test]
fn vlans_equal_the_references() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    let host = Host::new();
    if host.succeeds("ip link add vlans type bridge vlan_filtering 1") {
        return;
    }
    if !testkit::has("linux.uml") || !testkit::has("busybox") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let init = dir.path().join("init");
    let script = INIT
        .replace("@PEERS@", &peers.canonicalize().unwrap().display().to_string())
        .replace("@TEST@", &std::env::current_exe().unwrap().display().to_string());
    std::fs::write(&init, script).unwrap();
    host.sh(&format!("chmod +x {}", init.display()));
    let output = Command::new("timeout")
        .args([
            "300",
            "linux.uml",
            "mem=1024M",
            "rootfstype=hostfs",
            "rootflags=/",
            "rw",
            "con=null",
            "con0=null,fd:1",
            "quiet",
        ])
        .arg(format!("init={}", init.display()))
        .env("TMPDIR", dir.path())
        .env("HOME", dir.path())
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // Of the configurations with VLANs two are refused by both.
    assert!(
        said.contains("compared 8 configurations, 6 attached") && said.contains("\nended with 0"),
        "{said}"
    );
    assert!(said.contains("compared VRFs") && said.contains("VRFs ended with 0"), "{said}");
}
