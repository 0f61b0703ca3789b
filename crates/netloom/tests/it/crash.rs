//! A plugin that is killed before a system call, or whose system call fails, leaves nothing behind that the next DEL or GC
//! does not remove. The tests cover every system call.

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    path::Path,
    process::{Output, Stdio},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::errno::Errno;
use serde_json::{Value, json};
use testkit::{Fate, Host, Snapshot, Traced};

use crate::lab::{Call, OURS, dual_stack, with_prev};

/// A chain, and the setup that it needs on the host.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    setup: &'static str,
    pub(crate) chain: Vec<Value>,
    /// Shell lines that reset the host to the state before the first attachment.
    pub(crate) reset: Option<&'static str>,
}

/// The cleanup after a call has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The runtime detaches the container.
    Del,
    /// The runtime never calls DEL and later runs GC.
    Gc,
}

/// The end of a call at each of its system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    /// The system call fails with one of the errors, in turn; on request, with each of them.
    Refused,
}

const ERRORS: [Errno; 6] =
    [Errno::EIO, Errno::ENOSPC, Errno::EPERM, Errno::ENOMEM, Errno::EINTR, Errno::EBUSY];

/// One call of a chain, ended at each of its system calls.
struct Job<'a> {
    case: &'a Case,
    verb: &'static str,
    /// The index of the plugin in the chain.
    at: usize,
    then: Then,
    end: End,
}

pub(crate) fn cases() -> Vec<Case> {
    let ipam = dual_stack()["ipam"].clone();
    let four = json!({"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]});
    let port = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                                       {"hostPort": 53, "containerPort": 53, "protocol": "udp"}]});
    let up0 = "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up";
    let case = |name, setup, chain: Value| {
        let mut chain = chain.as_array().unwrap().clone();
        for conf in &mut chain {
            conf["cniVersion"] = json!("1.1.0");
            conf["name"] = json!("lab");
        }
        Case { name, setup, chain, reset: None }
    };
    let mut cases = vec![
        case("loopback", "", json!([{"type": "loopback"}])),
        case("host-local", "", json!([{"type": "host-local", "ipam": ipam}])),
        case("ptp", "", json!([{"type": "ptp", "ipMasq": true, "ipam": ipam}])),
        case("macvlan", up0, json!([{"type": "macvlan", "master": "up0", "mtu": 1400, "ipam": four}])),
        case("tap", "", json!([{"type": "tap", "ipam": four, "owner": 1}])),
        case("host-device", up0, json!([{"type": "host-device", "device": "up0", "ipam": four}])),
        case("sbr", up0, json!([{"type": "macvlan", "master": "up0", "ipam": four}, {"type": "sbr"}])),
        case(
            "chain",
            "",
            json!([
                {"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
                 "macspoofchk": true, "ipspoofchk": true, "ipam": ipam},
                {"type": "tuning", "mtu": 1400, "mac": "c2:11:22:33:44:55",
                 "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "9"}},
                {"type": "portmap", "runtimeConfig": port},
                {"type": "firewall", "ingressPolicy": "same-bridge"},
                {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
                 "egressRate": 8_000_000, "egressBurst": 800_000},
            ]),
        ),
    ];
    let mut first = case(
        "first",
        "",
        json!([{"type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true, "ipam": four},
               {"type": "portmap", "runtimeConfig": port}, {"type": "firewall"}]),
    );
    first.reset = Some("ip link del br0; nft flush ruleset; rm -rf /var/lib/cni");
    cases.push(first);
    cases
}

/// A host with the container `c1`, and the observable state of both.
pub(crate) struct Lab {
    pub(crate) host: Host,
}

/// The file that records that orphans are reaped on this machine. The plugin's check takes as long as PID 1 needs to reap
/// one, and until then the first calls of a host differ from all later ones.
static REAPER: LazyLock<OsString> = LazyLock::new(|| {
    let host = Host::new();
    host.container("c1");
    let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": "firewall"});
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        Call::new(&host, &OURS, "c1").call("DEL", &conf).result("DEL");
        let names =
            std::fs::read_dir(host.path("/run/netloom")).unwrap().map(|entry| entry.unwrap().file_name());
        if let Some(name) =
            names.into_iter().find(|name| name.to_string_lossy().starts_with("orphans-are-reaped"))
        {
            return name;
        }
        assert!(Instant::now() < deadline, "nobody reaps orphans on this machine");
    }
});

