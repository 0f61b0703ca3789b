//! `netloom gc` during concurrent ADD and DEL.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, dual_stack, with_prev};

/// Duration in seconds, and number of workers. `NETLOOM_GC_SECONDS` and `NETLOOM_GC_WORKERS` override them for longer runs.
const SECONDS: u64 = 6;
const WORKERS: u64 = 16;

/// A running worker. The collector's loop ends when the last one is dropped, even by a panic.
struct Working<'a>(&'a AtomicUsize);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// While GC runs in a loop, containers keep their interface, addresses, rules and cache entry, even during their ADD. After
/// the last DEL nothing is left behind.
#[test]
fn gc_takes_nothing_from_the_living() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let workers = number("NETLOOM_GC_WORKERS", WORKERS);
    let deadline = Instant::now() + Duration::from_secs(number("NETLOOM_GC_SECONDS", SECONDS));
    let mut list = dual_stack();
    list["macspoofchk"] = true.into();
    let list = serde_json::json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [list]});
    let conf_dir = host.path("/etc/cni/net.d");
    fs::create_dir_all(&conf_dir).unwrap();
    fs::write(conf_dir.join("10-lab.conflist"), list.to_string()).unwrap();
    let netloom = |arguments: &[&str]| {
        let mut command = Command::new(OURS.join("netloom"));
        command.args(arguments).env("CNI_PATH", &*OURS).env("NETCONFPATH", "/etc/cni/net.d");
        let child = host.spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "netloom {arguments:?}: {said}");
        output.stdout
    };
    for worker in 0..workers {
        host.container(&format!("c{worker}"));
    }
    let (working, rounds) = (AtomicUsize::new(workers.try_into().unwrap()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (netloom, host, working, rounds) = (&netloom, &host, &working, &rounds);
            scope.spawn(move || {
                let _working = Working(working);
                let netns = format!("/run/netns/c{worker}");
                while Instant::now() < deadline {
                    let result: Value = serde_json::from_slice(&netloom(&["add", "lab", &netns])).unwrap();
                    for ip in result["ips"].as_array().unwrap() {
                        let address = ip["address"].as_str().unwrap().split('/').next().unwrap();
                        let reservation = host.path(&format!("/var/lib/cni/networks/lab/{address}"));
                        assert!(reservation.exists(), "c{worker} lost {address}");
                    }
                    netloom(&["check", "lab", &netns]);
                    netloom(&["del", "lab", &netns]);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut collections = 0;
        while working.load(Ordering::Relaxed) > 0 {
            netloom(&["gc", "lab"]);
            collections += 1;
        }
        println!("{collections} collections beside {} containers", rounds.load(Ordering::Relaxed));
    });
    let left = host.sh("ip -br link | grep veth || true; ls /var/lib/cni/networks/lab | grep -e : -e ^10 || true; ls /var/lib/cni/results");
    assert_eq!(left, "");
    assert!(!host.sh("nft list ruleset").contains("elements ="));
}

/// The locks of a killed runtime are released while its plugin still runs, and its list of valid attachments is outdated from then
/// on. The plugin removes nothing: it finds that nobody reads its answer.
#[test]
fn gc_of_a_dead_runtime_takes_nothing() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    let mut bridge = dual_stack();
    bridge["macspoofchk"] = true.into();
    bridge["ipMasq"] = true.into();
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let mut chain = vec![
        bridge,
        json!({"type": "portmap", "runtimeConfig": {"portMappings": ports}}),
        json!({"type": "firewall", "ingressPolicy": "isolated"}),
        json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
               "egressRate": 8_000_000, "egressBurst": 800_000}),
        json!({"type": "tuning", "mtu": 1400}),
    ];
    let mut result = Value::Null;
    for conf in &mut chain {
        conf["cniVersion"] = json!("1.1.0");
        conf["name"] = json!("lab");
        result = call.add(&with_prev(conf, &result));
        conf["cni.dev/valid-attachments"] = json!([]);
    }
    let before = host.snapshot();
    for conf in &chain {
        let mut command = Command::new(OURS.join(conf["type"].as_str().unwrap()));
        command.env("CNI_COMMAND", "GC").env("CNI_PATH", &*OURS);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut plugin = host.spawn(&mut command);
        // The plugin reads its input to the end before it does anything.
        drop(plugin.stdout.take());
        plugin.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        plugin.wait().unwrap();
        before
            .assert_same(&host.snapshot(), &format!("after a GC of {} that nobody waits for", conf["type"]));
    }
    for conf in &chain {
        call.call("GC", conf).result("GC");
    }
    assert_eq!(host.sh("ls /var/lib/cni/networks/lab | grep -e : -e ^10 || true"), "");
}

/// An ADD on another network, ours or the reference plugin's, creates its ifb first and marks or uses it afterwards. GC in between
/// leaves it alone.
#[test]
fn gc_leaves_an_ifb_that_may_be_in_creation() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("ip link add bwp0123456789ab type ifb; ip link add bwpfedcba987654 group 7 type ifb");
    let conf = serde_json::json!({"cniVersion": "1.1.0", "name": "lab", "type": "bandwidth",
                                  "cni.dev/valid-attachments": []});
    Call::new(&host, &OURS, "gc").call("GC", &conf).result("GC");
    let left = host.sh("ip -br link show type ifb | grep -c ^bwp || true");
    assert_eq!(left.trim(), "2");
}
