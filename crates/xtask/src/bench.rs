//! `cargo xtask bench`: times folders of plugins side by side.
//!
//! Every side is called the same way, as a runtime calls plugins: a process, the `CNI_*` variables, configuration on
//! standard input. Calls of the sides alternate, so that whatever else the machine does hits all of them; what is
//! compared is medians. Each side works on a host of its own (network and mount namespace).

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::{Outcome, peers, root, run_with, say};

/// A folder of plugins.
pub(crate) struct Side {
    pub(crate) name: String,
    bin: PathBuf,
    /// A program, with arguments, that runs a plugin; none where that is run itself.
    starter: Vec<String>,
}

impl Side {
    fn of(name: &str, bin: PathBuf) -> Self {
        Self::started_by(name, bin, &[])
    }

    pub(crate) fn started_by(name: &str, bin: PathBuf, starter: &[String]) -> Self {
        Self { name: name.to_owned(), bin, starter: starter.to_vec() }
    }
}

/// The plugin calls of a case, in the order of ADD: configurations without version and name.
pub(crate) struct Case {
    name: &'static str,
    chain: Vec<Value>,
}

/// Kinds of links that a kernel may lack, by the case that needs them, and how one is made on a host.
const KINDS: [(&str, &str); 3] = [
    ("ipvlan", "ip link add link up0 name try0 type ipvlan"),
    ("vlan", "ip link add link up0 name try0 type vlan id 9"),
    ("dummy", "ip link add try0 type dummy"),
];

impl Case {
    /// Finds a case.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        cases().into_iter().find(|case| case.name == name).ok_or_else(|| format!("there is no case {name:?}"))
    }

    /// Returns whether a host's kernel has what the case needs; says so if not.
    pub(crate) fn can_run(&self, host: &Host) -> bool {
        let Some((_, make)) = KINDS.iter().find(|(case, _)| *case == self.name) else { return true };
        let can = host.succeeds(&format!("{make} && ip link del try0"));
        if !can {
            say(&format!("SKIPPED: {}: this kernel has none", self.name));
        }
        can
    }

    /// Returns the configurations for a host: state goes to folders of that host's own, through its root.
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

/// The chain as people run it: bridge with masquerade, tuning, portmap (2 ports), firewall, bandwidth.
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

pub(crate) fn bench(arguments: &[String]) -> Outcome {
    // One option of its own: what is measured.
    let (mut arguments, mut only) = (arguments.to_vec(), None);
    if let Some(at) = arguments.iter().position(|argument| argument == "--only") {
        only = arguments.drain(at..(at + 2).min(arguments.len())).nth(1);
    }
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let (sides, count) = sides(&arguments, 60)?;
    let hosts: Vec<Host> = sides.iter().map(|_| Host::new()).collect::<Result<_, _>>()?;
    if is_wanted("VERSION") {
        version(&sides, &hosts, count)?;
    }
    for case in cases().iter().filter(|case| is_wanted(case.name) && case.can_run(&hosts[0])) {
        measure(&sides, &hosts, case, count)?;
    }
    if !is_wanted("churn") {
        return Ok(());
    }
    let chain = Case::named(CHURNED)?;
    for at_once in [8, 32] {
        churn(&sides, &hosts, &chain, at_once)?;
    }
    peak_memory(&sides, &hosts)
}

const CHURNED: &str = "bridge and portmap by nftables";