impl Lab {
    pub(crate) fn new(case: &Case) -> Self {
        let host = Host::new();
        host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        host.sh(case.setup);
        host.container("c1");
        let dir = host.path("/run/netloom");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(&*REAPER), "").unwrap();
        Self { host }
    }

    fn call(&self) -> Call<'_> {
        Call::new(&self.host, &OURS, "c1")
    }

    /// Calls ADD of each plugin and returns the results.
    pub(crate) fn add(&self, chain: &[Value]) -> Vec<Value> {
        let mut results: Vec<Value> = Vec::new();
        for conf in chain {
            let prev = results.last().cloned().unwrap_or(Value::Null);
            results.push(self.call().call("ADD", &with_prev(conf, &prev)).result(&format!("ADD {conf}")));
        }
        results
    }

    /// Calls DEL of each plugin in reverse order.
    pub(crate) fn del(&self, chain: &[Value], result: &Value) -> Result<(), String> {
        for conf in chain.iter().rev() {
            let answer = self.call().call("DEL", &with_prev(conf, result));
            if !answer.ok {
                return Err(format!("DEL {} says {}", conf["type"], answer.stdout));
            }
        }
        Ok(())
    }

    /// Calls GC of each plugin without valid attachments, which removes everything.
    fn gc(&self, chain: &[Value]) -> Result<(), String> {
        for conf in chain {
            let mut conf = conf.clone();
            conf["cni.dev/valid-attachments"] = json!([]);
            let answer = self.call().call("GC", &conf);
            if !answer.ok {
                return Err(format!("GC {} says {}", conf["type"], answer.stdout));
            }
        }
        Ok(())
    }

    pub(crate) fn traced(&self, verb: &str, conf: &Value, fate: Option<(usize, Fate)>) -> Traced {
        let plugin = OURS.join(conf["type"].as_str().unwrap());
        self.host.trace(&plugin, &variables(verb, OURS.to_str().unwrap()), conf.to_string().as_bytes(), fate)
    }

    /// Calls a plugin with a command line whose last word is its path.
    pub(crate) fn run_by<'a>(
        &self,
        mut words: impl Iterator<Item = &'a OsStr>,
        bin: &Path,
        verb: &str,
        conf: &Value,
    ) -> Output {
        let mut command = self.host.command(words.next().unwrap());
        command.args(words).envs(variables(verb, bin.to_str().unwrap()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Returns the state of the host and, after DEL, of the container.
    fn state(&self, then: Then) -> Snapshot {
        let mut seen = self.host.snapshot();
        let links = seen.0.get_mut("links").unwrap();
        // Objects that are created anew in each round get new interface indices.
        testkit::remove(links, &["ifindex"]);
        testkit::remove(seen.0.get_mut("addresses").unwrap(), &["ifindex"]);
        if then == Then::Del {
            let inside = self.host.inside(Some("c1"), || {
                let mut inside = testkit::ip(&[], &["link", "addr", "route show table all", "rule"]);
                inside.push(testkit::sysctls(&["core/somaxconn"]).concat().into());
                inside
            });
            for (at, mut part) in inside.into_iter().enumerate() {
                testkit::remove(&mut part, &["operstate", "ifindex", "flags", "qdisc"]);
                testkit::drop_what_the_kernel_makes(&mut part);
                seen.0.insert(format!("inside {at}"), part);
            }
        }
        seen
    }
}

/// Returns the `CNI_*` variables of a call for the container `c1`.
fn variables<'a>(verb: &'a str, bin: &'a str) -> [(&'static str, &'a str); 5] {
    [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", bin),
    ]
}

/// Ends one call of a chain at each of its system calls. Returns the number of system calls, and the calls that left state
/// behind.
fn run(job: &Job<'_>, all_errors: bool) -> (usize, Vec<String>) {
    let Job { case, verb, at, then, end } = job;
    let lab = Lab::new(case);
    let (before_it, conf) = (&case.chain[..*at], &case.chain[*at]);
    // Tables, chains and the bridge belong to the host and stay.
    let result = lab.add(&case.chain);
    lab.del(&case.chain, result.last().unwrap()).unwrap();
    if *then == Then::Gc {
        // On a network without containers GC removes more than DEL does.
        lab.gc(&case.chain).unwrap();
    }
    let before = lab.state(*then);
    let (mut left, mut points) = (Vec::new(), 0);
    for number in 0.. {
        let fates: Vec<Fate> = match end {
            End::Killed => vec![Fate::Kill],
            End::Refused if all_errors => ERRORS.map(Fate::Fail).to_vec(),
            End::Refused => vec![Fate::Fail(ERRORS[number % ERRORS.len()])],
        };
        let mut got_through = false;
        for fate in fates {
            if let Some(reset) = case.reset {
                lab.host.sh(reset);
            }
            let mut result = Value::Null;
            let traced = if *verb == "ADD" {
                let results = lab.add(before_it);
                let prev = results.last().cloned().unwrap_or(Value::Null);
                lab.traced(verb, &with_prev(conf, &prev), Some((number, fate)))
            } else {
                result = lab.add(&case.chain).pop().unwrap();
                lab.del(&case.chain[at + 1..], &result).unwrap();
                lab.traced(verb, &with_prev(conf, &result), Some((number, fate)))
            };
            got_through = traced.syscalls.len() <= number;
            let cleaned = match then {
                Then::Del => lab.del(&case.chain, &result),
                Then::Gc => lab.gc(&case.chain),
            };
            let mut wrong: Vec<String> = cleaned.err().into_iter().collect();
            if traced.stdout.contains("panicked") {
                wrong.push(format!("it panicked: {}", traced.stdout));
            }
            if *then == Then::Gc {
                lab.host.sh("ip netns del c1; ip netns add c1");
            }
            if case.reset.is_some() {
                // ADD of the next container must find everything that the first one creates.
                let result = lab.add(&case.chain).pop().unwrap();
                wrong.extend(lab.del(&case.chain, &result).err());
            }
            let after = lab.state(*then);
            for (kind, before) in &before.0 {
                if *before != after.0[kind] {
                    wrong.push(format!("{kind} differ\nbefore: {before}\nafter:  {}", after.0[kind]));
                }
            }
            if !wrong.is_empty() {
                let (name, by_child) =
                    (traced.name(number), traced.syscalls.get(number).is_some_and(|c| c.by_child));
                left.push(format!(
                    "{} {verb} {} {fate:?} at {number} ({name}{}), then {then:?}: {}",
                    case.name,
                    conf["type"],
                    if by_child { " of a child" } else { "" },
                    wrong.join("\n")
                ));
                // The same state would be reported at every later system call.
                return (points, left);
            }
            points += 1;
        }
        if got_through {
            break;
        }
    }
    (points, left)
}

/// Ends every call of every case at each of its system calls and returns a summary.
fn end_everywhere(end: End) -> String {
    if !testkit::is_root() || !testkit::can_trace() {
        return String::new();
    }
    let wanted = std::env::var("NETLOOM_CRASH").ok();
    let all_errors = std::env::var_os("NETLOOM_ALL_ERRORS").is_some();
    let cases = cases();
    let mut jobs = Vec::new();
    for case in cases.iter().filter(|case| wanted.as_ref().is_none_or(|wanted| wanted.contains(case.name))) {
        for at in 0..case.chain.len() {
            // The plugin before sbr has a case of its own.
            if case.name == "sbr" && at == 0 {
                continue;
            }
            for verb in ["ADD", "DEL"] {
                jobs.push(Job { case, verb, at, then: Then::Del, end });
                // A host device returns to the host when the container's namespace ends.
                if end == End::Killed && case.name != "host-device" && case.reset.is_none() {
                    jobs.push(Job { case, verb, at, then: Then::Gc, end });
                }
            }
        }
    }
    let (next, points) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (left, report) = (Mutex::new(Vec::new()), Mutex::new(String::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let (found, wrong) = run(job, all_errors);
                    let Job { case, verb, at, then, end } = job;
                    let (name, plugin) = (case.name, case.chain[*at]["type"].as_str().unwrap());
                    let line = format!(
                        "{name:<12} {plugin:<12} {verb} {end:?} then {then:?}: {found} points in {:?}\n",
                        started.elapsed()
                    );
                    report.lock().unwrap().push_str(&line);
                    points.fetch_add(found, Ordering::Relaxed);
                    left.lock().unwrap().extend(wrong);
                }
            });
        }
    });
    let left = left.into_inner().unwrap();
    assert!(left.is_empty(), "{} calls left something:\n{}", left.len(), left.join("\n\n"));
    format!("{}{} points, nothing left", report.into_inner().unwrap(), points.into_inner())
}

/// A plugin is killed before its n-th system call, for every n.
#[test]
fn killed_at_every_system_call() {
    println!("{}", end_everywhere(End::Killed));
}

/// The n-th system call of a plugin fails, for every n.
#[test]
fn refused_every_system_call() {
    println!("{}", end_everywhere(End::Refused));
}
