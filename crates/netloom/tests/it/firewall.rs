//! Reachability on hosts that drop forwarded packets, for each firewall tool, with real traffic.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Child, Stdio},
};

use serde_json::{Value, json};
use testkit::{Host, Transport};

use crate::lab::{Call, OURS, dual_stack, with_prev};

/// A host, another host on its uplink, and the containers `c1` and `c2` on one bridge and `c3` on another.
pub(crate) struct Lab {
    pub(crate) host: Host,
    /// Daemons that end with the test.
    daemons: Vec<Child>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

/// Addresses of the two hosts.
const OTHER4: &str = "192.0.2.2";
const OTHER6: &str = "2001:db8::2";
const HOST4: &str = "192.0.2.1";
const HOST6: &str = "2001:db8::1";

pub(crate) fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

impl Lab {
    pub(crate) fn new() -> Self {
        let host = Host::new();
        host.container("other");
        // The other host has routes to the containers, so that only a firewall blocks it. Duplicate address detection is off, so
        // that the link works at once.
        host.sh(
            "ip netns exec other sysctl -qw net.ipv6.conf.default.accept_dad=0
             sysctl -qw net.ipv6.conf.default.accept_dad=0
             ip link add up0 type veth peer name up0 netns other; ip link set up0 up; ip -n other link set up0 up
             ip -n other link set lo up
             ip addr add 192.0.2.1/24 dev up0; ip -6 addr add 2001:db8::1/64 dev up0 nodad
             sysctl -qw net.ipv6.conf.default.accept_dad=1
             ip -n other addr add 192.0.2.2/24 dev up0; ip -n other -6 addr add 2001:db8::2/64 dev up0 nodad
             ip -n other route add 10.0.0.0/8 via 192.0.2.1; ip -n other route add fd00::/8 via 2001:db8::1
             sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2
             for name in c1 c2 c3; do ip netns add $name; done",
        );
        Self { host, daemons: Vec::new() }
    }

    fn start(&mut self, program: &str, arguments: &[&str], ready: &str) {
        let mut command = self.host.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.push(command.spawn().unwrap());
        self.host.sh(&format!("timeout 20 sh -c 'until {ready}; do :; done'"));
    }

