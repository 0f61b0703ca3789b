//! A cluster changes its configuration node by node while its pods talk. While nodes differ, nothing is lost: only in the moment in
//! which two nodes change their paths to each other.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::lab::{Lab, Plan, Wire};

/// The pause between two questions of a pair.
const INTERVAL: Duration = Duration::from_millis(10);
/// The time after which an answer counts as lost. Nothing on the path keeps a packet that long.
const GRACE: Duration = Duration::from_secs(2);
/// How long a node's change may interrupt a pair: both nodes change their paths to each other when the store tells them. That is some
/// hundredths of a second apart; here all tests share the processors.
const MOMENT: Duration = Duration::from_secs(2);
/// The echo port (RFC 862), which no client gets.
const PORT: u16 = 7;

/// Questions of a pod to another over UDP, in one family.
struct Talk {
    name: String,
    /// When each question was sent, and whether it was answered.
    asked: JoinHandle<Vec<(Instant, bool)>>,
}

/// All pods of different hosts, which talk to each other.
pub(crate) struct Talks {
    over: Arc<AtomicBool>,
    served: Arc<AtomicBool>,
    talks: Vec<Talk>,
    servers: Vec<JoinHandle<()>>,
}

/// A time in which no question of a pair was answered.
#[derive(Debug)]
struct Gap {
    pair: String,
    from: Instant,
    lasts: Duration,
    questions: usize,
}

impl Talks {
    pub(crate) fn start(lab: &Lab, pods: &[(usize, String, Vec<String>)]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicBool::new(true));
        let (mut talks, mut servers) = (Vec::new(), Vec::new());
        for (host, name, _) in pods {
            let socket =
                lab.hosts[*host].inside(Some(name), || testkit::free(|| UdpSocket::bind(("::", PORT))));
            socket.set_read_timeout(Some(INTERVAL)).unwrap();
            let served = Arc::clone(&served);
            servers.push(std::thread::spawn(move || {
                while served.load(Ordering::Relaxed) {
                    let mut question = [0; 4];
                    if let Ok((length, from)) = socket.recv_from(&mut question) {
                        drop(socket.send_to(&question[..length], from));
                    }
                }
            }));
        }
        for (from, name, _) in pods {
            for (_, other, addresses) in pods.iter().filter(|(to, ..)| to != from) {
                for address in addresses {
                    let to = SocketAddr::new(address.parse::<IpAddr>().unwrap(), PORT);
                    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = lab.hosts[*from].inside(Some(name), || UdpSocket::bind(any).unwrap());
                    let over = Arc::clone(&over);
                    let asked = std::thread::spawn(move || ask(&socket, to, &over));
                    talks.push(Talk { name: format!("{name} to {other} at {address}"), asked });
                }
            }
        }
        Self { over, served, talks, servers }
    }

    /// Ends the talks, and returns the gaps in them, the longest first.
    fn end(self) -> (usize, Vec<Gap>) {
        self.over.store(true, Ordering::Relaxed);
        let (mut gaps, mut count): (Vec<Gap>, usize) = (Vec::new(), 0);
        for talk in self.talks {
            let asked = talk.asked.join().unwrap();
            count += asked.len();
            let mut is_open = false;
            for (at, is_answered) in asked {
                if !is_answered && !is_open {
                    gaps.push(Gap { pair: talk.name.clone(), from: at, lasts: INTERVAL, questions: 0 });
                }
                is_open = !is_answered;
                if is_open {
                    let gap = gaps.last_mut().unwrap();
                    gap.questions += 1;
                    gap.lasts = at - gap.from + INTERVAL;
                }
            }
        }
        self.served.store(false, Ordering::Relaxed);
        self.servers.into_iter().for_each(|server| server.join().unwrap());
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.lasts));
        (count, gaps)
    }
}

