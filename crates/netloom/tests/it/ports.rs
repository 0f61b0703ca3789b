//! Published ports: who reaches them, and who may publish which.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, dual_stack, with_prev};

/// A program that ends with the test.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A host with another host on its uplink, and a container on a dual-stack bridge that serves port 80.
struct Lab {
    host: Host,
    conf: Value,
    result: Value,
}

impl Lab {
    fn new() -> Self {
        let host = Host::new();
        host.container("other");
        host.sh(
            "ip link add up0 type veth peer name up0 netns other; ip link set up0 up; ip -n other link set up0 up
             ip addr add 192.0.2.1/24 dev up0; ip addr add 192.0.2.11/24 dev up0
             ip -6 addr add 2001:db8::1/64 dev up0 nodad
             ip -n other addr add 192.0.2.2/24 dev up0; ip -n other -6 addr add 2001:db8::2/64 dev up0 nodad",
        );
        host.container("c1");
        let mut conf = dual_stack();
        // Without it a container cannot come back to itself by its port of the bridge.
        conf["hairpinMode"] = json!(true);
        let result = Call::new(&host, &OURS, "c1").add(&conf);
        Self { host, conf, result }
    }

    fn portmap(&self, mappings: Value) -> Value {
        json!({"cniVersion": "1.1.0", "name": "lab", "type": "portmap",
               "runtimeConfig": {"portMappings": mappings}, "prevResult": self.result})
    }

    /// Serves a word on a port of the container, for one family, until dropped.
    fn serve(&self, family: &str, flags: &str, port: u16) -> Running {
        let mut command = self.host.command_in("c1", "sh");
        command.args(["-c", &format!("while true; do echo hello | nc {family} {flags} -l -p {port}; done")]);
        let server = Running::start(command);
        let protocol = if flags.contains('u') { "u" } else { "t" };
        let listening = format!("until ip netns exec c1 ss -H{protocol}ln | grep -q ':{port} '; do :; done");
        self.host.sh(&format!("timeout 5 sh -c \"{listening}\""));
        server
    }

    fn asks(&self, from: Option<&str>, address: &str, port: u16) -> bool {
        let inside = from.map_or(String::new(), |name| format!("ip netns exec {name} "));
        // The server needs a moment between two callers.
        let ask = format!("{inside}nc -w 1 {address} {port} </dev/null");
        self.host.succeeds(&format!("for try in 1 2 3; do [ \"$({ask})\" = hello ] && exit 0; done; exit 1"))
    }
}

fn ready() -> bool {
    testkit::is_root() && testkit::has("nc")
}

/// A published port answers another host, the host by its addresses and by 127.0.0.1, and the container itself.
#[test]
fn a_published_port_is_reached_from_everywhere() {
    if !ready() {
        return;
    }
    let lab = Lab::new();
    let before = lab.host.snapshot();
    let conf = lab.portmap(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    let call = Call::new(&lab.host, &OURS, "c1");
    assert_eq!(call.add(&conf), lab.result);
    call.check(&conf, &lab.result);
    call.call("STATUS", &conf).result("STATUS");
    let server = lab.serve("-4", "", 80);
    for (from, address) in [
        (Some("other"), "192.0.2.1"),
        (Some("other"), "192.0.2.11"),
        (None, "192.0.2.1"),
        (None, "10.88.0.1"),
        (None, "127.0.0.1"),
        (Some("c1"), "10.88.0.1"),
        (Some("c1"), "192.0.2.1"),
    ] {
        assert!(lab.asks(from, address, 8080), "from {from:?} to {address}");
    }
    drop(server);
    let server = lab.serve("-6", "", 80);
    for (from, address) in
        [(Some("other"), "2001:db8::1"), (None, "2001:db8::1"), (None, "fd88::1"), (Some("c1"), "fd88::1")]
    {
        assert!(lab.asks(from, address, 8080), "from {from:?} to {address}");
    }
    call.del(&conf, &lab.result);
    assert!(!lab.asks(Some("other"), "2001:db8::1", 8080));
    drop(server);
    before.assert_same(&lab.host.snapshot(), "after DEL");
}

/// A port on one address of the host is on no other, and comes before the same port on all of them.
#[test]
fn a_host_address_limits_a_port() {
    if !ready() {
        return;
    }
    let lab = Lab::new();
    let call = Call::new(&lab.host, &OURS, "c1");
    let conf = lab.portmap(json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.11"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"},
        {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}
    ]));
    call.add(&conf);
    call.check(&conf, &lab.result);
    let _server = lab.serve("-4", "", 80);
    assert!(lab.asks(Some("other"), "192.0.2.11", 8080));
    assert!(!lab.asks(Some("other"), "192.0.2.1", 8080));
    assert!(lab.asks(Some("other"), "192.0.2.1", 8081));
    assert!(lab.asks(None, "127.0.0.1", 8082));
    assert!(!lab.asks(Some("other"), "192.0.2.1", 8082));
    // 0.0.0.0 is for IPv4 alone.
    let ports = lab.host.sh("nft list map ip6 netloom ports");
    assert!(!ports.contains("elements"), "{ports}");
}