    /// Returns whether a host or a container reaches an address over TCP.
    pub(crate) fn tcp(&self, from: Option<&str>, ip: &str, port: u16) -> bool {
        self.host.reaches(from, Transport::Tcp, at(ip, port))
    }
}

/// Returns a network with a bridge of its own. The containers of `lab` are `c1` and `c2`.
fn bridge(name: &str) -> Value {
    let mut conf = dual_stack();
    conf["name"] = json!(name);
    if name != "lab" {
        conf["bridge"] = json!("br1");
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/16"}], [{"subnet": "fd99::/64"}]]);
    }
    // The other host must see the containers' addresses.
    conf["ipMasq"] = json!(false);
    conf["hairpinMode"] = json!(true);
    conf
}

fn firewall(name: &str, more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": name, "type": "firewall"});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

fn publish(name: &str, port: u16) -> Value {
    json!({"cniVersion": "1.1.0", "name": name, "type": "portmap", "runtimeConfig": {"portMappings":
        [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}})
}

/// Calls ADD of each plugin of a chain and returns the last result.
pub(crate) fn add_all(call: &Call<'_>, confs: &[Value]) -> Value {
    let mut result = Value::Null;
    for conf in confs {
        result = call.add(&with_prev(conf, &result));
    }
    for conf in confs {
        call.check(conf, &result);
    }
    result
}

pub(crate) fn del_all(call: &Call<'_>, confs: &[Value], result: &Value) {
    for conf in confs.iter().rev() {
        call.del(conf, result);
    }
}

/// Returns the IPv4 address of a result.
fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

fn gc(call: &Call<'_>, conf: &Value) {
    let mut conf = conf.clone();
    conf["cni.dev/valid-attachments"] = json!([]);
    call.call("GC", &conf).result("GC");
}

/// Firewalls that drop forwarded packets: name, setup, and the plugin's `backend`.
const REGIMES: [(&str, &str, &str); 8] = [
    ("nobody", "true", ""),
    ("iptables-nft", "for ip in ip ip6; do ${ip}tables-nft -P FORWARD DROP; done", ""),
    // The rules that Docker creates.
    (
        "iptables-nft with rules",
        "for ip in ip ip6; do ${ip}tables-nft -P FORWARD DROP; ${ip}tables-nft -N DOCKER-USER
         ${ip}tables-nft -A FORWARD -j DOCKER-USER; ${ip}tables-nft -A FORWARD -o docker0 -j ACCEPT; done",
        "iptables",
    ),
    (
        "iptables-legacy",
        "for ip in ip ip6; do ${ip}tables-legacy -P FORWARD DROP; ${ip}tables-legacy -N OWN
         ${ip}tables-legacy -A OWN -p tcp --dport 99 -j LOG; ${ip}tables-legacy -A FORWARD -j OWN; done",
        "",
    ),
    (
        "iptables-legacy by name",
        "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP",
        "iptables",
    ),
    (
        "nft, by policy",
        "nft 'table inet filter { chain forward { type filter hook forward priority filter; policy drop; ct state invalid drop; }; }'",
        "",
    ),
    (
        "nft, by a last rule",
        "nft 'table inet mine { chain f { type filter hook forward priority 5; iifname \"lo\" accept; counter reject; }; }'",
        "nftables",
    ),
    ("firewalld", "", ""),
];

#[test]
fn a_container_gets_through_whoever_drops() {
    if !testkit::is_root() || !testkit::has("firewalld") || !testkit::has("iptables") {
        return;
    }
    std::thread::scope(|scope| {
        for (name, set_up, backend) in REGIMES {
            scope.spawn(move || gets_through(name, set_up, backend));
        }
    });
}

/// As other D-Bus clients, the plugin looks for the bus where the environment says.
#[test]
fn the_environment_says_where_the_bus_is() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let bin = tempfile::tempdir().unwrap();
    let script = format!(
        "#!/bin/sh\nexport DBUS_SYSTEM_BUS_ADDRESS='tcp:host=x,port=1;unix:guid=0,path=/run/none'\nexec {}\n",
        OURS.join("firewall").display()
    );
    std::fs::write(bin.path().join("firewall"), script).unwrap();
    host.sh(&format!("chmod +x {}/firewall", bin.path().display()));
    let prev = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]});
    let conf = firewall("lab", &json!({"backend": "firewalld", "prevResult": prev}));
    let (code, text) = Call::new(&host, bin.path(), "c1").call("ADD", &conf).error();
    assert!(code == 999 && text.contains("/run/none"), "{code} {text}");
}

