//! Leases from real servers (dnsmasq, Kea) on the host's segment: acquired, renewed, rebound, lost, kept when the daemon
//! restarts, and released.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, with_prev};

/// A host with a DHCP server behind its `up0`, and containers.
struct Lab {
    host: Host,
    programs: Vec<(String, Child)>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (_, program) in &mut self.programs {
            drop(program.kill());
            drop(program.wait());
        }
    }
}

impl Lab {
    fn new() -> Self {
        let host = Host::new();
        host.container("srv");
        host.container("c1");
        host.sh("mkdir -p /run/cni /run/kea /var/lib/kea
                 ip link add up0 type veth peer name s0 netns srv; ip link set up0 up
                 ip -n srv link set lo up; ip -n srv link set s0 up; ip -n srv addr add 10.50.0.1/22 dev s0
                 ip -n srv -6 addr add fd50::1/64 dev s0 nodad");
        Self { host, programs: Vec::new() }
    }

    /// Starts a program that appends its output to `/run/NAME.log`.
    fn start(&mut self, name: &str, line: &str, ready: &str) {
        let mut command = self.host.command("sh");
        command.args(["-c", &format!("exec {line} >>/run/{name}.log 2>&1")]).stdin(Stdio::null());
        let before = self.said(name, ready);
        self.programs.push((name.to_owned(), command.spawn().unwrap()));
        if !ready.is_empty() {
            self.wait_for(name, ready, before + 1);
        }
    }

    fn kill(&mut self, name: &str) {
        let index = self.programs.iter().position(|(it, _)| it == name).unwrap();
        let (_, mut program) = self.programs.swap_remove(index);
        program.kill().unwrap();
        program.wait().unwrap();
    }

    fn daemon(&mut self, bin: &Path) {
        let line = format!("{}/dhcp daemon -pidfile /run/dhcp.pid -resendtimeout=20s", bin.display());
        // The socket of an earlier daemon is no sign that this one listens.
        self.host.sh("rm -f /run/cni/dhcp.sock");
        let mut command = self.host.command("sh");
        command.args(["-c", &format!("exec {line} >>/run/daemon.log 2>&1")]);
        self.programs.push(("daemon".to_owned(), command.stdin(Stdio::null()).spawn().unwrap()));
        self.host.sh("timeout 20 sh -c 'until test -S /run/cni/dhcp.sock; do sleep 0.02; done'");
    }

    fn dnsmasq(&mut self, more: &str) {
        self.dnsmasq_of("10.50.0.2,10.50.3.250", more);
    }

    fn dnsmasq_of(&mut self, range: &str, more: &str) {
        let line = format!(
            "ip netns exec srv dnsmasq --no-daemon --conf-file=/dev/null --port=0 --interface=s0 --bind-interfaces --no-ping \
             --dhcp-range={range},255.255.252.0,120 --dhcp-range=fd50::100,fd50::fff,64,120 --enable-ra \
             --dhcp-authoritative --dhcp-leasefile=/run/leases --log-dhcp {more}"
        );
        self.start("dnsmasq", &line, "sockets bound exclusively");
    }

    /// Starts Kea with leases of 10 s, which it stores on disk.
    fn kea(&mut self, subnet: &str, pool: &str, router: &str) {
        let conf = json!({"Dhcp4": {
            "interfaces-config": {"interfaces": ["s0"], "dhcp-socket-type": "raw"},
            "lease-database": {"type": "memfile", "persist": true, "name": "/run/kea/leases4.csv"},
            "authoritative": true, "valid-lifetime": 10, "renew-timer": 5, "rebind-timer": 8,
            "subnet4": [{"subnet": subnet, "authoritative": true, "pools": [{"pool": pool}],
                "option-data": [{"name": "routers", "data": router}]}],
            "loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout", "flush": true}]}]}});
        std::fs::write(self.host.path("/run/kea4.json"), conf.to_string()).unwrap();
        let line = "env KEA_LOCKFILE_DIR=/run/kea KEA_PIDFILE_DIR=/run/kea ip netns exec srv kea-dhcp4 -c /run/kea4.json";
        self.start("kea", line, "DHCP4_STARTED");
    }

    /// Counts the lines of a log that contain a text.
    fn said(&self, log: &str, text: &str) -> usize {
        self.host
            .sh(&format!("grep -c '{text}' /run/{log}.log 2>/dev/null || true"))
            .trim()
            .parse()
            .unwrap_or(0)
    }

    /// Waits until at least `count` lines of a log contain a text.
    fn wait_for(&self, log: &str, text: &str, count: usize) {
        let until = format!("test $(grep -c \"{text}\" /run/{log}.log 2>/dev/null || true) -ge {count}");
        let waited =
            self.host.succeeds(&format!("timeout 40 sh -c 'until {until} 2>/dev/null; do sleep 0.05; done'"));
        assert!(
            waited,
            "{text:?} {count} times in {log}:\n{}",
            self.host.sh(&format!("cat /run/*.log; # {log}"))
        );
    }

    fn addresses(&self) -> String {
        self.host.sh("ip -n c1 -br addr show dev eth0")
    }
}

