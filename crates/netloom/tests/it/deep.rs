//! `netloom check --deep`, on a host with an uplink that is then broken in one place at a time.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::json;
use testkit::Host;

use crate::lab::{OURS, text};

/// A host with an uplink and one container on a network whose port 8080 is published.
struct Lab {
    host: Host,
}

impl Lab {
    fn new() -> Self {
        let host = Host::new();
        host.container("outside");
        host.container("c1");
        host.sh("ip link set lo up; ip link add up0 type veth peer eth0 netns outside; ip link set up0 up
                 ip addr add 203.0.113.2/24 dev up0; ip addr add 2001:db8:f::2/64 dev up0 nodad
                 ip -n outside link set eth0 up; ip -n outside addr add 203.0.113.1/24 dev eth0
                 ip -n outside addr add 2001:db8:f::1/64 dev eth0 nodad
                 ip route add default via 203.0.113.1; ip route add default via 2001:db8:f::1");
        let list = json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [
            {"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "mtu": 1500, "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]});
        let conf_dir = host.path("/etc/cni/net.d");
        fs::create_dir_all(&conf_dir).unwrap();
        fs::write(conf_dir.join("10-lab.conflist"), list.to_string()).unwrap();
        let lab = Self { host };
        let ports = json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]});
        let (ok, said) = lab.netloom(&["add", "lab", "c1", "--cap-args", &ports.to_string()]);
        assert!(ok, "{said}");
        lab
    }

    fn netloom(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(OURS.join("netloom"));
        command.args(arguments).env("CNI_PATH", &*OURS).env("NETCONFPATH", "/etc/cni/net.d");
        let child = self.host.spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().unwrap();
        (output.status.success(), text(&output))
    }
}

#[test]
fn every_path_of_a_healthy_container_works() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let (ok, said) = lab.netloom(&["check", "lab", "c1", "--deep"]);
    assert!(ok, "{said}");
    for line in [
        "container to gateway 10.88.0.1",
        "host to container fd88::2",
        "1500 bytes to gateway fd88::1",
        "leaves by `up0` from 203.0.113.2",
        "leaves by `up0` from 2001:db8:f::2",
        "reaches 10.88.0.2:80, where nothing listens",
        "reaches [fd88::2]:80, where nothing listens",
        "reaches 10.88.0.2:53",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("skip") && !said.contains("FAIL"), "{said}");
}

/// A network without a way out is healthy if it is meant so, and a host that is itself cut off is not the container's fault.
#[test]
fn what_cannot_be_probed_is_skipped() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.sh("ip route del default; ip -6 route del default; ip -n outside link set eth0 down");
    let (ok, said) = lab.netloom(&["check", "lab", "c1", "--deep"]);
    assert!(ok && said.matches("the host has no").count() == 2, "{said}");
    lab.host.sh("ip -n outside link set eth0 up; ip -n outside addr flush dev eth0
                 ip route add default via 203.0.113.1; ip -n outside link set eth0 arp off");
    let (ok, said) = lab.netloom(&["check", "lab", "c1", "--deep"]);
    assert!(ok && said.contains("the host itself does not reach its next hop 203.0.113.1"), "{said}");
}

/// The causes are those of `netloom why` (`why.rs`); all broken paths are reported, and the first fails the command.
#[test]
fn the_first_fault_is_named() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.sh("nft 'table inet own { chain f { type filter hook forward priority 0; policy drop; }; }'");
    let (ok, said) = lab.netloom(&["check", "lab", "c1", "--deep"]);
    assert!(!ok && said.matches("  FAIL  ").count() == 2, "{said}");
    assert!(
        said.contains("in table `inet own` drops the packet; and 1 more of these probes failed"),
        "{said}"
    );
    // What CHECK finds comes first.
    lab.host.sh("nft delete table inet own; ip addr del 10.88.0.1/16 dev br0");
    let (ok, said) = lab.netloom(&["check", "lab", "c1", "--deep"]);
    assert!(!ok && said.contains("netloom: ") && said.contains("gateway 10.88.0.1"), "{said}");
}

/// The network's version has no STATUS: the command says what it checked instead.
#[test]
fn status_of_an_older_network_says_what_was_checked() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let list = |kind: &str| json!({"cniVersion": "1.0.0", "name": "old", "plugins": [{"type": kind}]});
    let file = lab.host.path("/etc/cni/net.d/20-old.conflist");
    fs::write(&file, list("bridge").to_string()).unwrap();
    let (ok, said) = lab.netloom(&["status", "old"]);
    assert!(ok && said.contains("STATUS exists since 1.1.0"), "{said}");
    fs::write(&file, list("absent").to_string()).unwrap();
    let (ok, said) = lab.netloom(&["status", "old"]);
    assert!(!ok && said.contains("absent"), "{said}");
}