fn gets_through(regime: &str, set_up: &str, backend: &str) {
    let mut lab = Lab::new();
    if regime == "firewalld" {
        lab.host.sh("mkdir -p /run/dbus");
        let dbus = ["--system", "--nofork", "--nopidfile"];
        lab.start("dbus-daemon", &dbus, "test -S /run/dbus/system_bus_socket");
        lab.start("firewalld", &["--nofork", "--nopid"], "firewall-cmd --state >/dev/null 2>&1");
        lab.host.sh("firewall-cmd -q --zone=public --add-interface=up0 && firewall-cmd -q --zone=public --remove-forward");
    } else {
        lab.host.sh(&format!("set -e; {set_up}"));
    }
    let before = lab.host.snapshot();
    let legacy = || {
        lab.host.sh("iptables-legacy-save 2>/dev/null | grep -v -e '^#' -e '^:'; ip6tables-legacy-save 2>/dev/null | grep -v -e '^#' -e '^:' || true")
    };
    let legacy_before = legacy();
    let call = Call::new(&lab.host, &OURS, "c1");
    let mut wall = firewall("lab", &json!({}));
    if !backend.is_empty() {
        wall["backend"] = json!(backend);
    }
    let chain = [bridge("lab"), publish("lab", 8080), wall.clone()];
    let servers = [
        lab.host.serve(Some("other"), Transport::Tcp, at("0.0.0.0", 80)),
        lab.host.serve(Some("other"), Transport::Tcp, at("::", 81)),
        lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80)),
    ];

    // Without the plugin, the host's own policy applies.
    let open = regime == "nobody";
    let bare = add_all(&call, &chain[..2]);
    assert_eq!(lab.tcp(Some("c1"), OTHER4, 80), open, "{regime}: out without the plugin");
    assert_eq!(lab.tcp(Some("c1"), OTHER6, 81), open, "{regime}: out by IPv6 without the plugin");
    del_all(&call, &chain[..2], &bare);

    let result = add_all(&call, &chain);
    let own = address(&result);
    assert!(lab.tcp(Some("c1"), OTHER4, 80), "{regime}: out");
    assert!(lab.tcp(Some("c1"), OTHER6, 81), "{regime}: out by IPv6");
    assert!(lab.tcp(Some("other"), HOST4, 8080), "{regime}: in by the published port");
    assert_eq!(lab.tcp(Some("other"), &own, 80), open, "{regime}: in without being published");
    // A second container, and one without the plugin.
    let second = Call::new(&lab.host, &OURS, "c2");
    let of_second = [bridge("lab"), wall.clone()];
    let second_result = add_all(&second, &of_second);
    assert!(lab.tcp(Some("c2"), OTHER4, 80) && lab.tcp(Some("c2"), &own, 80), "{regime}: second");
    let third = Call::new(&lab.host, &OURS, "c3");
    let third_result = third.add(&bridge("other"));
    assert_eq!(lab.tcp(Some("c3"), OTHER4, 80), open, "{regime}: another network");
    del_all(&third, &[bridge("other")], &third_result);

    // The administrator's iptables rules take precedence.
    if regime.starts_with("iptables") {
        let program = if regime.contains("legacy") { "iptables-legacy" } else { "iptables-nft" };
        lab.host.sh(&format!("{program} -I CNI-ADMIN -s {own} -d {OTHER4} -j DROP"));
        assert!(!lab.tcp(Some("c1"), OTHER4, 80), "{regime}: overruled");
        assert!(lab.tcp(Some("c2"), OTHER4, 80), "{regime}: the other is not");
        lab.host.sh(&format!("{program} -F CNI-ADMIN"));
    }
    del_all(&second, &of_second, &second_result);
    assert!(lab.tcp(Some("c1"), OTHER4, 80), "{regime}: the first stays");
    // DEL without prevResult removes everything too.
    del_all(&call, &chain, &Value::Null);
    if regime == "firewalld" {
        let sources = lab.host.sh("firewall-cmd --zone=trusted --list-sources");
        assert_eq!(sources.trim(), "", "{regime}");
    }
    gc(&call, &wall);
    gc(&third, &bridge("other"));
    lab.host.sh("ip link del br0; ip link del br1");
    let mut after = lab.host.snapshot();
    if regime == "firewalld" {
        // firewalld creates chains for a zone with its first address, and keeps them.
        after.0.insert("ruleset".into(), before.0["ruleset"].clone());
    }
    before.assert_same(&after, &format!("{regime}: after GC"));
    assert_eq!(legacy_before, legacy(), "{regime}: after GC");
    drop(servers);
}