/// UDP and SCTP: datagrams arrive; the element for SCTP is there (no program of Debian's speaks it plainly).
#[test]
fn udp_and_sctp_ports() {
    if !ready() {
        return;
    }
    let lab = Lab::new();
    let call = Call::new(&lab.host, &OURS, "c1");
    let conf = lab.portmap(json!([
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 7000, "containerPort": 7, "protocol": "sctp"}
    ]));
    call.add(&conf);
    let ports = lab.host.sh("nft list map ip netloom ports");
    assert!(ports.contains("sctp . 7000") && ports.contains("udp . 5353"), "{ports}");
    let mut command = lab.host.command_in("c1", "sh");
    command.args(["-c", "nc -4 -u -l -p 53 >/run/udp"]);
    let _server = Running::start(command);
    lab.host.sh("timeout 5 sh -c \"until ip netns exec c1 ss -Huln | grep -q ':53 '; do :; done\"");
    lab.host.sh("echo datagram | ip netns exec other nc -u -w 1 192.0.2.1 5353");
    lab.host.sh("timeout 5 sh -c 'until grep -q datagram /run/udp; do :; done'");
}

/// A port that somebody has is refused with that container's name, and nothing of the ADD stays.
#[test]
fn a_port_in_use_names_its_container() {
    if !ready() {
        return;
    }
    let lab = Lab::new();
    let first = Call::new(&lab.host, &OURS, "c1");
    let conf = lab.portmap(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    first.add(&conf);
    lab.host.container("c2");
    let second = Call::new(&lab.host, &OURS, "c2");
    let result = second.add(&lab.conf);
    let before = lab.host.snapshot();
    let both = json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"},
                      {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let mut wanted = with_prev(&lab.portmap(both), &result);
    let (_, text) = second.call("ADD", &wanted).error();
    assert!(text.contains("8080/tcp is already published for container c1 (eth0)"), "{text}");
    before.assert_same(&lab.host.snapshot(), "after the refused ADD");
    // The same container again, after a crash of its runtime, takes its own port over.
    first.add(&conf);
    // DEL of the one who has not got it does not take it away.
    second.del(&wanted, &result);
    first.check(&conf, &lab.result);
    first.del(&conf, &Value::Null);
    second.call("ADD", &wanted).result("ADD");
    // GC, too, knows whose is whose.
    wanted["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    second.call("GC", &wanted).result("GC");
    second.check(&wanted, &result);
    wanted["cni.dev/valid-attachments"] = json!([]);
    second.call("GC", &wanted).result("GC");
    // What holds nothing any more is gone, table and all.
    assert!(!lab.host.sh("nft list tables").contains("netloom"));
}

/// Two containers may have one address for a moment: the old one's DEL leaves the new one's elements alone.
#[test]
fn elements_that_changed_hands_stay() {
    if !ready() {
        return;
    }
    let lab = Lab::new();
    let old = Call::new(&lab.host, &OURS, "c1");
    let mut new = old.clone();
    new.id = "c9".into();
    let of_old = lab.portmap(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    let of_new = lab.portmap(json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]));
    old.add(&of_old);
    new.add(&of_new);
    old.del(&of_old, &Value::Null);
    new.check(&of_new, &lab.result);
}
