//! Bad input: every case returns the specification's code and a message that names the key or object. It leaves nothing
//! behind and never panics.

use std::{fs, io::Write, process::Stdio};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, PLUGINS, dual_stack};

/// A change to a valid call: the plugin, its input, and one variable.
struct Case {
    plugin: &'static str,
    verb: &'static str,
    stdin: String,
    variable: Option<(&'static str, String)>,
    code: u64,
    says: &'static str,
}

const BRIDGE: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const PTP: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"ptp","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const HOST_LOCAL: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"host-local","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const STATIC: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"static","ipam":{"type":"static","addresses":[{"address":"10.5.0.2/24"}]}}"#;
const PORTMAP: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"portmap","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.88.0.2/16"}]},"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}}"#;

const FIREWALL: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"firewall","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"br0"}],"ips":[{"address":"10.88.0.2/16"}]}}"#;
const TUNING: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"tuning","sysctl":{"net.core.somaxconn":"500"},"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.88.0.2/16"}]}}"#;
const BANDWIDTH: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"bandwidth","ingressRate":1000000,"ingressBurst":1000000,"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.88.0.2/16"}]}}"#;
const SBR: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"sbr","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.88.0.2/16"}]}}"#;
const VRF: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"vrf","vrfname":"blue","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.88.0.2/16"}]}}"#;

const MACVLAN: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"macvlan","master":"up0","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const IPVLAN: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"ipvlan","master":"up0","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const VLAN: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"vlan","master":"up0","vlanId":5,"ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const HOST_DEVICE_BARE: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"host-device"}"#;
const DHCP: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"dhcp","ipam":{"type":"dhcp"}}"#;
const DUMMY: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"dummy","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const TAP: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"tap","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
const HOST_DEVICE: &str = r#"{"cniVersion":"1.1.0","name":"lab","type":"host-device","device":"up0","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;

/// Replaces the value of a configuration key; `null` removes the key.
fn changed(conf: &str, path: &str, value: Value) -> String {
    let mut whole: Value = serde_json::from_str(conf).unwrap();
    let mut place = &mut whole;
    let steps: Vec<&str> = path.split('.').collect();
    for step in &steps[..steps.len() - 1] {
        place = &mut place[*step];
    }
    let last = steps[steps.len() - 1];
    if value.is_null() {
        place.as_object_mut().unwrap().remove(last);
    } else {
        place[last] = value;
    }
    whole.to_string()
}