/// Has 200 containers come and go, so many at once, three times each side in turn; gives the medians of containers per
/// second, and how many calls failed or got an address that another one had.
fn churn(sides: &[Side], hosts: &[Host], case: &Case, at_once: usize) -> Outcome {
    const CONTAINERS: usize = 200;
    const ROUNDS: usize = 3;
    for host in hosts {
        host.sh(&format!("for n in $(seq 0 {}); do ip netns add c$n; done", CONTAINERS - 1))?;
    }
    let mut rates = vec![Vec::new(); sides.len()];
    let mut failures = vec![0; sides.len()];
    for _ in 0..ROUNDS {
        for (index, (side, host)) in sides.iter().zip(hosts).enumerate() {
            let (next, started) = (AtomicUsize::new(0), Instant::now());
            let (failed, given) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
            std::thread::scope(|scope| {
                for _ in 0..at_once {
                    scope.spawn(|| {
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= CONTAINERS {
                                return;
                            }
                            let call = Call { side, host, container: format!("c{number}") };
                            let mut chain = case.on(host);
                            if let Some(ports) =
                                chain[1].pointer_mut("/runtimeConfig/portMappings/0/hostPort")
                            {
                                *ports = json!(10_000 + number);
                            }
                            let added = run_chain(&call, "ADD", &mut chain);
                            let address = chain[0]["prevResult"]["ips"][0]["address"].clone();
                            // Kept until it is given back, so that one who gets it meanwhile is seen.
                            if added.is_ok() && !keep(&given, &address) {
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                            let deleted = {
                                if let Ok(mut given) = given.lock() {
                                    given.retain(|it| *it != address);
                                }
                                run_chain(&call, "DEL", &mut chain)
                            };
                            failed.fetch_add(
                                usize::from(added.is_err() || deleted.is_err()),
                                Ordering::Relaxed,
                            );
                        }
                    });
                }
            });
            #[expect(clippy::cast_precision_loss, reason = "some hundred")]
            rates[index].push(CONTAINERS as f64 / started.elapsed().as_secs_f64());
            failures[index] += failed.into_inner();
        }
    }
    let mut first = None;
    for ((side, mut rates), failed) in sides.iter().zip(rates).zip(failures) {
        rates.sort_by(f64::total_cmp);
        let median = rates[ROUNDS / 2];
        let ratio = median / *first.get_or_insert(median);
        say(&format!(
            "{CONTAINERS} containers, {at_once:>2} at once  {:<10} {median:>7.1} containers/s in and out   {ratio:>6.2}x   {failed} failed",
            side.name
        ));
    }
    for host in hosts {
        host.sh("ip -all netns delete; ip link del cbr0 2>/dev/null || true")?;
    }
    Ok(())
}

/// Notes an address; false if it was noted already.
fn keep(given: &Mutex<Vec<Value>>, address: &Value) -> bool {
    let Ok(mut given) = given.lock() else { return false };
    let is_new = !given.contains(address);
    given.push(address.clone());
    is_new
}

/// Builds this one, and gives the sides that are asked for and how many rounds.
pub(crate) fn sides(arguments: &[String], mut count: usize) -> Result<(Vec<Side>, usize), String> {
    let mut sides = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--side" => {
                let (name, dir) = value.split_once('=').ok_or("write --side NAME=DIR")?;
                sides.push(Side::of(name, dir.into()));
            }
            "-n" => count = value.parse().map_err(|_| format!("-n {value} is no number"))?,
            other => return Err(format!("unknown option {other}")),
        }
    }
    if sides.is_empty() {
        match peers::first() {
            Some(dir) => sides.push(Side::of("go", dir)),
            None => say("SKIPPED: no Go reference plugins to compare with; name a folder by --side NAME=DIR"),
        }
    }
    let (binary, bin) = build()?;
    sides.push(Side::of("netloom", bin));
    let size = std::fs::metadata(&binary).map_err(|error| error.to_string())?.len();
    say(&format!("{}: {:.2} MiB\n", binary.display(), mebibytes(size)));
    Ok((sides, count))
}

/// Builds the release binary and a folder of links to it.
fn build() -> Result<(PathBuf, PathBuf), String> {
    let binary = dist()?;
    let bin = links_to(&binary)?;
    Ok((binary, bin))
}

/// Makes a folder of plugins of a binary.
pub(crate) fn links_to(binary: &Path) -> Result<PathBuf, String> {
    let bin = root().join("target/bench-bin");
    drop(std::fs::remove_dir_all(&bin));
    std::fs::create_dir_all(&bin).map_err(|error| error.to_string())?;
    for name in
        "loopback bridge ptp macvlan ipvlan vlan dummy tap host-device host-local static portmap firewall tuning bandwidth"
            .split(' ')
    {
        std::fs::hard_link(binary, bin.join(name)).map_err(|error| error.to_string())?;
    }
    Ok(bin)
}

/// Builds the binary that is to be installed and gives its path.
///
/// For the musl target, since the start of such a program asks the processor nothing (each question is an exit to the
/// hypervisor in a virtual machine; together they take longer than all else that a plugin does at its start). Where
/// the toolchain does not have that target and cannot get it, for the toolchain's own.
pub(crate) fn dist() -> Result<PathBuf, String> {
    dist_with(&[])
}

