//! What this crate reads of a host is what `ip -j` and `nft -j` say of it, and what it makes is what they then say.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use kernel::{
    Kind, Netns, Protocol, Socket, addr, bridge,
    link::{self, Change},
    neigh,
    nft::{self, Batch, Data, Element, Family, Field, Set, Table},
    qdisc,
    route::{self, Route},
    sysctl::{self, Setting},
};
use serde_json::Value;
use testkit::Host;

/// Runs work on a thread that is in the host's namespace, and ends there.
fn on_host<T: Send>(host: &Host, work: impl FnOnce(&Socket) -> T + Send) -> T {
    let netns = PathBuf::from(format!("/proc/{}/ns/net", host.pid()));
    let inside = || {
        Netns::open(&netns).unwrap().enter().unwrap();
        work(&Socket::open(Protocol::Route).unwrap())
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

fn a_host() -> Option<Host> {
    if !testkit::is_root() {
        return None;
    }
    let host = Host::new();
    host.sh(
        "ip link add a0 mtu 1400 type veth peer name b0; ip link set a0 alias 'who it is for'; ip link set a0 up
         ip link set b0 up; ip addr add 10.1.2.3/24 dev a0; ip addr add 10.1.2.4/24 dev a0; ip addr add fd00::3/64 dev a0 nodad
         ip route add 10.9.0.0/16 via 10.1.2.9 dev a0 metric 7 mtu 1300; ip route add default dev a0 table 1234
         ip route add fd09::/48 via fd00::9 dev a0
         ip neigh add 10.1.2.9 lladdr 02:00:00:00:00:09 dev a0; ip neigh add fd00::9 lladdr 02:00:00:00:00:0a dev a0",
    );
    Some(host)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn links_are_read_as_they_are() {
    let Some(host) = a_host() else { return };
    let expected = host.json("ip -j -d link");
    let found = on_host(&host, |socket| link::list(socket).unwrap());
    for (link, expected) in found.iter().zip(expected.as_array().unwrap()) {
        assert_eq!(link.name, expected["ifname"].as_str().unwrap());
        assert_eq!(u64::from(link.index), expected["ifindex"].as_u64().unwrap());
        assert_eq!(u64::from(link.mtu), expected["mtu"].as_u64().unwrap());
        assert_eq!(link.mac.unwrap().to_string(), expected["address"].as_str().unwrap());
        assert_eq!(link.kind.as_deref(), expected["linkinfo"]["info_kind"].as_str());
        assert_eq!(link.alias.as_deref(), expected["ifalias"].as_str());
        assert_eq!(link.is_operational(), expected["operstate"] == "UP");
    }
    assert_eq!(found.len(), 3);
    let a0 = on_host(&host, |socket| {
        assert!(link::find(socket, "none").unwrap().is_none());
        assert!(link::find(socket, "a-name-that-no-link-can-have").unwrap().is_none());
        assert!(link::find_index(socket, 9999).unwrap().is_none());
        let a0 = link::require(socket, "a0").unwrap();
        assert_eq!(Some(link::mac(socket, "a0").unwrap()), a0.mac);
        assert!(link::mac(socket, "none").is_err());
        // The namespace that a process finds by a socket is the one that `/proc` has.
        assert!(
            Netns::own().unwrap().is(&Netns::open(Path::new("/proc/thread-self/ns/net")).unwrap()).unwrap()
        );
        a0
    });
    assert_eq!(a0.peer, found.iter().find(|link| link.name == "b0").map(|link| link.index));
}

/// What is told of a link at once is what there is, and `promiscuous` is what somebody set, not what somebody listens by.
#[test]
fn links_are_told_of_at_once() {
    let Some(host) = a_host() else { return };
    host.sh("ip link add br9 type bridge; ip link add br8 type bridge; ip link add c0 type veth peer name d0; ip link set c0 up
         ip link set br8 up promisc on; ip link set d0 master br8; ip link add e0 type veth peer name f0
         ip link set b0 master br9; ip link set e0 master br9; ip link set br9 up; ip link set e0 up",
    );
    on_host(&host, |socket| {
        for name in ["a0", "b0", "d0", "br8", "br9"] {
            let (link, quick) =
                (link::require(socket, name).unwrap(), link::find_quick(socket, name).unwrap().unwrap());
            assert_eq!((quick.index, &quick.name, quick.up), (link.index, &link.name, link.up));
            assert_eq!(quick.driver == "bridge", name.starts_with("br"), "{quick:?}");
            // A port is promiscuous by its bridge, be that promiscuous itself or have several.
            assert_eq!(
                (quick.promiscuous, link.promiscuity > 0),
                (name == "br8", "b0 d0 br8".contains(name))
            );
            assert_eq!(
                link::is_running(socket, name).unwrap(),
                "a0 b0 br9".contains(name),
                "{name} {link:?}"
            );
        }
        assert_eq!(link::find_quick(socket, "none").unwrap(), None);
        assert!(link::is_running(socket, "none").is_err());
    });
}

/// Changes that are sent together are made in their order; the first refusal is the outcome, and the others are made all the same.
#[test]
fn changes_can_be_sent_together() {
    let Some(host) = a_host() else { return };
    on_host(&host, |socket| {
        let a0 = link::require(socket, "a0").unwrap();
        let address = |net: &str| addr::addition(&a0, net.parse().unwrap(), addr::Detection::Skip);
        let by = |dst: &str, gateway| {
            route::addition(&Route::new(dst.parse().unwrap(), Some(ip(gateway)), a0.index))
        };
        socket.make([]).unwrap();
        // The route needs the address before it.
        socket.make([address("10.5.0.1/24"), by("10.6.0.0/16", "10.5.0.9")]).unwrap();
        let refused = socket
            .make([
                address("10.5.0.2/24"),
                by("10.7.0.0/16", "203.0.113.1"),
                address("10.5.0.1/24"),
                address("10.5.0.3/24"),
            ])
            .unwrap_err();
        assert_eq!((refused.doing, refused.object.as_str()), ("add route", "10.7.0.0/16 via 203.0.113.1"));
        let there = addr::list(socket, &a0).unwrap();
        for net in ["10.5.0.1/24", "10.5.0.2/24", "10.5.0.3/24"] {
            assert!(there.iter().any(|address| address.net.to_string() == net), "{net}: {there:?}");
        }
        // The answers to all of them were read: the next is the next question's.
        assert_eq!(link::require(socket, "a0").unwrap().index, a0.index);

        let veth = |name, peer_name| link::Veth {
            peer_mac: None,
            name,
            peer_name,
            peer_netns: None,
            peer_group: Some(7),
            mtu: None,
            mac: None,
        };
        let made = link::create_veth(socket, &veth("v1", "v2")).unwrap();
        assert_eq!(made, link::require(socket, "v1").unwrap());
        assert_eq!(made.peer, Some(link::require(socket, "v2").unwrap().index));
        for (name, peer) in [("v1", "v3"), ("v3", "v2")] {
            let taken = link::create_veth(socket, &veth(name, peer)).unwrap_err();
            assert_eq!((taken.kind(), taken.doing), (Kind::Exists, "create veth pair"));
        }
        assert!(link::find(socket, "v3").unwrap().is_none());
    });
}

#[test]
fn addresses_routes_and_neighbours_are_read_as_they_are() {
    let Some(host) = a_host() else { return };
    on_host(&host, |socket| {
        let a0 = link::require(socket, "a0").unwrap();
        let nets: Vec<String> =
            addr::list(socket, &a0).unwrap().iter().map(|address| address.net.to_string()).collect();
        for net in ["10.1.2.3/24", "10.1.2.4/24", "fd00::3/64"] {
            assert!(nets.contains(&net.to_owned()), "{nets:?}");
        }
        let lo = link::require(socket, "lo").unwrap();
        assert!(addr::list(socket, &lo).unwrap().iter().all(|address| address.net.addr().is_loopback()));

        let routes = route::list(socket, ip("0.0.0.0")).unwrap();
        let find = |dst: &str| routes.iter().find(|route| route.dst.to_string() == dst).copied().unwrap();
        let expected = Route {
            priority: 7,
            protocol: 3,
            mtu: 1300,
            table: 254,
            ..Route::new("10.9.0.0/16".parse().unwrap(), Some(ip("10.1.2.9")), a0.index)
        };
        assert_eq!(find("10.9.0.0/16"), expected);
        assert_eq!((find("0.0.0.0/0").table, find("10.1.2.0/24").source), (1234, Some(ip("10.1.2.3"))));
        assert_eq!(route::link_towards(socket, ip("10.9.1.1")).unwrap(), Some(a0.index));
        assert_eq!(route::link_towards(socket, ip("203.0.113.1")).unwrap(), None);
        for (like, of, mac) in
            [("0.0.0.0", "10.1.2.9", "02:00:00:00:00:09"), ("::", "fd00::9", "02:00:00:00:00:0a")]
        {
            let neighbours = neigh::list(socket, &a0, ip(like)).unwrap();
            let found = neighbours.iter().find(|neighbour| neighbour.ip == ip(of)).unwrap();
            assert_eq!(found.mac.unwrap().to_string(), mac);
        }
    });
}

#[test]
fn changes_are_what_was_asked_for() {
    let Some(host) = a_host() else { return };
    on_host(&host, |socket| {
        bridge::create(
            socket,
            &bridge::New { name: "br9", mac: None, mtu: Some(1350), vlan_filtering: false },
        )
        .unwrap();
        let (br9, b0) = (link::require(socket, "br9").unwrap(), link::require(socket, "b0").unwrap());
        let change = Change { master: Some(br9.index), alias: Some("port"), ..Change::default() };
        link::change(socket, &b0, &change).unwrap();
        bridge::set_port(socket, &b0, bridge::Port { hairpin: true, isolated: true }).unwrap();
        let a0 = link::require(socket, "a0").unwrap();
        let dst = "10.77.0.0/16".parse().unwrap();
        let route = Route {
            priority: 5,
            source: Some(ip("10.1.2.4")),
            ..Route::new(dst, Some(ip("10.1.2.9")), a0.index)
        };
        route::add(socket, &route).unwrap();
        sysctl::write(Setting::Ipv4("a0", "arp_notify"), "1").unwrap();
        assert_eq!(sysctl::read(Setting::Ipv4("a0", "arp_notify")).unwrap().as_deref(), Some("1"));
        assert_eq!(sysctl::read(Setting::Ipv4("none", "arp_notify")).unwrap(), None);
        for (setting, of) in [(Setting::Ipv4Forward, "10.0.0.1"), (Setting::Ipv6Forward, "fd00::1")] {
            sysctl::write(setting, "0").unwrap();
            for _ in 0..2 {
                sysctl::ensure_forwarding(socket, ip(of)).unwrap();
                assert_eq!(sysctl::read(setting).unwrap().as_deref(), Some("1"));
            }
        }
    });
    let port = &host.json("ip -j -d link show b0")[0];
    assert_eq!((&port["master"], &port["ifalias"]), (&"br9".into(), &"port".into()));
    let data = &port["linkinfo"]["info_slave_data"];
    assert_eq!((&data["hairpin"], &data["isolated"]), (&Value::Bool(true), &Value::Bool(true)));
    let route = &host.json("ip -j route show 10.77.0.0/16")[0];
    assert_eq!(
        (&route["gateway"], &route["metric"], &route["prefsrc"]),
        (&"10.1.2.9".into(), &5.into(), &"10.1.2.4".into())
    );
    on_host(&host, |socket| {
        let a0 = link::require(socket, "a0").unwrap();
        for _ in 0..2 {
            route::remove(socket, "10.77.0.0/16".parse().unwrap(), a0.index).unwrap();
            addr::remove(socket, &a0, "10.1.2.4/24".parse().unwrap()).unwrap();
            link::remove(socket, &link::Link { index: 9999, ..a0.clone() }).unwrap();
        }
    });
    assert_eq!(host.sh("ip route show 10.77.0.0/16; ip addr show a0 | grep 10.1.2.4 || true"), "");
}

#[test]
fn refusals_say_what_to_what_and_why() {
    let Some(host) = a_host() else { return };
    on_host(&host, |socket| {
        let a0 = link::require(socket, "a0").unwrap();
        let taken =
            bridge::create(socket, &bridge::New { name: "a0", mac: None, mtu: None, vlan_filtering: false })
                .unwrap_err();
        assert_eq!(
            (taken.kind(), taken.to_string()),
            (Kind::Exists, "cannot create bridge `a0`: File exists".into())
        );
        let unreachable = Route::new("10.8.0.0/16".parse().unwrap(), Some(ip("203.0.113.1")), a0.index);
        let error = route::add(socket, &unreachable).unwrap_err().to_string();
        assert!(error.starts_with("cannot add route 10.8.0.0/16 via 203.0.113.1: "), "{error}");
        assert!(error.contains("(Nexthop has invalid gateway)"), "{error}");
        let missing = link::require(socket, "none").unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
        let twice =
            addr::add(socket, &a0, "10.1.2.3/24".parse().unwrap(), addr::Detection::AsSet).unwrap_err();
        assert_eq!(twice.kind(), Kind::Exists);
    });
}

/// Batches happen whole or not at all, and not when the ruleset has moved on since it was read.
#[test]
fn batches_are_transactions() {
    const TABLE: Table<'_> = Table { family: Family::Inet, name: "lab" };
    const PORTS: Set<'_> = Set {
        name: "ports",
        key: &[Field::Protocol, Field::Port],
        data: Some(Data::Fields(&[Field::Ipv4, Field::Port])),
        comment: "ports",
    };
    let Some(host) = a_host() else { return };
    let element = Element {
        key: vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0],
        data: vec![10, 0, 0, 2, 0, 80, 0, 0],
        goto: None,
        comment: Some("whose it is".into()),
        extra: vec![1, 2, 3],
    };
    on_host(&host, |_| {
        let socket = &Socket::open(Protocol::Netfilter).unwrap();
        assert_eq!(nft::table_comment(socket, TABLE).unwrap(), None);
        assert_eq!(nft::elements(socket, TABLE, "ports").unwrap(), []);
        let mut batch = Batch::new();
        batch.create_table(TABLE, "made by a test");
        batch.create_set(TABLE, &PORTS);
        batch.add_elements(TABLE, "ports", std::slice::from_ref(&element));
        nft::commit(socket, batch.clone(), None).unwrap();
        assert_eq!(nft::commit(socket, batch, None).unwrap_err().kind(), Kind::Exists);
        assert_eq!(nft::table_comment(socket, TABLE).unwrap().as_deref(), Some("made by a test"));
        assert_eq!(nft::elements(socket, TABLE, "ports").unwrap(), std::slice::from_ref(&element));
        assert_eq!(nft::element(socket, TABLE, "ports", &element.key).unwrap(), Some(element.clone()));
        assert_eq!(nft::element(socket, TABLE, "ports", &[17, 0, 0, 0, 0, 1, 0, 0]).unwrap(), None);

        // The second of two changes is refused, so the first has not happened either.
        let mut half = Batch::new();
        half.create_chain(TABLE, "chain", None, "");
        half.add_elements(TABLE, "ports", std::slice::from_ref(&element));
        assert_eq!(nft::commit(socket, half, None).unwrap_err().kind(), Kind::Exists);
        assert!(nft::chains(socket, TABLE).unwrap().is_empty());

        let read = nft::generation(socket).unwrap();
        let mut other = Batch::new();
        other.create_chain(TABLE, "chain", None, "");
        nft::commit(socket, other, Some(read)).unwrap();
        let mut late = Batch::new();
        late.remove_elements(TABLE, "ports", std::slice::from_ref(&element));
        assert_eq!(nft::commit(socket, late.clone(), Some(read)).unwrap_err().kind(), Kind::Stale);
        nft::commit(socket, late, Some(nft::generation(socket).unwrap())).unwrap();
        assert_eq!(nft::elements(socket, TABLE, "ports").unwrap(), []);
    });
    let listed = host.sh("nft list table inet lab");
    assert!(listed.contains("type inet_proto . inet_service : ipv4_addr . inet_service"), "{listed}");
}

/// What a link has is found while other links come and go. Lists of all links' disciplines leave some out then.
#[test]
fn disciplines_are_found_on_a_busy_host() {
    const LINKS: usize = 200;
    const AT_ONCE: usize = 8;
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let pairs: String =
        (0..LINKS).map(|index| format!("link add s{index} type veth peer name t{index}\n")).collect();
    std::fs::write(host.path("/run/batch"), pairs + "link add last0 type veth peer name last1\n").unwrap();
    host.sh("ip -batch /run/batch");
    let bucket = qdisc::Bucket { rate: 1_000_000, burst: 100_000, limit: 125_000 };
    let busy = AtomicUsize::new(AT_ONCE);
    // Links that come first in the kernel's list go, and come back as its last.
    let churn = |first: usize| {
        on_host(&host, |socket| {
            for index in (first..LINKS).step_by(AT_ONCE) {
                let name = format!("s{index}");
                link::remove(socket, &link::require(socket, &name).unwrap()).unwrap();
                let veth = link::Veth {
                    name: &name,
                    peer_name: &format!("t{index}"),
                    peer_netns: None,
                    peer_group: None,
                    mtu: None,
                    mac: None,
                    peer_mac: None,
                };
                link::create_veth(socket, &veth).unwrap();
            }
        });
        busy.fetch_sub(1, Ordering::Relaxed);
    };
    let limited = on_host(&host, |socket| {
        let [limited, other] = ["last0", "last1"].map(|name| link::require(socket, name).unwrap());
        qdisc::add_bucket(socket, &limited, &bucket).unwrap();
        qdisc::redirect(socket, &limited, &other).unwrap();
        limited
    });
    std::thread::scope(|scope| {
        let churn = &churn;
        for first in 0..AT_ONCE {
            scope.spawn(move || churn(first));
        }
        let (mut looks, mut missed) = (0, 0);
        on_host(&host, |socket| {
            while busy.load(Ordering::Relaxed) > 0 {
                let (root, redirected) = qdisc::look(socket, &limited).unwrap();
                looks += 1;
                missed += usize::from(!(redirected && root.is_some_and(|root| root.is(&bucket))));
            }
        });
        assert_eq!(missed, 0, "of {looks}");
    });
}