/// Cases with a wrong configuration: the plugin's valid one, key, value, code, and part of the message.
fn configurations() -> Vec<Case> {
    let cases: Vec<(&str, &str, Value, u64, &str)> = vec![
        (BRIDGE, "name", json!(null), 7, "missing network name"),
        (BRIDGE, "name", json!(""), 7, "missing network name"),
        (BRIDGE, "name", json!("../../etc"), 7, "../../etc"),
        (BRIDGE, "name", json!("a/b"), 7, "a/b"),
        (BRIDGE, "name", json!("a\u{0}b"), 7, "a\\\\0b"),
        (BRIDGE, "name", json!("n".repeat(300)), 7, "longer than 255"),
        (BRIDGE, "name", json!(5), 6, "`name`"),
        (BRIDGE, "name", json!(["x"]), 6, "`name`"),
        (BRIDGE, "cniVersion", json!("9.9.9"), 1, "9.9.9"),
        (BRIDGE, "cniVersion", json!("1.1"), 1, "1.1"),
        (BRIDGE, "cniVersion", json!(1.1), 6, "`cniVersion`"),
        (BRIDGE, "bridge", json!(""), 7, "`bridge`"),
        (BRIDGE, "bridge", json!("../x"), 7, "`bridge`"),
        (BRIDGE, "bridge", json!("a b"), 7, "`bridge`"),
        (BRIDGE, "bridge", json!("br0123456789abcdef"), 7, "too long"),
        (BRIDGE, "bridge", json!("lo"), 7, "already exists but is not a bridge"),
        (BRIDGE, "bridge", json!(7), 6, "`bridge`"),
        (BRIDGE, "isGateway", json!("yes"), 6, "`isGateway`"),
        (BRIDGE, "ipspoofchk", json!("yes"), 6, "`ipspoofchk`"),
        (BRIDGE, "waitForRemoval", json!("yes"), 6, "`waitForRemoval`"),
        (
            r#"{"cniVersion":"1.1.0","name":"lab","type":"bridge","bridge":"br0"}"#,
            "ipspoofchk",
            json!(true),
            7,
            "`ipspoofchk`",
        ),
        (BRIDGE, "isDefaultGateway", json!(1), 6, "`isDefaultGateway`"),
        (BRIDGE, "ipMasq", json!({}), 6, "`ipMasq`"),
        (BRIDGE, "ipMasqBackend", json!("ebtables"), 2, "ebtables"),
        (BRIDGE, "mtu", json!(-5), 7, "`mtu` -5"),
        (BRIDGE, "mtu", json!(67), 7, "`mtu` 67"),
        (BRIDGE, "mtu", json!(1e9), 6, "`mtu`"),
        (BRIDGE, "mtu", json!(70000), 7, "`mtu` 70000"),
        (BRIDGE, "mtu", json!("1500"), 6, "`mtu`"),
        (BRIDGE, "mtu", json!(1400.5), 6, "`mtu`"),
        (BRIDGE, "vlan", json!(-1), 7, "VLAN ID -1"),
        (BRIDGE, "vlan", json!(4095), 7, "VLAN ID 4095"),
        (BRIDGE, "vlan", json!("5"), 6, "`vlan`"),
        (BRIDGE, "vlanTrunk", json!({}), 6, "`vlanTrunk`"),
        (BRIDGE, "vlanTrunk", json!([{"id": 0}]), 7, "`vlanTrunk[0].id` 0"),
        (BRIDGE, "vlanTrunk", json!([{"id": 1}, {"minID": 9, "maxID": 5}]), 7, "`vlanTrunk[1]`"),
        (BRIDGE, "vlanTrunk", json!([{"minID": 9}]), 7, "maxID is missing"),
        (BRIDGE, "vlanTrunk", json!([{"maxID": 9}]), 7, "minID is missing"),
        (BRIDGE, "vlanTrunk", json!([null]), 6, "`vlanTrunk[0]`"),
        (BRIDGE, "disableContainerInterface", json!(true), 7, "DisableContainerInterface"),
        (BRIDGE, "uplinkInterface", json!("nope0"), 999, "nope0"),
        (BRIDGE, "uplinkInterface", json!("a/b"), 7, "`uplinkInterface`"),
        (BRIDGE, "runtimeConfig", json!({"mac": "zz:11:22:33:44:55"}), 7, "`runtimeConfig.mac`"),
        (BRIDGE, "runtimeConfig", json!({"mac": "01:11:22:33:44:55"}), 7, "group address"),
        (BRIDGE, "args", json!({"cni": {"mac": "1:2:3"}}), 7, "`args.cni.mac`"),
        (BRIDGE, "dns", json!({"nameservers": "1.1.1.1"}), 6, "`dns.nameservers`"),
        (BRIDGE, "ipam", json!([]), 6, "`ipam`"),
        (BRIDGE, "ipam.type", json!("nope"), 999, "nope"),
        (BRIDGE, "ipam.type", json!("../../bin/sh"), 999, "../../bin/sh"),
        (BRIDGE, "ipam.type", json!(5), 6, "`ipam.type`"),
        (BRIDGE, "ipam.subnet", json!("10.88.0.0"), 7, "`ipam.subnet`"),
        (BRIDGE, "ipam.subnet", json!("10.88.0.1/16"), 7, "host bits"),
        (BRIDGE, "prevResult", json!("text"), 6, "prevResult"),
        (BRIDGE, "prevResult", json!({"cniVersion": "7.7.7"}), 6, "7.7.7"),
        (BRIDGE, "prevResult", json!({"ips": [{"address": "x"}]}), 6, "`ips[0].address`"),
        (PTP, "name", json!("-"), 7, "-"),
        (PTP, "cniVersion", json!("3"), 1, "incompatible"),
        (PTP, "ipam", json!(null), 7, "`ipam.type`"),
        (PTP, "ipam.type", json!(""), 7, "`ipam.type`"),
        (PTP, "ipam.type", json!("nope"), 999, "nope"),
        (PTP, "ipam.type", json!(1), 6, "`ipam.type`"),
        (PTP, "ipam.subnet", json!("10.88.0.0/31"), 7, "too small"),
        (PTP, "mtu", json!(1), 7, "`mtu` 1"),
        (PTP, "mtu", json!([]), 6, "`mtu`"),
        (PTP, "group", json!(2_130_706_432_u32), 7, "`group` 2130706432"),
        (PTP, "group", json!(-1), 6, "`group`"),
        (PTP, "mtu", json!(66000), 7, "`mtu` 66000"),
        (PTP, "ipMasq", json!("true"), 6, "`ipMasq`"),
        (PTP, "ipMasqBackend", json!("pf"), 2, "pf"),
        (PTP, "dns", json!([]), 6, "`dns`"),
        (PTP, "dns", json!({"search": 5}), 6, "`dns.search`"),
        (PTP, "ipam", json!({"type": "static", "addresses": []}), 999, "missing IP config"),
        (
            PTP,
            "ipam",
            json!({"type": "static", "addresses": [{"address": "10.5.0.2/24"}]}),
            7,
            "without a gateway",
        ),
        (HOST_LOCAL, "ipam", json!(null), 7, "'ipam'"),
        (HOST_LOCAL, "ipam.subnet", json!(null), 7, "no IP ranges"),
        (HOST_LOCAL, "ipam.subnet", json!("300.1.1.0/24"), 7, "300.1.1.0/24"),
        (HOST_LOCAL, "ipam.subnet", json!("10.0.0.0/33"), 7, "10.0.0.0/33"),
        (HOST_LOCAL, "ipam.subnet", json!("10.0.0.01/24"), 7, "10.0.0.01/24"),
        (HOST_LOCAL, "ipam.subnet", json!("10.0.0.0/31"), 7, "too small"),
        (HOST_LOCAL, "ipam.subnet", json!("fd00::/127"), 7, "too small"),
        (HOST_LOCAL, "ipam.subnet", json!(["x"]), 6, "`ipam.subnet`"),
        (HOST_LOCAL, "ipam.rangeStart", json!("10.99.0.1"), 7, "rangeStart 10.99.0.1"),
        (HOST_LOCAL, "ipam.rangeEnd", json!("fd00::1"), 7, "rangeEnd fd00::1"),
        (HOST_LOCAL, "ipam.rangeStart", json!("first"), 6, "`ipam.rangeStart`"),
        (HOST_LOCAL, "ipam.gateway", json!("10.88.0.999"), 6, "`ipam.gateway`"),
        (HOST_LOCAL, "ipam.gateway", json!("fd00::1"), 7, "fd00::1"),
        (HOST_LOCAL, "ipam.ranges", json!([[]]), 7, "range set 1"),
        (HOST_LOCAL, "ipam.ranges", json!([[{}]]), 6, "`ipam.ranges[0][0]`"),
        (HOST_LOCAL, "ipam.ranges", json!([{"subnet": "10.1.0.0/16"}]), 6, "`ipam.ranges[0]`"),
        (HOST_LOCAL, "ipam.ranges", json!([[{"subnet": "10.88.1.0/24"}]]), 7, "overlaps"),
        (
            HOST_LOCAL,
            "ipam.ranges",
            json!([[{"subnet": "10.1.0.0/16"}, {"subnet": "fd00::/64"}]]),
            7,
            "mixed",
        ),
        (
            HOST_LOCAL,
            "ipam.ranges",
            json!([[{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.2.0/24"}]]),
            7,
            "overlaps",
        ),
        (
            HOST_LOCAL,
            "ipam.ranges",
            json!([[{"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.5"}]]),
            7,
            "rangeStart 10.1.0.9",
        ),
        (HOST_LOCAL, "ipam.routes", json!([{"dst": "default"}]), 6, "`ipam.routes[0].dst`"),
        (HOST_LOCAL, "ipam.routes", json!([{"gw": "10.0.0.1"}]), 6, "`ipam.routes[0]`"),
        (HOST_LOCAL, "ipam.routes", json!([{"dst": "0.0.0.0/0", "gw": "x"}]), 6, "`ipam.routes[0].gw`"),
        (HOST_LOCAL, "ipam.routes", json!([{"dst": "0.0.0.0/0", "mtu": -1}]), 6, "`ipam.routes[0].mtu`"),
        (HOST_LOCAL, "ipam.resolvConf", json!("/nowhere/resolv.conf"), 5, "/nowhere/resolv.conf"),
        (HOST_LOCAL, "ipam.dataDir", json!("/proc/nowhere"), 5, "/proc/nowhere"),
        (HOST_LOCAL, "ipam.dataDir", json!("/run/full"), 5, "/run/full"),
        (HOST_LOCAL, "ipam.dataDir", json!("/run/readonly"), 5, "/run/readonly"),
        (HOST_LOCAL, "runtimeConfig", json!({"ips": ["nonsense"]}), 7, "`runtimeConfig.ips`"),
        (HOST_LOCAL, "runtimeConfig", json!({"ips": ["10.88.0.1"]}), 7, "gateway"),
        (HOST_LOCAL, "runtimeConfig", json!({"ips": ["192.168.0.5"]}), 7, "192.168.0.5"),
        (
            HOST_LOCAL,
            "runtimeConfig",
            json!({"ipRanges": [[{"subnet": "x"}]]}),
            6,
            "`runtimeConfig.ipRanges[0][0].subnet`",
        ),
        (STATIC, "ipam", json!(null), 7, "'ipam'"),
        (STATIC, "ipam.addresses", json!([{"address": "10.5.0.2"}]), 7, "`ipam.addresses[0].address`"),
        (STATIC, "ipam.addresses", json!([{}]), 7, "`ipam.addresses[0].address`"),
        (
            STATIC,
            "ipam.addresses",
            json!([{"address": "10.5.0.2/24", "gateway": "gw"}]),
            6,
            "`ipam.addresses[0].gateway`",
        ),
        (STATIC, "args", json!({"cni": {"ips": ["10.5.0.2"]}}), 7, "`args.cni.ips`"),
        (STATIC, "runtimeConfig", json!({"ips": ["10.5.0.2"]}), 7, "`runtimeConfig.ips`"),
        (PORTMAP, "prevResult", json!(null), 7, "chained"),
        (PORTMAP, "backend", json!("pf"), 2, "pf"),
        (PORTMAP, "backend", json!(5), 6, "`backend`"),
        (PORTMAP, "snat", json!("no"), 6, "`snat`"),
        (PORTMAP, "masqAll", json!(1), 6, "`masqAll`"),
        (PORTMAP, "conditionsV4", json!(["-p", "tcp"]), 2, "-p tcp"),
        (PORTMAP, "conditionsV4", json!("-s 1.2.3.4"), 6, "`conditionsV4`"),
        (PORTMAP, "conditionsV4", json!(["-s", "fd00::1"]), 2, "fd00::1"),
        (PORTMAP, "conditionsV6", json!(["ip6", "saddr"]), 2, "ip6 saddr"),
        (PORTMAP, "conditionsV6", json!(["ip", "saddr", "1.2.3.4"]), 2, "1.2.3.4"),
        (PORTMAP, "markMasqBit", json!(32), 7, "`markMasqBit`"),
        (
            PORTMAP,
            "runtimeConfig.portMappings",
            json!([{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]),
            7,
            "host port",
        ),
        (
            PORTMAP,
            "runtimeConfig.portMappings",
            json!([{"hostPort": 80, "containerPort": 99999, "protocol": "tcp"}]),
            7,
            "container port number: 99999",
        ),
        (
            PORTMAP,
            "runtimeConfig.portMappings",
            json!([{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]),
            7,
            "icmp",
        ),
        (
            PORTMAP,
            "runtimeConfig.portMappings",
            json!([{"hostPort": "80", "containerPort": 80, "protocol": "tcp"}]),
            6,
            "hostPort",
        ),
        (
            PORTMAP,
            "runtimeConfig.portMappings",
            json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "host"}]),
            7,
            "hostIP",
        ),
        (FIREWALL, "prevResult", json!(null), 7, "chained"),
        (FIREWALL, "cniVersion", json!("0.3.1"), 1, "0.3.1"),
        (FIREWALL, "backend", json!("pf"), 2, "pf"),
        (FIREWALL, "backend", json!(["iptables"]), 6, "`backend`"),
        (FIREWALL, "backend", json!("firewalld"), 999, "firewalld"),
        (FIREWALL, "ingressPolicy", json!("closed"), 7, "closed"),
        (FIREWALL, "ingressPolicy", json!(true), 6, "`ingressPolicy`"),
        (
            FIREWALL,
            "iptablesAdminChainName",
            json!("a name of more than 28 letters"),
            7,
            "not a valid chain name",
        ),
        (FIREWALL, "iptablesAdminChainName", json!("-j ACCEPT"), 7, "not a valid chain name"),
        (FIREWALL, "iptablesAdminChainName", json!(7), 6, "`iptablesAdminChainName`"),
        (FIREWALL, "firewalldZone", json!({}), 6, "`firewalldZone`"),
        (TUNING, "prevResult", json!(null), 7, "chained"),
        (TUNING, "sysctl", json!({"kernel.hostname": "x"}), 7, "kernel.hostname"),
        (TUNING, "sysctl", json!({"net": "x"}), 7, "invalid net sysctl key"),
        (TUNING, "sysctl", json!({"net/../kernel/hostname": "x"}), 7, "invalid net sysctl key"),
        (TUNING, "sysctl", json!({"net..ipv4": "x"}), 7, "invalid net sysctl key"),
        (TUNING, "sysctl", json!({"net.ipv4.nothing": "1"}), 999, "net/ipv4/nothing"),
        (TUNING, "sysctl", json!({"net.core.somaxconn": "many"}), 999, "net/core/somaxconn"),
        (TUNING, "sysctl", json!({"net.core.somaxconn": 5}), 7, "must be a string"),
        (TUNING, "sysctl", json!([]), 6, "`sysctl`"),
        (TUNING, "mac", json!("nonsense"), 7, "`mac`"),
        (TUNING, "runtimeConfig", json!({"mac": "1:2"}), 7, "`runtimeConfig.mac`"),
        (TUNING, "args", json!({"cni": {"mac": "x"}}), 7, "`args.cni.mac`"),
        (TUNING, "mtu", json!(-1), 7, "`mtu` -1"),
        (TUNING, "mtu", json!("big"), 6, "`mtu`"),
        (TUNING, "mtu", json!(1400), 999, "eth0"),
        (TUNING, "promisc", json!("on"), 6, "`promisc`"),
        (TUNING, "allmulti", json!(2), 6, "`allmulti`"),
        (TUNING, "txQLen", json!(-2), 7, "`txQLen` -2"),
        (BANDWIDTH, "prevResult", json!(null), 7, "chained"),
        (BANDWIDTH, "cniVersion", json!("0.2.0"), 1, "0.2.0"),
        (BANDWIDTH, "ingressBurst", json!(null), 7, "`ingressBurst` must be too"),
        (BANDWIDTH, "ingressRate", json!(null), 7, "`ingressRate` must be too"),
        (BANDWIDTH, "ingressRate", json!(-1), 6, "`ingressRate`"),
        (BANDWIDTH, "ingressRate", json!("1M"), 6, "`ingressRate`"),
        (BANDWIDTH, "ingressRate", json!(3), 7, "must be at least 8"),
        (BANDWIDTH, "ingressBurst", json!(u64::MAX), 7, "4 GB"),
        (BANDWIDTH, "egressRate", json!(8000), 7, "`egressBurst` must be too"),
        (BANDWIDTH, "unshapedSubnets", json!(["10.0.0.0"]), 7, "`unshapedSubnets[0]`"),
        (BANDWIDTH, "shapedSubnets", json!(["10.0.0.0/8", "x"]), 7, "`shapedSubnets[1]`"),
        (BANDWIDTH, "shapedSubnets", json!("10.0.0.0/8"), 6, "`shapedSubnets`"),
        (BANDWIDTH, "mtu", json!(1), 999, "eth0"),
        (SBR, "prevResult", json!(null), 7, "chained"),
        (SBR, "prevResult", json!({"cniVersion": "1.1.0"}), 7, "No IP addresses"),
        (SBR, "table", json!(-5), 7, "`table` -5"),
        (SBR, "table", json!("main"), 6, "`table`"),
        (SBR, "gateways", json!(["x"]), 7, "`gateways[0]`"),
        (SBR, "gateways", json!(["10.0.0.1", "10.0.0.2"]), 7, "more than one address of a family"),
        (SBR, "gateways", json!("10.0.0.1"), 6, "`gateways`"),
        (SBR, "addSourceHints", json!("yes"), 6, "`addSourceHints`"),
        (SBR, "mtu", json!(1), 999, "eth0"),
        (VRF, "prevResult", json!(null), 7, "chained"),
        (VRF, "cniVersion", json!("0.3.0"), 1, "0.3.0"),
        (VRF, "vrfname", json!(null), 7, "`vrfname`"),
        (VRF, "vrfname", json!("a/b"), 7, "`vrfname`"),
        (VRF, "vrfname", json!("a name too long"), 7, "`vrfname`"),
        (VRF, "vrfname", json!("sixteen-letters!"), 7, "`vrfname`"),
        (VRF, "vrfname", json!(5), 6, "`vrfname`"),
        (VRF, "table", json!(-5), 7, "`table` -5"),
        (VRF, "table", json!("x"), 6, "`table`"),
        (VRF, "mtu", json!(1), 999, "eth0"),
        (DHCP, "ipam", json!(null), 7, "'ipam'"),
        (DHCP, "ipam", json!([]), 6, "`ipam`"),
        (DHCP, "ipam.daemonSocketPath", json!("dhcp.sock"), 7, "`ipam.daemonSocketPath`"),
        (DHCP, "ipam.daemonSocketPath", json!("/x".repeat(99)), 7, "107 bytes"),
        (DHCP, "ipam.daemonSocketPath", json!(5), 6, "daemonSocketPath"),
        (DHCP, "ipam.daemonSocketPath", json!("/run/none.sock"), 11, "/run/none.sock"),
        (DHCP, "ipam.daemonSocketPath", json!("/etc/hostname"), 11, "/etc/hostname"),
        (DHCP, "ipam.provide", json!([{"option": "hostname", "value": "x"}]), 7, "`ipam.provide[0].option`"),
        (DHCP, "ipam.provide", json!([{"option": "300", "value": "x"}]), 7, "300"),
        (DHCP, "ipam.provide", json!([{"option": "12", "value": "x".repeat(256)}]), 7, "value too long"),
        (DHCP, "ipam.provide", json!("x"), 6, "`ipam.provide`"),
        (DHCP, "ipam.request", json!([{"option": "-1"}]), 7, "`ipam.request[0].option`"),
        (DHCP, "ipam.request", json!([{"skipDefault": "yes"}]), 6, "skipDefault"),
        (DHCP, "ipam.request", json!({}), 6, "`ipam.request`"),
        (DHCP, "ipam.priority", json!(-1), 7, "`ipam.priority` -1"),
        (DHCP, "ipam.priority", json!("high"), 6, "priority"),
        (DHCP, "ipam.ipv4", json!(false), 7, "no address is requested"),
        (DHCP, "ipam.ipv6", json!("yes"), 6, "ipv6"),
        (DHCP, "name", json!(null), 7, "missing network name"),
        (MACVLAN, "master", json!("none0"), 7, "none0"),
        (MACVLAN, "master", json!("a/b"), 7, "`master`"),
        (MACVLAN, "master", json!("a master too long"), 7, "`master`"),
        (MACVLAN, "master", json!(5), 6, "`master`"),
        (MACVLAN, "linkInContainer", json!(true), 7, "in the container first"),
        (MACVLAN, "linkInContainer", json!("yes"), 6, "`linkInContainer`"),
        (MACVLAN, "mtu", json!(-1), 7, "`mtu` -1"),
        (MACVLAN, "mtu", json!("1500"), 6, "`mtu`"),
        (MACVLAN, "mtu", json!(9000), 7, "master MTU(1500)"),
        (MACVLAN, "ipam.type", json!("nope"), 999, "nope"),
        (MACVLAN, "ipam", json!([]), 6, "`ipam`"),
        (MACVLAN, "ipam.subnet", json!("x"), 7, "subnet"),
        (MACVLAN, "dns", json!("1.1.1.1"), 6, "`dns`"),
        (MACVLAN, "name", json!(null), 7, "missing network name"),
        (IPVLAN, "master", json!("none0"), 7, "none0"),
        (IPVLAN, "master", json!("a/b"), 7, "`master`"),
        (IPVLAN, "master", json!("a master too long"), 7, "`master`"),
        (IPVLAN, "master", json!(5), 6, "`master`"),
        (IPVLAN, "linkInContainer", json!(true), 7, "in the container first"),
        (IPVLAN, "linkInContainer", json!("yes"), 6, "`linkInContainer`"),
        (IPVLAN, "mtu", json!(-1), 7, "`mtu` -1"),
        (IPVLAN, "mtu", json!("1500"), 6, "`mtu`"),
        (IPVLAN, "mtu", json!(9000), 7, "master MTU(1500)"),
        (IPVLAN, "ipam", json!([]), 6, "`ipam`"),
        (IPVLAN, "dns", json!("1.1.1.1"), 6, "`dns`"),
        (IPVLAN, "name", json!(null), 7, "missing network name"),
        (VLAN, "master", json!("none0"), 7, "none0"),
        (VLAN, "master", json!("a/b"), 7, "`master`"),
        (VLAN, "master", json!("a master too long"), 7, "`master`"),
        (VLAN, "master", json!(5), 6, "`master`"),
        (VLAN, "linkInContainer", json!(true), 7, "in the container first"),
        (VLAN, "linkInContainer", json!("yes"), 6, "`linkInContainer`"),
        (VLAN, "mtu", json!(-1), 7, "`mtu` -1"),
        (VLAN, "mtu", json!("1500"), 6, "`mtu`"),
        (VLAN, "mtu", json!(9000), 7, "master MTU(1500)"),
        (VLAN, "ipam", json!([]), 6, "`ipam`"),
        (VLAN, "dns", json!("1.1.1.1"), 6, "`dns`"),
        (VLAN, "name", json!(null), 7, "missing network name"),
        (MACVLAN, "master", json!(null), 7, "no default route"),
        (IPVLAN, "master", json!(null), 7, "no default route"),
        (VLAN, "master", json!(null), 7, "`master` is missing"),
        (MACVLAN, "mode", json!("l2"), 7, "l2"),
        (MACVLAN, "mode", json!(1), 6, "`mode`"),
        (MACVLAN, "bcqueuelen", json!(-1), 6, "`bcqueuelen`"),
        (MACVLAN, "mac", json!("nonsense"), 7, "`mac`"),
        (MACVLAN, "runtimeConfig", json!({"mac": "01:00:00:00:00:01"}), 7, "group address"),
        (IPVLAN, "mode", json!("bridge"), 7, "bridge"),
        (IPVLAN, "ipam", json!(null), 7, "`ipam.type`"),
        (VLAN, "vlanId", json!(4095), 7, "VLAN ID 4095"),
        (VLAN, "vlanId", json!(-1), 7, "VLAN ID -1"),
        (VLAN, "vlanId", json!("5"), 6, "`vlanId`"),
        (IPVLAN, "mode", json!(1), 6, "`mode`"),
        (DUMMY, "name", json!(null), 7, "missing network name"),
        (DUMMY, "name", json!("n".repeat(300)), 7, "longer than 255"),
        (DUMMY, "cniVersion", json!("1.1"), 1, "1.1"),
        (DUMMY, "prevResult", json!({"cniVersion": "7.7.7"}), 6, "7.7.7"),
        (DUMMY, "ipam", json!(null), 7, "requires an IPAM"),
        (DUMMY, "ipam.type", json!(""), 7, "requires an IPAM"),
        (DUMMY, "ipam.type", json!(5), 6, "`ipam.type`"),
        (DUMMY, "ipam", json!(7), 6, "`ipam`"),
        (DUMMY, "dns", json!([]), 6, "`dns`"),
        (DUMMY, "dns", json!({"search": "x"}), 6, "`dns.search`"),
        (DUMMY, "name", json!(""), 7, "missing network name"),
        (DUMMY, "name", json!("a/b"), 7, "a/b"),
        (DUMMY, "name", json!([]), 6, "`name`"),
        (DUMMY, "cniVersion", json!("9.0.0"), 1, "9.0.0"),
        (DUMMY, "cniVersion", json!(2), 6, "`cniVersion`"),
        (DUMMY, "prevResult", json!("x"), 6, "prevResult"),
        (TAP, "multiQueue", json!("yes"), 6, "`multiQueue`"),
        (TAP, "mtu", json!(-1), 7, "`mtu` -1"),
        (TAP, "mtu", json!(70000), 7, "`mtu` 70000"),
        (TAP, "mtu", json!("x"), 6, "`mtu`"),
        (TAP, "mac", json!("x"), 7, "`mac`"),
        (TAP, "mac", json!(5), 6, "`mac`"),
        (TAP, "runtimeConfig", json!({"mac": "x"}), 7, "`runtimeConfig.mac`"),
        (TAP, "owner", json!(-1), 6, "`owner`"),
        (TAP, "owner", json!("root"), 6, "`owner`"),
        (TAP, "group", json!(1.5), 6, "`group`"),
        (TAP, "bridge", json!("none0"), 7, "none0"),
        (TAP, "bridge", json!("a/b"), 7, "`bridge`"),
        (TAP, "selinuxContext", json!(1), 6, "`selinuxContext`"),
        (TAP, "selinuxContext", json!("no:such:context"), 999, "attr/current"),
        (TAP, "ipam.type", json!("nope"), 999, "nope"),
        (TAP, "ipam.subnet", json!("10.88.0.0/31"), 7, "too small"),
        (TAP, "dns", json!(5), 6, "`dns`"),
        (HOST_DEVICE, "device", json!(null), 7, "specify either"),
        (HOST_DEVICE, "device", json!("none0"), 7, "none0"),
        (HOST_DEVICE, "useInterfaceNetwork", json!(true), 2, "`useInterfaceNetwork`"),
        (HOST_DEVICE, "device", json!("a/b"), 7, "`device`"),
        (HOST_DEVICE, "device", json!("lo"), 999, "`lo`"),
        (HOST_DEVICE, "device", json!(5), 6, "`device`"),
        (HOST_DEVICE_BARE, "hwaddr", json!("x"), 7, "`hwaddr`"),
        (HOST_DEVICE_BARE, "hwaddr", json!("02:00:00:00:00:99"), 7, "02:00:00:00:00:99"),
        (HOST_DEVICE_BARE, "kernelpath", json!("/etc"), 7, "`kernelpath`"),
        (HOST_DEVICE_BARE, "kernelpath", json!("/sys/devices/../../etc"), 7, "`kernelpath`"),
        (HOST_DEVICE_BARE, "kernelpath", json!("/sys/devices/none"), 7, "/sys/devices/none"),
        (HOST_DEVICE_BARE, "pciBusID", json!("../../x"), 7, "`pciBusID`"),
        (HOST_DEVICE_BARE, "pciBusID", json!("0000:ff:ff.f"), 7, "0000:ff:ff.f"),
        (HOST_DEVICE, "runtimeConfig", json!({"deviceID": "none"}), 7, "DeviceID none"),
        (HOST_DEVICE, "runtimeConfig", json!({"deviceID": "../pci"}), 7, "`runtimeConfig.deviceID`"),
        (HOST_DEVICE, "runtimeConfig", json!({"deviceID": 5}), 6, "deviceID"),
        (HOST_DEVICE, "ipam.type", json!("nope"), 999, "nope"),
        (HOST_DEVICE, "ipam.subnet", json!("10.88.0.0/31"), 7, "too small"),
        (HOST_DEVICE, "dns", json!(5), 6, "`dns`"),
    ];
    let plugin_of = |conf: &str| {
        PLUGINS
            .into_iter()
            .find(|name| conf.contains(&format!("\"name\":\"lab\",\"type\":\"{name}\"")))
            .unwrap()
    };
    cases
        .into_iter()
        .map(|(conf, path, value, code, says)| Case {
            plugin: plugin_of(conf),
            verb: "ADD",
            stdin: changed(conf, path, value),
            variable: None,
            code,
            says,
        })
        .collect()
}

/// Cases with wrong input text or a wrong variable.
fn texts_and_variables() -> Vec<Case> {
    let text = |stdin: &str, code, says| Case {
        plugin: "bridge",
        verb: "ADD",
        stdin: stdin.to_owned(),
        variable: None,
        code,
        says,
    };
    let variable = |key, value: &str, code, says| Case {
        variable: Some((key, value.to_owned())),
        ..text(BRIDGE, code, says)
    };
    let mut cases = vec![
        text("", 6, "empty"),
        text("   \n", 6, "empty"),
        text("{", 6, "unmarshall"),
        text("{\"name\":}", 6, "unmarshall"),
        text("[1,2]", 6, "an array"),
        text("\"text\"", 6, "a string"),
        text(&format!("{BRIDGE}{BRIDGE}"), 6, "unmarshall"),
        text(&format!("\u{feff}{BRIDGE}"), 6, "unmarshall"),
        text(&"[".repeat(100_000), 6, "unmarshall"),
        text(&format!("{{\"name\":\"{}", "x".repeat(10 << 20)), 6, "unmarshall"),
        text(&" ".repeat(20 << 20), 6, "16 MiB"),
        variable("CNI_COMMAND", "NOPE", 4, "NOPE"),
        variable("CNI_COMMAND", "add", 4, "add"),
        variable("CNI_CONTAINERID", "", 4, "CNI_CONTAINERID"),
        variable("CNI_CONTAINERID", "../../x", 4, "../../x"),
        variable("CNI_CONTAINERID", "a b", 4, "a b"),
        variable("CNI_NETNS", "", 4, "CNI_NETNS"),
        variable("CNI_NETNS", "/run/netns/none", 4, "/run/netns/none"),
        variable("CNI_NETNS", "/etc/hostname", 999, "/etc/hostname"),
        variable("CNI_NETNS", "/proc/self/ns/net", 8, "own namespace"),
        variable("CNI_IFNAME", "", 4, "CNI_IFNAME"),
        variable("CNI_IFNAME", "..", 4, ".."),
        variable("CNI_IFNAME", "a/b", 4, "a/b"),
        variable("CNI_IFNAME", "interface-name-too-long", 4, "too long"),
        variable("CNI_IFNAME", "lo", 4, "already exists"),
        variable("CNI_PATH", "", 4, "CNI_PATH"),
        variable("CNI_PATH", "/nowhere", 999, "host-local"),
        variable("CNI_ARGS", "FOO", 4, "FOO"),
        variable("CNI_ARGS", "FOO=BAR", 4, "FOO=BAR"),
        variable("CNI_ARGS", "IgnoreUnknown=maybe", 4, "maybe"),
        variable("CNI_ARGS", "IP=nonsense", 7, "nonsense"),
        variable("CNI_ARGS", "MAC=nonsense", 7, "nonsense"),
    ];
    cases.push(Case { verb: "CHECK", ..text(BRIDGE, 7, "prevResult") });
    cases.push(Case { verb: "GC", ..text(BRIDGE, 7, "valid-attachments") });
    let no_list = BRIDGE.replace("{\"cniVersion\"", "{\"cni.dev/valid-attachments\":\"x\",\"cniVersion\"");
    cases.push(Case { verb: "GC", ..text(&no_list, 6, "valid-attachments") });
    cases.push(Case { verb: "STATUS", ..text(&changed(BRIDGE, "cniVersion", json!("1.0.0")), 1, "STATUS") });
    cases.push(Case { verb: "STATUS", ..text(&changed(BRIDGE, "bridge", json!("lo")), 7, "not a bridge") });
    cases
}

#[test]
fn bad_input_is_refused_by_name_and_leaves_nothing() {
    if !testkit::is_root() {
        return;
    }
    let cases: Vec<Case> = configurations().into_iter().chain(texts_and_variables()).collect();
    assert!(cases.len() >= 80, "{}", cases.len());
    let host = Host::new();
    host.container("c1");
    // A file system without a free block (its one page holds the lock file and a folder), and a read-only one.
    host.sh(
        "mkdir -p /run/full /run/readonly
         mount -t tmpfs -o size=4k none /run/full; mkdir /run/full/lab; : >/run/full/lab/lock; dd if=/dev/zero of=/run/full/fill 2>/dev/null || true
         mount -t tmpfs -o ro none /run/readonly",
    );
    host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
    let before = host.snapshot();
    let call = Call::new(&host, &OURS, "c1");
    let mut failures = Vec::new();
    for case in cases {
        let mut call = call.clone();
        let (mut verb, mut path) = (case.verb.to_owned(), None);
        if let Some((key, value)) = case.variable.clone() {
            match key {
                "CNI_COMMAND" => verb = value,
                "CNI_CONTAINERID" => call.id = value,
                "CNI_NETNS" => call.netns = value,
                "CNI_IFNAME" => call.ifname = value,
                "CNI_ARGS" => call.args = value,
                _ => path = Some(value),
            }
        }
        let answer = match path {
            None => call.run(&verb, case.plugin, case.stdin.as_bytes()),
            Some(path) => run_with_path(&call, &path, &case),
        };
        let shown: String = case.stdin.chars().take(300).collect();
        let what = format!("{} {} {shown} {:?}", case.plugin, verb, case.variable);
        if answer.ok {
            failures.push(format!("{what}: succeeded: {}", answer.stdout));
            continue;
        }
        let Ok(error) = serde_json::from_str::<Value>(&answer.stdout) else {
            failures.push(format!("{what}: no error object: {answer:?}"));
            continue;
        };
        if error["code"] != case.code
            || !answer.stdout.contains(case.says)
            || answer.stdout.contains("panicked")
        {
            failures.push(format!("{what}: expected {} {:?}, found {}", case.code, case.says, answer.stdout));
        }
        if answer.stderr.contains("panicked") {
            failures.push(format!("{what}: {}", answer.stderr));
        }
        let after = host.snapshot();
        if after != before {
            failures.push(format!("{what}: left something behind"));
            let left: Vec<&str> = ["links", "addresses", "routes", "ruleset", "files"]
                .into_iter()
                .filter(|kind| before.0[*kind] != after.0[*kind])
                .collect();
            failures.push(format!(
                "  {left:?}: {:?}",
                left.iter().map(|kind| &after.0[*kind]).collect::<Vec<_>>()
            ));
            break;
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

fn run_with_path(call: &Call<'_>, path: &str, case: &Case) -> crate::lab::Answer {
    let mut child = call
        .host
        .command(OURS.join(case.plugin))
        .envs([("CNI_COMMAND", case.verb), ("CNI_CONTAINERID", &call.id), ("CNI_NETNS", &call.netns)])
        .envs([("CNI_IFNAME", call.ifname.as_str()), ("CNI_PATH", path)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(case.stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    crate::lab::Answer {
        ok: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// If a range has no free address, the error names the cause, STATUS fails with code 50, and GC frees addresses.
#[test]
fn exhausted_ranges() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let conf = json!({"cniVersion": "1.1.0", "name": "small", "type": "host-local",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/29"}], [{"subnet": "10.1.3.0/30"}]]}});
    let call = |id: &str| Call { id: id.into(), ..Call::new(&host, &OURS, "c1") };
    call("a").add(&conf);
    let status = call("a").call("STATUS", &conf).error();
    assert!(status.0 == 50 && status.1.contains("10.1.3.1-10.1.3.2"), "{status:?}");
    let full = call("b").call("ADD", &conf).error();
    assert!(full.0 == 11 && full.1.contains("range 1: no IP addresses available"), "{full:?}");
    // The address from the first range was released.
    let files = host.sh("ls /var/lib/cni/networks/small");
    assert!(files.contains("10.1.2.2") && !files.contains("10.1.2.3"), "{files}");
    let twice = call("a").call("ADD", &conf).error();
    assert!(twice.0 == 7 && twice.1.contains("has been allocated to a"), "{twice:?}");
    assert!(host.sh("ls /var/lib/cni/networks/small").contains("10.1.2.2"));
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    call("a").call("GC", &gc).result("GC");
    call("b").add(&conf);
    // Addresses are allocated round-robin, so the next one is the address that has been free the longest.
    assert_eq!(host.sh("cat /var/lib/cni/networks/small/last_reserved_ip.0"), "10.1.2.4");
    drop(fs::read(host.path("/var/lib/cni/networks/small/lock")).unwrap());
}

/// A folder of reservations that cannot be read is not an empty one: no verb succeeds, and the address is released when the folder is back.
#[test]
fn reservations_that_cannot_be_read_are_not_none() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": "host-local",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]}});
    let call = Call::new(&host, &OURS, "c1");
    let result = call.add(&conf);
    host.sh("cd /var/lib/cni/networks; mv lab aside; : >lab");
    let mut after = conf.clone();
    after["prevResult"] = result.clone();
    after["cni.dev/valid-attachments"] = json!([]);
    for verb in ["DEL", "CHECK", "GC", "STATUS", "ADD"] {
        let (code, text) = call.call(verb, &after).error();
        assert!(code != 0 && text.contains("/var/lib/cni/networks/lab"), "{verb}: {code} {text}");
    }
    host.sh("cd /var/lib/cni/networks; rm lab; mv aside lab");
    assert_eq!(host.sh("cat /var/lib/cni/networks/lab/10.1.2.2 | head -n 1").trim(), "c1");
    call.del(&conf, &result);
    assert!(host.succeeds("! test -e /var/lib/cni/networks/lab/10.1.2.2"));
}

/// What a plugin does not use need not make sense: the reference plugins take it too.
#[test]
fn what_is_not_used_is_not_checked() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let mut call = Call::new(&host, &OURS, "c1");
    // IPAM plugins do not enter the namespace.
    call.netns = "/made/up".into();
    for ipam in [
        json!({"type": "host-local", "subnet": "10.88.0.0/16"}),
        json!({"type": "static", "addresses": [{"address": "10.88.0.2/16"}]}),
    ] {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "lab", "ipam": ipam});
        conf["type"] = ipam["type"].clone();
        let result = call.add(&conf);
        assert_eq!(result["ips"][0]["address"], "10.88.0.2/16");
        call.check(&conf, &result);
        // host-local looks at its files alone.
        let (code, text) = match call.call("CHECK", &conf) {
            checked if checked.ok => (0, String::new()),
            checked => checked.error(),
        };
        assert_eq!(code, if ipam["type"] == "host-local" { 0 } else { 7 }, "{text}");
        call.del(&conf, &result);
    }
    let loopback = json!({"cniVersion": "1.1.0", "name": "lab", "type": "loopback"});
    let (code, text) = call.call("ADD", &loopback).error();
    assert!(code == 4 && text.contains("CNI_NETNS"), "{code} {text}");
    // Nor does every plugin read arguments.
    let mut call = Call::new(&host, &OURS, "c1");
    call.args = "none".into();
    call.add(&loopback);
    // loopback's CHECK looks at the link alone.
    call.call("CHECK", &loopback).result("CHECK without prevResult");
    let (code, text) = call.call("ADD", &dual_stack()).error();
    assert!(code == 4 && text.contains("CNI_ARGS") && text.contains("none"), "{code} {text}");
}

/// A plugin may be installed under a longer name. A name that is no plugin's gets the command line's usage, and no plugin.
#[test]
fn plugins_have_longer_names() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let bin = tempfile::tempdir().unwrap();
    let call = Call::new(&host, bin.path(), "c1");
    for name in ["cnv-bridge", "bridge-v1", "vendor-host-device", "bridge.new"] {
        fs::hard_link(OURS.join("bridge"), bin.path().join(name)).unwrap();
        let stdin = br#"{"cniVersion":"1.1.0"}"#;
        let answer = call.run("VERSION", name, stdin);
        assert!(answer.ok && answer.json()["supportedVersions"].is_array(), "{name}: {answer:?}");
    }
    fs::hard_link(OURS.join("host-local"), bin.path().join("host-local")).unwrap();
    let mut conf = dual_stack();
    conf["type"] = json!("cnv-bridge");
    let result = call.add(&conf);
    assert_eq!(result["interfaces"][0]["name"], "br0");
    call.check(&conf, &result);
    call.del(&conf, &result);
}
