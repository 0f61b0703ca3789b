//! Properties of conversion: fields that both versions have survive a round trip.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use ipnet::IpNet;
use netloom_types::{
    CniResult, SpecVersion,
    result::{
        Dns, Route,
        v100::{Interface, IpConfig, Success},
    },
};
use proptest::{collection::vec, option, prelude::*};

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap()),
        (any::<[u8; 16]>(), 0u8..=128)
            // An IPv4-mapped IPv6 address becomes an IPv4 address when it is parsed.
            .prop_filter("mapped", |(ip, _)| std::net::Ipv6Addr::from(*ip).to_ipv4_mapped().is_none())
            .prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap()),
    ]
}

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9.:<>&é/\"\\\\-]{0,12}"
}

prop_compose! {
    fn interface()(name in text(), mac in text(), sandbox in text(), mtu in any::<u32>(), pci in text(), socket in text())
        -> Interface {
        Interface { name, mac, sandbox, mtu, pci_id: pci, socket_path: socket }
    }
}

prop_compose! {
    fn route()(dst in net(), gw in option::of(net()), mtu in any::<u32>(), advmss in any::<u32>(),
               priority in any::<u32>(), table in option::of(any::<u32>()), scope in option::of(any::<u8>())) -> Route {
        Route { dst, gw: gw.map(|net| net.addr()), mtu, advmss, priority, table, scope }
    }
}

prop_compose! {
    fn success()(
        interfaces in vec(interface(), 0..3),
        ips in vec((net(), option::of(net()), option::of(any::<i64>())), 0..4),
        routes in vec(route(), 0..3),
        dns in (vec(text(), 0..3), text(), vec(text(), 0..2), vec(text(), 0..2)),
    ) -> Success {
        Success {
            interfaces,
            ips: ips.into_iter().map(|(address, gateway, interface)| IpConfig {
                address, gateway: gateway.map(|net| net.addr()), interface,
            }).collect(),
            routes,
            dns: Dns { nameservers: dns.0, domain: dns.1, search: dns.2, options: dns.3 },
        }
    }
}

/// Removes the fields that a version does not have.
fn as_said_in(mut result: Success, version: SpecVersion) -> Success {
    if version < SpecVersion::V1_0_0 {
        for interface in &mut result.interfaces {
            *interface = Interface {
                name: interface.name.clone(),
                mac: interface.mac.clone(),
                sandbox: interface.sandbox.clone(),
                ..Interface::default()
            };
        }
    }
    if version < SpecVersion::V0_3_0 {
        result.interfaces.clear();
        let first = |v4: bool| result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4).cloned();
        let kept: Vec<IpConfig> = [first(true), first(false)]
            .into_iter()
            .flatten()
            .map(|ip| IpConfig { interface: None, ..ip })
            .collect();
        let of = |v4: bool| {
            let has = kept.iter().any(|ip| ip.address.addr().is_ipv4() == v4);
            let routes = result.routes.iter().filter(move |route| has && route.dst.addr().is_ipv4() == v4);
            routes.map(|route| Route::new(route.dst, route.gw)).collect::<Vec<_>>()
        };
        result.routes = [of(true), of(false)].concat();
        result.ips = kept;
    }
    result
}

proptest! {
    /// Conversion to another version and back keeps the fields of that version, and text and value are equal.
    #[test]
    fn round_trip_keeps_what_both_can_say(result in success(), from in 5usize..7, to in 0usize..7) {
        let (from, to) = (SpecVersion::ALL[from], SpecVersion::ALL[to]);
        let there = CniResult::V100(from, result.clone()).convert(to);
        if to < SpecVersion::V0_3_0 && result.ips.is_empty() {
            prop_assert!(there.is_err());
            return Ok(());
        }
        let there = there.unwrap();
        prop_assert_eq!(there.version(), to);
        let read = CniResult::parse(there.to_json().as_bytes(), SpecVersion::V0_1_0).unwrap();
        prop_assert_eq!(&read, &there);
        let back = read.convert(from).unwrap();
        prop_assert_eq!(back.version(), from);
        prop_assert_eq!(back.into_current(), as_said_in(result, to));
    }

    /// Parsers do not panic on any text.
    #[test]
    fn nothing_panics(bytes in vec(any::<u8>(), 0..200)) {
        drop(CniResult::parse(&bytes, SpecVersion::NEWEST));
        drop(netloom_types::NetworkList::parse(&bytes));
        drop(netloom_types::NetworkList::parse_single(&bytes));
        drop(netloom_types::RequestConfig::parse(&bytes));
        drop(netloom_types::CniError::parse(&bytes));
        drop(netloom_types::CniArgs::parse(&String::from_utf8_lossy(&bytes)));
    }
}
