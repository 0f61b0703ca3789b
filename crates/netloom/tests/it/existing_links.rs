//! Links that existed before an ADD keep their state through every ADD and DEL.

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, dual_stack, with_prev};

/// Higher than most random addresses: a bridge takes the lowest address of its ports.
const UPLINK_MAC: &str = "7e:00:00:00:00:01";
const BRIDGE_MAC: &str = "7e:00:00:00:00:02";

fn mac(host: &Host, link: &str) -> String {
    host.json(&format!("ip -j link show {link}"))[0]["address"].as_str().unwrap().to_owned()
}

/// A bridge that existed keeps its hardware address, whether or not it is the network's gateway or has other ports. Hosts on
/// its segment and a DHCP server identify the host by this address.
#[test]
fn a_bridge_keeps_its_address() {
    if !testkit::is_root() {
        return;
    }
    let uplink = format!(
        "ip link add up0 address {UPLINK_MAC} type veth peer name far0; \
         ip link set far0 up; ip link set up0 up master br0; ip link set br0 up"
    );
    let layouts = [
        ("a bridge with an uplink", format!("ip link add br0 type bridge; {uplink}"), UPLINK_MAC),
        (
            "a bridge without ports",
            format!("ip link add br0 type bridge; ip link set br0 address {BRIDGE_MAC}"),
            BRIDGE_MAC,
        ),
        (
            "a bridge without ports and with an address of the kernel's",
            "ip link add br0 type bridge".into(),
            "",
        ),
        (
            "a bridge without ports and with an address of the kernel's that begins like those of containers' ports",
            "until ip link add br0 type bridge; ip link show br0 | grep -q 'ether fe:'; do ip link del br0; done".into(),
            "",
        ),
    ];
    for (name, setup, expected) in layouts {
        for gateway in [true, false] {
            let host = Host::new();
            host.sh(&setup);
            let before = mac(&host, "br0");
            assert!(expected.is_empty() || before == expected, "{name}: {before}");
            let mut conf = dual_stack();
            conf["isGateway"] = json!(gateway);
            let is_same = |when: &str| {
                assert_eq!(mac(&host, "br0"), before, "{name}, isGateway {gateway}, {when}");
            };
            let mut results = Vec::new();
            for index in 0..6 {
                let container = format!("c{index}");
                host.container(&container);
                let call = Call::new(&host, &OURS, &container);
                let result = call.add(&conf);
                assert_eq!(result["interfaces"][0]["mac"].as_str().unwrap(), before);
                results.push((call, result));
                is_same("ADD");
            }
            for (call, result) in results {
                call.del(&conf, &result);
                is_same("DEL");
            }
            // An ADD that fails after its port joined the bridge.
            host.container("c9");
            let mut failing = conf.clone();
            failing["ipam"]["type"] = json!("no-such-plugin");
            Call::new(&host, &OURS, "c9").call("ADD", &failing).error();
            is_same("a failed ADD");
        }
    }
}

/// A bridge that lost its last port before its address was set has none: ADD works, and gives it one of its own that stays.
#[test]
fn a_bridge_without_an_address_gets_one() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("ip link add br0 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master br0; ip link del p0");
    assert_eq!(mac(&host, "br0"), "00:00:00:00:00:00");
    let conf = dual_stack();
    let mut expected = None;
    for index in 0..3 {
        let container = format!("c{index}");
        host.container(&container);
        let call = Call::new(&host, &OURS, &container);
        let result = call.add(&conf);
        let now = mac(&host, "br0");
        assert_ne!(now, "00:00:00:00:00:00");
        assert_eq!(&now, expected.get_or_insert(now.clone()));
        assert_ne!(result["interfaces"][1]["mac"], now.as_str());
        call.del(&conf, &result);
    }
}

