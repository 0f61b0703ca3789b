//! A cluster that goes from flannel to netloomd node by node: a host is flannel's, as flannel makes it by its keys, and its pods are
//! reached, and reach, all the way.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Kind, Lab, Plan};

const ETCDCTL: &str = "ETCDCTL_API=3 etcdctl --endpoints http://192.0.2.254:2379";
const MAC: &str = "02:00:00:00:00:99";

/// Reads what stands at subnets' keys, by subnet.
fn subnets(lab: &Lab) -> Vec<(String, Value)> {
    let text = lab.wire.sh(&format!("{ETCDCTL} get --prefix /coreos.com/network/subnets/"));
    let lines: Vec<&str> = text.lines().collect();
    lines
        .chunks(2)
        .map(|pair| {
            let name = pair[0].rsplit('/').next().unwrap().replace('-', "/");
            (name, serde_json::from_str(pair[1]).unwrap())
        })
        .collect()
}

#[test]
fn a_cluster_goes_from_flannel_node_by_node() {
    if !testkit::is_root() || !testkit::has("etcd") {
        return;
    }
    let mut lab = Lab::of(Plan {
        store: Kind::Etcd,
        started: 2,
        pods: "10.244.0.0/16",
        flags: &["--flannel", "/coreos.com/network", "--vni", "1", "--port", "8472"],
        ..Plan::default()
    });
    let pods = [(0, "a1".to_owned(), lab.pod(0, "a1")), (1, "a2".to_owned(), lab.pod(1, "a2"))];
    lab.all_reach_all(&pods);
    // The third host is flannel's: its key, and what it makes of others' keys.
    lab.wire.sh(&format!(
        "{ETCDCTL} put /coreos.com/network/subnets/10.244.99.0-24 \
         '{{\"PublicIP\":\"192.0.2.3\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{MAC}\"}}}}'"
    ));
    let third = &lab.hosts[2];
    third.sh(&format!(
        "nft delete table inet own; echo 1 >/proc/sys/net/ipv4/ip_forward
         ip link add flannel.1 address {MAC} type vxlan id 1 dstport 8472 local 192.0.2.3 dev up0 nolearning
         ip link set flannel.1 mtu 1430 up; ip addr add 10.244.99.0/32 dev flannel.1
         ip link add cni0 type bridge; ip addr add 10.244.99.1/24 dev cni0; ip link set cni0 up; ip netns add old
         ip link add v type veth peer name eth0 mtu 1430 netns old; ip link set v master cni0 up
         ip -n old addr add 10.244.99.2/24 dev eth0; ip -n old link set eth0 up; ip -n old route add default via 10.244.99.1"
    ));
    let of_others: Vec<_> =
        subnets(&lab).into_iter().filter(|(_, lease)| lease["Netloom"].is_string()).collect();
    assert_eq!(of_others.len(), 2, "{of_others:?}");
    for (subnet, lease) in &of_others {
        assert_eq!(
            (&lease["BackendType"], &lease["BackendData"]["VNI"]),
            (&"vxlan".into(), &1.into()),
            "{lease}"
        );
        let (hop, mac) =
            (subnet.split('/').next().unwrap(), lease["BackendData"]["VtepMAC"].as_str().unwrap());
        lab.hosts[2].sh(&format!(
            "ip neigh add {hop} lladdr {mac} dev flannel.1 nud permanent; bridge fdb append {mac} dev flannel.1 dst {}
             ip route add {subnet} via {hop} dev flannel.1 onlink",
            lease["PublicIP"].as_str().unwrap()
        ));
    }
    for index in [0, 1] {
        lab.until(index, "ip route show proto 95 | grep -q 10.244.99.0/24");
    }
    let reach = |lab: &Lab, what: &str| {
        for (index, pod, addresses) in &pods {
            assert!(lab.pings(*index, pod, "-M do -s 1402", "10.244.99.2"), "{what}: {pod} to flannel's pod");
            assert!(lab.pings(2, "old", "-M do -s 1402", &addresses[0]), "{what}: flannel's pod to {pod}");
        }
    };
    reach(&lab, "flannel beside");
    // The third one's turn: netloomd takes the place of flannel's device, and its subnet, while a pod of flannel's is there.
    lab.hosts[2].sh("mkdir -p /run/flannel; printf 'FLANNEL_NETWORK=10.244.0.0/16\\nFLANNEL_SUBNET=10.244.99.1/24\\nFLANNEL_MTU=1430\\n' >/run/flannel/subnet.env");
    lab.start(2);
    for index in 0..3 {
        lab.wait(index, "told of two nodes, none of them flannel's", |status| {
            let peers = status["peers"].as_array().unwrap();
            status["ready"] == true
                && peers.len() == 2
                && !peers.iter().any(|peer| peer["name"].as_str().unwrap().starts_with("flannel"))
        });
    }
    assert!(!lab.hosts[2].succeeds("ip link show flannel.1"));
    assert_eq!(lab.status(2)["blocks"][0]["prefix"], "10.244.99.0/24");
    assert!(subnets(&lab).iter().all(|(_, lease)| lease["Netloom"].is_string()), "{:?}", subnets(&lab));
    lab.until(0, "ip route show proto 95 | grep -q 10.244.99.0/24");
    let started = Instant::now();
    while !lab.pings(0, "a1", "", "10.244.99.2") {
        assert!(started.elapsed() < Duration::from_secs(10), "flannel's pod is lost");
    }
    reach(&lab, "without flannel");
    // A new pod gets another address than those that flannel's have, where the network's name is the same; it is reached too.
    lab.hosts[2].sh("mkdir -p /var/lib/cni/networks/netloom; printf 'old\\r\\neth0' >/var/lib/cni/networks/netloom/10.244.99.2");
    let new = lab.pod(2, "a3");
    assert_ne!(new[0], "10.244.99.2");
    assert!(lab.pings(0, "a1", "", &new[0]) && lab.pings(2, "a3", "", &pods[1].2[0]));
    // A daemon that is gone is gone for flannel too: its key stands under its lease.
    lab.kill(1);
    let started = Instant::now();
    while subnets(&lab).len() > 2 {
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", subnets(&lab));
    }
}