/// Asks until `over`, and then waits for the last answers.
fn ask(socket: &UdpSocket, to: SocketAddr, over: &AtomicBool) -> Vec<(Instant, bool)> {
    let mut asked: Vec<(Instant, bool)> = Vec::new();
    let hear = |asked: &mut Vec<(Instant, bool)>, until: Instant| {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            socket.set_read_timeout(Some(left)).unwrap();
            let mut answer = [0; 4];
            // The timeout, or an ICMP error of an earlier question.
            if let Ok(4) = socket.recv(&mut answer) {
                asked[u32::from_be_bytes(answer) as usize].1 = true;
            }
        }
    };
    while !over.load(Ordering::Relaxed) {
        let question = u32::try_from(asked.len()).unwrap();
        asked.push((Instant::now(), false));
        // A question that cannot be sent is lost as well.
        drop(socket.send_to(&question.to_be_bytes(), to));
        hear(&mut asked, Instant::now() + INTERVAL);
    }
    let ended = Instant::now();
    while asked.iter().any(|(_, is_answered)| !is_answered) && ended.elapsed() < GRACE {
        hear(&mut asked, Instant::now() + INTERVAL);
    }
    asked
}

/// A change of the configuration, and back.
struct Change {
    name: &'static str,
    /// Flags before and after.
    flags: [&'static [&'static str]; 2],
    wire: Wire,
}

const CHANGES: &[Change] = &[
    Change {
        name: "overlay and auto",
        flags: [&["--mode", "overlay"], &["--mode", "auto"]],
        wire: Wire::Router,
    },
    Change {
        name: "overlay and routing",
        flags: [&["--mode", "overlay"], &["--mode", "routing"]],
        wire: Wire::OneSegment,
    },
    Change {
        name: "auto and routing",
        flags: [&["--mode", "auto"], &["--mode", "routing"]],
        wire: Wire::OneSegment,
    },
    Change { name: "MTU", flags: [&[], &["--mtu", "1300"]], wire: Wire::OneSegment },
    Change { name: "port", flags: [&[], &["--port", "8472"]], wire: Wire::OneSegment },
    Change { name: "VNI", flags: [&[], &["--vni", "77"]], wire: Wire::OneSegment },
    Change { name: "form", flags: [&[], &["--tunnel", "vxlan-gpe"]], wire: Wire::OneSegment },
    Change {
        name: "pods' prefixes",
        flags: [
            &["--pods", "10.244.0.0/24,fd44::/56", "--block4", "28"],
            &["--pods", "10.244.0.0/24,10.245.0.0/24,fd44::/56,fd45::/56", "--block4", "28"],
        ],
        wire: Wire::OneSegment,
    },
];

/// The number of clusters at the same time.
const AT_ONCE: usize = 2;

/// Every change of the configuration, node by node and back, under a strict reverse-path filter and a firewall that drops what it
/// forwards. A pair is interrupted only when one of its nodes changes its path, and shortly.
#[test]
fn a_cluster_changes_node_by_node() {
    if !testkit::is_root() {
        return;
    }
    let only = std::env::var("NETLOOM_CHANGE").unwrap_or_default();
    let changes: Vec<&Change> = CHANGES.iter().filter(|change| change.name.contains(&only)).collect();
    let mut all = Vec::new();
    for some in changes.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                some.iter().map(|change| scope.spawn(|| changes_and_back(change))).collect();
            all.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap()));
        });
    }
    println!("{}", judge(&all));
}

/// Starts a pod on each host; returns the host, the name and the addresses of each.
fn one_pod_each(lab: &Lab) -> Vec<(usize, String, Vec<String>)> {
    let pod = |index: usize| {
        let name = format!("a{index}");
        let addresses = lab.pod(index, &name);
        (index, name, addresses)
    };
    (0..lab.hosts.len()).map(pod).collect()
}

