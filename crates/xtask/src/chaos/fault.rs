//! What a fault is: how it is caused, how it ends, and what it may cost.
//!
//! Scripts are shell lines with placeholders, which [`super::act`] replaces: `@n` is the host's number, `@v4`, `@v6`, `@gw4` and `@gw6`
//! are its addresses and gateways, `@m` and `@w4` are number and address of another host, `@d` is the tunnel device that peers are reached over,
//! and `@e` that one or the other.

/// A kind of fault.
pub(super) struct Fault {
    /// The name in messages and figures.
    pub(super) name: &'static str,
    /// What is harmed. Two faults of a round harm different things.
    pub(super) at: At,
    /// How it is caused.
    pub(super) inject: &'static [Act],
    /// How it ends; empty if the daemon alone repairs it.
    pub(super) heal: &'static [Act],
    /// The loss that is allowed.
    pub(super) allows: Allows,
    /// The hosts whose daemons may repair nothing until the fault has ended, or whose desired state differs meanwhile.
    pub(super) hinders: Hinders,
    /// Whether only a daemon that runs can recognize it: it is not combined with faults that hinder the daemon.
    pub(super) needs_daemon: bool,
    /// Whether new pods may fail to start on the host meanwhile.
    pub(super) blocks_pods: bool,
}

/// What a fault harms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// A host's daemon.
    Daemon,
    /// Kernel objects of a host's daemon.
    Objects,
    /// Files of a host.
    Files,
    /// A host's uplink, or the network between hosts.
    Network,
    /// The store's servers.
    Store,
    /// The store's contents.
    Contents,
}

impl At {
    /// Returns whether there is one of it for all hosts.
    pub(super) fn is_shared(self) -> bool {
        matches!(self, Self::Network | Self::Store | Self::Contents)
    }
}

/// The loss that a fault may cause.
#[derive(Clone, Copy)]
pub(super) enum Allows {
    /// None.
    Nothing,
    /// Until the daemon has repaired it, which it must without further help.
    UntilRepaired(Scope),
    /// Until it has ended, and some milliseconds more: neighbours are resolved again.
    WhileItLasts(Scope, u64),
}

/// The pairs of pods that a fault may cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Pods of the host with pods of other hosts.
    Crossing,
    /// Pods of the host with all pods.
    Host,
    /// Pods of the host with those of the other host that the fault names.
    Between,
}

/// The hosts that a fault hinders.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hinders {
    /// None.
    Nobody,
    /// The host itself.
    Host,
    /// All: what the other hosts should have changes too.
    All,
}

/// A step.
pub(super) enum Act {
    /// A script on the host.
    Host(&'static str),
    /// A script on the wire, which connects the hosts and runs the store; `$E` is `etcdctl` with the members' addresses.
    Wire(&'static str),
    /// Exchanges two files or folders of the host at once.
    Exchange(&'static str, &'static str),
    /// SIGKILL to the daemon.
    Kill,
    /// SIGTERM to the daemon; waits for its end.
    Terminate,
    /// SIGSTOP to the daemon.
    Freeze,
    /// SIGCONT to the daemon.
    Thaw,
    /// Starts the daemon.
    Start,
    /// Starts the daemon in another mode.
    StartAs(&'static str),
    /// Starts another binary of the daemon, which `--other` names.
    StartOther,
    /// SIGKILL to all daemons at once.
    KillAll,
    /// Starts all daemons.
    StartAll,
    /// SIGKILL to members of etcd.
    KillStore(Members),
    /// Starts the members that do not run.
    StartStore,
    /// SIGSTOP to members of etcd.
    FreezeStore(Members),
    /// SIGCONT to all members.
    ThawStore,
    /// A pause in milliseconds.
    Pause(u64),
    /// Copies the host's identity to the spare host and starts a daemon there.
    StartCopy,
    /// Checks that the copy has changed nothing, and removes it.
    RemoveCopy,
}

/// Members of etcd.
#[derive(Clone, Copy)]
pub(super) enum Members {
    /// One, drawn at random.
    One,
    /// All but one: the others have no majority.
    Two,
    /// All.
    All,
}

impl Fault {
    /// A fault that the daemon repairs, and that may cost packets until then.
    pub(super) const fn repaired(name: &'static str, scope: Scope, inject: &'static [Act]) -> Self {
        Self {
            name,
            at: At::Objects,
            inject,
            heal: &[],
            allows: Allows::UntilRepaired(scope),
            hinders: Hinders::Nobody,
            needs_daemon: false,
            blocks_pods: false,
        }
    }

    /// A fault that lasts a while and costs no packet.
    pub(super) const fn harmless(
        name: &'static str,
        at: At,
        inject: &'static [Act],
        heal: &'static [Act],
    ) -> Self {
        Self {
            name,
            at,
            inject,
            heal,
            allows: Allows::Nothing,
            hinders: Hinders::Nobody,
            needs_daemon: false,
            blocks_pods: false,
        }
    }

    /// Sets the loss that is allowed.
    pub(super) const fn allowing(self, allows: Allows) -> Self {
        Self { allows, ..self }
    }

    /// Sets whom the fault hinders.
    pub(super) const fn hindering(self, hinders: Hinders) -> Self {
        Self { hinders, ..self }
    }

    /// Sets that only a daemon that runs can recognize it.
    pub(super) const fn needing_the_daemon(self) -> Self {
        Self { needs_daemon: true, ..self }
    }

    /// Sets that new pods may fail to start meanwhile.
    pub(super) const fn blocking_pods(self) -> Self {
        Self { blocks_pods: true, ..self }
    }

    /// Returns whether the daemon alone repairs it.
    pub(super) fn is_repaired(&self) -> bool {
        matches!(self.allows, Allows::UntilRepaired(_))
    }
}
