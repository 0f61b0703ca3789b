//! `netloom del` where something that ADD used is gone.

use std::{fs, path::PathBuf, process::Output};

use serde_json::json;
use testkit::Host;

use crate::lab::{OURS, dual_stack};

/// A host with a container on the network `lab`, whose plugins are in a folder of the test's own.
struct Lab {
    host: Host,
    bin: tempfile::TempDir,
    file: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { host: Host::new(), bin: tempfile::tempdir().unwrap(), file: PathBuf::new() };
        for name in ["bridge", "host-local", "tuning", "portmap"] {
            fs::hard_link(OURS.join(name), lab.bin.path().join(name)).unwrap();
        }
        let list = json!({"cniVersion": "1.1.0", "name": "lab",
            "plugins": [dual_stack(), {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
                        {"type": "portmap", "capabilities": {"portMappings": true}}]});
        let folder = lab.host.path("/etc/cni/net.d");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("10-lab.conflist");
        fs::write(&file, list.to_string()).unwrap();
        lab.host.container("c1");
        let lab = Self { file, ..lab };
        testkit::require_success(&lab.netloom("add"), "add");
        lab
    }

    fn netloom(&self, verb: &str) -> Output {
        let mut command = self.host.command(OURS.join("netloom"));
        command.args([verb, "lab", "/run/netns/c1"]).env("CNI_PATH", self.bin.path());
        command.output().unwrap()
    }

    fn left(&self) -> String {
        self.host.sh(
            "ip -br link | grep veth || true; ls /var/lib/cni/networks/lab | grep -e : -e ^10 || true; ls /var/lib/cni/results",
        )
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The network's file is gone: DEL works from the configuration that is cached with the attachment, and says so.
#[test]
fn the_networks_file_may_be_gone() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    fs::remove_file(&lab.file).unwrap();
    let output = lab.netloom("del");
    testkit::require_success(&output, "del");
    assert!(
        errors(&output).contains("using the configuration of its last cached attachment"),
        "{}",
        errors(&output)
    );
    assert_eq!(lab.left(), "");
    // Nothing is known of the network any more.
    let output = lab.netloom("del");
    assert!(!output.status.success() && errors(&output).contains("\"lab\""), "{}", errors(&output));
}

/// A plugin is gone: the others remove link, addresses and rules, and the error names the plugin and the container. Repeated once
/// the plugin is back, DEL finishes.
#[test]
fn a_plugin_may_be_gone() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let tuning = lab.bin.path().join("tuning");
    fs::remove_file(&tuning).unwrap();
    let output = lab.netloom("del");
    let text = errors(&output);
    assert!(!output.status.success());
    assert!(
        text.contains("what plugin \"tuning\" created for container \"cnitool-")
            && text.contains("repeat DEL"),
        "{text}"
    );
    assert!(lab.left().starts_with("lab-cnitool-"), "{}", lab.left());
    fs::hard_link(OURS.join("tuning"), tuning).unwrap();
    testkit::require_success(&lab.netloom("del"), "the second del");
    assert_eq!(lab.left(), "");
}