/// Builds it with more arguments to the compiler.
pub(crate) fn dist_with(more: &[String]) -> Result<PathBuf, String> {
    let linux = format!("{}-unknown-linux", std::env::consts::ARCH);
    let musl = format!("{linux}-musl");
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(root())
        .output()
        .map_err(|error| error.to_string())?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    let has_musl = || sysroot.join("lib/rustlib").join(&musl).join("lib").is_dir();
    if !has_musl() {
        // A toolchain that is not rustup's, or no network: the other target does as well.
        drop(Command::new("rustup").args(["target", "add", &musl]).current_dir(root()).output());
    }
    let target = if has_musl() { musl.clone() } else { format!("{linux}-gnu") };
    // At a fixed address: nothing has to be relocated at each start, which is a tenth of it, and 200 KiB stay untouched.
    let fixed = format!("target.{target}.rustflags=[\"-Crelocation-model=static\"]");
    let arguments = ["--release", "--quiet", "--package", "netloom", "--bin", "netloom", "--target", &target];
    run_with(Command::new("cargo").arg("rustc").args(arguments).args(["--config", &fixed, "--"]).args(more))?;
    Ok(root().join("target").join(target).join("release/netloom"))
}

/// A process that holds a network and a mount namespace, with containers prepared in it.
pub(crate) struct Host {
    holder: std::process::Child,
}

impl Host {
    pub(crate) fn new() -> Result<Self, String> {
        let host = Self::bare()?;
        host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
                 ip link add dev0 type veth peer name dev1; ip link set dev0 up; ip link set dev1 up")?;
        Ok(host)
    }

    /// A host with nothing but `lo`.
    pub(crate) fn bare() -> Result<Self, String> {
        const HOLD: &str = "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /run/netns && ip link set lo up \
            && echo ready && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "private", "sh", "-c", HOLD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut ready = [0; 6];
        let stdout = holder.stdout.as_mut().ok_or("no stdout")?;
        stdout.read_exact(&mut ready).map_err(|_| "namespaces cannot be made: run as root")?;
        Ok(Self { holder })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    pub(crate) fn sh(&self, line: &str) -> Outcome {
        run_with(self.command("sh").args(["-c", line]))
    }

    /// Returns what a shell line prints.
    pub(crate) fn output(&self, line: &str) -> Result<String, String> {
        let output = self.command("sh").args(["-c", line]).output().map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns whether a shell line succeeds.
    pub(crate) fn succeeds(&self, line: &str) -> bool {
        let mut command = self.command("sh");
        command.args(["-c", line]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--net", "--", program]);
        command
    }

    /// Enters the host on a thread of its own, which ends with the work.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        Self::enter(&format!("/proc/{}/ns/net", self.pid()), work)
    }

    /// Enters a container of the host likewise.
    pub(crate) fn inside_of<T: Send>(
        &self,
        container: &str,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, String> {
        Self::enter(&format!("/proc/{}/root/run/netns/{container}", self.pid()), work)
    }

    fn enter<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let net = File::open(netns).map_err(|error| error.to_string())?;
                    move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))
                        .map_err(|error| error.to_string())?;
                    Ok(work())
                })
                .join()
                .map_err(|_| "a measuring thread panicked".to_owned())?
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}

pub(crate) struct Call<'a> {
    pub(crate) side: &'a Side,
    pub(crate) host: &'a Host,
    pub(crate) container: String,
}

impl Call<'_> {
    /// Runs one verb and gives how long it took from spawn to end, and what was printed.
    ///
    /// A failure of somebody else's is said, and timed: there are calls that these cannot do.
    fn run(&self, verb: &str, conf: &Value) -> Result<(Duration, Value), String> {
        let plugin = self.side.bin.join(conf["type"].as_str().unwrap_or_default());
        let mut stdin = temporary()?;
        stdin
            .write_all(conf.to_string().as_bytes())
            .and_then(|()| stdin.rewind())
            .map_err(|e| e.to_string())?;
        let stdout = temporary()?;
        let mut answer = stdout.try_clone().map_err(|error| error.to_string())?;
        let root = format!("/proc/{}/root", self.host.holder.id());
        let mut line = self.side.starter.iter().map(AsRef::as_ref).chain([plugin.as_os_str()]);
        let mut command = Command::new(line.next().unwrap_or_default());
        command
            .args(line)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", format!("{root}/run/netns/{}", self.container))
            .env("CNI_PATH", &self.side.bin)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::null());
        let (took, ok) = self.host.inside(|| {
            let started = Instant::now();
            let status = command.status();
            (started.elapsed(), status.is_ok_and(|status| status.success()))
        })?;
        let mut text = String::new();
        answer.rewind().and_then(|()| answer.read_to_string(&mut text)).map_err(|error| error.to_string())?;
        if !ok && (self.side.name == "netloom" || verb == "ADD") {
            return Err(format!("{verb} {} of {} failed: {text}", conf["type"], self.side.name));
        }
        if !ok && self.container == "c0" {
            say(&format!("{verb} {} of {} fails: {text}", conf["type"], self.side.name));
        }
        Ok((took, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }
}