fn conf(ipam: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": "macvlan", "master": "up0", "ipam": {"type": "dhcp"}});
    conf["ipam"].as_object_mut().unwrap().extend(ipam.as_object().unwrap().clone());
    conf
}

fn call<'a>(lab: &'a Host, name: &str) -> Call<'a> {
    Call::new(lab, &OURS, name)
}

/// Both families, routes, DNS, and options that the client sends and requests. DEL and GC release the lease.
#[test]
fn a_lease_of_both_families() {
    if !testkit::is_root() || !testkit::has("dnsmasq") {
        return;
    }
    let mut lab = Lab::new();
    lab.dnsmasq(
        "--dhcp-option=3,10.50.0.1 --dhcp-option=6,9.9.9.9,8.8.8.8 --dhcp-option=15,lab.example --dhcp-option=119,a.example,b.example \
         --dhcp-option=121,192.168.7.0/24,10.50.0.9,0.0.0.0/0,10.50.0.1,172.16.0.0/12,0.0.0.0 --dhcp-option=option6:dns-server,[fd50::53] \
         --dhcp-host=set:known,named",
    );
    lab.daemon(&OURS);
    let conf = conf(&json!({"ipv6": true, "priority": 77,
        "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "60", "value": "netloom"}]}));
    let call = Call { args: "IgnoreUnknown=1;K8S_POD_NAME=web-1".into(), ..call(&lab.host, "c1") };
    call.call("STATUS", &conf).result("STATUS");
    let result = call.add(&conf);
    let text = result.to_string();
    assert!(result["ips"][0]["address"].as_str().unwrap().ends_with("/22"), "{text}");
    assert!(result["ips"][1]["address"].as_str().unwrap().starts_with("fd50::"), "{text}");
    assert_eq!(
        result["routes"],
        json!([{"dst": "192.168.7.0/24", "gw": "10.50.0.9", "priority": 77}, {"dst": "0.0.0.0/0", "gw": "10.50.0.1", "priority": 77},
            {"dst": "172.16.0.0/12", "priority": 77, "scope": 253}])
    );
    assert_eq!(
        result["dns"],
        json!({"nameservers": ["9.9.9.9", "8.8.8.8", "fd50::53"], "domain": "lab.example", "search": ["a.example", "b.example"]})
    );
    let routes = lab.host.sh("ip -n c1 route");
    assert!(routes.contains("default via 10.50.0.1 dev eth0 metric 77"), "{routes}");
    assert!(routes.contains("172.16.0.0/12 dev eth0 scope link metric 77"), "{routes}");
    call.check(&conf, &result);
    assert!(lab.host.succeeds("ip netns exec c1 ping -qc1 -W2 10.50.0.1"));
    // The route comes from a router advertisement, which may take a few seconds.
    let ping = "ip netns exec c1 ping -qc1 -W1 fd50::1";
    assert!(lab.host.succeeds(&format!("timeout 20 sh -c 'until {ping}; do sleep 0.1; done'")));
    let log = lab.host.sh("cat /run/dnsmasq.log");
    assert!(log.contains("client provides name: web-1") && log.contains("vendor class: netloom"), "{log}");
    // DEL does not request another lease.
    let asked = lab.said("dnsmasq", "DHCPDISCOVER");
    assert_eq!(lab.host.sh("grep -c 50 /run/leases").trim(), "2");
    call.del(&conf, &result);
    lab.wait_for("dnsmasq", "DHCPRELEASE", 2);
    assert!(!lab.host.sh("cat /run/leases").contains("10.50."));
    assert_eq!(lab.said("dnsmasq", "DHCPDISCOVER"), asked);
    call.del(&conf, &result);
    // GC releases the leases of attachments that are not valid.
    let result = call.add(&conf);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    call.call("GC", &gc).result("GC");
    call.check(&conf, &result);
    gc["cni.dev/valid-attachments"] = json!([]);
    call.call("GC", &gc).result("GC");
    lab.wait_for("dnsmasq", "DHCPRELEASE", 4);
    assert!(call.call("CHECK", &with_prev(&conf, &result)).error().1.contains("has no lease"));
    assert!(lab.host.sh("ls /run/cni/dhcp.leases").is_empty());
}

/// `skipDefault`, an option by number, and static routes in the old format (option 33).
#[test]
fn options_are_as_asked() {
    if !testkit::is_root() || !testkit::has("dnsmasq") {
        return;
    }
    let mut lab = Lab::new();
    lab.dnsmasq("--dhcp-option=3,10.50.0.1 --dhcp-option=6,9.9.9.9 --dhcp-option=33,192.168.7.1,10.50.0.9");
    lab.daemon(&OURS);
    let conf =
        conf(&json!({"request": [{"skipDefault": true}, {"option": "subnet-mask"}, {"option": "33"}]}));
    let result = call(&lab.host, "c1").add(&conf);
    // dnsmasq sends the router option even if it was not requested, unless it is configured not to.
    assert_eq!(result["routes"][0], json!({"dst": "192.168.7.0/24", "gw": "10.50.0.9"}), "{result}");
    assert!(result["dns"].as_object().is_none_or(serde_json::Map::is_empty), "{result}");
    let log = lab.host.sh("grep 'requested options' /run/dnsmasq.log");
    assert!(log.contains("1:netmask, 33:static-route") && !log.contains("6:dns"), "{log}");
}

/// A lease is renewed at T1. A daemon that was killed continues its leases after a restart. If the server disappears, the
/// daemon keeps the lease and finds another server at T2. A lease that expires takes its address with it.
#[test]
fn a_lease_lives_through_everything() {
    if !testkit::is_root() || !testkit::has("kea-dhcp4") {
        return;
    }
    let mut lab = Lab::new();
    lab.kea("10.50.0.0/24", "10.50.0.50 - 10.50.0.60", "10.50.0.1");
    lab.daemon(&OURS);
    let conf = conf(&json!({}));
    let result = call(&lab.host, "c1").add(&conf);
    assert_eq!(result["ips"][0]["address"], "10.50.0.50/24");
    // T1 is half of the 10 s.
    lab.wait_for("kea", "DHCP4_LEASE_ALLOC", 2);
    assert_eq!(lab.said("kea", "DHCP4_LEASE_ADVERT"), 1);

    // After `kill -9` the container keeps its address, and the next daemon keeps the lease.
    lab.kill("daemon");
    assert!(lab.addresses().contains("10.50.0.50/24"));
    let before = lab.said("kea", "DHCP4_LEASE_ALLOC");
    lab.daemon(&OURS);
    lab.wait_for("daemon", "lease kept", 1);
    lab.wait_for("kea", "DHCP4_LEASE_ALLOC", before + 1);
    assert_eq!(lab.said("kea", "DHCP4_LEASE_ADVERT"), 1, "no DISCOVER");
    call(&lab.host, "c1").check(&conf, &result);

    // The server has another address, so the daemon finds it with a broadcast.
    lab.kill("kea");
    lab.host.sh("ip -n srv addr add 10.50.0.7/24 dev s0; ip -n srv addr del 10.50.0.1/22 dev s0; ip -n srv addr add 10.50.0.7/24 dev s0 || true");
    lab.kea("10.50.0.0/24", "10.50.0.50 - 10.50.0.60", "10.50.0.7");
    let before = lab.said("kea", "DHCP4_LEASE_ALLOC");
    lab.wait_for("kea", "DHCP4_LEASE_ALLOC", before + 1);
    assert_eq!(lab.said("daemon", "lease lost"), 0);
    assert_eq!(lab.said("kea", "DHCP4_LEASE_ADVERT"), 1, "no DISCOVER");

    // Without a server until the lease expires, the address is removed. With a server again, it returns.
    lab.kill("kea");
    lab.wait_for("daemon", "lease lost: it expired", 1);
    assert!(!lab.addresses().contains("10.50.0.50"));
    lab.kea("10.50.0.0/24", "10.50.0.50 - 10.50.0.60", "10.50.0.7");
    let before = lab.said("daemon", "lease of 10.50.0.50");
    lab.wait_for("daemon", "lease of 10.50.0.50", before + 1);
    assert!(lab.addresses().contains("10.50.0.50/24"));
    let routes = lab.host.sh("ip -n c1 route");
    assert!(routes.contains("default via 10.50.0.7"), "{routes}");

    // DEL without a running daemon: the next daemon does not know the lease.
    lab.kill("daemon");
    call(&lab.host, "c1").del(&conf, &result);
    lab.daemon(&OURS);
    assert!(lab.host.sh("ls /run/cni/dhcp.leases").is_empty());
}

/// A server that does not know the lease and serves other addresses sends a NAK as a broadcast. The daemon then acquires
/// another address at once.
#[test]
fn a_refused_lease_is_replaced() {
    if !testkit::is_root() || !testkit::has("dnsmasq") {
        return;
    }
    let mut lab = Lab::new();
    // T1 is 3 s.
    lab.dnsmasq_of("10.50.0.2,10.50.0.9", "--dhcp-option=3,10.50.0.1 --dhcp-option=58,3 --dhcp-option=59,60");
    lab.daemon(&OURS);
    let conf = conf(&json!({"priority": 50}));
    let result = call(&lab.host, "c1").add(&conf);
    let before = result["ips"][0]["address"].as_str().unwrap();
    lab.kill("dnsmasq");
    lab.host.sh("rm /run/leases");
    lab.dnsmasq_of("10.50.2.2,10.50.2.9", "--dhcp-option=3,10.50.0.7 --dhcp-option=58,3 --dhcp-option=59,60");
    lab.wait_for("daemon", "lease of 10.50.2.", 1);
    assert_eq!(lab.said("daemon", "took it back"), 1, "{}", lab.host.sh("cat /run/daemon.log"));
    let addresses = lab.addresses();
    assert!(addresses.contains("10.50.2.") && !addresses.contains(before), "{addresses}");
    assert!(lab.host.sh("ip -n c1 route").contains("default via 10.50.0.7 dev eth0 metric 50"));
}

/// IPv6-only leases, renewed and released (Kea).
#[test]
fn a_lease_of_ipv6_is_renewed() {
    if !testkit::is_root() || !testkit::has("kea-dhcp6") {
        return;
    }
    let mut lab = Lab::new();
    let kea = json!({"Dhcp6": {
        "interfaces-config": {"interfaces": ["s0"]}, "lease-database": {"type": "memfile", "persist": false},
        "server-id": {"type": "LL", "persist": false},
        "preferred-lifetime": 8, "valid-lifetime": 10, "renew-timer": 3, "rebind-timer": 6,
        "subnet6": [{"subnet": "fd50::/64", "interface": "s0", "pools": [{"pool": "fd50::50 - fd50::60"}]}],
        "loggers": [{"name": "kea-dhcp6", "severity": "INFO", "output_options": [{"output": "stdout", "flush": true}]}]}});
    std::fs::write(lab.host.path("/run/kea6.json"), kea.to_string()).unwrap();
    lab.host.sh("timeout 20 sh -c 'until ip -n srv -6 addr show dev s0 scope link | grep inet6 | grep -qv tentative; do sleep 0.05; done'");
    let line = "env KEA_LOCKFILE_DIR=/run/kea KEA_PIDFILE_DIR=/run/kea ip netns exec srv kea-dhcp6 -c /run/kea6.json";
    lab.start("kea6", line, "DHCP6_STARTED");
    lab.daemon(&OURS);
    let conf = conf(&json!({"ipv4": false, "ipv6": true}));
    let result = call(&lab.host, "c1").add(&conf);
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
    assert!(result["ips"][0]["address"].as_str().unwrap().starts_with("fd50::5"), "{result}");
    lab.wait_for("daemon", "lease of fd50::5", 3);
    assert_eq!(lab.said("daemon", "lease lost"), 0);
    call(&lab.host, "c1").del(&conf, &result);
    lab.wait_for("kea6", "DHCP6_RELEASE_NA", 1);
}

/// Two hundred concurrent leases: every container has an address of its own, and all are released.
#[test]
fn two_hundred_at_once() {
    if !testkit::is_root() || !testkit::has("dnsmasq") {
        return;
    }
    const COUNT: usize = 200;
    let mut lab = Lab::new();
    lab.dnsmasq("--dhcp-lease-max=1000 --quiet-dhcp");
    lab.daemon(&OURS);
    let names: Vec<String> = (0..COUNT).map(|index| format!("n{index}")).collect();
    lab.host.sh(&format!("for n in {}; do ip netns add $n; done", names.join(" ")));
    let conf = conf(&json!({}));
    let each = |verb: &'static str| -> Vec<Value> {
        std::thread::scope(|scope| {
            let calls: Vec<_> = names
                .iter()
                .map(|name| {
                    let (host, conf) = (&lab.host, &conf);
                    scope.spawn(move || call(host, name).call(verb, conf).result(name))
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        })
    };
    let mut addresses: Vec<String> =
        each("ADD").iter().map(|result| result["ips"][0]["address"].to_string()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), COUNT);
    each("DEL");
    lab.host.sh("timeout 20 sh -c 'while grep -q 10.50 /run/leases; do sleep 0.05; done'");
    assert!(lab.host.sh("ls /run/cni/dhcp.leases").is_empty());
}

/// A container gets the same address under either daemon, because both identify it to the server in the same way.
#[test]
fn the_reference_gets_the_same_lease() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root() && testkit::has("dnsmasq")) else {
        return;
    };
    let mut lab = Lab::new();
    lab.dnsmasq("--dhcp-option=3,10.50.0.1");
    let conf = conf(&json!({}));
    let mut results = Vec::new();
    for bin in [&peers, &*OURS] {
        lab.daemon(bin);
        let call = Call::new(&lab.host, bin, "c1");
        results.push(call.add(&conf));
        lab.kill("daemon");
        lab.host.sh("ip -n c1 link del eth0");
    }
    for result in &mut results {
        result["interfaces"][0].as_object_mut().unwrap().remove("mac");
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(lab.host.sh("grep -c 10.50 /run/leases").trim(), "1");
}

/// Without a daemon STATUS and ADD fail and DEL succeeds. systemd's socket activation starts the daemon at the first call.
/// Only root can call the daemon, and a second daemon does not replace the first.
#[test]
fn the_daemon_is_there_or_said_to_be_missing() {
    if !testkit::is_root() || !testkit::has("systemd-socket-activate") || !testkit::has("dnsmasq") {
        return;
    }
    let mut lab = Lab::new();
    let conf = conf(&json!({}));
    let (code, said) = call(&lab.host, "c1").call("STATUS", &conf).error();
    assert!(code == 50 && said.contains("/run/cni/dhcp.sock") && said.contains("dhcp daemon"), "{said}");
    let before = lab.host.snapshot();
    assert_eq!(call(&lab.host, "c1").call("ADD", &conf).error().0, 11);
    before.assert_same(&lab.host.snapshot(), "an ADD without daemon");
    call(&lab.host, "c1").del(&conf, &Value::Null);

    lab.dnsmasq("");
    let dhcp = OURS.join("dhcp");
    let line = format!("systemd-socket-activate -l /run/cni/dhcp.sock {} daemon", dhcp.display());
    lab.start("activated", &line, "Listening on");
    let result = call(&lab.host, "c1").add(&conf);
    call(&lab.host, "c1").check(&conf, &result);
    let second = lab.host.sh(&format!("{} daemon 2>&1 || true", dhcp.display()));
    assert!(second.contains("another daemon listens"), "{second}");
    call(&lab.host, "c1").del(&conf, &result);
    lab.kill("activated");

    lab.host.sh("rm -f /run/cni/dhcp.sock");
    lab.daemon(&OURS);
    assert_eq!(lab.host.sh("stat -c %a /run/cni/dhcp.sock /run/cni/dhcp.leases").trim(), "600\n700");
    assert_eq!(
        lab.host
            .sh("test -d /proc/$(cat /run/dhcp.pid) && kill -TERM $(cat /run/dhcp.pid) && echo sent")
            .trim(),
        "sent"
    );
    lab.host.sh(
        "timeout 20 sh -c 'while test -e /run/dhcp.pid; do sleep 0.02; done'; test ! -e /run/cni/dhcp.sock",
    );
    let help = lab.host.sh(&format!("{} daemon -help", dhcp.display()));
    assert!(help.contains("--resendtimeout") && help.contains("[default: 208s]"), "{help}");
    // Without a server, the error comes after the time limit for a lease.
    lab.kill("dnsmasq");
    lab.start(
        "impatient",
        &format!("{} daemon -resendtimeout 1s -socketpath /run/cni/other.sock", dhcp.display()),
        "",
    );
    let mut conf = conf.clone();
    conf["ipam"]["daemonSocketPath"] = json!("/run/cni/other.sock");
    lab.host.sh("timeout 20 sh -c 'until test -S /run/cni/other.sock; do sleep 0.02; done'");
    let before = lab.host.snapshot();
    let (_, said) = call(&lab.host, "c1").call("ADD", &conf).error();
    assert!(said.contains("no DHCP server has given a lease within 1 s"), "{said}");
    before.assert_same(&lab.host.snapshot(), "an ADD without server");
}
