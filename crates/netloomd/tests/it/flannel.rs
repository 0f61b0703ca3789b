//! A cluster migrates from flannel to netloomd node by node. One host has flannel's layout and keys or annotations, and its pods reach all
//! others throughout, in both families.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    kubernetes::{ask, put},
    lab::{ETCDCTL, Kind, Lab, Plan},
};

const MAC4: &str = "02:00:00:00:00:99";
const MAC6: &str = "02:00:00:00:00:96";
const SUBNETS: [&str; 2] = ["10.244.99.0/24", "fd44:0:0:99::/64"];
const OLD: [&str; 2] = ["10.244.99.2", "fd44:0:0:99::2"];

/// What flannel's nodes read about a node: its subnets, and its lease as in etcd.
type Found = (Vec<String>, Value);

/// The place of flannel's data.
trait Place {
    const KIND: Kind;
    const FLAGS: &'static [&'static str];
    /// Prepares the store before the first daemon starts.
    fn prepare(lab: &Lab);
    /// Writes a host's lease as flannel does.
    fn write(lab: &Lab, lease: &Value);
    fn read(lab: &Lab) -> Vec<Found>;
}

struct Etcd;

impl Place for Etcd {
    const KIND: Kind = Kind::Etcd;
    const FLAGS: &'static [&'static str] =
        &["--flannel", "/coreos.com/network", "--vni", "1", "--port", "8472"];

    fn prepare(_lab: &Lab) {}

    fn write(lab: &Lab, lease: &Value) {
        let names = SUBNETS.map(|subnet| subnet.replace('/', "-")).join("&");
        lab.wire.sh(&format!("{ETCDCTL} put '/coreos.com/network/subnets/{names}' '{lease}'"));
    }

    fn read(lab: &Lab) -> Vec<Found> {
        let text = lab.wire.sh(&format!("{ETCDCTL} get --prefix /coreos.com/network/subnets/"));
        let lines: Vec<&str> = text.lines().collect();
        let found = |pair: &[&str]| {
            let names = pair[0].rsplit('/').next().unwrap().split('&');
            (names.map(|name| name.replace('-', "/")).collect(), serde_json::from_str(pair[1]).unwrap())
        };
        lines.chunks(2).map(found).collect()
    }
}

struct Kubernetes;

const PREFIX: &str = "flannel.alpha.coreos.com";

impl Place for Kubernetes {
    const KIND: Kind = Kind::Kubernetes;
    const FLAGS: &'static [&'static str] = &["--flannel", PREFIX, "--vni", "1", "--port", "8472"];

    fn prepare(lab: &Lab) {
        put(lab, "nodes", "host2", &node("host2", &["10.244.78.0/24", "fd44:0:0:78::/64"], &json!({})));
    }

    fn write(lab: &Lab, lease: &Value) {
        let of = |name: &str| format!("{PREFIX}/{name}");
        let annotations = json!({
            of("kube-subnet-manager"): "true", of("backend-type"): lease["BackendType"],
            of("public-ip"): lease["PublicIP"], of("public-ipv6"): lease["PublicIPv6"],
            of("backend-data"): lease["BackendData"].to_string(),
            of("backend-v6-data"): lease["BackendV6Data"].to_string(),
        });
        put(lab, "nodes", "host3", &node("host3", &SUBNETS, &annotations));
    }

    fn read(lab: &Lab) -> Vec<Found> {
        let all = ask(lab, "GET", "/api/v1/nodes", "");
        let nodes = all["items"].as_array().unwrap().iter();
        let found = |node: &Value| {
            let of = |name: &str| node["metadata"]["annotations"][format!("{PREFIX}/{name}")].clone();
            let data =
                |name: &str| serde_json::from_str::<Value>(of(name).as_str().unwrap_or("null")).unwrap();
            let subnets = node["spec"]["podCIDRs"].as_array()?.iter();
            let lease = json!({
                "PublicIP": of("public-ip"), "PublicIPv6": of("public-ipv6"), "BackendType": of("backend-type"),
                "BackendData": data("backend-data"), "BackendV6Data": data("backend-v6-data"),
            });
            (of("kube-subnet-manager") == "true")
                .then(|| (subnets.map(|it| it.as_str().unwrap().to_owned()).collect(), lease))
        };
        nodes.filter_map(found).collect()
    }
}