/// Changes all nodes one after the other, and back.
fn changes_and_back(change: &Change) -> Vec<Interruption> {
    let mut lab = Lab::of(Plan { started: 0, wire: change.wire, ..Plan::default() });
    for index in 0..3 {
        lab.start_with(index, change.flags[0]);
    }
    for index in 0..3 {
        lab.wait_for_peers(index, 2);
    }
    let pods = one_pod_each(&lab);
    lab.all_reach_all(&pods);
    let mut all = Vec::new();
    for flags in [change.flags[1], change.flags[0]] {
        for index in 0..3 {
            let what = format!("{}: host{} with {flags:?}", change.name, index + 1);
            all.push(interrupted(&mut lab, &pods, &what, |lab| {
                lab.kill(index);
                lab.start_with(index, flags);
            }));
        }
    }
    lab.all_reach_all(&pods);
    all
}

/// What was lost during a change.
struct Interruption {
    text: String,
    /// Whether anything was lost for longer than a moment, or when all was settled.
    is_broken: bool,
}

/// Asserts that no change broke a promise, and returns what was lost.
fn judge(all: &[Interruption]) -> String {
    let texts = |of: &mut dyn Iterator<Item = &Interruption>| {
        of.map(|it| it.text.as_str()).collect::<Vec<_>>().join("\n")
    };
    let broken = texts(&mut all.iter().filter(|it| it.is_broken));
    assert!(broken.is_empty(), "{broken}");
    texts(&mut all.iter())
}

/// Changes something while all pods talk, and waits until all is settled.
fn interrupted(
    lab: &mut Lab,
    pods: &[(usize, String, Vec<String>)],
    what: &str,
    change: impl FnOnce(&mut Lab),
) -> Interruption {
    let talks = Talks::start(lab, pods);
    let began = Instant::now();
    change(lab);
    for index in 0..3 {
        lab.wait_for_peers(index, 2);
    }
    let settled = Instant::now() + MOMENT / 4;
    // That nothing is lost can only be seen over some time.
    std::thread::sleep(MOMENT / 2);
    let (count, gaps) = talks.end();
    let mut text = format!("{what}: {count} questions");
    for gap in &gaps {
        let _ = write!(
            text,
            "\n    {}: {} lost at {:.2} s for {:.2} s",
            gap.pair,
            gap.questions,
            (gap.from - began).as_secs_f64(),
            gap.lasts.as_secs_f64()
        );
    }
    let is_broken = gaps.iter().any(|gap| gap.lasts > MOMENT || gap.from > settled);
    Interruption { text, is_broken }
}

/// The hosts get addresses of another prefix, one host after the other: the new address comes before the old one goes.
#[test]
fn hosts_change_their_prefix() {
    if !testkit::is_root() {
        return;
    }
    for (mode, wire) in [("overlay", Wire::OneSegment), ("auto", Wire::Router)] {
        let mut lab = Lab::of(Plan {
            mode,
            wire,
            first: "ip addr add 203.0.113.254/24 dev sega; ip -6 addr add 2001:db8:c::fe/64 dev sega nodad",
            ..Plan::default()
        });
        let pods = one_pod_each(&lab);
        lab.all_reach_all(&pods);
        let mut all = Vec::new();
        for index in 0..if wire == Wire::Router { 2 } else { 3 } {
            let number = index + 1;
            for (family, change) in [
                ("IPv6", format!(
                    "ip -6 addr add 2001:db8:c::{number}/64 dev up0 nodad; ip -6 route replace default via 2001:db8:c::fe
                     ip -6 addr del 2001:db8:a::{number}/64 dev up0"
                )),
                ("IPv4", format!(
                    "ip addr add 203.0.113.{number}/24 dev up0; ip route replace default via 203.0.113.254
                     ip addr del 192.0.2.{number}/24 dev up0"
                )),
            ] {
                let what = format!("{mode}: host{number} has another {family} prefix");
                all.push(interrupted(&mut lab, &pods, &what, |lab| drop(lab.hosts[index].sh(&change))));
            }
        }
        println!("{}", judge(&all));
    }
}
