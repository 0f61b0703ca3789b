//! Objects of the daemon in the kernel that another program deletes, changes or duplicates.

use super::super::fault::{
    Act::Host as Sh,
    Fault,
    Scope::{Crossing, Host},
};

/// The objects of all modes. Pods of one host reach each other through its rules for forwarded packets too.
pub(super) const KINDS: &[Fault] = &[
    Fault::repaired(
        "routes: all deleted",
        Crossing,
        &[Sh("ip route flush proto 95; ip -6 route flush proto 95")],
    ),
    Fault::repaired(
        "routes: one deleted",
        Crossing,
        &[Sh("ip route show proto 95 | grep -v blackhole | head -n 1 | xargs ip route del")],
    ),
    Fault::repaired(
        "routes: an IPv6 one deleted",
        Crossing,
        &[Sh("ip -6 route show proto 95 | grep -v blackhole | head -n 1 | xargs ip -6 route del")],
    ),
    Fault::repaired(
        "routes: the one for unused addresses deleted",
        Crossing,
        &[Sh("ip route show proto 95 | grep blackhole | head -n 1 | xargs ip route del")],
    ),
    Fault::repaired(
        "routes: one changed",
        Crossing,
        &[Sh(
            "ip route replace $(ip route show proto 95 | grep -v blackhole | head -n 1 | cut -d' ' -f1) dev lo proto 95",
        )],
    ),
    Fault::repaired(
        "routes: one replaced by another program",
        Crossing,
        &[Sh(
            "ip route replace $(ip route show proto 95 | grep -v blackhole | head -n 1 | cut -d' ' -f1) dev lo proto static",
        )],
    )
    // A daemon that starts does not know that the route was its own, and leaves it to the operator.
    .needing_the_daemon(),
    Fault::repaired(
        "routes: one duplicated",
        Crossing,
        &[Sh(
            "ip route add $(ip route show proto 95 | grep -v blackhole | head -n 1 | cut -d' ' -f1) dev lo proto 95 metric 7",
        )],
    ),
    Fault::repaired("rules: a table deleted", Host, &[Sh("nft delete table inet netloom-cluster")]),
    Fault::repaired(
        "rules: all tables deleted",
        Host,
        &[Sh("for f in ip ip6 inet; do nft delete table $f netloom-cluster; done")],
    ),
    Fault::repaired(
        "rules: another firewall loads its own and flushes all others",
        Host,
        &[Sh(
            "printf 'flush ruleset\\ntable inet own { chain f { type filter hook forward priority 0; policy drop; }; }\\n' | nft -f -",
        )],
    ),
    Fault::repaired("rules: a chain flushed", Host, &[Sh("nft flush chain inet netloom-cluster admit")]),
    Fault::repaired(
        "rules: the chain of masquerading flushed",
        Host,
        &[Sh("nft flush chain ip netloom-cluster postrouting")],
    ),
    Fault::repaired(
        "rules: the guard of pods flushed",
        Host,
        &[Sh("nft flush chain inet netloom-cluster guard")],
    ),
    Fault::repaired(
        "rules: the chain of tunnelled packets flushed",
        Host,
        &[Sh("nft flush chain inet netloom-cluster heard")],
    ),
    Fault::repaired(
        "pods' links: one taken out of its group",
        Host,
        &[Sh("ip link set \
             $(ip -o link show type veth group 1852142700 | head -n 1 | cut -d: -f2 | cut -d@ -f1) group 0")],
    ),
    Fault::repaired(
        "rules: one deleted",
        Host,
        &[Sh("nft delete rule inet netloom-cluster admit handle \
             $(nft -a list chain inet netloom-cluster admit | grep -o 'handle [0-9]*' | sed -n 2p | cut -d' ' -f2)")],
    ),
    Fault::repaired(
        "rules: one added",
        Host,
        &[Sh("nft insert rule inet netloom-cluster admit ip saddr 10.244.0.0/16 drop")],
    ),
    Fault::repaired(
        "rules: the set of nodes emptied",
        Host,
        &[Sh("nft flush set inet netloom-cluster nodes4")],
    ),
    Fault::repaired(
        "rules: a node added to the set",
        Host,
        &[Sh("nft add element inet netloom-cluster nodes4 { 203.0.113.9 }")],
    ),
    Fault::repaired("settings: IPv4 forwarding off", Host, &[Sh("echo 0 >/proc/sys/net/ipv4/ip_forward")]),
    Fault::repaired(
        "settings: IPv6 forwarding off",
        Host,
        &[Sh("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding")],
    ),
];

