//! An ADD that fails at any step leaves host, container and disk as they were.
//!
//! The plugins run in process. `kernel::fault` fails the n-th change, for n = 0, 1, … until the ADD succeeds.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use kernel::{Netns, inject};
use netloom_plugin::{Console, Variables, serve};
use serde_json::{Value, json};
use testkit::Host;

use crate::lab::dual_stack;

/// A host, and a folder in which this test program is every plugin, so that delegated plugins are called in process.
struct Lab {
    host: Host,
    bin: PathBuf,
    data: PathBuf,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (bin, data) = (dir.path().join("bin"), dir.path().join("data"));
        std::fs::create_dir(&bin).unwrap();
        for plugin in ["host-local", "static"] {
            symlink(std::env::current_exe().unwrap(), bin.join(plugin)).unwrap();
        }
        let host = Host::new();
        host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        Self { host, bin, data, _dir: dir }
    }

    fn call(&self, verb: &str, conf: &Value, prev: &Value) -> (bool, Value) {
        let netns = self.host.path("/run/netns/c1");
        let variables: Variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", netns.to_str().unwrap()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", self.bin.to_str().unwrap()),
        ]
        .into_iter()
        .collect();
        let mut conf = crate::lab::with_prev(conf, prev);
        if conf["ipam"].is_object() {
            conf["ipam"]["dataDir"] = json!(self.data);
        }
        let plugin = plugins::by_name(conf["type"].as_str().unwrap()).unwrap();
        let (stdin, mut stdout) = (conf.to_string(), Vec::new());
        let mut console = Console {
            stdin: &mut stdin.as_bytes(),
            stdout: &mut stdout,
            stderr: &mut Vec::new(),
            interrupted: Arc::new(AtomicBool::new(false)),
        };
        let ok = serve(plugin, &variables, &mut console, plugins::LINKED);
        (ok, serde_json::from_slice(&stdout).unwrap_or(Value::Null))
    }

    /// Returns the state of the host, the container and the reservations.
    fn state(&self) -> Value {
        let host = serde_json::to_value(&self.host.snapshot().0).unwrap();
        let mut inside = json!([]);
        let seen = self.host.inside(Some("c1"), || {
            let seen = testkit::ip(&[], &["link", "addr", "route show table all", "rule"]);
            [seen, testkit::ip(&["-6"], &["rule"])].concat()
        });
        for mut seen in seen {
            testkit::remove_carrier(&mut seen);
            testkit::drop_what_the_kernel_makes(&mut seen);
            inside.as_array_mut().unwrap().push(seen);
        }
        let mut files: Vec<String> = Vec::new();
        for network in std::fs::read_dir(&self.data).into_iter().flatten().flatten() {
            for file in std::fs::read_dir(network.path()).unwrap().flatten() {
                files.push(file.path().display().to_string());
            }
        }
        // The last reserved address is kept after a failure. The index is created with the folder.
        let stays = |file: &str| {
            ["last_reserved_ip", "lock", ".netloom-index"].iter().any(|name| file.contains(name))
        };
        files.retain(|file| !stays(file));
        files.sort();
        json!({"host": host, "inside": inside, "files": files})
    }

    /// Runs a closure on a temporary thread in the host's network namespace.
    fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = PathBuf::from(format!("/proc/{}/ns/net", self.host.pid()));
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    Netns::open(&netns).unwrap().enter().unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }
}

/// Fails each step of an ADD in turn and returns the number of steps.
fn fail_each_step(lab: &Lab, conf: &Value, prev: &Value) -> u32 {
    let before = lab.state();
    for steps in 0.. {
        inject::fail_after(steps);
        let (ok, answer) = lab.call("ADD", conf, prev);
        let got_through = inject::reset();
        if got_through {
            assert!(ok, "{answer}");
            // The next ADD on this host must find the same state.
            let (ok, answer) = lab.call("DEL", conf, &answer);
            assert!(ok, "{answer}");
            return steps;
        }
        assert!(!ok, "step {steps} failed, and the ADD did not: {answer}");
        assert!(answer.to_string().contains("injected by a test"), "step {steps}: {answer}");
        assert!(!answer.to_string().contains("could not be undone"), "step {steps}: {answer}");
        let after = lab.state();
        for part in ["host", "inside", "files"] {
            assert!(
                before[part] == after[part],
                "step {steps} ({answer}): {part} differ\nbefore: {}\nafter:  {}",
                before[part],
                after[part]
            );
        }
    }
    unreachable!()
}

/// The first container of a host: a failed ADD removes the bridge too. Only the empty tables stay.
#[test]
fn the_first_add_is_undone_at_each_step() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.container("c1");
    let mut conf = dual_stack();
    conf["hairpinMode"] = json!(true);
    conf["enabledad"] = json!(true);
    conf["ipMasq"] = json!(false);
    let steps = lab.on_host(|| fail_each_step(&lab, &conf, &Value::Null));
    assert!(steps >= 15, "{steps}");
}

