//! Pods on the hosts' own segment.

use std::{collections::BTreeSet, time::Instant};

use testkit::Host;

use crate::lab::{Kind, Lab, Plan};

const UNDERLAY: Plan = Plan {
    wire: crate::lab::Wire::OneSegment,
    hosts: 3,
    started: usize::MAX,
    store: Kind::File,
    mode: "underlay",
    pods: "192.0.2.128/25,2001:db8:a::8000/113",
    mtu: 1500,
    flags: &[],
    file: "",
    first: "true",
    bare: false,
    segment: ("192.0.2", 24),
};

/// Pods, hosts and foreign hosts on the segment reach each other, in both families. A host also reaches its own pods, which a link and
/// its macvlans do not allow by themselves.
#[test]
fn pods_and_hosts_are_one_segment() {
    if !testkit::is_root() {
        return;
    }
    std::thread::scope(|scope| {
        for mtu in [1400, 1500, 9000] {
            scope.spawn(move || one_segment(mtu));
        }
    });
}

fn one_segment(mtu: u32) {
    let lab = Lab::of(Plan { mtu, ..UNDERLAY });
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    reach_hosts(&lab, &pods);
    // Packets of full size pass in both directions, and larger ones do not.
    for (from, pod, to) in [(0, "a1", 4), (2, "a3", 0)] {
        for (to, headers) in pods[to].2.iter().zip([28, 48]) {
            let size = |more: u32| format!("-M do -s {}", mtu - headers + more);
            assert!(lab.pings(from, pod, &size(0), to), "{mtu}: full size to {to}");
            assert!(!lab.pings(from, pod, &size(1), to), "{mtu}: more to {to}");
        }
    }
    // Others resolve a host's address on its uplink only.
    let mac = lab.hosts[0].sh("cat /sys/class/net/up0/address");
    for _ in 0..5 {
        let seen =
            lab.wire.sh("ip neigh flush 192.0.2.1; ping -c 1 -W 2 192.0.2.1 >&2; ip neigh show 192.0.2.1");
        assert!(seen.contains(mac.trim()), "{seen}");
    }
    for (index, pod, _) in &pods {
        lab.end(*index, pod);
    }
}

/// Asserts that pods and hosts reach each other, including a pod's own host and foreign hosts.
fn reach_hosts(lab: &Lab, pods: &[(usize, String, Vec<String>)]) {
    let hosts = (1..=lab.hosts.len())
        .map(|number| [format!("192.0.2.{number}"), format!("2001:db8:a::{number}")])
        .collect::<Vec<_>>();
    for (of_pod, pod, addresses) in pods {
        for (host, own) in hosts.iter().enumerate() {
            for (to, own) in addresses.iter().zip(own) {
                assert!(
                    lab.hosts[host].succeeds(&format!("ping -c 1 -W 2 {to}")),
                    "host {host} to {pod} at {to}"
                );
                assert!(lab.pings(*of_pod, pod, "", own), "{pod} to host {host} at {own}");
            }
        }
        // A foreign host without routes, and destinations via the hosts' router.
        assert!(lab.wire.succeeds(&format!("ping -c 1 -W 2 {}", addresses[0])), "{pod}");
        assert!(lab.pings(*of_pod, pod, "", "198.51.100.254"), "{pod}");
        assert!(lab.pings(*of_pod, pod, "", "2001:db8:b::fe"), "{pod}");
    }
}

