//! `cargo xtask datapath [ROUNDS]`: measures throughput and requests per second between pods on two hosts.
//!
//! The peer is flannel's layout, built by hand on the same machine with the same MTU; rounds alternate between the two. Then
//! a daemon is restarted during a stream.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    Outcome,
    cluster::{Running, built, fresh_dir, plugins, until},
    host::Host,
    say,
};

/// Two connected hosts with a pod each.
struct Pair {
    name: &'static str,
    hosts: Vec<Host>,
    /// The address of the second pod.
    to: String,
    daemons: Vec<Running>,
}

/// Length of one throughput measurement, in seconds.
const SECONDS: u32 = 3;

/// Runs `cargo xtask datapath`.
pub(crate) fn datapath(arguments: &[String]) -> Outcome {
    let rounds: usize =
        arguments.first().map_or(Ok(5), |text| text.parse()).map_err(|_| "ROUNDS is not a number")?;
    let (built, dir) = (built()?, fresh_dir("datapath")?);
    plugins(&built, &dir)?;
    for (mode, flags, form) in [
        ("overlay", &[][..], Form::Vxlan),
        ("overlay", &["--tunnel", "vxlan-gpe"], Form::Vxlan),
        ("routing", &[], Form::HostGateway),
    ] {
        let how = Daemon { mode, flags, built: &built, dir: &dir };
        let mut pairs = [netloom(&how)?, by_hand(form)?];
        let mut found: Vec<(Vec<f64>, Vec<f64>)> = pairs.iter().map(|_| Default::default()).collect();
        for _ in 0..rounds {
            for (pair, found) in pairs.iter().zip(&mut found) {
                found.0.push(throughput(pair)?);
                found.1.push(requests(pair)?);
            }
        }
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let found: Vec<[f64; 2]> =
            found.into_iter().map(|(throughput, requests)| [median(throughput), median(requests)]).collect();
        for (pair, [gbit, rate]) in pairs.iter().zip(&found) {
            say(&format!("{:<18} {gbit:>6.2} Gbit/s   {rate:>7.0} requests/s", pair.name));
        }
        say(&format!(
            "{} of flannel's:  {:.3} throughput, {:.3} requests",
            how.name(),
            found[0][0] / found[1][0],
            found[0][1] / found[1][1]
        ));
        restart(&mut pairs[0], &how)?;
    }
    Ok(())
}

/// Creates two hosts on one segment. They have IPv4 addresses only, so that the tunnel's MTU is 1450 like flannel's.
fn hosts() -> Result<(Host, Vec<Host>), String> {
    let wire = Host::new()?;
    wire.sh("ip link add seg type bridge; ip link set seg up; ip addr add 192.0.2.254/24 dev seg")?;
    let mut hosts = Vec::new();
    for number in 1..=2 {
        let host = Host::bare()?;
        wire.sh(&format!(
            "ip link add n{number} type veth peer name eth0 netns {}; ip link set n{number} master seg up",
            host.pid()
        ))?;
        host.sh(&format!(
            "ip link set eth0 up; ip addr add 192.0.2.{number}/24 dev eth0; ip route add default via 192.0.2.254; echo 1 >/proc/sys/net/ipv4/ip_forward"
        ))?;
        hosts.push(host);
    }
    Ok((wire, hosts))
}

/// The way in which the daemons of a pair are started.
struct Daemon<'a> {
    mode: &'static str,
    flags: &'a [&'static str],
    built: &'a Path,
    dir: &'a Path,
}

impl Daemon<'_> {
    fn name(&self) -> &'static str {
        self.flags.last().copied().unwrap_or(self.mode)
    }

    fn start(&self, host: &Host, number: usize) -> Result<Running, String> {
        let mut command = host.command(&self.built.join("netloomd").display().to_string());
        command.args(["--node", &format!("host{number}"), "--mode", self.mode, "--store-dir"]);
        command.arg(self.dir.join("store").join(self.name())).args(self.flags);
        command.args(["--conf-dir", "/run/net.d", "--config", "/nowhere"]).stderr(Stdio::null());
        command.spawn().map(Running).map_err(|error| error.to_string())
    }
}

/// Creates a pair of hosts with daemons and pods.
fn netloom(how: &Daemon<'_>) -> Result<Pair, String> {
    let (wire, mut hosts) = hosts()?;
    let mut daemons = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        daemons.push(how.start(host, index + 1)?);
    }
    let bin = how.dir.join("bin").display().to_string();
    let mut to = String::new();
    for host in &hosts {
        let ready = format!(
            "test \"$({bin}/netloom cluster --json 2>/dev/null | jq '.ready and (.peers | length) == 1')\" = true"
        );
        until(&ready, || host.succeeds(&ready))?;
        to = host.output(&format!(
            "ip netns add pod; CNI_CONTAINERID=pod {bin}/netloom --conf-dir /run/net.d --bin-path {bin} add netloom /run/netns/pod | jq -r '.ips[0].address | split(\"/\")[0]'"
        ))?;
    }
    hosts.push(wire);
    Ok(Pair { name: how.name(), hosts, to: to.trim().to_owned(), daemons })
}

/// A layout of flannel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A vxlan device with a route, a neighbour and a forwarding entry for each other node.
    Vxlan,
    /// Routes via the other hosts (`host-gw`).
    HostGateway,
}