/// A later container, with all features of a bridge.
#[test]
fn a_later_add_is_undone_at_each_step() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    let mut extras = vec![
        json!({"macspoofchk": true, "ipspoofchk": true, "portIsolation": true}),
        json!({"disableContainerInterface": true, "ipam": {}}),
    ];
    if lab.host.succeeds("ip link add vlans type bridge vlan_filtering 1 && ip link del vlans") {
        extras.push(json!({"vlan": 100, "vlanTrunk": [{"id": 101}], "mtu": 1400}));
    } else {
        testkit::say_skipped("this kernel's bridges do not filter VLANs");
    }
    for extra in extras {
        let mut conf = dual_stack();
        conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        conf["bridge"] = json!(format!("br{}", extra.to_string().len()));
        conf["name"] = json!(format!("net{}", extra.to_string().len()));
        lab.host.container("c1");
        lab.on_host(|| {
            // The first container creates what the network keeps.
            let (ok, result) = lab.call("ADD", &conf, &Value::Null);
            assert!(ok, "{result}");
            assert!(lab.call("DEL", &conf, &result).0);
            let steps = fail_each_step(&lab, &conf, &Value::Null);
            assert!(steps >= 3, "{extra}: {steps}");
        });
        lab.host.sh("ip netns del c1");
    }
}

/// A routed container with both families.
#[test]
fn a_routed_add_is_undone_at_each_step() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.container("c1");
    let mut conf = dual_stack();
    conf["type"] = json!("ptp");
    lab.on_host(|| {
        // The tables belong to the host. The first container creates them.
        let (ok, result) = lab.call("ADD", &conf, &Value::Null);
        assert!(ok, "{result}");
        assert!(lab.call("CHECK", &conf, &result).0);
        assert!(lab.call("DEL", &conf, &result).0);
        let steps = fail_each_step(&lab, &conf, &Value::Null);
        assert!(steps >= 15, "{steps}");
    });
}

/// A published port.
#[test]
fn a_published_port_is_undone_at_each_step() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.container("c1");
    let portmap = json!({"cniVersion": "1.1.0", "name": "lab", "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    lab.on_host(|| {
        let (ok, mut prev) = lab.call("ADD", &dual_stack(), &Value::Null);
        assert!(ok, "{prev}");
        prev["interfaces"][2]["sandbox"] = json!("c1");
        // The tables belong to the host. The first published port creates them.
        assert!(lab.call("ADD", &portmap, &prev).0);
        assert!(lab.call("DEL", &portmap, &prev).0);
        lab.host.sh("echo 0 >/proc/sys/net/ipv4/conf/br0/route_localnet");
        let steps = fail_each_step(&lab, &portmap, &prev);
        assert!(steps >= 2, "{steps}");
    });
}

