//! DEL returns before the kernel has finished the removal, and a child process waits for the rest. Whatever happens to the
//! child or comes next, the result is the same.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};
use testkit::{Fate, Host};

use crate::{
    crash::{Lab, cases},
    lab::{Call, OURS, dual_stack, with_prev},
};

/// A DEL whose child is killed at one of its system calls does the child's work itself.
#[test]
fn a_child_may_die() {
    if !testkit::is_root() || !testkit::can_trace() {
        return;
    }
    for case in cases().iter().filter(|case| ["ptp", "macvlan"].contains(&case.name)) {
        let lab = Lab::new(case);
        let conf = &case.chain[0];
        let result = lab.add(&case.chain);
        lab.del(&case.chain, result.last().unwrap()).unwrap();
        let before = lab.host.snapshot();
        let (mut number, mut deaths) = (0, 0);
        loop {
            let result = lab.add(&case.chain).pop().unwrap();
            let traced = lab.traced("DEL", &with_prev(conf, &result), Some((number, Fate::KillChild)));
            assert!(traced.status.success(), "{}: {number}: {}", case.name, traced.stdout);
            let after = lab.host.snapshot();
            before.assert_same(&after, &format!("{}, a child killed at {number}", case.name));
            deaths += usize::from(traced.syscalls.get(number).is_some_and(|call| call.by_child));
            if traced.syscalls.len() <= number {
                break;
            }
            number += 1;
        }
        assert!(deaths > 0, "{}: DEL has no child", case.name);
        println!("{}: {deaths} deaths", case.name);
    }
}

