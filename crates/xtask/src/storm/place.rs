//! The storm's host: its networks, its containers, the small file system of the state, and what may not remain on it.

use std::{
    collections::BTreeMap,
    net::{TcpListener, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde_json::{Value, json};

use crate::host::Host;

/// The networks. Their interface in a container is `eth` and the index.
pub(super) const NETWORKS: [&str; 2] = ["lab", "far"];
/// The first published port of each network; each container has its own above it.
const FIRST_PORT: [u16; 2] = [20_000, 30_000];
/// The port in the container to which a network's published port leads.
const CONTAINER_PORT: u16 = 8000;
/// The host's IPv6 address that the published ports of each network are tried at.
pub(super) const HOST6: [&str; 2] = ["fdfe:0:0:1::1", "fdfe:0:0:2::1"];
/// How long a packet to a container may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Sockets in a container at one network's port.
pub(super) struct Ears {
    pub(super) tcp: TcpListener,
    pub(super) udp: UdpSocket,
}

/// The host of a storm.
pub(super) struct Place {
    pub(super) host: Host,
    /// The folder of the plugins and of `netloom`.
    bin: PathBuf,
    pub(super) containers: usize,
    /// For each container: sockets at the port of each network.
    ears: Vec<Mutex<Option<[Ears; 2]>>>,
}

impl Place {
    /// Creates the host, and attaches one container to each network once: the first attachment creates what the host keeps.
    pub(super) fn new(bin: PathBuf, containers: usize) -> Result<Self, String> {
        const STATE: &str = "mkdir -p /var/lib/cni /run/storm && \
            mount -t tmpfs -o size=16m,nr_inodes=8k none /var/lib/cni";
        let host = Host::bare()?;
        host.sh(STATE)?;
        host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")?;
        for address in HOST6 {
            host.sh(&format!("ip addr add {address}/128 dev lo"))?;
        }
        let ears = (0..containers).map(|_| Mutex::default()).collect();
        let place = Self { host, bin, containers, ears };
        for (index, network) in NETWORKS.into_iter().enumerate() {
            let list = json!({"cniVersion": "1.1.0", "name": network, "plugins": chain(index)});
            let file = place.path("/run/storm").join(format!("{network}.conflist"));
            std::fs::write(&file, list.to_string()).map_err(|error| error.to_string())?;
        }
        for container in 0..containers {
            place.create_container(container)?;
        }
        for (index, network) in NETWORKS.into_iter().enumerate() {
            for verb in ["add", "del"] {
                let ports = port_mappings(2 * (containers - 1) + index);
                let netns = format!("/run/netns/c{}", containers - 1);
                let mut command = place.netloom();
                command
                    .args([verb, network, &netns, "--cap-args", &ports])
                    .stdout(std::process::Stdio::null());
                crate::run_with(&mut command)?;
            }
            crate::run_with(place.netloom().args(["gc", network]))?;
        }
        Ok(place)
    }

    /// Returns the path under which this process sees a path of the host.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.host.pid()))
    }

    /// Returns the options of `netloom` that come before the verb.
    pub(super) fn options(&self) -> [String; 4] {
        let bin = self.bin.display().to_string();
        ["--conf-dir".into(), "/run/storm".into(), "--bin-path".into(), bin]
    }

    pub(super) fn binary(&self) -> PathBuf {
        self.bin.join("netloom")
    }

    /// Prepares a call of `netloom` on the host.
    pub(super) fn netloom(&self) -> Command {
        let mut command = self.host.command(&self.binary().to_string_lossy());
        command.args(self.options());
        command
    }

    /// Creates a container and listens in it.
    pub(super) fn create_container(&self, container: usize) -> Result<(), String> {
        let name = format!("c{container}");
        self.host.sh(&format!("ip netns add {name} && ip -n {name} link set lo up"))?;
        let ears = self.host.inside_of(&name, || -> std::io::Result<[Ears; 2]> {
            let ears = |network: u16| -> std::io::Result<Ears> {
                let at = ("::", CONTAINER_PORT + network);
                let (tcp, udp) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
                for socket in [tcp.as_fd(), udp.as_fd()] {
                    set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE))?;
                }
                Ok(Ears { tcp, udp })
            };
            Ok([ears(0)?, ears(1)?])
        })?;
        *self.ears(container)? = Some(ears.map_err(|error| format!("listen in {name}: {error}"))?);
        Ok(())
    }

    /// Removes a container as a crash of its runtime does: without DEL.
    pub(super) fn remove_container(&self, container: usize) -> Result<(), String> {
        *self.ears(container)? = None;
        self.host.sh(&format!("ip netns del c{container}"))
    }

    pub(super) fn ears(&self, container: usize) -> Result<MutexGuard<'_, Option<[Ears; 2]>>, String> {
        self.ears[container].lock().map_err(|error| error.to_string())
    }

    /// Counts until two counts agree: by then the kernel and the deferred children have finished.
    pub(super) fn settled(&self) -> Result<BTreeMap<&'static str, String>, String> {
        const ATTEMPTS: usize = 60;
        let mut before = self.state()?;
        for _ in 0..ATTEMPTS {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.state()?;
            if now == before {
                break;
            }
            before = now;
        }
        Ok(before)
    }

    /// Returns the lines that were not there before, by kind.
    pub(super) fn compare(&self, before: &BTreeMap<&'static str, String>) -> Result<Vec<String>, String> {
        let after = self.settled()?;
        let mut left = Vec::new();
        for (kind, text) in &after {
            let old = before.get(kind).map_or("", String::as_str);
            let added: Vec<&str> = text.lines().filter(|line| !old.lines().any(|old| old == *line)).collect();
            let gone: Vec<&str> = old.lines().filter(|line| !text.lines().any(|new| new == *line)).collect();
            if text != old {
                left.push(format!("{kind}: more: {added:?}, less: {gone:?}"));
            }
        }
        Ok(left)
    }

    fn state(&self) -> Result<BTreeMap<&'static str, String>, String> {
        let containers: String = (0..self.containers).map(|number| format!(" c{number}")).collect();
        let in_containers =
            format!("for c in {containers}; do ip -n $c -o addr | sed s/^/$c/; ip -n $c route; done");
        let lines = [
            ("links", "ls /sys/class/net | sort; ip -o link | cut -d: -f2 | cut -d@ -f1 | sort"),
            ("addresses", "ip -o addr | awk '{print $2, $4}' | grep -v ' fe80:' | sort"),
            ("routes", "ip route show table all; ip -6 route show table all | grep -v -e fe80 -e ff00"),
            ("rules", "ip rule; ip -6 rule"),
            ("ruleset", "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'"),
            ("qdiscs", "tc qdisc | sed 's/qdisc \\([a-z_]*\\) [0-9a-f]*:/\\1/' | sort"),
            ("files", FILES),
            ("processes", PROCESSES),
            ("containers", &in_containers),
        ];
        lines.into_iter().map(|(kind, line)| Ok((kind, self.host.output(line)?))).collect()
    }
}