/// No pod gets an address that a foreign host on the segment uses, and the daemon reports it.
#[test]
fn addresses_in_use_are_not_given() {
    if !testkit::is_root() {
        return;
    }
    // One address of each block, in both families.
    let lab = Lab::of(Plan {
        hosts: 2,
        pods: "192.0.2.128/26,2001:db8:a::8000/122",
        first: "for i in 0 1 2 3 4 5 6 7; do
                    ip addr add 192.0.2.$((128 + 8 * i + 3))/24 dev sega
                    ip -6 addr add 2001:db8:a::80$(printf %02x $((8 * i + 3)))/64 dev sega nodad
                done",
        ..UNDERLAY
    });
    for index in 0..2 {
        lab.wait(index, "without what is somebody's", |status| {
            status["blocks"].as_array().unwrap().iter().filter(|block| block["size"] == 7).count() >= 4
        });
    }
    let mut given = BTreeSet::new();
    for number in 0..8 {
        let name = format!("p{number}");
        lab.hosts[0].container(&name);
        given.extend(as_a_kubelet(&lab, 0, &name));
    }
    assert_eq!(given.len(), 16);
    for ip in &given {
        let last = ip.rsplit(['.', ':']).next().unwrap();
        let number = if ip.contains('.') {
            last.parse::<u32>().unwrap()
        } else {
            u32::from_str_radix(last, 16).unwrap()
        };
        assert_ne!(number % 8, 3, "{ip} is in use by another host");
    }
}

