//! The store's servers die, stall and lose their majority, and its contents are junk. None of it costs a packet.

use super::super::fault::{
    Act::{FreezeStore, KillStore, Pause, StartStore, ThawStore, Wire},
    Allows::WhileItLasts,
    At::{Contents, Store},
    Fault,
    Hinders::All as Everybody,
    Members::{All, One, Two},
    Scope::Crossing,
};

pub(super) const KINDS: &[Fault] = &[
    Fault::harmless("store: one member is killed", Store, &[KillStore(One)], &[StartStore]),
    Fault::harmless("store: the majority is killed", Store, &[KillStore(Two)], &[StartStore]),
    Fault::harmless("store: all members are killed", Store, &[KillStore(All)], &[StartStore]),
    Fault::harmless("store: one member is frozen", Store, &[FreezeStore(One)], &[ThawStore]),
    Fault::harmless("store: all members are frozen", Store, &[FreezeStore(All)], &[ThawStore]),
    Fault::harmless(
        "store: it is slow",
        Store,
        &[
            FreezeStore(All), Pause(400), ThawStore, Pause(50), FreezeStore(All), Pause(700), ThawStore, Pause(50),
            FreezeStore(All), Pause(300), ThawStore, Pause(100), FreezeStore(All), Pause(500),
        ],
        &[ThawStore],
    ),
    Fault::harmless(
        "contents: records that cannot be parsed",
        Contents,
        &[Wire("$E put /netloom/nodes/junk '{\"name\": 7'; $E put /netloom/nodes/ x; $E put /netloom/x y; $E put /netloom/blocks/junk host1
                head -c 65536 /dev/zero | tr '\\0' x | $E put /netloom/nodes/big")],
        &[Wire("for k in nodes/junk nodes/ x blocks/junk nodes/big; do $E del /netloom/$k || exit 1; done")],
    ),
    Fault::harmless(
        "contents: a record claims the blocks of others",
        Contents,
        &[Wire("r=$($E get --print-value-only /netloom/nodes/host@m)
                $E put /netloom/nodes/a \"$(printf %s \"$r\" | jq -c '.name = \"a\" | .incarnation = \"a\" | .addresses = [\"192.0.2.77\"]
                    | .mac = null | .mac6 = null')\"")],
        &[Wire("$E del /netloom/nodes/a")],
    )
    // Its address is that of a node meanwhile.
    .hindering(Everybody),
    Fault::harmless(
        "contents: a record claims a host's own addresses and routes",
        Contents,
        &[Wire("$E put /netloom/nodes/a '{\"name\":\"a\",\"addresses\":[\"192.0.2.@n\"],\"incarnation\":\"a\",\"instance\":\"a\",\
                \"blocks\":[\"0.0.0.0/0\",\"192.0.2.0/24\",\"10.244.0.0/16\",\"::/0\"],\"tunnel\":{\"vni\":4242,\"port\":4789}}'")],
        &[Wire("$E del /netloom/nodes/a")],
    ),
    Fault::harmless(
        "contents: a record has a multicast address",
        Contents,
        &[Wire("$E put /netloom/nodes/a '{\"name\":\"a\",\"addresses\":[\"224.0.0.1\",\"ff02::1\"],\"incarnation\":\"a\",\"instance\":\"a\",\
                \"blocks\":[\"10.244.254.0/24\"],\"tunnel\":{\"vni\":4242,\"port\":4789}}'")],
        &[Wire("$E del /netloom/nodes/a")],
    ),
    // Deleting a record is how an operator removes a node: peers remove its routes until it publishes its record again.
    Fault::harmless("contents: a living node's record is deleted", Contents, &[Wire("$E del /netloom/nodes/host@n")], &[])
    .allowing(WhileItLasts(Crossing, 0)),
    Fault::harmless("contents: a living node's lease is deleted", Contents, &[Wire("$E del /netloom/alive/host@n")], &[]),
    Fault::harmless(
        "contents: a living node's record is damaged",
        Contents,
        &[Wire("$E put /netloom/nodes/host@n '{'")],
        &[],
    ),
    Fault::harmless(
        "contents: a living node's record is changed",
        Contents,
        &[Wire("r=$($E get --print-value-only /netloom/nodes/host@n)
                $E put /netloom/nodes/host@n \"$(printf %s \"$r\" | jq -c '.blocks = []')\"")],
        &[],
    )
    .allowing(WhileItLasts(Crossing, 0)),
    Fault::harmless(
        "contents: etcd compacts its history",
        Contents,
        &[Wire("$E compact $($E endpoint status -w json | jq '.[0].Status.header.revision')")],
        &[],
    ),
];
