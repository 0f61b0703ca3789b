//! Asking other nodes' daemons whether they are there: a datagram that is sent back, every few seconds.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::record::Record;

/// What is known of a node's daemon.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// It answered the last probe but one, or the last.
    pub(crate) answered: bool,
    /// How long the last answer took.
    pub(crate) rtt: Option<Duration>,
}

#[derive(Debug)]
struct Probed {
    address: IpAddr,
    sent: Option<(u64, Instant)>,
    seen: Option<Seen>,
}

/// The nodes that are asked, by name.
#[derive(Debug, Clone)]
pub(crate) struct Probes(Arc<Mutex<BTreeMap<String, Probed>>>);

const EVERY: Duration = Duration::from_secs(2);
/// As many are asked in one round, the others in the next ones.
const AT_ONCE: usize = 64;
const ASK: &[u8; 8] = b"netloom?";
const ANSWER: &[u8; 8] = b"netloom!";

impl Probes {
    /// Answers and asks from now on, at a UDP port of all addresses.
    pub(crate) fn start(port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        let probes = Self(Arc::default());
        let shared = probes.clone();
        std::thread::spawn(move || shared.go_on(&socket, port));
        Ok(probes)
    }

    /// Says which nodes there are.
    pub(crate) fn set<'a>(&self, nodes: impl Iterator<Item = &'a Record>) {
        let mut probed = self.lock();
        let nodes: BTreeMap<&str, IpAddr> =
            nodes.filter_map(|node| Some((node.name.as_str(), *node.addresses.first()?))).collect();
        probed.retain(|name, probed| nodes.get(name.as_str()) == Some(&probed.address));
        for (name, address) in nodes {
            probed.entry(name.to_owned()).or_insert(Probed { address, sent: None, seen: None });
        }
    }

    /// Gives what is known of a node's daemon; none until it was asked.
    pub(crate) fn seen(&self, name: &str) -> Option<Seen> {
        self.lock().get(name)?.seen
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Probed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self, socket: &UdpSocket, port: u16) {
        let mut next = Instant::now();
        let (mut number, mut from) = (0_u64, String::new());
        loop {
            let now = Instant::now();
            if now >= next {
                next = now + EVERY;
                from = self.ask(socket, port, &from, &mut number);
            }
            let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            drop(socket.set_read_timeout(Some(wait)));
            let mut datagram = [0; 64];
            let Ok((16, sender)) = socket.recv_from(&mut datagram) else { continue };
            let (what, nonce) = datagram[..16].split_at(8);
            if what == ASK {
                // As long as the question, and to nobody but other nodes: nobody is flooded by it.
                if self.lock().values().any(|probed| same(probed.address, sender.ip())) {
                    drop(socket.send_to(&[&ANSWER[..], nonce].concat(), sender));
                }
            } else if what == ANSWER {
                self.heard(u64::from_be_bytes(nonce.try_into().unwrap_or_default()), sender.ip());
            }
        }
    }

    /// Asks the next ones behind a name; gives the last that was asked.
    fn ask(&self, socket: &UdpSocket, port: u16, behind: &str, number: &mut u64) -> String {
        let mut probed = self.lock();
        let names: Vec<String> = probed.keys().cloned().collect();
        let start = names.iter().position(|name| name.as_str() > behind).unwrap_or(0);
        let mut last = behind.to_owned();
        for name in names.iter().cycle().skip(start).take(names.len().min(AT_ONCE)) {
            let Some(probed) = probed.get_mut(name) else { continue };
            if probed.sent.is_some() {
                // The last one was not answered in time.
                probed.seen = Some(Seen::default());
            }
            *number += 1;
            let to = match probed.address {
                // By the socket of both families.
                IpAddr::V4(ip) if socket.local_addr().is_ok_and(|own| own.is_ipv6()) => {
                    ip.to_ipv6_mapped().into()
                }
                other => other,
            };
            probed.sent = Some((*number, Instant::now()));
            drop(socket.send_to(&[&ASK[..], &number.to_be_bytes()].concat(), SocketAddr::new(to, port)));
            last.clone_from(name);
        }
        last
    }

    fn heard(&self, number: u64, from: IpAddr) {
        let mut probed = self.lock();
        let asked = probed.values_mut().find(|it| it.sent.is_some_and(|(sent, _)| sent == number));
        if let Some(probed) = asked.filter(|probed| same(probed.address, from))
            && let Some((_, at)) = probed.sent.take()
        {
            probed.seen = Some(Seen { answered: true, rtt: Some(at.elapsed()) });
        }
    }
}

/// An IPv4 address may come in IPv6's clothes.
fn same(known: IpAddr, from: IpAddr) -> bool {
    known == from.to_canonical()
}