/// `ingressPolicy`: the containers of two networks that reach each other.
#[test]
fn bridges_are_kept_apart() {
    if !testkit::is_root() {
        return;
    }
    // Policy, whether a neighbour on the bridge is reachable, and whether the other network is.
    let cases = [("open", true, true), ("same-bridge", true, false), ("isolated", false, false)];
    std::thread::scope(|scope| {
        for (policy, neighbour, other_network) in cases {
            scope.spawn(move || {
                let lab = Lab::new();
                let before = lab.host.snapshot();
                let more = json!({"ingressPolicy": policy});
                let (mut calls, mut servers) = (Vec::new(), Vec::new());
                for (id, network) in [("c1", "lab"), ("c2", "lab"), ("c3", "far")] {
                    let call = Call::new(&lab.host, &OURS, id);
                    let confs = [
                        bridge(network),
                        publish(network, 8000 + u16::from(id.as_bytes()[1])),
                        firewall(network, &more),
                    ];
                    let result = add_all(&call, &confs);
                    calls.push((call, confs, result));
                    servers.push(lab.host.serve(Some(id), Transport::Tcp, at("0.0.0.0", 80)));
                    servers.push(lab.host.serve(Some(id), Transport::Tcp, at("::", 81)));
                }
                for (ip, port) in [("10.88.0.3", 80), ("fd88::3", 81)] {
                    assert_eq!(lab.tcp(Some("c1"), ip, port), neighbour, "{policy}: {ip}");
                    assert!(lab.tcp(None, ip, port), "{policy}: the host reaches {ip}");
                }
                for (ip, port) in [("10.99.0.2", 80), ("fd99::2", 81)] {
                    assert_eq!(lab.tcp(Some("c1"), ip, port), other_network, "{policy}: {ip}");
                }
                assert_eq!(lab.tcp(Some("c3"), "10.88.0.2", 80), other_network, "{policy}: back");
                // Published ports are open to other hosts, but not to isolated bridges.
                assert!(lab.tcp(Some("other"), HOST4, 8050), "{policy}: published");
                assert_eq!(
                    lab.tcp(Some("c3"), HOST4, 8050),
                    other_network,
                    "{policy}: published to the other"
                );
                // DEL of one container does not remove the other containers' isolation.
                let (call, confs, result) = calls.remove(1);
                del_all(&call, &confs, &result);
                assert_eq!(lab.tcp(Some("c3"), "10.88.0.2", 80), other_network, "{policy}: after a DEL");
                for (call, confs, result) in &calls {
                    del_all(call, confs, result);
                }
                for (call, confs, _) in &calls {
                    gc(call, &confs[2]);
                }
                lab.host.sh("ip link del br0; ip link del br1");
                before.assert_same(&lab.host.snapshot(), policy);
            });
        }
    });
}

/// Published ports with every transport, family and mode, with loose and strict reverse path filters.
#[test]
fn every_transport_and_mode_of_published_ports() {
    if !testkit::is_root() {
        return;
    }
    // Mode, whether the source of outside connections is masqueraded, and whether 127.0.0.1 and the container get an answer.
    let modes = [
        ("plain", json!({}), false, true),
        ("snat off", json!({"snat": false}), false, false),
        ("masqAll", json!({"masqAll": true}), true, true),
        ("iptables by name", json!({"backend": "iptables", "markMasqBit": 10}), false, true),
        ("nftables by name", json!({"backend": "nftables"}), false, true),
        ("another mark chain", json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}), false, true),
    ];
    std::thread::scope(|scope| {
        for (index, (mode, more, masqueraded, local)) in modes.into_iter().enumerate() {
            scope.spawn(move || {
                let lab = Lab::new();
                if index % 2 == 1 {
                    lab.host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
                }
                let call = Call::new(&lab.host, &OURS, "c1");
                let mappings: Vec<Value> = Transport::ALL
                    .iter()
                    .map(|it| json!({"hostPort": 8080, "containerPort": 80, "protocol": it.as_str()}))
                    .collect();
                let mut conf = publish("lab", 1);
                conf["runtimeConfig"]["portMappings"] = mappings.into();
                conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                let chain = [bridge("lab"), conf];
                let result = add_all(&call, &chain);
                for transport in Transport::ALL {
                    for (any, host, gateway, other) in
                        [("0.0.0.0", HOST4, "10.88.0.1", OTHER4), ("::", HOST6, "fd88::1", OTHER6)]
                    {
                        let what = format!("{mode}: {transport:?} to {host}");
                        let server = lab.host.serve(Some("c1"), transport, at(any, 80));
                        assert!(lab.host.reaches(Some("other"), transport, at(host, 8080)), "{what}");
                        assert!(lab.host.reaches(None, transport, at(host, 8080)), "{what} from the host");
                        // Without source NAT, the container's answer to itself would bypass the host.
                        assert_eq!(
                            lab.host.reaches(Some("c1"), transport, at(host, 8080)),
                            local,
                            "{what} from itself"
                        );
                        if any != "::" && transport != Transport::Sctp {
                            let by_loopback = lab.host.reaches(None, transport, at("127.0.0.1", 8080));
                            assert_eq!(by_loopback, local, "{what} by 127.0.0.1");
                        }
                        assert!(!lab.host.reaches(Some("other"), transport, at(host, 8081)), "{what} + 1");
                        let seen = server.callers()[0].to_string();
                        assert_eq!(seen, if masqueraded { gateway } else { other }, "{what}: seen");
                    }
                }
                del_all(&call, &chain, &result);
            });
        }
    });
}

