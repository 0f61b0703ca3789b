//! `vrf` compared with the reference plugin, on a kernel with VRFs: this machine's, or the one that `other_kernel.rs` starts.

use std::path::Path;

use serde_json::{Value, json};
use testkit::Host;

use crate::{
    lab::{Call, OURS, dual_stack, with_prev},
    parity::{Differences, Names, Seen, flatten, look, outcome},
};

const DIFFERENCES: &str = include_str!("chains-differences.json");

#[test]
fn vrfs_equal_the_references() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    if !Host::new().succeeds("ip link add blue type vrf table 10") {
        testkit::say_skipped("this kernel has no VRFs; another one is asked in other_kernel.rs");
        return;
    }
    let mut differences = Differences::new(DIFFERENCES, "1.9.1");
    for more in [json!({"vrfname": "blue"}), json!({"vrfname": "blue", "table": 1500})] {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "lab", "type": "vrf"});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (theirs, ours) = (seen(&peers, &conf), seen(&OURS, &conf));
        assert!(ours.contains_key("/two/links/blue/ifname"), "{ours:?}");
        differences.compare(&format!("\"type\":\"bridge\" {conf}"), &ours, &theirs);
    }
    differences.assert_as_meant(false);
    println!("compared VRFs");
}

fn seen(bin: &Path, conf: &Value) -> Seen {
    let host = Host::new();
    host.container("c1");
    let mut base = dual_stack();
    base["cniVersion"] = json!("1.0.0");
    base["ipMasq"] = json!(false);
    let first = Call::new(&host, bin, "c1");
    let mut second = first.clone();
    second.ifname = "eth1".into();
    let mut seen = Seen::new();
    let mut results = Vec::new();
    let inside = |seen: &mut Seen, when: &str| {
        let mut links = look(&host, Some("c1"), &Names::of(&host));
        testkit::remove(&mut links, &["sysctls", "nodad"]);
        flatten(when, &links, seen);
    };
    for (call, when) in [(&first, "/one"), (&second, "/two")] {
        let prev = call.add(&base);
        let added = call.call("ADD", &with_prev(conf, &prev));
        flatten(&format!("/add{when}"), &outcome(&added, &Names::of(&host)), &mut seen);
        inside(&mut seen, when);
        results.push(prev);
    }
    let checked = outcome(&first.call("CHECK", &with_prev(conf, &results[0])), &Names::of(&host));
    flatten("/check", &checked, &mut seen);
    let mut other = conf.clone();
    other["table"] = json!(77);
    let refused = outcome(&first.call("ADD", &with_prev(&other, &results[0])), &Names::of(&host));
    flatten("/another table", &refused, &mut seen);
    for (index, call) in [&first, &second].into_iter().enumerate() {
        let deleted = outcome(&call.call("DEL", &with_prev(conf, &results[index])), &Names::of(&host));
        flatten(&format!("/del/{index}"), &deleted, &mut seen);
        inside(&mut seen, &format!("/after/{index}"));
    }
    // A second DEL, with nothing left to remove.
    flatten("/del/again", &outcome(&first.call("DEL", conf), &Names::of(&host)), &mut seen);
    seen
}
