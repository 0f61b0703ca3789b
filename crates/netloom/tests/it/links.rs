//! Reachability over interface plugins whose links share a parent link.

use serde_json::{Value, json};
use testkit::{Host, Transport};

use crate::{
    firewall::at,
    lab::{Call, OURS, with_prev},
};

/// Returns a host whose `up0` is on one segment with another host's `up1`, with containers.
fn a_host(containers: &[&str]) -> Host {
    let host = Host::new();
    for name in ["other"].iter().chain(containers) {
        host.container(name);
    }
    host.sh("ip link add up0 type veth peer name up1 netns other; ip link set up0 up
             ip -n other link set lo up; ip -n other link set up1 up
             ip -n other addr add 10.88.0.1/16 dev up1; ip -n other -6 addr add fd88::1/64 dev up1 nodad");
    host
}

fn conf(kind: &str, more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": kind, "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16", "rangeStart": "10.88.0.2"}], [{"subnet": "fd88::/64", "rangeStart": "fd88::2"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

/// macvlan containers reach the other host and, depending on the mode, each other. Both families work when ADD returns, and
/// neighbours drop their entries for the address's previous owner.
#[test]
fn macvlans_reach_the_segment() {
    if !testkit::is_root() {
        return;
    }
    std::thread::scope(|scope| {
        for (mode, each_other) in [("bridge", true), ("private", false), ("vepa", false)] {
            scope.spawn(move || {
                let host = a_host(&["c1", "c2"]);
                // The other host has a neighbour entry of the address's previous owner.
                host.sh("ip -n other neigh replace 10.88.0.2 lladdr 02:00:00:00:00:66 dev up1 nud reachable
                         ip -n other neigh replace fd88::2 lladdr 02:00:00:00:00:66 dev up1 nud reachable");
                let conf = conf("macvlan", &json!({"master": "up0", "mode": mode}));
                let calls = ["c1", "c2"].map(|name| Call::new(&host, &OURS, name));
                let results = std::thread::scope(|scope| {
                    calls.each_ref().map(|call| scope.spawn(|| call.add(&conf))).map(|it| it.join().unwrap())
                });
                let address = |index: usize, ip: usize| -> String {
                    let text = results[index]["ips"][ip]["address"].as_str().unwrap();
                    text.split('/').next().unwrap().to_owned()
                };
                for (family, any, of_other) in [(0, "0.0.0.0", "10.88.0.1"), (1, "::", "fd88::1")] {
                    let _servers = [Some("c1"), Some("c2"), Some("other")].map(|it| {
                        host.serve(it, Transport::Tcp, at(any, 80 + u16::try_from(family).unwrap()))
                    });
                    let port = 80 + u16::try_from(family).unwrap();
                    let reaches = |from, ip: &str| host.reaches(Some(from), Transport::Tcp, at(ip, port));
                    assert!(reaches("other", &address(0, family)), "{mode} {family}");
                    assert!(reaches("c1", of_other), "{mode} {family}");
                    assert_eq!(reaches("c1", &address(1, family)), each_other, "{mode} {family}");
                }
                for (call, result) in calls.iter().zip(&results) {
                    call.check(&conf, result);
                    call.del(&conf, result);
                }
                assert!(!host.succeeds("ip netns exec c1 ip link show eth0"));
            });
        }
    });
}

/// Two containers request one address on a segment. The second ADD reports it and undoes its changes, whether it waits a
/// second or less. The interface's settings are then as before.
#[test]
fn a_duplicate_address_is_found() {
    if !testkit::is_root() {
        return;
    }
    let host = a_host(&["c1"]);
    host.sh("ip -n other -6 addr add fd88::9/64 dev up1 nodad");
    for wait in [false, true] {
        let mut conf = conf("macvlan", &json!({"master": "up0", "enabledad": wait}));
        conf["ipam"] =
            json!({"type": "static", "addresses": [{"address": "fd88::9/64", "gateway": "fd88::1"}]});
        let call = Call::new(&host, &OURS, "c1");
        let before = host.snapshot();
        let (_, said) = call.call("ADD", &conf).error();
        assert!(said.contains("fd88::9/64") && said.contains("in use by another host"), "{said}");
        before.assert_same(&host.snapshot(), "a duplicate address");
        assert!(!host.succeeds("ip netns exec c1 ip link show eth0"));

        conf["ipam"]["addresses"][0]["address"] = json!("fd88::8/64");
        let result = call.add(&conf);
        let set = host.sh("ip netns exec c1 sh -c 'cd /proc/sys/net/ipv6; cat conf/eth0/router_solicitation_delay neigh/eth0/retrans_time_ms'");
        assert_eq!(set, "1\n1000\n");
        call.check(&conf, &result);
        // Another host takes the address later. The kernel reports this when the interface comes up again.
        host.sh("ip -n other -6 addr add fd88::8/64 dev up1 nodad; ip -n c1 link set eth0 down; ip -n c1 link set eth0 up
                 timeout 10 sh -c 'until ip -n c1 -6 addr show dev eth0 | grep -q dadfailed; do sleep 0.05; done'");
        let (_, said) = call.call("CHECK", &with_prev(&conf, &result)).error();
        assert!(said.contains("fd88::8/64") && said.contains("in use by another host"), "{said}");
        host.sh("ip -n other -6 addr del fd88::8/64 dev up1");
        call.del(&conf, &result);
    }
}

/// A TAP link has the configured owner, and a second ADD fails.
#[test]
fn a_tap_link_is_as_asked() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    let conf = conf("tap", &json!({"owner": 65534, "multiQueue": true, "mtu": 1400}));
    let result = call.add(&conf);
    call.check(&conf, &result);
    let link = &host.json("ip netns exec c1 ip -j -d link show eth0")[0];
    assert_eq!(link["mtu"], 1400);
    assert_eq!(link["linkinfo"]["info_data"]["user"], "nobody");
    let again = call.call("ADD", &conf).error();
    assert!(again.1.contains("already exists"), "{again:?}");
    call.del(&conf, &result);
    call.del(&conf, &result);
    assert!(!host.succeeds("ip netns exec c1 ip link show eth0"));
}
