//! Daemons that are killed, stopped, started in a loop, copied, changed. None of it costs a packet.

use super::super::fault::{
    Act::{
        Freeze, Host, Kill, KillAll, Pause, RemoveCopy, Start, StartAll, StartAs, StartCopy, StartOther,
        Terminate, Thaw,
    },
    At::Daemon,
    Fault,
    Hinders::{All, Host as Itself},
};

pub(super) const KINDS: &[Fault] = &[
    Fault::harmless("a daemon is killed", Daemon, &[Kill], &[Start]).hindering(Itself),
    Fault::harmless("a daemon is killed and starts at once", Daemon, &[Kill, Start], &[]).hindering(Itself),
    Fault::harmless("a daemon is stopped in order", Daemon, &[Terminate], &[Start]).hindering(Itself),
    Fault::harmless("a daemon is frozen", Daemon, &[Freeze], &[Thaw]).hindering(Itself),
    Fault::harmless(
        "a daemon is killed while it starts",
        Daemon,
        &[Kill, Start, Pause(20), Kill, Start, Pause(60), Kill, Start, Pause(150), Kill],
        &[Start],
    )
    .hindering(Itself),
    Fault::harmless("a daemon is dead for longer than its lease", Daemon, &[Kill, Pause(11_000)], &[Start])
        .hindering(Itself),
    Fault::harmless("all daemons are killed at once", Daemon, &[KillAll], &[StartAll]).hindering(All),
    Fault::harmless(
        "a daemon is replaced by another binary",
        Daemon,
        &[Terminate, StartOther],
        &[Terminate, Start],
    )
    .hindering(Itself),
    Fault::harmless(
        "a daemon starts without its memory of the cluster",
        Daemon,
        &[Kill, Host("rm -f /var/lib/netloom/node/view.json /var/lib/netloom/node/blocks.json")],
        &[Start],
    )
    .hindering(Itself),
    Fault::harmless("a host is copied with its identity", Daemon, &[StartCopy], &[RemoveCopy]),
    Fault::harmless(
        "a daemon changes to mode auto and back",
        Daemon,
        &[Kill, StartAs("auto")],
        &[Kill, Start],
    )
    .hindering(All),
];