/// The objects of modes with tunnels.
pub(super) const TUNNELS: &[Fault] = &[
    Fault::repaired(
        "rules: the set of nodes' blocks emptied",
        Crossing,
        &[Sh("nft flush set inet netloom-cluster nodes4_blocks4_24")],
    ),
    Fault::repaired(
        "rules: a block added to a node's",
        Crossing,
        &[Sh("nft add element inet netloom-cluster nodes4_blocks4_24 { @w4 . 0x0af40000 }")],
    ),
    Fault::repaired("device: deleted", Crossing, &[Sh("ip link del @e")]),
    Fault::repaired("device: down", Crossing, &[Sh("ip link set @e down")]),
    Fault::repaired("device: other MTU", Crossing, &[Sh("ip link set @e mtu 1300")]),
    Fault::repaired(
        "device: other hardware address",
        Crossing,
        &[Sh("ip link set @e address 02:00:00:00:00:99")],
    ),
    Fault::repaired("device: renamed", Crossing, &[Sh("ip link set @e name stolen")]),
    Fault::repaired(
        "device: another of its name",
        Crossing,
        &[Sh("ip link del @d; ip link add @d type vxlan id 77 dstport 4799 dev up0")],
    ),
    Fault::repaired(
        "device: addresses deleted",
        Crossing,
        &[Sh("ip -4 addr flush dev @d; ip -6 addr flush dev @d")],
    ),
    Fault::repaired("device: an address added", Crossing, &[Sh("ip addr add 10.244.255.254/32 dev @d")]),
    Fault::repaired(
        "forwarding entries: all deleted",
        Crossing,
        &[Sh(
            "bridge fdb show dev @d | grep dst | while read -r mac rest; do bridge fdb del $mac dev @d; done",
        )],
    ),
    Fault::repaired(
        "forwarding entries: one changed",
        Crossing,
        &[Sh(
            "bridge fdb replace $(bridge fdb show dev @d | grep dst | head -n 1 | cut -d' ' -f1) dev @d dst 192.0.2.99",
        )],
    ),
    Fault::repaired(
        "forwarding entries: one added",
        Crossing,
        &[Sh("bridge fdb append 00:00:00:00:00:00 dev @d dst 192.0.2.99")],
    ),
    Fault::repaired("neighbours: all deleted", Crossing, &[Sh("ip -6 neigh flush dev @d nud permanent")]),
    Fault::repaired(
        "neighbours: one changed",
        Crossing,
        &[Sh("ip -6 neigh replace $(ip -6 neigh show dev @d nud permanent | head -n 1 | cut -d' ' -f1) \
             lladdr 02:00:00:00:00:77 dev @d nud permanent")],
    ),
    Fault::repaired(
        "neighbours: one added",
        Crossing,
        &[Sh("ip -6 neigh add fe80::dead lladdr 02:00:00:00:00:77 dev @d nud permanent")],
    ),
    Fault::repaired(
        "settings: strict reverse-path filter",
        Crossing,
        &[Sh("echo 1 >/proc/sys/net/ipv4/conf/@d/rp_filter")],
    ),
    Fault::repaired(
        "settings: IPv6 off on the device",
        Crossing,
        &[Sh("echo 1 >/proc/sys/net/ipv6/conf/@d/disable_ipv6")],
    ),
];
