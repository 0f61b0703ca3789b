//! `netloom why`: the tables of faults and of healthy hosts in `tests/faults`, each case on a host of its own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    panic::AssertUnwindSafe,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use testkit::Host;
use toml::{Table, Value};

use crate::lab::{OURS, text};

/// Reads a table of `tests/faults`.
fn table(name: &str) -> Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(name);
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The other host on the uplink, and this host's address and default routes.
const UPLINK: &str = "ip netns add outside; ip link add up0 type veth peer eth0 netns outside; ip link set up0 up
    ip addr add 203.0.113.2/24 dev up0; ip addr add 2001:db8:f::2/64 dev up0 nodad
    ip -n outside link set lo up; ip -n outside link set eth0 up; ip -n outside addr add 203.0.113.1/24 dev eth0
    ip -n outside addr add 2001:db8:f::1/64 dev eth0 nodad
    ip route add default via 203.0.113.1; ip route add default via 2001:db8:f::1
    echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables; echo 0 >/proc/sys/net/bridge/bridge-nf-call-ip6tables
    echo 0 >/proc/sys/net/bridge/bridge-nf-call-arptables";

/// Names that commands use: the host ends of the containers.
const NAMES: &str = "end() { ip -o link | sed -n \"s/^$(ip netns exec $1 cat /sys/class/net/${2:-eth0}/iflink): \\([^@:]*\\).*/\\1/p\"; }
    V1=$(end c1); V2=$(end c2 2>/dev/null); export V1 V2";

fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list.iter().map(|it| it.as_str().unwrap()).collect(),
        _ => Vec::new(),
    }
}

/// Returns the cases of the tables that this kernel can run: `needs` is a command that succeeds if it has what the case uses.
fn cases(tables: &[&str], kind: &str) -> Vec<Table> {
    let host = Host::new();
    let needs = |case: &Table| {
        let layouts = table("layouts.toml");
        let layout =
            case.get("layout").and_then(|name| layouts[name.as_str().unwrap()].get("needs").cloned());
        [case.get("needs").cloned(), layout]
            .into_iter()
            .flatten()
            .map(|it| it.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let all = tables.iter().flat_map(|name| table(name)[kind].as_array().unwrap().clone());
    let mut cases: Vec<Table> = all.map(|it| it.as_table().unwrap().clone()).collect();
    let mut lacks: BTreeMap<String, bool> = BTreeMap::new();
    cases.retain(|case| {
        needs(case).into_iter().all(|need| *lacks.entry(need).or_insert_with_key(|need| host.succeeds(need)))
    });
    for (need, there) in lacks {
        if !there {
            testkit::say_skipped(&format!("cases that need `{need}`"));
        }
    }
    cases
}

fn netloom(host: &Host, arguments: &[&str]) -> (bool, String, Duration) {
    let mut command = Command::new(OURS.join("netloom"));
    command.args(arguments).env("CNI_PATH", &*OURS).env("NETCONFPATH", "/etc/cni/net.d");
    let started = Instant::now();
    let child = host.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let output = child.wait_with_output().unwrap();
    (output.status.success(), text(&output), started.elapsed())
}

/// Creates the host of a layout.
fn lay_out(name: &str) -> Host {
    let layouts = table("layouts.toml");
    let layout = layouts[name].as_table().unwrap();
    let host = Host::new();
    host.sh(UPLINK);
    if let Some(setup) = layout.get("setup") {
        host.sh(setup.as_str().unwrap());
    }
    let dir = host.path("/etc/cni/net.d");
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).unwrap();
    for (number, network) in texts(layout.get("networks")).into_iter().enumerate() {
        fs::write(dir.join(format!("{number}.conflist")), network).unwrap();
    }
    for container in layout["containers"].as_array().unwrap() {
        let of = |key: &str| container.get(key).and_then(Value::as_str);
        let name = of("name").unwrap();
        if !host.path(&format!("/run/netns/{name}")).exists() {
            host.container(name);
            host.sh(&format!("ip -n {name} link set lo up"));
        }
        let ifname = of("ifname").unwrap_or("eth0");
        let mut arguments =
            vec!["add", of("network").unwrap(), name, "--container-id", name, "--ifname", ifname];
        if let Some(ports) = of("ports") {
            arguments.extend(["--cap-args", ports]);
        }
        let (ok, said, _) = netloom(&host, &arguments);
        assert!(ok, "{name}: {said}");
    }
    host
}

fn arguments(line: &str) -> Vec<&str> {
    std::iter::once("why").chain(line.split(' ')).collect()
}

/// Returns the names in nftables' rules, namespaces and processes that a run must not change.
fn left(host: &Host) -> String {
    host.sh("nft list tables; for n in $(ip netns | cut -d' ' -f1); do ip netns exec $n nft list tables; done; ls /run/netns")
}

/// The outcome of one case: its name, what is wrong or nothing, and how long `netloom why` took.
type Judged = (String, Option<String>, Duration);

/// Runs the cases on several hosts at once.
fn run(cases: &[Table], judge: impl Fn(&Table) -> Judged + Sync) -> Vec<Judged> {
    let only = std::env::var("WHY_ONLY").unwrap_or_default();
    let chosen: Vec<&Table> =
        cases.iter().filter(|case| case["name"].as_str().unwrap().contains(&only)).collect();
    let (next, judged) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // A command of the table that fails is a fault of the case.
                    let one =
                        std::panic::catch_unwind(AssertUnwindSafe(|| judge(case))).unwrap_or_else(|_| {
                            (
                                case["name"].as_str().unwrap().to_owned(),
                                Some("could not be set up".into()),
                                Duration::ZERO,
                            )
                        });
                    judged.lock().unwrap().push(one);
                }
            });
        }
    });
    judged.into_inner().unwrap()
}

