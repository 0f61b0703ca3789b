//! Tests of features that this machine's kernel may lack (bridges that filter VLANs, VRFs, ipvlan, 802.1q, dummy links), on
//! a Debian kernel in QEMU with this machine's file system. If this machine's kernel has a feature, `parity.rs`, `vrf.rs`
//! and `undo.rs` cover it. `cargo xtask kernel PACKAGE` runs these tests, or others by name, on a given kernel.

const PARITY: &str = "parity::the_same_configuration_gives_the_same_host_and_container";
const VRF: &str = "vrf::vrfs_equal_the_references";
const UNDO: &str = "undo::single_links_are_undone_at_each_step";

/// VLANs, trunks, VLAN gateways and VRFs equal the reference plugins' in result, ports, addresses and routes. Links of every
/// kind are undone.
#[test]
fn vlans_and_vrfs_equal_the_references() {
    let lacks = "ip link add vlans type bridge vlan_filtering 1";
    let Some(said) = on_other_kernel(lacks, r#""vlan": "vlanTrunk""#, &[PARITY, VRF, UNDO]) else { return };
    // Both implementations refuse two of the VLAN configurations.
    assert!(said.contains("compared 8 configurations, 6 attached"), "{said}");
    assert!(said.contains("compared VRFs") && !said.contains("SKIPPED"), "{said}");
}

/// ipvlan, VLAN and dummy links equal the reference plugins'.
#[test]
fn ipvlan_vlan_and_dummy_equal_the_references() {
    let lacks = "ip link add d0 type dummy";
    let Some(said) = on_other_kernel(lacks, r#""ipvlan" "type":"vlan" "dummy""#, &[PARITY]) else { return };
    // Both implementations refuse an unknown mode, two bad VLANs or MTUs, and a dummy link without addresses.
    assert!(said.contains("compared 21 configurations, 17 attached"), "{said}");
}

/// Runs the tests named in `NETLOOM_KERNEL_TESTS`.
#[test]
fn others_on_request() {
    let Ok(tests) = std::env::var("NETLOOM_KERNEL_TESTS") else { return };
    let tests: Vec<&str> = tests.split_whitespace().collect();
    if let Some(said) = on_other_kernel("false", "", &tests).filter(|_| !tests.is_empty()) {
        println!("{said}");
    }
}

/// Runs tests on the other kernel; `parity` selects the configurations that are compared with the reference plugins.
fn on_other_kernel(lacks: &str, parity: &str, tests: &[&str]) -> Option<String> {
    let peers = testkit::peers()?.canonicalize().unwrap();
    let settings = [
        ("NETLOOM_PEERS", peers.to_str().unwrap()),
        ("NETLOOM_PARITY", parity),
        ("NETLOOM_KINDS", "ipvlan vlan dummy"),
    ];
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    testkit::on_other_kernel(lacks, scratch.path(), &settings, tests)
}
