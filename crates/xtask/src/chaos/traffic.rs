//! Pods ask each other over UDP all the time, in both families. A question without an answer is a loss at the moment it was sent:
//! a machine that is busy delays answers, but loses none.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::place::{Place, Pod};

/// The port of all pods.
const PORT: u16 = 9999;
/// The pause between two questions of each pair.
const INTERVAL: Duration = Duration::from_millis(50);
/// After this time a question counts as lost.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// How often threads look whether the traffic is over.
const LOOK: Duration = Duration::from_millis(200);

/// Who asks whom, by the indices of pods, and in which family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) from: usize,
    pub(super) to: usize,
    /// 0 for IPv4, 1 for IPv6.
    pub(super) family: usize,
}

/// The questions between all pods.
pub(super) struct Traffic {
    ears: Vec<UdpSocket>,
    pairs: Vec<(Pair, SocketAddr)>,
    /// Questions without an answer, by number.
    open: Mutex<BTreeMap<u64, (Pair, Instant)>>,
    answered: Mutex<BTreeMap<Pair, Instant>>,
    sent: AtomicU64,
    over: AtomicBool,
}

impl Traffic {
    /// Opens a socket in each pod.
    pub(super) fn new(place: &Place, pods: &[Pod]) -> Result<Self, String> {
        let mut ears = Vec::new();
        for pod in pods {
            let host = &place.nodes[pod.host].host;
            let ear = host.inside_of(&pod.name, || UdpSocket::bind(("::", PORT)))?;
            let ear = ear.map_err(|error| format!("listen in {}: {error}", pod.name))?;
            ear.set_read_timeout(Some(LOOK)).map_err(|error| error.to_string())?;
            ears.push(ear);
        }
        let mut pairs = Vec::new();
        for from in 0..pods.len() {
            for (to, pod) in pods.iter().enumerate().filter(|(to, _)| *to != from) {
                for (family, address) in pod.addresses.iter().enumerate() {
                    pairs.push((Pair { from, to, family }, SocketAddr::new(as_ipv6(address)?, PORT)));
                }
            }
        }
        Ok(Self {
            ears,
            pairs,
            open: Mutex::default(),
            answered: Mutex::default(),
            sent: AtomicU64::new(0),
            over: AtomicBool::new(false),
        })
    }

    /// Ends all threads.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Returns whether the traffic has ended.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Asks until the traffic is over.
    pub(super) fn ask(&self) {
        while !self.is_over() {
            let began = Instant::now();
            for (pair, to) in &self.pairs {
                let number = self.sent.fetch_add(1, Ordering::Relaxed);
                let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.insert(number, (*pair, Instant::now()));
                drop(open);
                let question = [[0; 8], number.to_be_bytes()].concat();
                // A packet that cannot be sent is a loss as well.
                drop(self.ears[pair.from].send_to(&question, to));
            }
            std::thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
        }
    }

    /// Answers the questions to a pod, and receives the answers to its own, until the traffic is over.
    pub(super) fn hear(&self, pod: usize) {
        while !self.is_over() {
            let mut packet = [0; 16];
            // The timeout, or an ICMP error of an earlier packet.
            let Ok((16, from)) = self.ears[pod].recv_from(&mut packet) else { continue };
            if packet[0] == 0 {
                packet[0] = 1;
                drop(self.ears[pod].send_to(&packet, from));
                continue;
            }
            let number = u64::from_be_bytes(packet[8..].try_into().unwrap_or_default());
            let asked = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            if let Some((pair, at)) = asked {
                let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
                answered.entry(pair).and_modify(|last| *last = at.max(*last)).or_insert(at);
            }
        }
    }

    /// Returns the losses that have not been returned before: the pair, and when the question was sent.
    pub(super) fn losses(&self) -> Vec<(Pair, Instant)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lost = Vec::new();
        open.retain(|_, (pair, at)| {
            let is_lost = at.elapsed() > GRACE;
            if is_lost {
                lost.push((*pair, *at));
            }
            !is_lost
        });
        lost
    }

    /// Returns the pairs without an answer to a question that was sent after a moment.
    pub(super) fn silent_since(&self, moment: Instant) -> Vec<Pair> {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = |pair: &Pair| answered.get(pair).is_none_or(|at| *at < moment);
        self.pairs.iter().map(|(pair, _)| *pair).filter(is_silent).collect()
    }

    /// Returns the number of questions.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Parses an address for a socket of both families.
fn as_ipv6(address: &str) -> Result<IpAddr, String> {
    let address: IpAddr = address.parse().map_err(|_| format!("`{address}` is not an address"))?;
    Ok(match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    })
}
