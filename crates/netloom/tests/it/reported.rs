//! Faults that users reported against other plugins and runtimes, tried here. Each case names its report; `docs/reports.md` lists all
//! that were tried, with results.

use std::{fs, net::UdpSocket, os::unix::fs::PermissionsExt, time::Duration};

use serde_json::{Value, json};
use testkit::{Host, Transport};

use crate::{
    firewall::{Lab, at},
    lab::{Call, OURS, dual_stack, with_prev},
};

/// Returns a plugin's configuration on the network `lab`.
fn plugin(kind: &str, more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "lab", "type": kind});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

fn host_local() -> Value {
    json!({"type": "host-local", "subnet": "10.88.0.0/16"})
}

fn published(host_port: u16, protocol: &str) -> Value {
    let mapping = json!({"hostPort": host_port, "containerPort": 80, "protocol": protocol});
    plugin("portmap", &json!({"runtimeConfig": {"portMappings": [mapping]}}))
}

fn add_all(call: &Call<'_>, chain: &[Value]) -> Value {
    chain.iter().fold(Value::Null, |prev, conf| call.add(&with_prev(conf, &prev)))
}

/// DEL without prevResult frees everything if the namespace's file is gone (containernetworking/plugins#210), is not passed
/// (containernetworking/plugins#810, #1196, containerd/nerdctl#3253), or is a plain file because its mount is gone
/// (containernetworking/plugins#507, openshift/sriov-cni#188), or if only the interface is gone (containernetworking/plugins#953).
#[test]
fn del_with_what_is_left_of_a_namespace() {
    if !testkit::is_root() {
        return;
    }
    let chains = [
        vec![
            plugin("bridge", &json!({"isDefaultGateway": true, "ipMasq": true, "ipam": host_local()})),
            published(8080, "tcp"),
            plugin("firewall", &json!({})),
        ],
        vec![plugin("ptp", &json!({"ipMasq": true, "ipam": host_local()})), published(8080, "udp")],
        vec![plugin("macvlan", &json!({"master": "up0", "ipam": host_local()}))],
        vec![plugin("tap", &json!({"ipam": host_local()}))],
        vec![plugin("host-device", &json!({"device": "dev0", "ipam": host_local()}))],
        vec![plugin("loopback", &json!({}))],
    ];
    for chain in &chains {
        for (left, passed) in [
            ("ip netns del c1", true),
            ("ip netns del c1", false),
            ("umount /run/netns/c1", true),
            ("ip -n c1 link del eth0 || true", true),
        ] {
            let what = format!("{}, {left}, namespace passed: {passed}", chain[0]["type"]);
            let host = Host::new();
            host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
                     ip link add dev0 type veth peer name dev1");
            let seen = |keep_links: bool| {
                let mut seen = host.snapshot();
                seen.0.retain(|kind, _| {
                    ["files", "ruleset"].contains(&kind.as_str()) || kind == "links" && keep_links
                });
                seen
            };
            // A veth pair that is a container's device ends with the namespace.
            let keep_links = chain[0]["type"] != "host-device";
            host.container("warm");
            let warm = Call::new(&host, &OURS, "warm");
            add_all(&warm, chain);
            chain.iter().rev().for_each(|conf| warm.del(conf, &Value::Null));
            host.sh("ip netns del warm");
            let before = seen(keep_links);

            host.container("c1");
            let mut call = Call::new(&host, &OURS, "c1");
            add_all(&call, chain);
            host.sh(left);
            if !passed {
                call.netns.clear();
            }
            for _ in 0..2 {
                chain.iter().rev().for_each(|conf| call.del(conf, &Value::Null));
            }
            host.sh("umount /run/netns/c1 2>/dev/null; rm -f /run/netns/c1");
            before.assert_same(&seen(keep_links), &what);
        }
    }
}

