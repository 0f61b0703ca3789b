//! Probes of other nodes' daemons: a datagram every few seconds, which the peer returns. Over some of the tunnels, two more, one of
//! them without a checksum: if only that one arrives, checksums are computed wrongly on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kernel::offload;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::record::Record;

/// What is known of a node's daemon.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Whether it answered the last probe, or the one before.
    pub(crate) answered: bool,
    /// The round-trip time of the last answer.
    pub(crate) rtt: Option<Duration>,
}

#[derive(Debug)]
struct Probed {
    address: IpAddr,
    sent: Option<(u64, Instant)>,
    seen: Option<Seen>,
    through: Option<Through>,
}

/// What is known of the checksums of packets to a node over a tunnel.
#[derive(Debug)]
struct Through {
    /// The node's own address at the other end.
    address: IpAddr,
    /// The unanswered ones of the last two probes: with a checksum, and without.
    sent: Option<(Option<u64>, Option<u64>)>,
    /// How often in a row only the probe without a checksum was answered.
    wrong: u32,
}

impl Through {
    /// Evaluates the last two probes; returns true as soon as enough of them show wrong checksums.
    fn judge(&mut self) -> bool {
        match self.sent {
            Some((Some(_), None)) => self.wrong += 1,
            Some((None, _)) => self.wrong = 0,
            // Neither arrived.
            Some((Some(_), Some(_))) | None => {}
        }
        self.wrong == WRONG
    }
}

/// The probed nodes.
#[derive(Debug, Clone)]
pub(crate) struct Probes {
    shared: Arc<Mutex<Shared>>,
    /// The round-trip times of all answers, in seconds.
    pub(crate) round_trips: Histogram,
}

/// The state that the probing thread shares.
#[derive(Debug, Default)]
struct Shared {
    by_name: BTreeMap<String, Probed>,
    /// The nodes' addresses, and those at the other ends of tunnels.
    addresses: BTreeSet<IpAddr>,
    through: BTreeSet<IpAddr>,
    /// The nodes to which the probes of the last two rounds were sent, by the probe's number.
    sent: [BTreeMap<u64, String>; 2],
}

impl Shared {
    /// Lists the nodes in the order of their names, from the one that follows a name.
    fn following(&self, name: &str) -> impl Iterator<Item = (&String, &Probed)> {
        let behind = self.by_name.range::<str, _>((Bound::Excluded(name), Bound::Unbounded));
        behind.chain(self.by_name.range::<str, _>((Bound::Unbounded, Bound::Included(name))))
    }
}

const EVERY: Duration = Duration::from_secs(2);
/// The number of nodes probed in one round; the others follow in the next rounds.
const AT_ONCE: usize = 64;
/// The number of tunnels probed: those to the nodes that follow. The network card is the same for all.
const THROUGH: usize = 16;
/// The number of probes in a row after which packet loss is ruled out as the cause.
const WRONG: u32 = 5;
/// The bounds of the counted round-trip times: 100 µs, 200 µs, and so on up to 3.3 s.
const BOUNDS: (f64, f64, u16) = (0.0001, 2.0, 16);
const ASK: &[u8; 8] = b"netloom?";
const ANSWER: &[u8; 8] = b"netloom!";

impl Probes {
    /// Starts to answer and send probes on a UDP port of all addresses. Calls `tell` with a node to which checksums are wrong.
    ///
    /// The first nodes to be probed are those that follow `own`, this node's name: if all began with the same ones, those would be
    /// probed by the whole cluster at once.
    pub(crate) fn start(port: u16, own: String, tell: impl Fn(String) + Send + 'static) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        // If this fails, the kernel drops IPv6 datagrams without a checksum, and no fault is detected.
        drop(offload::hear_unchecked(&socket));
        let (first, factor, number) = BOUNDS;
        let round_trips = Histogram::new(exponential_buckets(first, factor, number));
        let probes = Self { shared: Arc::default(), round_trips };
        let shared = probes.clone();
        std::thread::spawn(move || shared.run(&socket, port, &own, &tell));
        Ok(probes)
    }