/// Conditions limit the sources of a port, in iptables and in nft syntax.
#[test]
fn conditions_limit_a_port() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    // The conditions tell the other host's two addresses apart.
    lab.host.sh("ip -n other addr add 198.51.100.2/32 dev lo; ip route add 198.51.100.2 via 192.0.2.2");
    let call = Call::new(&lab.host, &OURS, "c1");
    let base = add_all(&call, &[bridge("lab")]);
    let _server = lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80));
    for (conditions, first, second) in [
        (json!(["-s", "192.0.2.0/24"]), true, false),
        (json!(["!", "-s", "192.0.2.0/24"]), false, true),
        (json!(["-s", "! 192.0.2.0/24"]), false, true),
        (json!(["-i", "up0"]), true, true),
        (json!(["-i", "up+", "!", "-d", "192.0.2.1"]), false, false),
        (json!(["-m", "mark", "--mark", "0x1/0x1"]), false, false),
        (json!(["ip saddr 192.0.2.2"]), true, false),
        (json!(["ip", "saddr", "!=", "192.0.2.2", "iifname", "up0"]), false, true),
        (json!(["meta mark != 1"]), true, true),
    ] {
        let mut conf = publish("lab", 8080);
        conf["conditionsV4"] = conditions.clone();
        call.add(&with_prev(&conf, &base));
        call.check(&conf, &base);
        let from_second = "nc -w 1 -s 198.51.100.2 192.0.2.1 8080 </dev/null | grep -q hello";
        assert_eq!(lab.tcp(Some("other"), HOST4, 8080), first, "{conditions}");
        assert_eq!(lab.host.succeeds(&format!("ip netns exec other {from_second}")), second, "{conditions}");
        call.del(&conf, &base);
    }
    gc(&call, &publish("lab", 8080));
    assert!(!lab.host.sh("nft list ruleset").contains("if-"));
}

/// A UDP sender that never pauses reaches the new container, and no container after DEL.
#[test]
fn stale_udp_connections_are_forgotten() {
    if !testkit::is_root() || !testkit::has("conntrack") {
        return;
    }
    let lab = Lab::new();
    let mut conf = publish("lab", 5353);
    conf["runtimeConfig"]["portMappings"][0]["protocol"] = json!("udp");
    let sent = |to: &str| {
        // A fixed source port, so that conntrack sees one flow.
        let ask = "echo x | timeout 1 nc -u -p 4000 -w 1 192.0.2.1 5353";
        lab.host.sh(&format!("ip netns exec other sh -c '{ask}' || true"));
        lab.host.sh("conntrack -L -p udp 2>/dev/null | grep dport=5353 || true").contains(to)
    };
    // The kernel tracks connections once a rule matches their state.
    lab.host.sh("nft 'table inet own { chain c { type filter hook prerouting priority 0; ct state new accept; }; }'
                 nft 'table inet own { chain d { type filter hook output priority 0; ct state new accept; }; }'");
    // No container serves the port, so the flow ends at the host.
    let call = Call::new(&lab.host, &OURS, "c1");
    let base = add_all(&call, &[bridge("lab")]);
    assert!(sent("src=192.0.2.1 dst=192.0.2.2"));
    // A flow to a DNS server elsewhere with the same port. It must stay tracked.
    lab.host.sh("echo x | timeout 1 nc -u -p 4001 -w 1 192.0.2.2 5353 || true");
    call.add(&with_prev(&conf, &base));
    let left = lab.host.sh("conntrack -L -p udp 2>/dev/null | grep dport=5353");
    assert!(left.contains("dst=192.0.2.2 sport=4001") && !left.contains("sport=4000"), "{left}");
    assert!(sent("src=10.88.0.2 dst=192.0.2.2"));
    call.del(&conf, &base);
    let left = lab.host.sh("conntrack -L -p udp 2>/dev/null | grep dport=5353");
    assert!(!left.contains("10.88.0.2"), "{left}");
}
