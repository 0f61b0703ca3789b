//! What must hold: which loss a fault allows and for how long, who owns which block, and that no address is given twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    act::Target,
    fault::Scope,
    place::{Place, Pod},
    traffic::{Pair, Traffic},
};
use crate::tally::Tally;

/// A packet that was sent this long before a fault may still be under way.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// A time in which pairs may lose packets.
struct Allowance {
    fault: &'static str,
    scope: Scope,
    target: Target,
    from: Instant,
    /// `None` while it lasts.
    until: Option<Instant>,
}

impl Allowance {
    fn covers(&self, from: &Pod, to: &Pod, at: Instant) -> bool {
        let (one, two) = (from.host, to.host);
        let is_end = |host| one == host || two == host;
        let in_scope = match self.scope {
            Scope::Host => is_end(self.target.host),
            Scope::Crossing => is_end(self.target.host) && one != two,
            Scope::Between => is_end(self.target.host) && is_end(self.target.other) && one != two,
        };
        in_scope && at + UNDER_WAY >= self.from && self.until.is_none_or(|until| at <= until)
    }
}

/// The promises, and what came of them.
pub(super) struct Oracle {
    started: Instant,
    allowances: Mutex<Vec<Allowance>>,
    /// The pod that has each address.
    given: Mutex<BTreeMap<String, String>>,
    /// The blocks as they were at the beginning: owner and revisions.
    blocks: BTreeMap<String, String>,
    /// The time to repair, by kind.
    repairs: Mutex<BTreeMap<&'static str, Vec<Duration>>>,
    /// The longest time from the beginning of a fault to the last packet that was lost, by kind.
    outages: Mutex<BTreeMap<&'static str, Duration>>,
    pub(super) tally: Tally,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Oracle {
    /// Remembers who owns which block.
    pub(super) fn new(place: &Place, pods: &[Pod]) -> Result<Self, String> {
        let oracle = Self {
            started: Instant::now(),
            allowances: Mutex::default(),
            given: Mutex::default(),
            blocks: place.blocks().ok_or("the store does not list blocks")?,
            repairs: Mutex::default(),
            outages: Mutex::default(),
            tally: Tally::default(),
        };
        for pod in pods {
            oracle.give(pod);
        }
        Ok(oracle)
    }

    /// Returns the seconds since the beginning.
    pub(super) fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.started).as_secs_f64()
    }

    /// Reports a broken promise with the time.
    pub(super) fn violation(&self, what: &str) {
        self.tally.violation(&format!("{:.1} s: {what}", self.seconds(Instant::now())));
    }

    /// Allows loss from now on. Returns the number of the allowance.
    pub(super) fn allow(&self, fault: &'static str, scope: Scope, target: Target) -> usize {
        let mut allowances = lock(&self.allowances);
        allowances.push(Allowance { fault, scope, target, from: Instant::now(), until: None });
        allowances.len() - 1
    }

    /// Ends an allowance.
    pub(super) fn disallow(&self, number: usize, after: Duration) {
        if let Some(allowance) = lock(&self.allowances).get_mut(number) {
            allowance.until.get_or_insert(Instant::now() + after);
        }
    }

    /// Remembers how long a repair took.
    pub(super) fn repaired(&self, fault: &'static str, took: Duration) {
        lock(&self.repairs).entry(fault).or_default().push(took);
    }

    /// Judges the losses that the traffic has counted so far.
    pub(super) fn judge(&self, traffic: &Traffic, pods: &[Pod]) {
        let allowances = lock(&self.allowances);
        let mut outages = lock(&self.outages);
        let mut forbidden: BTreeMap<(usize, usize, usize), Vec<(Pair, Instant)>> = BTreeMap::new();
        for (pair, at) in traffic.losses() {
            let (from, to) = (&pods[pair.from], &pods[pair.to]);
            match allowances.iter().rev().find(|allowance| allowance.covers(from, to, at)) {
                Some(allowance) => {
                    self.tally.count(&format!("packets lost, allowed: {}", allowance.fault));
                    let outage = outages.entry(allowance.fault).or_default();
                    *outage = (*outage).max(at.saturating_duration_since(allowance.from));
                }
                None => forbidden.entry((from.host, to.host, pair.family)).or_default().push((pair, at)),
            }
        }
        for ((from, to, family), losses) in forbidden {
            let times: Vec<f64> = losses.iter().map(|(_, at)| self.seconds(*at)).collect();
            let (first, last) =
                (times.iter().copied().fold(f64::MAX, f64::min), times.iter().copied().fold(0.0, f64::max));
            let pairs: BTreeSet<String> = losses
                .iter()
                .map(|(pair, _)| format!("{} to {}", pods[pair.from].name, pods[pair.to].name))
                .collect();
            self.violation(&format!(
                "host{} to host{}, {}: {} packets lost, sent at {first:.2} to {last:.2} s ({})",
                from + 1,
                to + 1,
                ["IPv4", "IPv6"][family],
                losses.len(),
                pairs.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
    }

    /// Remembers the addresses of a new pod. They must belong to its host, and to no other pod.
    pub(super) fn give(&self, pod: &Pod) {
        let owner = format!("host{}", pod.host + 1);
        for address in &pod.addresses {
            if let Some(other) = lock(&self.given).insert(address.clone(), pod.name.clone()) {
                self.violation(&format!("{address} was given to {other} and to {}", pod.name));
            }
            let is_owned = self.blocks.iter().any(|(block, text)| {
                text.split(' ').next() == Some(&owner) && contains(block, address).unwrap_or(false)
            });
            if !is_owned {
                self.violation(&format!("{} has {address}, which is in no block of {owner}", pod.name));
            }
        }
    }

    /// Forgets the addresses of a pod whose DEL begins.
    pub(super) fn take(&self, pod: &Pod) {
        lock(&self.given).retain(|_, name| *name != pod.name);
    }

    /// Checks that each block has its owner, and had no other meanwhile: the key's revisions are the same.
    pub(super) fn check_blocks(&self, place: &Place) {
        let Some(now) = place.blocks() else {
            self.tally.count("looks at the blocks that the store did not answer");
            return;
        };
        self.tally.count("looks at the blocks");
        if now != self.blocks {
            self.violation(&format!(
                "the blocks were {:?} and are {now:?} (owner, revision, version)",
                self.blocks
            ));
        }
    }

    /// Prints figures, and the time to repair by kind.
    pub(super) fn print(&self) {
        self.tally.print();
        for (fault, outage) in lock(&self.outages).iter() {
            crate::say(&format!("{:>6.2} s  until the last loss: {fault}", outage.as_secs_f64()));
        }
        let mut all = Vec::new();
        for (fault, times) in lock(&self.repairs).iter_mut() {
            times.sort_unstable();
            all.extend(times.iter().copied());
            let slowest = times[times.len() - 1].as_secs_f64();
            crate::say(&format!("{slowest:>6.2} s  slowest of {} repairs: {fault}", times.len()));
        }
        all.sort_unstable();
        if let [first, .., last] = all[..] {
            let mut text =
                format!("{} repairs: {:.2} to {:.2} s", all.len(), first.as_secs_f64(), last.as_secs_f64());
            let _ = write!(text, ", median {:.2} s", all[all.len() / 2].as_secs_f64());
            crate::say(&text);
        }
    }
}

/// Returns whether a block, as its key in the store names it, contains an address.
fn contains(block: &str, address: &str) -> Option<bool> {
    let (net, length) = block.rsplit_once('-')?;
    let (net, address): (IpAddr, IpAddr) = (net.parse().ok()?, address.parse().ok()?);
    let length: u32 = length.parse().ok()?;
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
        IpAddr::V6(v6) => (v6.to_bits(), false),
    };
    let ((net, one), (address, two)) = (bits(net), bits(address));
    Some(one == two && (net ^ address).checked_shr(128 - length).unwrap_or(0) == 0)
}

#[cfg(test)]
mod tests {
    use super::contains;

    /// Blocks contain their own addresses of their own family only.
    #[test]
    fn blocks_contain_addresses() {
        assert_eq!(contains("10.244.3.0-24", "10.244.3.9"), Some(true));
        assert_eq!(contains("10.244.3.0-24", "10.244.4.9"), Some(false));
        assert_eq!(contains("fd44:0:0:7::-64", "fd44:0:0:7::9"), Some(true));
        assert_eq!(contains("fd44:0:0:7::-64", "10.244.3.9"), Some(false));
    }
}
