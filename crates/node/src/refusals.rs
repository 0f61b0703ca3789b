//! Changes for peers that the kernel refused. A bad record must not keep the node from being ready, and must not be tried over and over.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use kernel::{Kind, link::Mac, neigh, route};

/// The pause before the same change is tried again. The kernel may accept it by then: the reason can be another object.
const PAUSE: Duration = Duration::from_mins(1);

/// The object of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    /// The route to a block.
    Route(IpNet),
    /// An entry of a tunnel for the host with a hardware address, by the tunnel's link.
    Remote(u32, Mac),
}

/// A change of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Route(route::Fate),
    Remote(neigh::Fate),
}

#[derive(Debug)]
struct Refusal {
    change: Change,
    at: Instant,
    text: String,
}

/// The refused changes by object.
#[derive(Debug, Default)]
pub(crate) struct Refusals(BTreeMap<Object, Refusal>);

impl Refusals {
    /// Returns whether the change was refused a short time ago.
    pub(crate) fn is_paused(&self, object: Object, change: Change) -> bool {
        self.0.get(&object).is_some_and(|it| it.change == change && it.at.elapsed() < PAUSE)
    }

    /// Records a refusal.
    pub(crate) fn note(&mut self, object: Object, change: Change, error: &kernel::Error) {
        let text = match (change, error.kind()) {
            (Change::Route(route::Fate::Add(route)), Kind::Exists) => format!(
                "a route to {} that another program set is in the way: remove it with `ip route del {}`, or take {} out of `pods`",
                route.dst, route.dst, route.dst
            ),
            _ => error.to_string(),
        };
        self.0.insert(object, Refusal { change, at: Instant::now(), text });
    }

    /// Forgets all: every change is tried again at once.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets the objects that have no pending change any more.
    pub(crate) fn retain(&mut self, is_pending: impl Fn(&Object) -> bool) {
        self.0.retain(|object, _| is_pending(object));
    }

    /// Returns whether no change is refused.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the refused objects with the reasons.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Object, &str)> {
        self.0.iter().map(|(object, refusal)| (*object, refusal.text.as_str()))
    }
}