/// After a reboot without DEL the range is free (containernetworking/plugins#252), the same container starts again
/// (containerd/nerdctl#665), and a requested address is available (podman-container-tools/podman#3759).
#[test]
fn addresses_are_free_after_a_reboot() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut conf = plugin("bridge", &json!({"ipam": {"type": "host-local", "subnet": "10.88.0.0/29"}}));
    let add = |conf: &Value, name: &str| {
        host.container(name);
        Call::new(&host, &OURS, name).call("ADD", conf)
    };
    for name in ["c1", "c2", "c3", "c4", "c5"] {
        add(&conf, name).result(name);
    }
    assert_eq!(add(&conf, "c6").error().0, 11, "the range is exhausted");
    host.sh("for name in c1 c2 c3 c4 c5 c6; do ip netns del $name; done; ip link del cni0
             echo 00000000-0000-4000-8000-000000000000 >/run/boot; mount --bind /run/boot /proc/sys/kernel/random/boot_id");
    add(&conf, "c1").result("the same container");
    conf["runtimeConfig"] = json!({"ips": ["10.88.0.4/29"]});
    let result = add(&conf, "new").result("a requested address");
    assert_eq!(result["ips"][0]["address"], "10.88.0.4/29");
}

/// An interface with the requested name stays as it is, and the ADD leaves nothing (containernetworking/cni#112).
#[test]
fn an_interface_of_the_container_stays() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
             ip -n c1 link add eth0 type veth peer name eth9; ip -n c1 addr add 192.0.2.9/24 dev eth0");
    let container = || host.json("ip -n c1 -j -d addr");
    let (before, inside) = (host.snapshot(), container());
    for kind in ["bridge", "ptp", "macvlan", "tap"] {
        let conf = plugin(kind, &json!({"master": "up0", "ipam": host_local()}));
        let (code, text) = Call::new(&host, &OURS, "c1").call("ADD", &conf).error();
        assert!(code == 4 && text.contains("already exists"), "{kind}: {code} {text}");
        before.assert_same(&host.snapshot(), kind);
        assert_eq!(container(), inside, "{kind}");
    }
}

/// CHECK accepts what ADD did: routes without `gw`, to which ptp adds the gateway (containernetworking/plugins#886), and a default
/// route whose prefix has bits beyond its length (podman-container-tools/podman#13377).
#[test]
fn check_accepts_what_add_did() {
    if !testkit::is_root() {
        return;
    }
    let ranges = json!([[{"subnet": "198.18.0.0/17"}], [{"subnet": "fd61:7465:6d65:1000::/112"}]]);
    let more_routes =
        ["0.0.0.0/0", "198.18.128.0/17", "198.19.254.254/32", "::/0", "fd61:7465:6d65:2000::/112"];
    let routes: Vec<Value> = more_routes.iter().map(|dst| json!({"dst": dst})).collect();
    let cases = [
        plugin(
            "ptp",
            &json!({"ipMasq": true, "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}}),
        ),
        plugin(
            "bridge",
            &json!({"isGateway": true, "ipMasq": true, "ipam": {"type": "host-local",
                "ranges": [[{"subnet": "fdc4:5c83:002d:3eed::/64"}]], "routes": [{"dst": "fdc4:5c83:002d:3eed::0/0"}]}}),
        ),
    ];
    for mut conf in cases {
        conf["cniVersion"] = json!("0.4.0");
        let host = Host::new();
        host.container("c1");
        let call = Call::new(&host, &OURS, "c1");
        let result = call.add(&conf);
        assert!(host.sh("ip -n c1 -6 route show default").contains("via"), "{conf}");
        call.check(&conf, &result);
        call.del(&conf, &result);
    }
}

/// The result names every link with the hardware address that it has and keeps (containernetworking/plugins#140, #805).
#[test]
fn results_have_the_links_addresses() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let mut conf = dual_stack();
    conf["isDefaultGateway"] = json!(false);
    let results: Vec<(String, Value)> = (0..8)
        .map(|index| {
            let name = format!("c{index}");
            host.container(&name);
            let result = Call::new(&host, &OURS, &name).add(&conf);
            (name, result)
        })
        .collect();
    for (name, result) in results {
        let links = result["interfaces"].as_array().unwrap();
        assert_eq!(links.len(), 3, "{result}");
        for link in links {
            let within = if link["sandbox"].is_string() { format!("-n {name}") } else { String::new() };
            let seen = host.json(&format!("ip {within} -j link show {}", link["name"].as_str().unwrap()));
            assert_eq!(seen[0]["address"], link["mac"], "{link}");
        }
    }
}

/// A published port works after firewalld, or an administrator, has flushed iptables (kubernetes/kubernetes#93091).
#[test]
fn published_ports_survive_a_flush_of_iptables() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let call = Call::new(&lab.host, &OURS, "c1");
    let mut bridge = dual_stack();
    bridge["cniVersion"] = json!("1.0.0");
    add_all(&call, &[bridge, published(8080, "tcp"), plugin("firewall", &json!({}))]);
    let _server = lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80));
    assert!(lab.tcp(Some("other"), "192.0.2.1", 8080));
    lab.host.sh("for table in nat filter mangle; do iptables -t $table -F; iptables -t $table -X; done");
    assert!(lab.tcp(Some("other"), "192.0.2.1", 8080), "after the flush");
}