fn node(name: &str, cidrs: &[&str], annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-of-{name}"), "annotations": annotations},
        "spec": {"podCIDRs": cidrs},
    })
}

/// Sets up the third host as flannel does, with a pod on its bridge.
fn make_flannels(lab: &Lab) {
    lab.hosts[2].sh(&format!(
        "nft delete table inet own; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
         ip link add flannel.1 address {MAC4} type vxlan id 1 dstport 8472 local 192.0.2.3 dev up0 nolearning
         ip link add flannel-v6.1 address {MAC6} type vxlan id 1 dstport 8472 local 2001:db8:a::3 dev up0 nolearning udp6zerocsumrx
         ip link set flannel.1 mtu 1430 up; ip link set flannel-v6.1 mtu 1430 up
         ip addr add 10.244.99.0/32 dev flannel.1; ip addr add fd44:0:0:99::/128 dev flannel-v6.1 nodad
         ip link add cni0 type bridge; ip addr add 10.244.99.1/24 dev cni0; ip addr add fd44:0:0:99::1/64 dev cni0 nodad
         ip link set cni0 up; ip netns add old
         ip link add v type veth peer name eth0 mtu 1430 netns old; ip link set v master cni0 up
         ip -n old addr add {}/24 dev eth0; ip -n old addr add {}/64 dev eth0 nodad; ip -n old link set eth0 up
         ip -n old route add default via 10.244.99.1; ip -n old route add default via fd44:0:0:99::1",
        OLD[0], OLD[1]
    ));
}

/// Adds the third host's routes to another node as flannel does: each family over a tunnel of its own.
fn reach_as_flannel(lab: &Lab, (subnets, lease): &Found) {
    for subnet in subnets {
        let (device, address, data) = if subnet.contains(':') {
            ("flannel-v6.1", "PublicIPv6", "BackendV6Data")
        } else {
            ("flannel.1", "PublicIP", "BackendData")
        };
        assert_eq!((&lease["BackendType"], &lease[data]["VNI"]), (&"vxlan".into(), &1.into()), "{lease}");
        let (hop, mac) = (subnet.split('/').next().unwrap(), lease[data]["VtepMAC"].as_str().unwrap());
        lab.hosts[2].sh(&format!(
            "ip neigh add {hop} lladdr {mac} dev {device} nud permanent
             bridge fdb append {mac} dev {device} dst {}
             ip route add {subnet} via {hop} dev {device} onlink",
            lease[address].as_str().unwrap()
        ));
    }
}

fn prefixes(status: &Value) -> Vec<&str> {
    status["blocks"].as_array().unwrap().iter().map(|block| block["prefix"].as_str().unwrap()).collect()
}