fn judge_fault(case: &Table) -> Judged {
    let name = case["name"].as_str().unwrap().to_owned();
    let host = lay_out(case.get("layout").and_then(Value::as_str).unwrap_or("bridge"));
    host.sh(&format!("{NAMES}\n{}", case["break"].as_str().unwrap()));
    let before = left(&host);
    let line = case.get("why").and_then(Value::as_str).unwrap_or("c1");
    let (ok, said, took) = netloom(&host, &arguments(line));
    // The sentence and the remedy are the end of the report.
    let cause: String =
        said.lines().skip_while(|line| !line.starts_with("netloom: ")).collect::<Vec<_>>().join("\n");
    let missing: Vec<&str> =
        texts(case.get("says")).into_iter().filter(|words| !cause.contains(words)).collect();
    let wrong = if ok || !missing.is_empty() { Some(format!("lacks {missing:?}:\n{said}")) } else { None };
    let wrong = wrong.or_else(|| (left(&host) != before).then(|| format!("left something: {}", left(&host))));
    (name, wrong, took)
}

/// Each fault of the table is named, and nothing is left of the search for it.
#[test]
fn why_names_each_fault() {
    if !testkit::is_root() {
        return;
    }
    let judged = run(&cases(&["faults.toml", "reported.toml"], "fault"), judge_fault);
    let (text, count, wrong) = summary("faults", &judged);
    println!("{text}");
    assert!(wrong * 20 <= count, "{wrong} of {count} are not named");
}

/// On a healthy host nothing is blamed.
#[test]
fn why_blames_nothing_on_a_healthy_host() {
    if !testkit::is_root() {
        return;
    }
    let judged = run(&cases(&["healthy.toml"], "healthy"), |case| {
        let name = case["name"].as_str().unwrap().to_owned();
        let host = lay_out(case.get("layout").and_then(Value::as_str).unwrap_or("bridge"));
        if let Some(setup) = case.get("setup") {
            host.sh(&format!("{NAMES}\n{}", setup.as_str().unwrap()));
        }
        let before = left(&host);
        let (mut wrong, mut slowest) = (None, Duration::ZERO);
        let lines = texts(case.get("why"));
        for line in if lines.is_empty() { vec!["c1"] } else { lines } {
            let (ok, said, took) = netloom(&host, &arguments(line));
            slowest = slowest.max(took);
            if !ok {
                wrong.get_or_insert(format!("blames: {line}\n{said}"));
            }
        }
        let wrong = wrong.or_else(|| (left(&host) != before).then(|| "left something".to_owned()));
        (name, wrong, slowest)
    });
    let (text, _, wrong) = summary("healthy hosts", &judged);
    println!("{text}");
    assert_eq!(wrong, 0);
}