/// Creates a pair of hosts in flannel's layout: a bridge with the pod, and a route to the other host.
fn by_hand(form: Form) -> Result<Pair, String> {
    let name = match form {
        Form::Vxlan => "flannel's vxlan",
        Form::HostGateway => "flannel's host-gw",
    };
    let (wire, mut hosts) = hosts()?;
    let mac = |number: usize| format!("02:00:00:00:00:0{number}");
    for (index, host) in hosts.iter().enumerate() {
        let (own, other) = (index + 1, 2 - index);
        let mtu = if form == Form::HostGateway { 1500 } else { 1450 };
        host.sh(&format!(
            "ip link add cni0 mtu {mtu} type bridge; ip addr add 10.244.{own}.1/24 dev cni0; ip link set cni0 up
             ip netns add pod; ip link add v mtu {mtu} type veth peer name eth0 mtu {mtu} netns pod; ip link set v master cni0 up
             ip -n pod addr add 10.244.{own}.2/24 dev eth0; ip -n pod link set eth0 up; ip -n pod route add default via 10.244.{own}.1"
        ))?;
        // flannel's iptables rules, in nftables.
        host.sh("nft 'table ip flannel {
                     chain post { type nat hook postrouting priority 100; ip saddr 10.244.0.0/16 jump masq; ip daddr 10.244.0.0/16 jump masq; };
                     chain masq { mark & 0x4000 == 0x4000 return; ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 return
                                  ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random; };
                     chain forward { type filter hook forward priority 0; ip saddr 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept; }; }'")?;
        let to = mac(other);
        host.sh(&match form {
            Form::Vxlan => format!(
                "ip link add flannel.1 address {} type vxlan id 1 dstport 8472 local 192.0.2.{own} dev eth0 nolearning
                 ip link set flannel.1 mtu {mtu} up; ip addr add 10.244.{own}.0/32 dev flannel.1
                 ip neigh add 10.244.{other}.0 lladdr {to} dev flannel.1 nud permanent; bridge fdb append {to} dev flannel.1 dst 192.0.2.{other}
                 ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink",
                mac(own)
            ),
            Form::HostGateway => format!("ip route add 10.244.{other}.0/24 via 192.0.2.{other}"),
        })?;
    }
    hosts.push(wire);
    Ok(Pair { name, hosts, to: "10.244.2.2".into(), daemons: Vec::new() })
}

/// Measures one TCP stream with iperf3, in Gbit/s.
fn throughput(pair: &Pair) -> Result<f64, String> {
    let said = iperf3(pair, &format!("--time {SECONDS}"))?;
    Ok(said["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_default() / 1e9)
}

/// Runs iperf3 between the pods and returns its report.
fn iperf3(pair: &Pair, flags: &str) -> Result<Value, String> {
    let server = pair.hosts[1]
        .command("ip")
        .args(["netns", "exec", "pod", "iperf3", "--server", "--one-off"])
        .stdout(Stdio::null())
        .spawn();
    let _server = Running(server.map_err(|error| error.to_string())?);
    until("iperf3 listens", || pair.hosts[1].succeeds("ip netns exec pod ss -ltn | grep -q 5201"))?;
    let text =
        pair.hosts[0].output(&format!("ip netns exec pod iperf3 --client {} --json {flags}", pair.to))?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// Counts the request-response exchanges of one byte on one connection in a second.
fn requests(pair: &Pair) -> Result<f64, String> {
    let listener = pair.hosts[1]
        .inside_of("pod", || TcpListener::bind("0.0.0.0:7"))?
        .map_err(|error| error.to_string())?;
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let to = (pair.to.clone(), 7);
    let counted = pair.hosts[0].inside_of("pod", move || -> std::io::Result<f64> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        let (started, mut count, mut byte) = (Instant::now(), 0_u32, [0]);
        while started.elapsed() < Duration::from_secs(1) {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            count += 1;
        }
        Ok(f64::from(count) / started.elapsed().as_secs_f64())
    })?;
    drop(server.join());
    counted.map_err(|error| error.to_string())
}

/// Kills and restarts a daemon during a stream, and prints the worst tenth of a second.
fn restart(pair: &mut Pair, how: &Daemon<'_>) -> Outcome {
    let first = pair.daemons.remove(0);
    let said = std::thread::scope(|scope| {
        let restarted = scope.spawn({
            let host = &pair.hosts[0];
            move || {
                std::thread::sleep(Duration::from_secs(2));
                drop(first);
                let again = how.start(host, 1);
                std::thread::sleep(Duration::from_secs(2));
                again
            }
        });
        let said = iperf3(pair, "--time 6 --interval 0.1");
        drop(restarted.join());
        said
    })?;
    let bytes: Vec<f64> = said["intervals"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["sum"]["bytes"].as_f64())
        .collect();
    let least = bytes.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = bytes.iter().sum::<f64>() / f64::from(u32::try_from(bytes.len()).unwrap_or(1));
    say(&format!(
        "daemon killed and restarted during a stream: {} tenths of a second, the worst has {:.0} % of the mean, {} segments retransmitted\n",
        bytes.len(),
        least / mean * 100.0,
        said["end"]["sum_sent"]["retransmits"]
    ));
    Ok(())
}