fn a_cluster_goes_from_flannel<P: Place>() {
    let mut lab = Lab::of(Plan { store: P::KIND, started: 0, flags: P::FLAGS, ..Plan::default() });
    P::prepare(&lab);
    for index in [0, 1] {
        lab.start(index);
    }
    for index in [0, 1] {
        lab.wait_for_peers(index, 1);
    }
    let pods = [(0, "a1".to_owned(), lab.pod(0, "a1")), (1, "a2".to_owned(), lab.pod(1, "a2"))];
    lab.all_reach_all(&pods);
    make_flannels(&lab);
    let of_others = P::read(&lab);
    assert!(of_others.len() == 2 && of_others.iter().all(|(subnets, _)| subnets.len() == 2), "{of_others:?}");
    for other in &of_others {
        reach_as_flannel(&lab, other);
    }
    P::write(
        &lab,
        &json!({
            "PublicIP": "192.0.2.3", "PublicIPv6": "2001:db8:a::3", "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": MAC4}, "BackendV6Data": {"VNI": 1, "VtepMAC": MAC6},
        }),
    );
    for index in [0, 1] {
        lab.until(index, "ip route show proto 95 | grep -q 10.244.99.0/24");
        lab.until(index, "ip -6 route show proto 95 | grep -q fd44:0:0:99::/64.*netloom6");
    }
    let reach = |lab: &Lab| {
        for (index, pod, addresses) in &pods {
            for (own, old, size) in [(&addresses[0], OLD[0], 1402), (&addresses[1], OLD[1], 1382)] {
                // Some addresses have only just been configured.
                let ping = |from: &str, to: &str| {
                    format!("ip netns exec {from} ping -c 1 -W 1 -M do -s {size} {to}")
                };
                lab.until(*index, &ping(pod, old));
                lab.until(2, &ping("old", own));
            }
        }
    };
    reach(&lab);
    // The third host migrates: netloomd replaces flannel's devices and keeps its subnets, with a pod of flannel's running.
    lab.hosts[2].sh(
        "mkdir -p /run/flannel; printf 'FLANNEL_NETWORK=10.244.0.0/16\\nFLANNEL_SUBNET=10.244.99.1/24\\nFLANNEL_IPV6_NETWORK=fd44::/48\\nFLANNEL_IPV6_SUBNET=fd44:0:0:99::1/64\\nFLANNEL_MTU=1430\\nFLANNEL_IPMASQ=true\\n' >/run/flannel/subnet.env",
    );
    lab.start(2);
    for index in 0..3 {
        lab.wait(index, "told of two nodes, none of them flannel's", |status| {
            let peers = status["peers"].as_array().unwrap();
            status["ready"] == true
                && peers.len() == 2
                && peers.iter().all(|peer| peer["name"].as_str().unwrap().starts_with("host"))
        });
    }
    assert!(!lab.hosts[2].succeeds("ip link show flannel.1"));
    assert!(!lab.hosts[2].succeeds("ip link show flannel-v6.1"));
    assert_eq!(prefixes(&lab.status(2)), SUBNETS);
    // A node is ready before its store has written what flannel's nodes read.
    let published = |found: &Vec<(_, Value)>| {
        let third = found.iter().find(|(subnets, _)| *subnets == SUBNETS);
        found.len() == 3 && third.is_some_and(|(_, lease)| lease["BackendData"]["VtepMAC"] != MAC4)
    };
    let started = Instant::now();
    while !published(&P::read(&lab)) {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", P::read(&lab));
    }
    reach(&lab);
    // flannel's plugin finds its file.
    for line in ["FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_SUBNET=10.244.99.1/24", "FLANNEL_MTU=1430"] {
        lab.until(2, &format!("grep -qx {line} /run/flannel/subnet.env"));
    }
    lab.until(2, "grep -qx FLANNEL_IPV6_SUBNET=fd44:0:0:99::1/64 /run/flannel/subnet.env");
    // A new pod gets an address that no pod of flannel's has, as the network's name is the same; all pods reach it, also those on
    // flannel's bridge.
    lab.hosts[2].sh("mkdir -p /var/lib/cni/networks/netloom; printf 'old\\r\\neth0' >/var/lib/cni/networks/netloom/10.244.99.2");
    let new = lab.pod(2, "a3");
    assert_ne!(new[0], OLD[0]);
    assert!(lab.pings(0, "a1", "", &new[0]) && lab.pings(2, "a3", "", &pods[1].2[0]));
    assert!(lab.pings(2, "a3", "", OLD[0]) && lab.pings(2, "old", "", &new[0]));
    // After a restart, the file's subnets are this node's own blocks.
    lab.kill(2);
    lab.start(2);
    lab.wait(2, "ready again", |status| status["ready"] == true);
    assert_eq!(prefixes(&lab.status(2)), SUBNETS);
    // Uninstalling removes what the daemon published to flannel's nodes.
    lab.kill(1);
    assert!(lab.daemon(1).arg("uninstall").status().unwrap().success());
    let started = Instant::now();
    while P::read(&lab).len() > 2 {
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", P::read(&lab));
    }
}

#[test]
fn a_cluster_goes_from_flannel_in_etcd() {
    if testkit::is_root() && testkit::has("etcd") {
        a_cluster_goes_from_flannel::<Etcd>();
    }
}

#[test]
fn a_cluster_goes_from_flannel_in_kubernetes() {
    if testkit::is_root() {
        a_cluster_goes_from_flannel::<Kubernetes>();
    }
}