/// Describes the outcome, and counts the cases and the wrong ones.
fn summary(what: &str, judged: &[Judged]) -> (String, usize, usize) {
    let wrong: Vec<&Judged> = judged.iter().filter(|(_, wrong, _)| wrong.is_some()).collect();
    let mut text = String::new();
    for (name, reason, _) in &wrong {
        writeln!(text, "WRONG {name}: {}", reason.as_deref().unwrap_or_default()).unwrap();
    }
    let slow = judged.iter().filter(|(.., took)| *took > Duration::from_secs(1)).count();
    let slowest = judged.iter().max_by_key(|(.., took)| *took);
    let right = judged.len() - wrong.len();
    writeln!(
        text,
        "{what}: {right} of {} right; {slow} took more than a second; slowest: {:?}",
        judged.len(),
        slowest.map(|(name, _, took)| (name, took))
    )
    .unwrap();
    (text, judged.len(), wrong.len())
}

/// Killed in the middle of a trace, `netloom why` leaves no table: the kernel removes it with the process.
#[test]
fn why_leaves_nothing_when_it_is_killed() {
    if !testkit::is_root() {
        return;
    }
    let host = lay_out("v4");
    host.sh("nft 'table inet own { chain f { type filter hook forward priority 0; policy drop; }; }'");
    let before = left(&host);
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut seen = false;
    while !seen && Instant::now() < deadline {
        let mut command = Command::new(OURS.join("netloom"));
        command.args(["why", "c1"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = host.spawn(&mut command);
        while !seen && child.try_wait().unwrap().is_none() {
            seen = host.sh("nft list tables").contains("netloom-why");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(seen, "no trace was seen");
    assert_eq!(left(&host), before);
}

/// The report as JSON has the steps, the cause and the remedy. Unknown names and bad words are refused with a hint.
#[test]
fn why_answers_programs_and_refuses_nonsense() {
    if !testkit::is_root() {
        return;
    }
    let host = lay_out("v4");
    let json = |said: &str| -> serde_json::Value {
        serde_json::from_str(said.split("\nnetloom: ").next().unwrap()).unwrap()
    };
    let (ok, said, _) = netloom(&host, &["why", "c1", "--json"]);
    let value = json(&said);
    assert!(ok && value["works"] == true && value["cause"].is_null(), "{said}");
    assert_eq!(value["steps"][0]["outcome"], "ok");
    host.sh("sysctl -qw net.ipv4.ip_forward=0");
    let (ok, said, _) = netloom(&host, &["why", "c1", "--json"]);
    let value = json(&said);
    assert!(!ok && value["works"] == false, "{said}");
    assert_eq!(value["cause"], "the host does not forward IPv4 packets");
    assert!(value["remedy"].as_str().unwrap().contains("sysctl -w net.ipv4.ip_forward=1"), "{said}");
    for (arguments, words) in [
        (&["why", "nobody"][..], "no attachment matches `nobody`"),
        (&["why", "c1", "to"], "`to` lacks a value"),
        (&["why", "c1", "to", "10.88.0.1:x"], "invalid port `x`"),
        (&["why", "c1", "to", "nowhere"], "`nowhere` is no address and no container, and"),
        (&["why", "c1", "to", "c2", "until", "now"], "unexpected argument `until`"),
    ] {
        let (ok, said, _) = netloom(&host, arguments);
        assert!(!ok && said.contains(words), "{said}");
    }
}