/// Attaches a pod; tries again until there is an address, as a kubelet does.
fn as_a_kubelet(lab: &Lab, index: usize, name: &str) -> Vec<String> {
    let started = Instant::now();
    loop {
        match lab.attach(index, name, "netloom") {
            Ok(addresses) => return addresses,
            Err(said) => {
                assert!(started.elapsed().as_secs() < 180, "{}", lab.status(index));
                assert!(said.contains("no free address") || said.contains("no IP"), "{said}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// With exactly as many addresses as pods, all pods start on any host: nodes release addresses that others need. With
/// `NETLOOM_POOL=1000`, a thousand pods on ten hosts.
#[test]
fn the_last_address_is_found() {
    if !testkit::is_root() || !testkit::has("etcd") {
        return;
    }
    let large = std::env::var("NETLOOM_POOL").is_ok_and(|size| size == "1000");
    let (hosts, each, pods) = if large {
        // 512 + 256 + 128 + 64 + 32 + 8 addresses.
        (10, 100, "10.9.4.0/23,10.9.6.0/24,10.9.7.0/25,10.9.7.128/26,10.9.7.192/27,10.9.7.224/29")
    } else {
        (4, 15, "10.9.4.0/27,10.9.4.32/28,10.9.4.48/29,10.9.4.56/30")
    };
    let lab = Lab::of(Plan {
        hosts,
        store: Kind::Etcd,
        pods,
        flags: &["--block4", "32"],
        first: "ip addr add 10.9.255.254/16 dev sega",
        segment: ("10.9.255", 16),
        ..UNDERLAY
    });
    let started = Instant::now();
    let (lab, given) = (&lab, std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for index in 0..hosts {
            let given = &given;
            scope.spawn(move || {
                for number in 0..each {
                    let name = format!("p{number}");
                    lab.hosts[index].container(&name);
                    let addresses = as_a_kubelet(lab, index, &name);
                    given.lock().unwrap().extend(addresses);
                }
            });
        }
    });
    let given = given.into_inner().unwrap();
    println!("{} pods on {hosts} hosts have an address each after {:?}", given.len(), started.elapsed());
    assert_eq!(given.len(), hosts * each);
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len(), "an address is given twice");
}

/// Three networks of different modes on one cluster; a pod can be attached to all of them.
#[test]
fn networks_of_all_modes_live_side_by_side() {
    if !testkit::is_root() {
        return;
    }
    let lab = Lab::of(Plan {
        mode: "overlay",
        pods: "10.244.0.0/16,fd44::/48",
        file: "[[networks]]\nname = \"plain\"\nmode = \"routing\"\npods = [\"10.245.0.0/16\", \"fd45::/48\"]\n
               [[networks]]\nname = \"lan\"\nmode = \"underlay\"\npods = [\"192.0.2.128/25\", \"2001:db8:a::8000/113\"]\n",
        ..UNDERLAY
    });
    let networks = ["netloom", "plain", "lan"];
    let pods: Vec<(usize, String, Vec<String>)> = (0..3)
        .flat_map(|index| {
            networks.map(|network| {
                let name = format!("{network}{index}");
                lab.hosts[index].container(&name);
                (index, name.clone(), lab.attach(index, &name, network).unwrap())
            })
        })
        .collect();
    for network in networks {
        let of_network: Vec<_> =
            pods.iter().filter(|(_, name, _)| name.starts_with(network)).cloned().collect();
        lab.all_reach_all(&of_network);
    }
    let status = lab.status(0);
    let modes: Vec<_> = status["networks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["mode"].clone(), it["mtu"].clone()))
        .collect();
    assert_eq!(
        modes,
        [("overlay".into(), 1430.into()), ("routing".into(), 1500.into()), ("underlay".into(), 1500.into())]
    );
    assert_eq!(status["peers"][0]["path"], "direct segment tunnel");
    // One pod attached to all three.
    lab.hosts[0].container("all");
    for network in networks {
        lab.attach(0, "all", network).unwrap();
    }
    let links = lab.hosts[0].sh("ip -n all -br link | grep -c -e eth0 -e plain -e lan");
    assert_eq!(links.trim(), "3");
    // Each has a configuration file, and the first network's sorts first.
    let files = lab.hosts[0].sh("ls /run/net.d");
    assert_eq!(
        files.split_whitespace().collect::<Vec<_>>(),
        ["10-netloom.conflist", "20-lan.conflist", "20-plain.conflist"]
    );
}

/// A host whose uplink is a bridge attaches its pods to the bridge, and needs no macvlan of its own.
#[test]
fn pods_are_attached_to_a_bridged_uplink() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::of(Plan { hosts: 2, started: 0, ..UNDERLAY });
    for (index, host) in lab.hosts.iter().enumerate() {
        let number = index + 1;
        host.sh(&format!(
            "ip link add br0 type bridge; echo 0 >/proc/sys/net/ipv6/conf/br0/accept_dad; ip link set up0 master br0; ip -6 route del default; ip addr flush dev up0
             ip link set br0 up; ip addr add 192.0.2.{number}/24 dev br0; ip -6 addr add 2001:db8:a::{number}/64 dev br0 nodad
             ip route add default via 192.0.2.254; ip -6 route add default via 2001:db8:a::fe"
        ));
    }
    for index in 0..2 {
        lab.start(index);
    }
    for index in 0..2 {
        lab.wait_for_peers(index, 1);
    }
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    for (_, pod, addresses) in &pods {
        for to in addresses {
            assert!(lab.hosts[0].succeeds(&format!("ping -c 1 -W 2 {to}")), "host1 to {pod} at {to}");
        }
    }
    assert!(lab.pings(0, "a1", "", "192.0.2.1") && lab.pings(0, "a1", "", "2001:db8:a::2"));
    assert!(!lab.hosts[0].succeeds("ip link show netloom0"));
}

/// Like macvlans, ipvlans reach each other, hosts and foreign hosts on the segment, with the host's own hardware address.
#[test]
fn pods_are_ipvlans() {
    if !testkit::is_root() || !Host::new().succeeds(HAS_IPVLAN) {
        return;
    }
    let lab = Lab::of(Plan { hosts: 2, flags: &["--underlay", "ipvlan"], ..UNDERLAY });
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    reach_hosts(&lab, &pods);
    // A host and its pods have one hardware address on the segment.
    let macs = lab.wire.sh("bridge fdb show br sega dynamic | grep -c 'dev n1 '");
    assert_eq!(macs.trim(), "1");
    for (index, pod, _) in &pods {
        lab.end(*index, pod);
    }
    println!("compared {} ipvlans", pods.len());
}

const HAS_IPVLAN: &str = "ip link add d0 type veth peer name d1 && ip link add i0 link d0 type ipvlan";