/// An uplink joins a bridge that existed: the bridge keeps its address. A bridge that ADD creates takes the uplink's.
#[test]
fn an_uplink_does_not_change_an_existing_bridge() {
    if !testkit::is_root() {
        return;
    }
    let mut conf = dual_stack();
    conf["uplinkInterface"] = json!("up0");
    for (exists, expected) in [(true, BRIDGE_MAC), (false, "02:00:00:00:00:01")] {
        let host = Host::new();
        host.sh("ip link add up0 address 02:00:00:00:00:01 type veth peer name far0; ip link set far0 up");
        if exists {
            // An address that the kernel took from the first port.
            host.sh(&format!(
                "ip link add br0 type bridge; ip link add p0 address {BRIDGE_MAC} type veth peer name p1; \
                 ip link set p0 master br0"
            ));
        }
        host.container("c1");
        let call = Call::new(&host, &OURS, "c1");
        let result = call.add(&conf);
        assert_eq!(mac(&host, "br0"), expected, "exists: {exists}");
        call.del(&conf, &result);
        assert_eq!(mac(&host, "br0"), expected, "exists: {exists}, after DEL");
    }
}

fn root_qdisc(host: &Host, link: &str) -> Value {
    host.json(&format!("tc -j qdisc show dev {link}"))[0]["kind"].clone()
}

/// The other end of the container's veth pair is in a third namespace, and a link of the host has the same pair of indices.
/// This link is foreign and is not rate-limited.
#[test]
fn a_foreign_link_with_the_same_indices_is_left_alone() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    for name in ["c1", "third"] {
        host.container(name);
    }
    // Both pairs have the indices 71 and 72.
    host.sh("ip netns exec c1 ip link add eth0 index 71 type veth peer name far index 72 netns third; \
         ip link add decoy index 72 type veth peer name decoy1 index 71; \
         ip link set decoy up; ip link set decoy1 up; ip netns exec c1 ip link set eth0 up");
    let call = Call::new(&host, &OURS, "c1");
    let before = root_qdisc(&host, "decoy");
    let prev =
        json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": call.netns}], "ips": []});
    let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": "bandwidth", "ingressRate": 8_000_000,
        "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000});
    let (_, text) = call.call("ADD", &with_prev(&conf, &prev)).error();
    assert!(text.contains("no veth peer on the host"), "{text}");
    assert_eq!(root_qdisc(&host, "decoy"), before);
    let (_, text) = call.call("CHECK", &with_prev(&conf, &prev)).error();
    assert!(text.contains("no veth peer on the host"), "{text}");
}

/// A link may be named by one of its alternative names, which are longer than interface names may be.
#[test]
fn alternative_names_are_names() {
    if !testkit::is_root() {
        return;
    }
    const NAME: &str = "enp0s31f6-uplink-of-the-host";
    let ipam = json!({"type": "host-local", "subnet": "10.88.0.0/16"});
    let macvlan =
        json!({"cniVersion": "1.1.0", "name": "lab", "type": "macvlan", "master": NAME, "ipam": ipam});
    let bridge = json!({"cniVersion": "1.1.0", "name": "lab", "type": "bridge", "bridge": "br0",
                        "uplinkInterface": NAME, "ipam": ipam});
    let device = json!({"cniVersion": "1.1.0", "name": "lab", "type": "host-device", "device": NAME});
    for conf in [macvlan, bridge, device] {
        let host = Host::new();
        host.sh(&format!(
            "ip link add up0 type veth peer name far0; ip link property add dev up0 altname {NAME}; \
             ip link set up0 up; ip link set far0 up"
        ));
        host.container("c1");
        let call = Call::new(&host, &OURS, "c1");
        call.call("STATUS", &conf).result("STATUS");
        let result = call.add(&conf);
        call.check(&conf, &result);
        call.del(&conf, &result);
        let links = host.sh("ip -br link");
        assert!(links.contains("up0"), "{}: {links}", conf["type"]);
    }
    // What no link can be called is refused with the key's name.
    let host = Host::new();
    host.container("c1");
    let wrong = json!({"cniVersion": "1.1.0", "name": "lab", "type": "macvlan", "master": "a b"});
    let (code, text) = Call::new(&host, &OURS, "c1").call("ADD", &wrong).error();
    assert!(code == 7 && text.contains("`master`"), "{code} {text}");
}
