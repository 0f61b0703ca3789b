//! Files that are deleted or damaged, and disks that are full or read-only. None of it costs a packet of a running pod.

use super::super::fault::{
    Act::{Exchange, Host as Sh, Kill, Start},
    Allows, At, Fault, Hinders, Scope,
};

/// A fault of the network's file, which the daemon repairs. Until then a pod that starts may find no network.
const fn conflist(name: &'static str, inject: &'static [super::super::fault::Act]) -> Fault {
    Fault { at: At::Files, ..Fault::repaired(name, Scope::Crossing, inject) }.blocking_pods()
}

pub(super) const KINDS: &[Fault] = &[
    conflist("network file: deleted", &[Sh("rm /run/net.d/10-netloom.conflist")]),
    conflist("network file: damaged", &[Sh("echo '{' >/run/net.d/10-netloom.conflist")]),
    conflist(
        "network file: empty",
        &[Sh("rm /run/net.d/10-netloom.conflist; : >/run/net.d/10-netloom.conflist")],
    ),
    Fault::harmless(
        "network files: their folder is read-only",
        At::Files,
        &[Sh("mount -o remount,ro /run/net.d")],
        &[Sh("mount -o remount,rw /run/net.d")],
    ),
    Fault::harmless(
        "network files: their folder is moved away",
        At::Files,
        &[Sh("mkdir /run/aside; mv /run/net.d/* /run/aside")],
        &[Sh("mv -n /run/aside/* /run/net.d; rm -rf /run/aside")],
    )
    .blocking_pods()
    .allowing(Allows::WhileItLasts(Scope::Crossing, 0)),
    Fault::harmless(
        "reservations: their folder cannot be read",
        At::Files,
        // At once: a plugin that starts in between would make a new folder, and know of no reservation.
        &[Sh(": >/var/lib/cni/aside"), Exchange("/var/lib/cni/networks/netloom", "/var/lib/cni/aside")],
        &[Exchange("/var/lib/cni/networks/netloom", "/var/lib/cni/aside"), Sh("rm /var/lib/cni/aside")],
    )
    .blocking_pods(),
    Fault::harmless(
        "state: the disk is full",
        At::Files,
        &[Sh("dd if=/dev/zero of=/var/lib/netloom/fill bs=4096; true"), Kill, Start],
        &[Sh("rm /var/lib/netloom/fill")],
    )
    .hindering(Hinders::Host),
    Fault::harmless(
        "state: the disk is read-only",
        At::Files,
        &[Kill, Sh("mount -o remount,ro /var/lib/netloom"), Start],
        &[Sh("mount -o remount,rw /var/lib/netloom"), Kill, Start],
    )
    .hindering(Hinders::Host),
    Fault::harmless(
        "state: the list of blocks is damaged",
        At::Files,
        &[Kill, Sh("echo '[' >/var/lib/netloom/node/blocks.json"), Start],
        &[],
    )
    .hindering(Hinders::Host),
    Fault::harmless(
        "state: the view of the cluster is damaged",
        At::Files,
        &[Kill, Sh("echo '[' >/var/lib/netloom/node/view.json"), Start],
        &[],
    )
    .hindering(Hinders::Host),
    Fault::harmless(
        "state: the identity is empty",
        At::Files,
        &[Kill, Sh(": >/var/lib/netloom/node/incarnation"), Start],
        &[],
    )
    .hindering(Hinders::Host),
    Fault::harmless(
        "runtime: the status socket is deleted",
        At::Files,
        &[Sh("rm -rf /run/netloom"), Kill, Start],
        &[],
    )
    .hindering(Hinders::Host),
];
