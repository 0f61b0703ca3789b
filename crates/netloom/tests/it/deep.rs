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

/// What breaks the path, and the words that the report contains.
const FAULTS: [(&str, &[&str]); 10] = [
    (
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
        &["the host does not forward IPv4 packets", "sysctl -w net.ipv4.ip_forward=1"],
    ),
    ("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding", &["the host does not forward IPv6 packets"]),
    ("ip addr del 10.88.0.1/16 dev br0", &["gateway 10.88.0.1 is no address of `br0`"]),
    ("ip -n c1 route del default", &["route 0.0.0.0/0 via 10.88.0.1", "no IPv4 default route"]),
    (
        "nft 'table inet own { chain f { type filter hook forward priority 0; policy drop; }; }'",
        &["IPv4 packets do not leave by `up0`", "plugin `firewall`"],
    ),
    (
        "nft 'table ip own { chain p { type filter hook prerouting priority raw; ip saddr 10.88.0.0/16 notrack; }; }'",
        &["with the container's address 10.88.0.2: they are not masqueraded"],
    ),
    (
        "ip link set dev $(ip -o link show master br0 | grep -o 'veth[0-9a-f]*') mtu 1280",
        &["packets of 1500 bytes from the container are lost before gateway 10.88.0.1"],
    ),
    (
        "nft 'table inet own { chain i { type filter hook input priority 0; iifname br0 drop; }; }'",
        &[
            "gateway 10.88.0.1 does not answer the container",
            "iptables -vnL INPUT",
            "but no answer comes back",
        ],
    ),
    (
        "nft 'table inet own { chain o { type filter hook output priority 0; tcp dport 80 drop; }; }'",
        &["packets to the published port 10.88.0.1:8080 do not reach 10.88.0.2:80"],
    ),
    (
        "nft 'table inet own { chain o { type filter hook output priority 0; udp dport 53 drop; }; }'",
        &["packets to the published port 10.88.0.1:5353 do not reach 10.88.0.2:53"],
    ),
];

#[test]
fn each_fault_is_named() {
    if !testkit::is_root() {
        return;
    }
    std::thread::scope(|scope| {
        for (fault, words) in FAULTS {
            // Each one waits for packets that do not arrive.
            scope.spawn(move || {
                let lab = Lab::new();
                lab.host.sh(fault);
                let (ok, said) = lab.netloom(&["check", "lab", "c1", "--deep"]);
                println!("{fault}\n{said}");
                assert!(!ok, "{fault}: {said}");
                for word in words {
                    assert!(said.contains(word), "{fault}: {word}: {said}");
                }
            });
        }
    });
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