fn temporary() -> Result<File, String> {
    let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| error.to_string())?;
    Ok(File::from(fd))
}

pub(crate) fn version(sides: &[Side], hosts: &[Host], count: usize) -> Outcome {
    let conf = json!({"cniVersion": "1.0.0", "name": "bench", "type": "bridge"});
    let mut rows = vec![Vec::new(); sides.len()];
    for _ in 0..count {
        for (index, (side, host)) in sides.iter().zip(hosts).enumerate() {
            rows[index].push(Call { side, host, container: "x".into() }.run("VERSION", &conf)?.0);
        }
    }
    table("bridge", "VERSION", sides, &mut rows);
    Ok(())
}

fn measure(sides: &[Side], hosts: &[Host], case: &Case, count: usize) -> Outcome {
    let verbs = ["ADD", "CHECK", "DEL"];
    let mut rows: Vec<Vec<Vec<Duration>>> = vec![vec![Vec::new(); sides.len()]; verbs.len()];
    const WARM_UP: usize = 3;
    for host in hosts {
        host.sh(&format!("for n in $(seq 0 {}); do ip netns add c$n; done", count + WARM_UP))?;
    }
    for round in 0..count + WARM_UP {
        for (index, (side, host)) in sides.iter().zip(hosts).enumerate() {
            let call = Call { side, host, container: format!("c{round}") };
            let mut chain = case.on(host);
            for (verb, row) in verbs.iter().zip(&mut rows) {
                let took = run_chain(&call, verb, &mut chain)?;
                if round >= WARM_UP {
                    row[index].push(took);
                }
            }
        }
    }
    for (verb, mut row) in verbs.iter().zip(rows) {
        table(case.name, verb, sides, &mut row);
    }
    for host in hosts {
        host.sh("ip -all netns delete; ip link del cbr0 2>/dev/null || true")?;
    }
    Ok(())
}

/// Runs a verb of each plugin, with the results as a runtime hands them on, and gives how long all of them took.
pub(crate) fn run_chain(call: &Call<'_>, verb: &str, chain: &mut [Value]) -> Result<Duration, String> {
    let mut whole = Duration::ZERO;
    let mut result = Value::Null;
    let order: Vec<usize> =
        if verb == "DEL" { (0..chain.len()).rev().collect() } else { (0..chain.len()).collect() };
    for index in order {
        if verb == "ADD" && index > 0 {
            chain[index]["prevResult"] = result;
        }
        let (took, answer) = call.run(verb, &chain[index])?;
        whole += took;
        result = answer;
    }
    if verb == "ADD" {
        for conf in chain {
            conf["prevResult"] = result.clone();
        }
    }
    Ok(whole)
}

fn table(case: &str, verb: &str, sides: &[Side], rows: &mut [Vec<Duration>]) {
    let mut first = None;
    for (side, row) in sides.iter().zip(rows) {
        row.sort_unstable();
        let at = |part: usize| row[(row.len() - 1) * part / 100].as_secs_f64() * 1000.0;
        let median = at(50);
        let ratio = *first.get_or_insert(median) / median;
        say(&format!(
            "{case:<20} {verb:<8} {:<10} min {:>7.2}  median {median:>7.2}  p95 {:>7.2} ms   {ratio:>6.2}x",
            side.name,
            at(0),
            at(95)
        ));
    }
}

/// Measures the peak memory of a bridge ADD by GNU time, a small parent: what a process was before its exec counts
/// too, and this program is larger than a plugin.
fn peak_memory(sides: &[Side], hosts: &[Host]) -> Outcome {
    if !PathBuf::from("/usr/bin/time").exists() {
        say("SKIPPED: peak memory is measured by /usr/bin/time (package time)");
        return Ok(());
    }
    for (side, host) in sides.iter().zip(hosts) {
        host.sh("ip netns add memory")?;
        let mut conf = cases().swap_remove(1).chain.swap_remove(0);
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!("memory");
        let mut child = host
            .command("/usr/bin/time")
            .args(["-f", "%M", &side.bin.join("bridge").to_string_lossy()])
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "memory")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/run/netns/memory")
            .env("CNI_PATH", &side.bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(conf.to_string().as_bytes()).map_err(|error| error.to_string())?;
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stderr);
        let kib: u64 = text.trim().parse().map_err(|_| format!("no figure: {text}"))?;
        say(&format!(
            "{:<20} {:<8} {:<10} peak memory {:.2} MiB",
            "bridge",
            "ADD",
            side.name,
            mebibytes(kib * 1024)
        ));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "sizes of files and processes are far below 2^52")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}