/// Every other chained plugin, behind a bridge.
#[test]
fn chained_plugins_are_undone_at_each_step() {
    if !testkit::is_root() {
        return;
    }
    let cases = [
        (json!({"type": "firewall", "ingressPolicy": "isolated", "backend": "iptables"}), 1),
        (
            json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "9"},
                "mac": "c2:11:22:33:44:55", "mtu": 1400, "txQLen": 9, "promisc": true, "allmulti": true}),
            3,
        ),
        (
            json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
                "egressRate": 8_000_000, "egressBurst": 800_000}),
            5,
        ),
        (
            json!({"type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 800_000,
                "unshapedSubnets": ["10.0.0.0/8", "fd00::/8"]}),
            8,
        ),
        (json!({"type": "sbr"}), 8),
        (json!({"type": "sbr", "addSourceHints": true, "gateways": ["10.88.0.9"]}), 6),
        (
            json!({"type": "portmap", "masqAll": true, "conditionsV4": ["-i", "up0"], "runtimeConfig": {"portMappings":
                [{"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}]}}),
            1,
        ),
    ];
    std::thread::scope(|scope| {
        for (mut conf, least) in cases {
            scope.spawn(move || {
                let lab = Lab::new();
                lab.host.container("c1");
                conf["cniVersion"] = json!("1.1.0");
                conf["name"] = json!("lab");
                if conf["type"] == "tuning" {
                    conf["dataDir"] = json!(lab.data.join("tuning"));
                }
                lab.on_host(|| {
                    let (ok, mut prev) = lab.call("ADD", &dual_stack(), &Value::Null);
                    assert!(ok, "{prev}");
                    prev["interfaces"][2]["sandbox"] = json!("c1");
                    // Tables and chains belong to the host, and the guard to the network. The first container creates them.
                    let before = lab.state();
                    let (ok, result) = lab.call("ADD", &conf, &prev);
                    assert!(ok, "{result}");
                    let (ok, checked) = lab.call("CHECK", &conf, &prev);
                    assert!(ok, "{checked}");
                    assert!(lab.call("DEL", &conf, &prev).0);
                    // DEL leaves these to the removal of the interface, which follows.
                    if conf["type"] == "bandwidth" {
                        lab.host.sh("tc qdisc del dev $(ls /sys/class/net | grep veth) root || true
                                     tc qdisc del dev $(ls /sys/class/net | grep veth) ingress || true");
                    }
                    if conf["type"] == "sbr" {
                        lab.host.sh("ip netns exec c1 sh -c 'ip route flush table all 2>/dev/null; ip addr flush dev eth0 scope global
                            ip addr add 10.88.0.2/16 dev eth0; ip -6 addr add fd88::2/64 dev eth0 nodad
                            ip route add default via 10.88.0.1; ip -6 route add default via fd88::1' || true");
                    } else if conf["type"] == "tuning" {
                        assert_eq!(before["inside"], lab.state()["inside"]);
                    }
                    let steps = fail_each_step(&lab, &conf, &prev);
                    assert!(steps >= least, "{conf}: {steps}");
                });
            });
        }
    });
}

/// Interface plugins that work in the container only. A host device returns in its previous state.
#[test]
fn single_links_are_undone_at_each_step() {
    if !testkit::is_root() {
        return;
    }
    let dual = dual_stack()["ipam"].clone();
    let cases = [
        (json!({"type": "macvlan", "master": "up0", "ipam": dual, "mtu": 1400}), 8),
        (json!({"type": "macvlan", "master": "up0", "mac": "c2:11:22:33:44:55", "bcqueuelen": 9}), 3),
        (json!({"type": "ipvlan", "master": "up0", "ipam": dual}), 8),
        (json!({"type": "vlan", "master": "up0", "vlanId": 5, "ipam": dual}), 8),
        (json!({"type": "dummy", "ipam": dual}), 5),
        (json!({"type": "tap", "ipam": dual, "owner": 1, "mtu": 1400}), 8),
        (json!({"type": "host-device", "device": "up0", "ipam": dual}), 8),
        (json!({"type": "host-device", "device": "down0"}), 3),
    ];
    // On another kernel, only the features that this machine's kernel lacks.
    let wanted = std::env::var("NETLOOM_KINDS").ok();
    std::thread::scope(|scope| {
        for (mut conf, least) in cases {
            let kind = conf["type"].as_str().unwrap().to_owned();
            if wanted.as_ref().is_some_and(|wanted| !wanted.split(' ').any(|it| it == kind)) {
                continue;
            }
            scope.spawn(move || {
                let lab = Lab::new();
                lab.host.container("c1");
                lab.host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
                             ip link add down0 type veth peer name down1");
                conf["cniVersion"] = json!("1.1.0");
                conf["name"] = json!("lab");
                if kind == "dummy" && !lab.host.succeeds("ip link add d0 type dummy && ip link del d0")
                    || kind == "ipvlan"
                        && !lab.host.succeeds("ip link add i0 link up0 type ipvlan && ip link del i0")
                    || kind == "vlan"
                        && !lab.host.succeeds("ip link add v0 link up0 type vlan id 7 && ip link del v0")
                {
                    testkit::say_skipped(&format!("this kernel has no {kind}"));
                    return;
                }
                lab.on_host(|| {
                    let before = lab.state();
                    let (ok, result) = lab.call("ADD", &conf, &Value::Null);
                    assert!(ok, "{result}");
                    let (ok, checked) = lab.call("CHECK", &conf, &result);
                    assert!(ok, "{checked}");
                    assert!(lab.call("DEL", &conf, &result).0);
                    assert_eq!(before["host"], lab.state()["host"], "{conf}");
                    let steps = fail_each_step(&lab, &conf, &Value::Null);
                    assert!(steps >= least, "{conf}: {steps}");
                });
            });
        }
    });
}

/// Loopback.
#[test]
fn loopback_is_undone_at_each_step() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.container("c1");
    let conf = json!({"cniVersion": "1.1.0", "name": "lo", "type": "loopback"});
    lab.on_host(|| assert_eq!(fail_each_step(&lab, &conf, &Value::Null), 1));
}

/// Delegated plugins in this test program's folder count as linked.
#[test]
fn delegated_plugins_are_called_in_process() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::new();
    lab.host.container("c1");
    // As a process, this program would run all its tests and print no result.
    let (ok, result) = lab.on_host(|| lab.call("ADD", &dual_stack(), &Value::Null));
    assert!(ok && Path::new(&lab.data).join("lab/10.88.0.2").exists(), "{result}");
}
