//! All states of three nodes, their network and a full pool: no block is taken from a host that two nodes could have seen alive.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use node::takeover::{Facts, may_take};

/// A step of time. Results of inquiries are valid for three, and a lease lasts for two.
const STEP: Duration = Duration::from_secs(10);
const VALID: u8 = 3;
const LEASE: u8 = 2;
/// Longer silence makes no difference.
const LONG: u8 = 3 * LEASE;

/// The owner of the only block; the node that needs it (0); and a witness (1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct World {
    host_is_dead: bool,
    daemon_is_dead: bool,
    owner_is_cut_off_from_store: bool,
    /// Whether the owner's host is cut off from the needy node and from the witness.
    cut: [bool; 2],
    /// Whether the store does not answer the needy node.
    store_is_lost: bool,
    /// Whether the witness renews its lease.
    witness_is_gone: bool,
    /// Steps since the owner last renewed its lease, as each clock counts them.
    silent: [u8; 2],
    /// The last inquiry of both: its age in steps, and whether anything answered.
    asked: [Option<(u8, bool)>; 2],
    /// Whether the witness has published that nothing answers, and the age of the inquiry that this is from.
    published: Option<u8>,
}

impl World {
    fn answers(&self, asker: usize) -> bool {
        !self.host_is_dead && !self.cut[asker]
    }

    fn facts(&self, asker: usize) -> Facts {
        // The witness is the only other living node for the needy one, and the reverse.
        let (living, witnesses) = match asker {
            0 => (
                usize::from(!self.witness_is_gone),
                usize::from(!self.witness_is_gone && self.published.is_some()),
            ),
            _ => (1, 0),
        };
        Facts {
            connected: asker == 1 || !self.store_is_lost,
            silent: self.silent[asker].checked_sub(LEASE).map(|steps| STEP * u32::from(steps)),
            lease: STEP * u32::from(LEASE),
            answered: self.asked[asker].filter(|(age, _)| *age <= VALID).map(|(_, answered)| answered),
            living,
            witnesses,
        }
    }

    /// Returns all worlds that can follow.
    fn next(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push(world);
        };
        with(&|it| it.host_is_dead = true);
        with(&|it| it.daemon_is_dead = !it.daemon_is_dead);
        with(&|it| it.owner_is_cut_off_from_store = !it.owner_is_cut_off_from_store);
        with(&|it| it.cut[0] = !it.cut[0]);
        with(&|it| it.cut[1] = !it.cut[1]);
        with(&|it| it.store_is_lost = !it.store_is_lost);
        with(&|it| it.witness_is_gone = !it.witness_is_gone);
        for asker in [0, 1] {
            let suspects = node::takeover::is_suspect(&self.facts(asker));
            if suspects && !(asker == 1 && self.witness_is_gone) {
                with(&|it| it.asked[asker] = Some((0, it.answers(asker))));
            }
        }
        // A witness publishes what its last valid inquiry says.
        with(&|it| {
            if !it.witness_is_gone {
                let silent = it.asked[1].filter(|(age, answered)| *age <= VALID && !answered);
                it.published = silent.map(|(age, _)| age);
            }
        });
        // Time passes; the clock of one node may run at half the rate.
        for slow in [None, Some(0), Some(1)] {
            with(&|it| {
                let renews = !it.host_is_dead && !it.daemon_is_dead && !it.owner_is_cut_off_from_store;
                for asker in [0, 1] {
                    it.silent[asker] = match (renews, slow == Some(asker)) {
                        (true, _) => 0,
                        (false, true) => it.silent[asker],
                        (false, false) => (it.silent[asker] + 1).min(LONG),
                    };
                    it.asked[asker] =
                        it.asked[asker].map(|(age, answered)| ((age + 1).min(VALID + 1), answered));
                }
                // A living witness withdraws what is no longer valid.
                it.published = it
                    .published
                    .map(|age| (age + 1).min(VALID + 1))
                    .filter(|age| it.witness_is_gone || *age <= VALID);
            });
        }
        next
    }
}

#[test]
fn no_block_is_taken_from_a_living_host() {
    let mut seen = HashSet::from([World::default()]);
    let mut open = VecDeque::from([World::default()]);
    let mut takeovers = 0;
    while let Some(world) = open.pop_front() {
        if may_take(&world.facts(0)) {
            takeovers += 1;
            // Nothing on the host answered this node a moment ago, nor another living one.
            assert!(matches!(world.asked[0], Some((0..=VALID, false))), "{world:?}");
            assert!(world.witness_is_gone || world.published.is_some(), "{world:?}");
            assert!(world.silent[0] >= 3 * LEASE && !world.store_is_lost, "{world:?}");
        }
        // A host whose daemon is dead, and which answers whenever it is asked, keeps its block.
        for next in world.next() {
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    assert!(takeovers > 0, "a dead node's block is taken");
}

/// While the host answers either node, its block is safe whatever else happens.
#[test]
fn one_answer_is_enough() {
    for asker in [0, 1] {
        let mut seen = HashSet::from([World::default()]);
        let mut open = VecDeque::from([World::default()]);
        while let Some(world) = open.pop_front() {
            assert!(!may_take(&world.facts(0)), "asked by {asker}: {world:?}");
            // The host lives, is never cut off from this node, and the witness does not end.
            let possible = |it: &World| !it.host_is_dead && !it.cut[asker] && !it.witness_is_gone;
            for next in world.next().into_iter().filter(possible) {
                if seen.insert(next.clone()) {
                    open.push_back(next);
                }
            }
        }
    }
}
