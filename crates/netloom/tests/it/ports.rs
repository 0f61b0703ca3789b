//! Published ports: their reachability, and conflicts between containers.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};
use testkit::{Host, Server, Transport};

use crate::lab::{Call, OURS, dual_stack, with_prev};

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
        // Without hairpin mode a container cannot reach itself through its bridge port.
        conf["hairpinMode"] = json!(true);
        let result = Call::new(&host, &OURS, "c1").add(&conf);
        Self { host, conf, result }
    }

    fn portmap(&self, mappings: Value) -> Value {
        json!({"cniVersion": "1.1.0", "name": "lab", "type": "portmap",
               "runtimeConfig": {"portMappings": mappings}, "prevResult": self.result})
    }

    /// Serves port 80 of the container for one family, until the server is dropped.
    fn serve(&self, any: &str) -> Server {
        self.host.serve(Some("c1"), Transport::Tcp, SocketAddr::new(any.parse().unwrap(), 80))
    }

    fn asks(&self, from: Option<&str>, address: &str, port: u16) -> bool {
        self.host.reaches(from, Transport::Tcp, SocketAddr::new(address.parse().unwrap(), port))
    }
}

/// A published port answers another host, the host at its addresses and 127.0.0.1, and the container itself.
#[test]
fn a_published_port_is_reached_from_everywhere() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let before = lab.host.snapshot();
    let conf = lab.portmap(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    let call = Call::new(&lab.host, &OURS, "c1");
    assert_eq!(call.add(&conf), lab.result);
    call.check(&conf, &lab.result);
    call.call("STATUS", &conf).result("STATUS");
    let server = lab.serve("0.0.0.0");
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
    let server = lab.serve("::");
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

/// A port on one host address is closed on the others, and takes precedence over the same port on all addresses.
#[test]
fn a_host_address_limits_a_port() {
    if !testkit::is_root() {
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
    let _server = lab.serve("0.0.0.0");
    assert!(lab.asks(Some("other"), "192.0.2.11", 8080));
    assert!(!lab.asks(Some("other"), "192.0.2.1", 8080));
    assert!(lab.asks(Some("other"), "192.0.2.1", 8081));
    assert!(lab.asks(None, "127.0.0.1", 8082));
    assert!(!lab.asks(Some("other"), "192.0.2.1", 8082));
    // 0.0.0.0 applies to IPv4 only.
    let ports = lab.host.sh("nft list map ip6 netloom ports");
    assert!(!ports.contains("elements"), "{ports}");
}

/// The kernel routes nothing from ::1 to a container. A connection to a published port of ::1 is refused at once, or answered by
/// the host's own server, and is not translated into packets that are lost.
#[test]
fn a_published_port_of_the_ipv6_loopback_is_refused_at_once() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let call = Call::new(&lab.host, &OURS, "c1");
    let _server = lab.serve("::");
    let mapping =
        |host: &str| json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": host}]);
    let mut conditional = lab.portmap(mapping(""));
    conditional["conditionsV6"] = json!(["-s", "::/0"]);
    for conf in
        [lab.portmap(mapping("")), lab.portmap(mapping("::")), lab.portmap(mapping("::1")), conditional]
    {
        call.add(&conf);
        call.check(&conf, &lab.result);
        let connect =
            || TcpStream::connect_timeout(&(Ipv6Addr::LOCALHOST, 8080).into(), Duration::from_secs(1));
        let refused = lab.host.inside(None, connect).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{conf}");
        let own = lab.host.serve(None, Transport::Tcp, (Ipv6Addr::LOCALHOST, 8080).into());
        assert!(lab.asks(None, "::1", 8080), "{conf}");
        assert_eq!(own.callers(), [Ipv6Addr::LOCALHOST], "{conf}");
        if conf["runtimeConfig"]["portMappings"][0]["hostIP"] != "::1" {
            assert!(lab.asks(None, "2001:db8::1", 8080), "from another address of the host: {conf}");
        }
        call.del(&conf, &lab.result);
    }
}

/// Published ports forward UDP and SCTP like TCP.
#[test]
fn udp_and_sctp_ports() {
    if !testkit::is_root() {
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
    for (transport, port, published) in [(Transport::Udp, 53, 5353), (Transport::Sctp, 7, 7000)] {
        let _server = lab.host.serve(Some("c1"), transport, (Ipv4Addr::UNSPECIFIED, port).into());
        let reached = lab.host.reaches(Some("other"), transport, ([192, 0, 2, 1], published).into());
        assert!(reached, "{transport:?}");
    }
}

/// A sender that never pauses reaches the container once ADD returns, and no longer once DEL has returned. The plugin removes
/// the flows of all ports and both families in one walk of the conntrack table, regardless of the number of ports; beside many
/// connections in one walk for each family.
#[test]
fn tracked_udp_flows_follow_the_mapping() {
    if !testkit::is_root() || !testkit::can_trace() {
        return;
    }
    flows_follow_the_mapping(&Lab::new());
    let busy = Lab::new();
    busy.host.sh("nft add table inet own; nft 'add chain inet own c { type filter hook prerouting priority 0; ct state new; }'
                  for port in $(seq 1000 1299); do
                      echo \"-A -s 198.51.100.1 -d 198.51.100.2 -p udp --sport $port --dport 9 -t 600 -u SEEN_REPLY\"
                  done >/run/connections; conntrack --load-file /run/connections 2>/dev/null
                  test $(cat /proc/sys/net/netfilter/nf_conntrack_count) -ge 300");
    flows_follow_the_mapping(&busy);
}

fn flows_follow_the_mapping(lab: &Lab) {
    let flows = || -> Vec<String> {
        let list = lab.host.sh("conntrack -L -p udp 2>/dev/null");
        list.lines().filter(|line| line.contains("sport=4001")).map(str::to_owned).collect()
    };
    let send = || {
        for port in 5301..5304 {
            for address in ["192.0.2.1", "[2001:db8::1]"] {
                let family = if address.starts_with('[') { 6 } else { 4 };
                lab.host.sh(&format!(
                    "echo x | ip netns exec other socat -u - UDP{family}:{address}:{port},sourceport=4001"
                ));
            }
        }
    };
    let mapping = |port: u16| json!({"hostPort": port, "containerPort": 53, "protocol": "udp"});
    let conf = lab.portmap((5301..5304).map(mapping).collect());
    let call = Call::new(&lab.host, &OURS, "c1");
    let netlink_sends = |verb: &str, conf: &Value| {
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", OURS.to_str().unwrap()),
        ];
        let traced = lab.host.trace(&OURS.join("portmap"), &environment, conf.to_string().as_bytes(), None);
        assert!(traced.status.success(), "{}", traced.stdout);
        traced.syscalls.iter().filter(|call| call.number.name() == "sendto" && !call.by_child).count()
    };

    send();
    assert_eq!(flows().len(), 6, "{:?}", flows());
    call.add(&conf);
    assert_eq!(flows(), Vec::<String>::new(), "flows to the host itself after ADD");
    send();
    let to_container = flows();
    assert!(
        to_container.len() == 6
            && to_container.iter().all(|flow| flow.contains("src=10.88.0.2") || flow.contains("src=fd88::2")),
        "{to_container:?}"
    );
    call.add(&conf);
    assert_eq!(flows().len(), 6, "flows that lead to the container stay");
    call.del(&conf, &lab.result);
    assert_eq!(flows(), Vec::<String>::new(), "flows to the container after DEL");

    send();
    let many = lab.portmap((5301..5351).map(mapping).collect());
    let three = netlink_sends("ADD", &conf);
    lab.host.sh("conntrack -D -p udp --orig-port-dst 5301 2>/dev/null || true");
    netlink_sends("DEL", &conf);
    send();
    // Both calls remove six flows.
    assert_eq!(netlink_sends("ADD", &many), three, "the table is walked once");
    netlink_sends("DEL", &many);
}

/// The same mapping twice is one, also when it names the host's addresses in two ways. An address beside all addresses is another.
#[test]
fn the_same_mapping_twice_is_one() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let call = Call::new(&lab.host, &OURS, "c1");
    let mapping =
        |host: &str| json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": host});
    let conf = lab
        .portmap(json!([mapping(""), mapping(""), mapping("0.0.0.0"), mapping("::"), mapping("127.0.0.1"),
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}]));
    let before = lab.host.snapshot();
    call.add(&conf);
    call.check(&conf, &lab.result);
    let server = lab.serve("0.0.0.0");
    assert!(lab.asks(Some("other"), "192.0.2.1", 8080) && lab.asks(None, "127.0.0.1", 8080));
    drop(server);
    call.del(&conf, &lab.result);
    let mut after = lab.host.snapshot();
    // The tables stay, without elements.
    after.0.insert("ruleset".into(), before.0["ruleset"].clone());
    before.assert_same(&after, "after DEL");
    assert!(!lab.host.sh("nft list map ip netloom ports").contains("8080"));
}

/// A port that somebody has is refused with that container's name, and nothing of the ADD stays.
#[test]
fn a_port_in_use_names_its_container() {
    if !testkit::is_root() {
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
    // After a crash of its runtime, the same container takes over its own port.
    first.add(&conf);
    // DEL of a container that does not own the port does not free it.
    second.del(&wanted, &result);
    first.check(&conf, &lab.result);
    first.del(&conf, &Value::Null);
    second.call("ADD", &wanted).result("ADD");
    // GC respects the owners too.
    wanted["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    second.call("GC", &wanted).result("GC");
    second.check(&wanted, &result);
    wanted["cni.dev/valid-attachments"] = json!([]);
    second.call("GC", &wanted).result("GC");
    // The tables are removed with their last element.
    assert!(!lab.host.sh("nft list tables").contains("netloom"));
}

/// Two containers may share an address briefly. DEL of the old one leaves the new one's elements alone.
#[test]
fn elements_that_changed_hands_stay() {
    if !testkit::is_root() {
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