/// Conditions exclude a set of addresses, in the syntax of nft (containernetworking/plugins#1115).
#[test]
fn conditions_exclude_a_set() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.sh("ip addr add 192.0.2.3/24 dev up0");
    let call = Call::new(&lab.host, &OURS, "c1");
    let mut ports = published(8080, "tcp");
    ports["backend"] = json!("nftables");
    ports["conditionsV4"] = json!(["ip", "daddr", "!=", "{ 127.0.0.0/8, 192.0.2.3 }"]);
    let bridge = plugin("bridge", &json!({"isDefaultGateway": true, "ipam": host_local()}));
    let result = add_all(&call, &[bridge, ports.clone()]);
    let _server = lab.host.serve(Some("c1"), Transport::Tcp, at("0.0.0.0", 80));
    for (from, address, reached) in
        [(Some("other"), "192.0.2.1", true), (Some("other"), "192.0.2.3", false), (None, "127.0.0.1", false)]
    {
        assert_eq!(lab.tcp(from, address, 8080), reached, "{from:?} to {address}");
    }
    call.check(&ports, &result);
    call.del(&ports, &result);
}

/// Sends a datagram from a socket of another host and returns whether an answer came.
fn answers(socket: &UdpSocket, port: u16) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    (0..4).any(|_| {
        socket.send_to(b"hello", at("192.0.2.1", port)).unwrap();
        socket.recv(&mut [0; 16]).is_ok()
    })
}

/// A client that keeps its port reaches the container's successor (containernetworking/plugins#123) and, once nothing is published
/// any more, the host's own server (containernetworking/plugins#1190). Publishing another port leaves its flow alone
/// (containernetworking/plugins#705).
#[test]
fn a_udp_client_follows_the_port() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let conf = plugin("bridge", &json!({"isDefaultGateway": true, "ipam": host_local()}));
    let calls = ["c1", "c2"].map(|name| Call::new(&lab.host, &OURS, name));
    let results = [calls[0].add(&conf), calls[1].add(&conf)];
    let client = lab.host.inside(Some("other"), || UdpSocket::bind("0.0.0.0:4001").unwrap());
    let udp = published(5300, "udp");
    let flows = || lab.host.sh("conntrack -L -p udp 2>/dev/null | grep sport=4001 || true");
    for (name, (call, result)) in ["c1", "c2"].iter().zip(calls.iter().zip(&results)) {
        call.add(&with_prev(&udp, result));
        let _server = lab.host.serve(Some(name), Transport::Udp, at("0.0.0.0", 80));
        assert!(answers(&client, 5300), "{name}");
        if *name == "c1" {
            let before = flows();
            assert!(before.contains("src=10.88.0.2"), "{before}");
            calls[1].add(&with_prev(&published(5301, "udp"), &results[1]));
            assert!(flows().contains("src=10.88.0.2"), "after another mapping: {}", flows());
            calls[1].del(&published(5301, "udp"), &results[1]);
        }
        call.del(&udp, result);
    }
    let _server = lab.host.serve(None, Transport::Udp, at("0.0.0.0", 5300));
    assert!(answers(&client, 5300), "the host's server");
}

