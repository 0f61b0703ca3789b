//! What this machine's kernel may lack (bridges that filter VLANs, VRFs, ipvlan, 802.1q, dummy links), on a kernel of
//! Debian's that has it, in QEMU, with this machine's files in view. Where this machine's kernel has it, `parity.rs`, `vrf.rs`
//! and `undo.rs` have done it already. `cargo xtask kernel PACKAGE` runs the same, or any tests by name, on a kernel by its name.

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

/// Compares with the reference plugins where `parity` is in a configuration.
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