/// ADD of the same container and interface right after DEL: the name and all other resources are free.
#[test]
fn an_add_may_follow_at_once() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let call = Call::new(&host, &OURS, "c1");
    let mut conf = dual_stack();
    conf["macspoofchk"] = json!(true);
    let port = json!({"cniVersion": "1.1.0", "name": "lab", "type": "portmap", "runtimeConfig": {"portMappings":
        [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    for round in 0..50 {
        let prev = call.add(&conf);
        call.add(&with_prev(&port, &prev));
        if round == 49 {
            assert!(host.succeeds("ip netns exec c1 ping -c 1 -W 2 10.88.0.1"));
        }
        call.del(&port, &prev);
        call.del(&conf, &prev);
    }
    let links = host.sh("ip -br link");
    assert!(!links.contains("veth"), "{links}");
}

/// The runtime removes the namespace during DEL.
#[test]
fn the_namespace_may_go_meanwhile() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let conf = dual_stack();
    for round in 0..30 {
        let name = format!("c{round}");
        host.container(&name);
        let call = Call::new(&host, &OURS, &name);
        let result = call.add(&conf);
        std::thread::scope(|scope| {
            scope.spawn(|| host.sh(&format!("ip netns del {name}")));
            call.del(&conf, &result);
        });
    }
    let left =
        host.sh("ip -br link | grep veth || true; ls /var/lib/cni/networks/lab | grep -e : -e ^10 || true");
    assert_eq!(left, "");
    let rules = host.sh("nft list ruleset");
    assert!(!rules.contains("elements ="), "{rules}");
}

/// A control group that is removed with the test.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| line.strip_prefix("cgroup2 ")?.split(' ').next())?;
        let dir = PathBuf::from(root).join(format!("netloom-{}-{name}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        dir.join("cgroup.kill").exists().then_some(Self(dir))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A killed process leaves the group when the kernel has reaped it.
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

/// A service manager kills the runtime with all its processes, including the waiting child.
#[test]
fn the_runtimes_group_may_be_killed() {
    if !testkit::is_root() {
        return;
    }
    let Some(group) = Group::new("removal") else {
        testkit::say_skipped("no control group can be made and killed here");
        return;
    };
    let host = Host::new();
    let conf = dual_stack();
    let procs = group.0.join("cgroup.procs");
    for round in 0..20 {
        let name = format!("c{round}");
        host.container(&name);
        let call = Call::new(&host, &OURS, &name);
        let result = call.add(&conf);
        let plugin = OURS.join("bridge");
        let input = host.path("/run/stdin");
        fs::write(&input, with_prev(&conf, &result).to_string()).unwrap();
        let mut runtime = host
            .command("sh")
            .args(["-c", "echo $$ >\"$0\"; exec \"$1\" </run/stdin"])
            .arg(&procs)
            .arg(&plugin)
            .envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", &*name), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", &call.netns)
            .env("CNI_PATH", &*OURS)
            .spawn()
            .unwrap();
        // A different moment in each round.
        std::thread::sleep(std::time::Duration::from_micros(round * 300));
        fs::write(group.0.join("cgroup.kill"), "1").unwrap();
        runtime.wait().unwrap();
        call.del(&conf, &result);
    }
    let left =
        host.sh("ip -br link | grep veth || true; ls /var/lib/cni/networks/lab | grep -e : -e ^10 || true");
    assert_eq!(left, "");
}

/// Foreign link groups: DEL removes none of their links, and leaves no container's link in a group.
#[test]
fn other_tools_groups_are_left_alone() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("for n in 1 7 2147483647; do ip link add v$n type veth peer name p$n; ip link set v$n group $n; ip link set p$n group $n; done");
    host.container("c1");
    let before = host.sh("ip -br link | cut -d' ' -f1 | sort");
    let call = Call::new(&host, &OURS, "c1");
    let conf = dual_stack();
    let result = call.add(&conf);
    let outside = result["interfaces"][1]["name"].as_str().unwrap();
    let link = host.json(&format!("ip -j link show {outside}"));
    assert_eq!(link[0]["group"], "default", "{link}");
    call.del(&conf, &result);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    call.call("GC", &gc).result("GC");
    host.sh("ip link del br0");
    assert_eq!(host.sh("ip -br link | cut -d' ' -f1 | sort"), before);
}

/// With `waitForRemoval` or `NETLOOM_WAIT=1` DEL itself waits and starts no child.
#[test]
fn del_waits_where_it_is_asked_to() {
    if !testkit::is_root() || !testkit::can_trace() {
        return;
    }
    for case in cases().iter().filter(|case| case.name == "ptp") {
        let lab = Lab::new(case);
        let mut conf = case.chain[0].clone();
        // The first removal on the host finds out whether orphans are reaped.
        let result = lab.add(&case.chain);
        lab.del(&case.chain, result.last().unwrap()).unwrap();
        for (wait, children) in [(json!(false), true), (json!(true), false), (Value::Null, true)] {
            let result = lab.add(&case.chain).pop().unwrap();
            conf["waitForRemoval"] = wait.clone();
            let traced = lab.traced("DEL", &with_prev(&conf, &result), None);
            assert!(traced.status.success(), "{}", traced.stdout);
            assert_eq!(
                traced.syscalls.iter().any(|call| call.by_child),
                children,
                "waitForRemoval is {wait}"
            );
        }
    }
}

/// A PID namespace on a host, whose PID 1 never waits for a child.
struct NoReaper {
    unshare: std::process::Child,
    init: String,
}

impl NoReaper {
    fn new(host: &Host) -> Self {
        let flags = ["--pid", "--fork", "--kill-child", "--mount-proc", "sleep", "infinity"];
        let unshare = host.spawn(Command::new("unshare").args(flags));
        let mut place = Self { init: String::new(), unshare };
        let children = format!("/proc/{0}/task/{0}/children", place.unshare.id());
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        // `/proc` of the namespace is mounted once PID 1 has executed its final program.
        while fs::read_to_string(format!("/proc/{}/comm", place.init)).ok().as_deref() != Some("sleep\n") {
            assert!(Instant::now() < deadline, "no PID namespace");
            fs::read_to_string(&children).unwrap().trim().clone_into(&mut place.init);
            std::thread::yield_now();
        }
        place
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init, "--pid", "--mount", "--net", "--wd=/", "--"]).arg(program);
        command
    }

    fn zombies(&self) -> usize {
        let output =
            self.command(Path::new("sh")).args(["-c", "cat /proc/[0-9]*/stat 2>/dev/null"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains(") Z ")).count()
    }
}

impl Drop for NoReaper {
    fn drop(&mut self) {
        // PID 1 of the namespace ends with `unshare`.
        drop(self.unshare.kill());
        drop(self.unshare.wait());
    }
}

/// If PID 1 does not reap orphans, plugins start no child and wait themselves.
#[test]
fn orphans_are_not_left_where_nobody_reaps_them() {
    if !testkit::is_root() {
        return;
    }
    const AT_ONCE: usize = 8;
    let host = Host::new();
    for worker in 0..AT_ONCE {
        host.container(&format!("c{worker}"));
    }
    let place = NoReaper::new(&host);
    let mut conf = dual_stack();
    conf["macspoofchk"] = json!(true);
    let rounds: usize =
        std::env::var("NETLOOM_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(160);
    let run = |verb: &str, name: &str, conf: &Value| {
        let mut child = place
            .command(&OURS.join("bridge"))
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", name), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", format!("/run/netns/{name}"))
            .env("CNI_PATH", &*OURS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    std::thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            let name = format!("c{worker}");
            let (run, conf) = (&run, &conf);
            scope.spawn(move || {
                for _ in 0..rounds / AT_ONCE {
                    let result = run("ADD", &name, conf);
                    run("DEL", &name, &with_prev(conf, &result));
                }
            });
        }
    });
    let zombies = place.zombies();
    println!("{zombies} zombies after {rounds} containers");
    assert!((1..=AT_ONCE).contains(&zombies), "{zombies} zombies after {rounds} containers");
}
