//! Asking other nodes' daemons whether they are there: a datagram that is sent back, every few seconds. And by some of the
//! tunnels two more, one of them without a checksum: if that one arrives alone, checksums come out wrong on the way.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kernel::offload;

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
    through: Option<Through>,
}

/// What is known of the checksums of packets that go to a node through a tunnel.
#[derive(Debug)]
struct Through {
    /// The node's own address there.
    address: IpAddr,
    /// The last questions, with a checksum and without, as long as they are not answered.
    sent: Option<(Option<u64>, Option<u64>)>,
    /// So often in a row the one without was answered, and the one with a checksum was not.
    wrong: u32,
}

impl Through {
    /// Judges by what has been answered; tells whether that is enough to say that checksums are wrong.
    fn judge(&mut self) -> bool {
        match self.sent {
            Some((Some(_), None)) => self.wrong += 1,
            Some((None, _)) => self.wrong = 0,
            // Nothing comes through at all.
            Some((Some(_), Some(_))) | None => {}
        }
        self.wrong == WRONG
    }
}

/// The nodes that are asked, by name.
#[derive(Debug, Clone)]
pub(crate) struct Probes(Arc<Mutex<BTreeMap<String, Probed>>>);

const EVERY: Duration = Duration::from_secs(2);
/// As many are asked in one round, the others in the next ones.
const AT_ONCE: usize = 64;
/// Through the tunnels of as many is asked: a card is the same for all.
const THROUGH: usize = 16;
/// A datagram may be lost; as many in a row are not, while those without a checksum arrive.
const WRONG: u32 = 5;
const ASK: &[u8; 8] = b"netloom?";
const ANSWER: &[u8; 8] = b"netloom!";

impl Probes {
    /// Answers and asks from now on, at a UDP port of all addresses; tells of a node to which checksums come out wrong.
    pub(crate) fn start(port: u16, tell: impl Fn(String) + Send + 'static) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        // Without it what comes in IPv6 without a checksum is lost, and nothing is found out by that.
        drop(offload::hear_unchecked(&socket));
        let probes = Self(Arc::default());
        let shared = probes.clone();
        std::thread::spawn(move || shared.go_on(&socket, port, &tell));
        Ok(probes)
    }

    /// Says which nodes there are, and their own addresses behind their tunnels.
    pub(crate) fn set<'a>(&self, nodes: impl Iterator<Item = (&'a Record, Option<IpAddr>)>) {
        let mut probed = self.lock();
        let nodes: BTreeMap<&str, (IpAddr, Option<IpAddr>)> = nodes
            .filter_map(|(node, through)| Some((node.name.as_str(), (*node.addresses.first()?, through))))
            .collect();
        probed.retain(|name, probed| {
            let through = probed.through.as_ref().map(|it| it.address);
            nodes.get(name.as_str()) == Some(&(probed.address, through))
        });
        for (name, (address, through)) in nodes {
            let through = through.map(|address| Through { address, sent: None, wrong: 0 });
            probed.entry(name.to_owned()).or_insert(Probed { address, sent: None, seen: None, through });
        }
    }

    /// Returns what is known of a node's daemon; none until it was asked.
    pub(crate) fn seen(&self, name: &str) -> Option<Seen> {
        self.lock().get(name)?.seen
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Probed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self, socket: &UdpSocket, port: u16, tell: &impl Fn(String)) {
        let mut next = Instant::now();
        let (mut number, mut from) = (0_u64, String::new());
        loop {
            let now = Instant::now();
            if now >= next {
                next = now + EVERY;
                from = self.ask(socket, port, &from, &mut number);
                self.ask_through(socket, port, &mut number, tell);
            }
            let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            drop(socket.set_read_timeout(Some(wait)));
            let mut datagram = [0; 64];
            let Ok((16, sender)) = socket.recv_from(&mut datagram) else { continue };
            let (what, nonce) = datagram[..16].split_at(8);
            if what == ASK {
                // As long as the question, and to nobody but other nodes: nobody is flooded by it.
                let answer = [&ANSWER[..], nonce].concat();
                let probed = self.lock();
                if probed.values().any(|probed| same(probed.address, sender.ip())) {
                    drop(socket.send_to(&answer, sender));
                } else if probed.values().any(|it| it.through_is(sender.ip())) {
                    // What it asks is whether its own checksums are right.
                    send_unchecked(socket, &answer, sender);
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
            probed.sent = Some((*number, Instant::now()));
            drop(socket.send_to(&question(*number), by(socket, probed.address, port)));
            last.clone_from(name);
        }
        last
    }

    /// Asks through tunnels, with a checksum and without.
    fn ask_through(&self, socket: &UdpSocket, port: u16, number: &mut u64, tell: &impl Fn(String)) {
        let mut probed = self.lock();
        let through = probed.iter_mut().filter_map(|(name, it)| Some((name, it.through.as_mut()?)));
        for (name, through) in through.take(THROUGH) {
            if through.judge() {
                tell(name.clone());
            }
            *number += 2;
            through.sent = Some((Some(*number - 1), Some(*number)));
            let to = by(socket, through.address, port);
            drop(socket.send_to(&question(*number - 1), to));
            send_unchecked(socket, &question(*number), to);
        }
    }

    fn heard(&self, number: u64, from: IpAddr) {
        for probed in self.lock().values_mut() {
            if same(probed.address, from)
                && let Some((_, at)) = probed.sent.take_if(|(sent, _)| *sent == number)
            {
                probed.seen = Some(Seen { answered: true, rtt: Some(at.elapsed()) });
            }
            if probed.through_is(from)
                && let Some((with, without)) = probed.through.as_mut().and_then(|it| it.sent.as_mut())
            {
                with.take_if(|sent| *sent == number);
                without.take_if(|sent| *sent == number);
            }
        }
    }
}

impl Probed {
    fn through_is(&self, ip: IpAddr) -> bool {
        self.through.as_ref().is_some_and(|through| same(through.address, ip))
    }
}

fn question(number: u64) -> Vec<u8> {
    [&ASK[..], &number.to_be_bytes()].concat()
}

/// Returns an address as the socket of both families wants it.
fn by(socket: &UdpSocket, ip: IpAddr, port: u16) -> SocketAddr {
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

/// An IPv4 address may come in IPv6's clothes.
fn same(known: IpAddr, from: IpAddr) -> bool {
    known == from.to_canonical()
}