/// Omits what stays after a network's last container: locks of networks, the index, host-local's last reserved address, and whether
/// orphans are reaped.
const FILES: &str = "find /var/lib/cni /run -xdev -type f -o -path '/var/lib/cni/*' -type f | sort -u \
    | grep -v -e /locks/network- -e /locks/turn-network- -e '/lock$' -e /.netloom-index -e /last_reserved_ip -e /run/netloom/orphan";

/// Lists the programs in the host's mount namespace, without the ones that list them.
const PROCESSES: &str = "for p in /proc/[0-9]*; do [ \"$(readlink $p/ns/mnt)\" = \"$(readlink /proc/self/ns/mnt)\" ] \
    && cat $p/comm; done 2>/dev/null | grep -e netloom -e bridge -e ptp -e portmap -e firewall -e bandwidth -e tuning | sort";

/// Returns the plugins of a network.
fn chain(network: usize) -> Value {
    let subnet = ["10.88.0.0/16", "10.99.0.0/16"][network];
    let subnet6 = ["fd88::/64", "fd99::/64"][network];
    let ranges = json!([[{"subnet": subnet}], [{"subnet": subnet6}]]);
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    if network == 1 {
        let routes = json!([{"dst": "198.51.100.0/24"}, {"dst": "fdfe:0:0:2::/64"}]);
        let ipam = json!({"type": "host-local", "ranges": ranges, "routes": routes});
        return json!([{"type": "ptp", "ipMasq": true, "ipam": ipam}, portmap]);
    }
    json!([
        {"type": "bridge", "bridge": "storm0", "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true,
         "ipam": {"type": "host-local", "ranges": ranges}},
        portmap,
        {"type": "firewall"},
        {"type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
         "egressRate": 80_000_000, "egressBurst": 8_000_000},
        {"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    ])
}

/// Returns the host port of an attachment.
pub(super) fn host_port(attachment: usize) -> u16 {
    FIRST_PORT[attachment % 2] + u16::try_from(attachment / 2).unwrap_or_default()
}

/// Returns the capability arguments of an attachment: one TCP and one UDP port.
pub(super) fn port_mappings(attachment: usize) -> String {
    let port = |protocol: &str| {
        json!({"hostPort": host_port(attachment), "protocol": protocol,
               "containerPort": usize::from(CONTAINER_PORT) + attachment % 2})
    };
    json!({"portMappings": [port("tcp"), port("udp")]}).to_string()
}
