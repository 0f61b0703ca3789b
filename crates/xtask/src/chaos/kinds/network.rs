//! Uplinks that fail, and hosts that are cut off from each other or from the store.

use super::super::fault::{
    Act::{Host as Sh, Wire},
    Allows::WhileItLasts,
    At::Network,
    Fault, Hinders,
    Scope::{Between, Crossing},
};

/// Gives the uplink its addresses and default routes back.
const RESTORE: &str =
    "ip link set up0 up; ip addr replace @v4/24 dev up0; ip -6 addr replace @v6/64 dev up0 nodad
     ip route replace default via @gw4; ip -6 route replace default via @gw6";
/// Milliseconds until neighbours are resolved again: three requests, a second apart.
const RESOLVED: u64 = 4000;

/// A fault of a host's uplink.
const fn uplink(name: &'static str, inject: &'static [super::super::fault::Act]) -> Fault {
    Fault::harmless(name, Network, inject, &[Sh(RESTORE)])
        .allowing(WhileItLasts(Crossing, RESOLVED))
        .hindering(Hinders::All)
}

/// A rule on the wire, which connects the hosts.
const fn wire(name: &'static str, inject: &'static [super::super::fault::Act]) -> Fault {
    Fault::harmless(
        name,
        Network,
        inject,
        &[Wire("nft delete table bridge chaos; nft delete table inet chaos; true")],
    )
}

pub(super) const KINDS: &[Fault] = &[
    uplink("uplink: down", &[Sh("ip link set up0 down")]),
    uplink("uplink: IPv4 address deleted", &[Sh("ip addr del @v4/24 dev up0")]),
    uplink("uplink: IPv6 address deleted", &[Sh("ip -6 addr del @v6/64 dev up0")]),
    uplink("uplink: default routes deleted", &[Sh("ip route del default; ip -6 route del default")]),
    wire("network: a host is cut off", &[Wire(
        "nft 'table bridge chaos { chain f { type filter hook prerouting priority 0; iifname n@n drop; };
                                   chain o { type filter hook postrouting priority 0; oifname n@n drop; }; }'",
    )])
    .allowing(WhileItLasts(Crossing, RESOLVED)),
    wire("network: a host's packets are lost, in one direction", &[Wire(
        "nft 'table bridge chaos { chain f { type filter hook prerouting priority 0; iifname n@n drop; }; }'",
    )])
    .allowing(WhileItLasts(Crossing, RESOLVED)),
    wire("network: two hosts are cut off from each other", &[Wire(
        "nft 'table bridge chaos { chain f { type filter hook forward priority 0;
            iifname n@n oifname n@m drop; iifname n@m oifname n@n drop; }; }
            table inet chaos { chain f { type filter hook forward priority 0;
            ip saddr @v4 ip daddr @w4 drop; ip saddr @w4 ip daddr @v4 drop; }; }'",
    )])
    .allowing(WhileItLasts(Between, RESOLVED)),
    wire("network: one host does not hear another", &[Wire(
        "nft 'table bridge chaos { chain f { type filter hook forward priority 0; iifname n@n oifname n@m drop; }; }
            table inet chaos { chain f { type filter hook forward priority 0; ip saddr @v4 ip daddr @w4 drop; }; }'",
    )])
    .allowing(WhileItLasts(Between, RESOLVED)),
    wire("network: a tenth of all packets is lost", &[Wire(
        "nft 'table bridge chaos { chain f { type filter hook prerouting priority 0;
            iifname n@n numgen random mod 100 < 10 drop; }; }'",
    )])
    .allowing(WhileItLasts(Crossing, RESOLVED)),
    wire("network: a host's link is slow", &[
        Wire("tc qdisc add dev n@n root tbf rate 4mbit burst 16kb latency 100ms"),
    ])
    .allowing(WhileItLasts(Crossing, RESOLVED)),
    wire("store: a host is cut off from it", &[Wire(
        "nft 'table inet chaos { chain i { type filter hook input priority 0; ip saddr @v4 tcp dport 2379 drop; }; }'",
    )]),
    wire("store: its answers to a host are lost", &[Wire(
        "nft 'table inet chaos { chain o { type filter hook output priority 0; ip daddr @v4 tcp sport 2379 drop; }; }'",
    )]),
    wire("store: a third of the packets to it is lost", &[Wire(
        "nft 'table inet chaos { chain i { type filter hook input priority 0;
            tcp dport 2379 ip saddr != 192.0.2.248/29 numgen random mod 100 < 33 drop; }; }'",
    )]),
    wire("store: it resets a host's connections", &[Wire(
        "nft 'table inet chaos { chain i { type filter hook input priority 0;
            ip saddr @v4 tcp dport 2379 reject with tcp reset; }; }'",
    )]),
];
