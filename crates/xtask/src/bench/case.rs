//! The plugin chains that are measured.

use serde_json::{Value, json};

use crate::{host::Host, say};

/// A plugin chain to measure: configurations without version and name, in the order of ADD.
pub(crate) struct Case {
    pub(super) name: &'static str,
    pub(super) chain: Vec<Value>,
}

/// Cases whose link kind a kernel may lack, with the command that creates such a link.
const KINDS: [(&str, &str); 3] = [
    ("ipvlan", "ip link add link up0 name try0 type ipvlan"),
    ("vlan", "ip link add link up0 name try0 type vlan id 9"),
    ("dummy", "ip link add try0 type dummy"),
];

impl Case {
    /// Finds a case by its name.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        cases().into_iter().find(|case| case.name == name).ok_or_else(|| format!("there is no case `{name}`"))
    }

    /// Returns whether the kernel has the link kind of the case, and prints a line if not.
    pub(crate) fn can_run(&self, host: &Host) -> bool {
        let Some((_, make)) = KINDS.iter().find(|(case, _)| *case == self.name) else { return true };
        let can = host.succeeds(&format!("{make} && ip link del try0"));
        if !can {
            say(&format!("SKIPPED: {}: this kernel lacks the link kind", self.name));
        }
        can
    }

    /// Returns the configurations for a host, with state folders on that host.
    pub(crate) fn on(&self, host: &Host) -> Vec<Value> {
        let root = format!("/proc/{}/root", host.pid());
        let mut chain = self.chain.clone();
        for conf in &mut chain {
            conf["cniVersion"] = json!("1.0.0");
            conf["name"] = json!("bench");
            if conf["ipam"].is_object() {
                conf["ipam"]["dataDir"] = json!(format!("{root}/var/lib/cni/networks"));
            }
            if conf["type"] == "tuning" {
                conf["dataDir"] = json!(format!("{root}/run/tuning"));
            }
        }
        chain
    }
}

/// Lists all cases.
pub(crate) fn cases() -> Vec<Case> {
    let ipam =
        |ranges: Value| json!({"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]});
    let bridge = |more: Value| {
        let mut conf = json!({"type": "bridge", "bridge": "cbr0", "isGateway": true, "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))});
        if let (Some(conf), Value::Object(more)) = (conf.as_object_mut(), more) {
            conf.extend(more);
        }
        conf
    };
    vec![
        Case { name: "loopback", chain: vec![json!({"type": "loopback"})] },
        Case { name: "bridge", chain: vec![bridge(json!({}))] },
        Case {
            name: "bridge, dual stack",
            chain: vec![bridge(
                json!({"ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}], [{"subnet": "fd20::/64"}]]))}),
            )],
        },
        Case {
            name: "ptp",
            chain: vec![json!({"type": "ptp", "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))})],
        },
        Case {
            name: "ptp, dual stack",
            chain: vec![json!({"type": "ptp",
                "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}], [{"subnet": "fd20::/64"}]]))})],
        },
        Case {
            name: "macvlan",
            chain: vec![
                json!({"type": "macvlan", "master": "up0", "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))}),
            ],
        },
        Case {
            name: "macvlan, dual stack",
            chain: vec![json!({"type": "macvlan", "master": "up0",
                "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}], [{"subnet": "fd20::/64"}]]))})],
        },
        Case {
            name: "ipvlan",
            chain: vec![
                json!({"type": "ipvlan", "master": "up0", "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))}),
            ],
        },
        Case {
            name: "vlan",
            chain: vec![json!({"type": "vlan", "master": "up0", "vlanId": 5,
                "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))})],
        },
        Case {
            name: "dummy",
            chain: vec![json!({"type": "dummy", "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))})],
        },
        Case { name: "tap", chain: vec![json!({"type": "tap"})] },
        Case {
            name: "host-device",
            chain: vec![
                json!({"type": "host-device", "device": "dev0", "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))}),
            ],
        },
        Case {
            name: "host-local",
            chain: vec![json!({"type": "host-local", "ipam": ipam(json!([[{"subnet": "10.20.0.0/14"}]]))})],
        },
        Case {
            name: "bridge, masquerade by nftables",
            chain: vec![bridge(json!({"ipMasq": true, "ipMasqBackend": "nftables"}))],
        },
        Case {
            name: "bridge and portmap by nftables",
            chain: vec![
                bridge(json!({"ipMasq": true, "ipMasqBackend": "nftables"})),
                json!({"type": "portmap", "backend": "nftables", "runtimeConfig": {"portMappings":
                    [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}),
            ],
        },
        Case { name: "the whole chain", chain: whole_chain(bridge(json!({"ipMasq": true}))) },
    ]
}

/// Returns a complete chain: bridge with masquerade, tuning, portmap (two ports), firewall, bandwidth.
fn whole_chain(bridge: Value) -> Vec<Value> {
    let port =
        |host: u16, container: u16| json!({"hostPort": host, "containerPort": container, "protocol": "tcp"});
    vec![
        bridge,
        json!({"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}),
        json!({"type": "portmap", "runtimeConfig": {"portMappings": [port(8080, 80), port(8443, 443)]}}),
        json!({"type": "firewall"}),
        json!({"type": "bandwidth", "ingressRate": 800_000_000, "ingressBurst": 80_000_000,
            "egressRate": 800_000_000, "egressBurst": 80_000_000}),
    ]
}