/// bandwidth finds the interface without a list of interfaces in prevResult (weaveworks/weave#3787). Its DEL succeeds with a burst
/// that ADD refuses (cri-o/cri-o#4348).
#[test]
fn bandwidth_without_a_list_and_del_of_a_refused_burst() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    let bridge = plugin("bridge", &json!({"ipam": host_local()}));
    let result = call.add(&bridge);
    let mut bare = result.clone();
    bare.as_object_mut().unwrap().remove("interfaces");
    bare["ips"] = json!([{"address": result["ips"][0]["address"]}]);
    let limits = |burst: u64| {
        plugin(
            "bandwidth",
            &json!({"ingressRate": 8_000_000, "ingressBurst": burst, "egressRate": 8_000_000, "egressBurst": burst}),
        )
    };
    let shapers = || host.sh("tc qdisc").matches("tbf").count();
    call.call("ADD", &with_prev(&limits(800_000), &bare)).result("ADD");
    assert_eq!(shapers(), 2);
    call.check(&limits(800_000), &bare);
    let refused = limits(1 << 35);
    let (_, text) = Call::new(&host, &OURS, "c1").call("ADD", &with_prev(&refused, &result)).error();
    assert!(text.contains("cannot be more than 4 GB"), "{text}");
    call.del(&refused, &result);
    assert_eq!(host.sh("ip -br link show type ifb"), "");
    call.del(&bridge, &result);
}