    /// Sets the nodes to probe, each with its own address at the other end of its tunnel.
    pub(crate) fn set<'a>(&self, nodes: impl Iterator<Item = (&'a Record, Option<IpAddr>)>) {
        let nodes: BTreeMap<&str, (IpAddr, Option<IpAddr>)> = nodes
            .filter_map(|(node, through)| Some((node.name.as_str(), (*node.addresses.first()?, through))))
            .collect();
        let mut shared = self.lock();
        shared.addresses = nodes.values().map(|(address, _)| *address).collect();
        shared.through = nodes.values().filter_map(|(_, through)| *through).collect();
        let probed = &mut shared.by_name;
        probed.retain(|name, probed| {
            let through = probed.through.as_ref().map(|it| it.address);
            nodes.get(name.as_str()) == Some(&(probed.address, through))
        });
        for (name, (address, through)) in nodes {
            if !probed.contains_key(name) {
                let through = through.map(|address| Through { address, sent: None, wrong: 0 });
                probed.insert(name.to_owned(), Probed { address, sent: None, seen: None, through });
            }
        }
    }

    /// Returns the time in which a number of nodes are probed once.
    pub(crate) fn round(nodes: usize) -> Duration {
        EVERY.saturating_mul(u32::try_from(nodes.div_ceil(AT_ONCE)).unwrap_or(u32::MAX))
    }

    /// Returns what is known of a node's daemon, or `None` until it was probed.
    pub(crate) fn seen(&self, name: &str) -> Option<Seen> {
        self.lock().by_name.get(name)?.seen
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, socket: &UdpSocket, port: u16, own: &str, tell: &impl Fn(String)) {
        let mut next = Instant::now();
        let (mut number, mut from) = (0_u64, own.to_owned());
        loop {
            let now = Instant::now();
            if now >= next {
                next = now + EVERY;
                let shared = &mut *self.lock();
                shared.sent.swap(0, 1);
                shared.sent[0].clear();
                from = probe_nodes(shared, socket, port, &from, &mut number);
                probe_tunnels(shared, socket, port, own, &mut number, tell);
            }
            let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            drop(socket.set_read_timeout(Some(wait)));
            let mut datagram = [0; 64];
            let Ok((16, sender)) = socket.recv_from(&mut datagram) else { continue };
            let (what, nonce) = datagram[..16].split_at(8);
            // The sender's may be an IPv4-mapped IPv6 address.
            let ip = sender.ip().to_canonical();
            if what == ASK {
                // The answer is as short as the question and goes only to known nodes: it cannot amplify an attack.
                let answer = [&ANSWER[..], nonce].concat();
                let shared = self.lock();
                if shared.addresses.contains(&ip) {
                    drop(socket.send_to(&answer, sender));
                } else if shared.through.contains(&ip) {
                    // The question is about the sender's checksums, not this host's.
                    send_unchecked(socket, &answer, sender);
                }
            } else if what == ANSWER {
                self.answered(u64::from_be_bytes(nonce.try_into().unwrap_or_default()), ip);
            }
        }
    }

    fn answered(&self, number: u64, from: IpAddr) {
        let shared = &mut *self.lock();
        let name = shared.sent.iter().find_map(|sent| sent.get(&number));
        let Some(probed) = name.and_then(|name| shared.by_name.get_mut(name)) else { return };
        if probed.address == from
            && let Some((_, at)) = probed.sent.take_if(|(sent, _)| *sent == number)
        {
            let rtt = at.elapsed();
            self.round_trips.observe(rtt.as_secs_f64());
            probed.seen = Some(Seen { answered: true, rtt: Some(rtt) });
        }
        if let Some(through) = probed.through.as_mut().filter(|through| through.address == from)
            && let Some((with, without)) = &mut through.sent
        {
            with.take_if(|sent| *sent == number);
            without.take_if(|sent| *sent == number);
        }
    }
}

/// Probes the nodes that follow a name; returns the last one probed.
fn probe_nodes(shared: &mut Shared, socket: &UdpSocket, port: u16, behind: &str, number: &mut u64) -> String {
    let names: Vec<String> = shared.following(behind).take(AT_ONCE).map(|(name, _)| name.clone()).collect();
    let last = names.last().map_or(behind, |name| name).to_owned();
    for name in names {
        let Some(probed) = shared.by_name.get_mut(&name) else { continue };
        if probed.sent.is_some() {
            // The previous probe was not answered in time.
            probed.seen = Some(Seen::default());
        }
        *number += 1;
        probed.sent = Some((*number, Instant::now()));
        drop(socket.send_to(&question(*number), address_for(socket, probed.address, port)));
        shared.sent[0].insert(*number, name);
    }
    last
}

/// Probes over the tunnels to the nodes that follow this one, with and without a checksum.
fn probe_tunnels(
    shared: &mut Shared,
    socket: &UdpSocket,
    port: u16,
    own: &str,
    number: &mut u64,
    tell: &impl Fn(String),
) {
    let tunnelled = shared.following(own).filter(|(_, probed)| probed.through.is_some()).take(THROUGH);
    let names: Vec<String> = tunnelled.map(|(name, _)| name.clone()).collect();
    for name in names {
        let Some(through) = shared.by_name.get_mut(&name).and_then(|probed| probed.through.as_mut()) else {
            continue;
        };
        if through.judge() {
            tell(name.clone());
        }
        *number += 2;
        through.sent = Some((Some(*number - 1), Some(*number)));
        let to = address_for(socket, through.address, port);
        drop(socket.send_to(&question(*number - 1), to));
        send_unchecked(socket, &question(*number), to);
        shared.sent[0].extend([(*number - 1, name.clone()), (*number, name)]);
    }
}

fn question(number: u64) -> Vec<u8> {
    [&ASK[..], &number.to_be_bytes()].concat()
}

/// Returns an address in the form that the dual-stack socket needs.
fn address_for(socket: &UdpSocket, ip: IpAddr, port: u16) -> SocketAddr {
    let ip = match ip {
        IpAddr::V4(ip) if socket.local_addr().is_ok_and(|own| own.is_ipv6()) => ip.to_ipv6_mapped().into(),
        other => other,
    };
    SocketAddr::new(ip, port)
}

fn send_unchecked(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) {
    if offload::send_unchecked(socket, true).is_ok() {
        drop(socket.send_to(datagram, to));
    }
    drop(offload::send_unchecked(socket, false));
}