/// The host keeps its default route from router advertisements, and accepts further ones, when a container network makes it forward
/// (podman-container-tools/podman#6114).
#[test]
fn the_advertised_default_route_stays() {
    if !testkit::is_root() || !testkit::has("dnsmasq") {
        return;
    }
    for kind in ["bridge", "ptp"] {
        let host = Host::new();
        host.container("router");
        host.container("c1");
        host.sh("ip link add up0 type veth peer name up0 netns router; ip link set up0 up
                 ip netns exec router sysctl -qw net.ipv6.conf.all.forwarding=1
                 ip -n router addr add 2001:db8::1/64 dev up0 nodad; ip -n router link set up0 up");
        let mut router = host.command("sh");
        router.args(["-c", "exec ip netns exec router dnsmasq --no-daemon --conf-file=/dev/null --port=0 --interface=up0 \
             --enable-ra --ra-param=up0,4,600 --dhcp-range=2001:db8::,ra-only --dhcp-leasefile=/run/leases >/dev/null 2>&1"]);
        let mut router = router.spawn().unwrap();
        let advertised = || host.sh("ip -6 route show default proto ra");
        host.sh("timeout 20 sh -c 'until ip -6 route show default | grep -q ra; do sleep 0.05; done'");
        let before = advertised();
        let conf =
            plugin(kind, &json!({"isGateway": true, "ipam": {"type": "host-local", "subnet": "fd88::/64"}}));
        Call::new(&host, &OURS, "c1").add(&conf);
        assert_eq!(host.sh("sysctl -n net.ipv6.conf.all.forwarding").trim(), "1", "{kind}");
        let gateway = |route: &str| route.split(" dev ").next().unwrap().to_owned();
        assert_eq!(gateway(&advertised()), gateway(&before), "{kind}");
        assert_eq!(host.sh("sysctl -n net.ipv6.conf.up0.accept_ra").trim(), "2", "{kind}");
        router.kill().unwrap();
        router.wait().unwrap();
    }
}

/// Containers on ptp reach each other with strict reverse path filtering (containernetworking/plugins#134).
#[test]
fn ptp_with_strict_reverse_path_filtering() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
    let ipam = json!({"type": "host-local", "subnet": "10.88.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]});
    let addresses = ["c1", "c2"].map(|name| {
        host.container(name);
        let result = Call::new(&host, &OURS, name).add(&plugin("ptp", &json!({"ipam": ipam})));
        result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
    });
    for (from, name, address) in [("c1", "c2", &addresses[1]), ("c2", "c1", &addresses[0])] {
        let _server = host.serve(Some(name), Transport::Tcp, at("0.0.0.0", 80));
        assert!(host.reaches(Some(from), Transport::Tcp, at(address, 80)), "{from} to {name}");
        assert!(host.reaches(None, Transport::Tcp, at(address, 80)), "host to {name}");
    }
}

/// A container whose IPv6 the runtime has disabled gets an IPv6 address (containernetworking/cni#531).
#[test]
fn ipv6_in_a_container_without_it() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
    for kind in ["bridge", "ptp", "macvlan", "tap"] {
        host.container(kind);
        host.sh(&format!(
            "ip netns exec {kind} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
        ));
        let conf =
            plugin(kind, &json!({"master": "up0", "ipam": {"type": "host-local", "subnet": "fd88::/64"}}));
        let result = Call::new(&host, &OURS, kind).add(&conf);
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert!(
            host.sh(&format!("ip -n {kind} -6 addr show dev eth0")).contains(address),
            "{kind}: {address}"
        );
    }
}

/// A device enters a container that has a link of the device's name (containernetworking/plugins#1002), and returns with the address,
/// MTU and flags that tuning changed in the container (containernetworking/plugins#493).
#[test]
fn a_device_whose_name_is_taken_returns_as_it_was() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    host.sh("ip link add dev0 type veth peer name dev1; ip -n c1 link add dev0 type veth peer name dev9");
    let device = || {
        let seen = host.json("ip -j -d link show dev0");
        ["address", "mtu", "promiscuity", "allmulti", "txqlen"].map(|key| seen[0][key].clone())
    };
    let before = device();
    let chain = [
        plugin("host-device", &json!({"device": "dev0"})),
        plugin(
            "tuning",
            &json!({"mac": "c2:b0:57:49:47:f1", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 7}),
        ),
    ];
    let call = Call::new(&host, &OURS, "c1");
    let result = add_all(&call, &chain);
    assert!(host.sh("ip -n c1 -d link show eth0").contains("c2:b0:57:49:47:f1"));
    chain.iter().rev().for_each(|conf| call.del(conf, &result));
    assert_eq!(device(), before);
    host.sh("ip -n c1 link show dev0");
}

/// The runtime's errors name the cause: a plugin whose interpreter or loader is missing (kubernetes/kubernetes#23011), one that crashed
/// (containernetworking/cni#732), a list of plugins in a file for one (containerd/containerd#11076).
#[test]
fn the_runtime_names_the_cause() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let bin = tempfile::tempdir().unwrap();
    let folder = host.path("/etc/cni/net.d");
    fs::create_dir_all(&folder).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "foreign"}]}).to_string();
    for (file, script, cause) in [
        (
            "lab.conflist",
            "#!/no/such/loader\n",
            "its dynamic loader or the interpreter in its first line does not",
        ),
        (
            "lab.conflist",
            "#!/bin/sh\necho panic >&2\nkill -SEGV $$\n",
            "foreign: panic\nnetloom: plugin type=\"foreign\" failed (add): netplugin failed with no error message: killed by signal 11",
        ),
        ("lab.conf", "#!/bin/sh\n", "its file name must end in .conflist"),
    ] {
        let (network, program) = (folder.join(file), bin.path().join("foreign"));
        fs::write(&network, &list).unwrap();
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = host.command(OURS.join("netloom"));
        let output =
            command.args(["add", "lab", "/run/netns/c1"]).env("CNI_PATH", bin.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(cause), "{script}: {said}");
        fs::remove_file(network).unwrap();
    }
}
