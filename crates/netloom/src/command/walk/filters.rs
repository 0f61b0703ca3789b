//! Which rule drops a probe: nftables' trace of it, and the counters of iptables-legacy before and after it.
//!
//! The trace needs a table whose rules mark the probe's packets. The kernel removes it when this process closes its socket, also if
//! the process is killed.

use std::{collections::BTreeMap, fs, net::IpAddr, time::Duration};

use kernel::{
    Protocol, Socket,
    events::Events,
    neigh,
    nft::{self, Batch, Expr, Family, Hook, Place as At, Reg, Table, trace::Verdict},
    xtables::{self, Target},
};

use super::{
    super::Outcome,
    capture::addresses,
    cause::{self, Cause},
    inside,
    path::Path,
    place::{Place, Side},
    shot::{Kind, Reply, Shot},
};

/// What a probe that was watched shows.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) reply: Reply,
    /// The rule that drops it.
    pub(crate) dropped: Option<Cause>,
    /// Whether the packet came to the host's IP layer; `None` if the kernel does not trace.
    pub(crate) at_host: Option<bool>,
    /// Whether an answer came to the host's IP layer.
    pub(crate) answer_at_host: bool,
    /// Whether the packet came to the target's IP layer.
    pub(crate) at_target: bool,
    /// Another address to which a rule translated the destination, and the rule.
    pub(crate) diverted: Option<(IpAddr, String)>,
    /// The namespace whose reverse path filtering dropped packets meanwhile.
    pub(crate) reverse_path: Option<In<'a>>,
}

/// A namespace on the path.
#[derive(Debug, Clone, Copy)]
pub(crate) enum In<'a> {
    Host,
    Container(&'a Place),
}

/// How often the probe is sent.
const SHOTS: u64 = 2;
/// Time limit for the answer to each.
const PATIENCE: Duration = Duration::from_millis(80);
/// Time limit for the kernel to announce the verdicts of packets that it has handled.
const ANNOUNCED: Duration = Duration::from_millis(15);

/// Sends the probe again, and watches it in every namespace on its path.
pub(crate) fn watch<'a>(path: &Path<'a>, shot: &Shot) -> Outcome<Evidence<'a>> {
    let mut watches = Vec::new();
    for place in [path.from, path.target].into_iter().flatten() {
        if !watches.iter().any(|it: &Watch<'a>| it.place.is_some_and(|it| std::ptr::eq(it, place))) {
            watches.push(Watch::open(&place.side, Some(place), path, shot)?);
        }
    }
    watches.push(Watch::open(path.host, None, path, shot)?);
    if let Some(place) = path.from {
        ask_again(path, place)?;
    }
    let mut evidence = Evidence {
        reply: Reply::Lost(None),
        dropped: None,
        at_host: None,
        answer_at_host: false,
        at_target: false,
        diverted: None,
        reverse_path: None,
    };
    for _ in 0..SHOTS {
        evidence.reply = path.netns().run(|| shot.fire(path.netns(), PATIENCE))??;
        for watch in &watches {
            watch.report(path, &mut evidence)?;
        }
        if evidence.reply == Reply::Answered || evidence.dropped.is_some() {
            break;
        }
    }
    Ok(evidence)
}

/// Forgets an unanswered request for the next hop's hardware address: the kernel repeats it only after a second.
fn ask_again(path: &Path<'_>, place: &Place) -> Outcome {
    let (Some(link), Some(hop)) = (&place.link, inside::next_hop(path, place)) else { return Ok(()) };
    let known = neigh::list(&place.side.socket, link, hop)?;
    if known.iter().any(|it| it.ip == hop && it.mac.is_none()) {
        drop(neigh::change_all(&place.side.socket, &[neigh::Fate::NoNeighbour(link.index, hop)]));
    }
    Ok(())
}

/// One namespace on the path.
struct Watch<'a> {
    side: &'a Side,
    place: Option<&'a Place>,
    trace: Option<(Events, Socket)>,
    table: String,
    legacy: BTreeMap<Counted, u64>,
    reverse: u64,
}

/// A rule of iptables-legacy that drops: its family, table, chain, and number (0 for the policy).
type Counted = (bool, &'static str, String, usize);

impl<'a> Watch<'a> {
    fn open(side: &'a Side, place: Option<&'a Place>, path: &Path<'_>, shot: &Shot) -> Outcome<Self> {
        let table = format!("netloom-why-{}", std::process::id());
        let trace = side.netns.run(|| {
            let events = Events::of_traces().ok()?;
            let socket = Socket::open(Protocol::Netfilter).ok()?;
            // A kernel that cannot trace leaves the counters and the comparison of the stations.
            nft::commit(&socket, tracing(&table, path, shot), None).ok()?;
            Some((events, socket))
        })?;
        let (legacy, reverse) = side.netns.run(|| (counters(path), reverse_path_drops()))?;
        Ok(Self { side, place, trace, table, legacy, reverse })
    }

    fn name(&self) -> String {
        self.place.map_or_else(|| "the host".to_owned(), |place| format!("container `{}`", place.name))
    }

    fn report(&self, path: &Path<'_>, evidence: &mut Evidence<'a>) -> Outcome {
        let mut header = None;
        let mut found: Option<(Verdict, bool)> = None;
        let (mut arrived, mut answered, mut translation) = (false, false, None);
        if let Some((events, _)) = &self.trace {
            nft::trace::wait(events, ANNOUNCED, |verdict| {
                if !verdict.network.is_empty() {
                    header = addresses(&verdict.network);
                }
                // Requests for hardware addresses have no IP header.
                let (from, to) = header.unwrap_or((path.to, path.to));
                let end = path.end();
                let is_answer = from == end && to != end || from == path.to && to != path.to && to != end;
                let counts = header.is_some() && !to.is_multicast();
                answered |= counts && is_answer;
                arrived |= counts && !is_answer;
                if verdict.table == self.table {
                    return false;
                }
                if verdict.rule.is_some() && !verdict.drops && !is_answer && to == path.to {
                    translation = Some(describe_rule(&verdict));
                }
                let is_diverted = !is_answer && ![path.to, end].contains(&to) && !to.is_multicast();
                if is_diverted && path.published.is_some() && self.place.is_none() {
                    evidence.diverted = Some((to, translation.clone().unwrap_or_default()));
                }
                if verdict.drops && found.is_none() {
                    found = Some((verdict, is_answer));
                }
                false
            })?;
        }
        match self.place {
            None if self.trace.is_some() => {
                evidence.at_host = Some(arrived || evidence.at_host == Some(true));
                evidence.answer_at_host |= answered;
            }
            Some(place) if path.target.is_some_and(|it| std::ptr::eq(it, place)) => {
                evidence.at_target |= arrived
            }
            _ => {}
        }
        let after = self.side.netns.run(|| (counters(path), reverse_path_drops()))?;
        if evidence.reply == Reply::Answered {
            return Ok(());
        }
        if let Some((verdict, is_answer)) = found
            && evidence.dropped.is_none()
        {
            evidence.dropped = Some(self.nft_cause(path, &verdict, is_answer));
        }
        let risen = after.0.into_iter().find(|(rule, count)| {
            count.saturating_sub(self.legacy.get(rule).copied().unwrap_or(*count)) >= SHOTS
        });
        if let Some((rule, _)) = risen
            && evidence.dropped.is_none()
        {
            evidence.dropped = Some(self.legacy_cause(path, &rule));
        }
        if after.1 >= self.reverse + SHOTS {
            evidence.reverse_path.get_or_insert(self.place.map_or(In::Host, In::Container));
        }
        Ok(())
    }

    fn nft_cause(&self, path: &Path<'_>, verdict: &Verdict, is_answer: bool) -> Cause {
        let family = verdict.family.map_or("", Family::as_str);
        let Verdict { table, chain, .. } = verdict;
        let what = if is_answer { "the answer" } else { "the packet" };
        let comment = self.comment(verdict);
        let sentence = format!("on {}, {}{comment} drops {what}", self.name(), describe_rule(verdict));
        let (address, side) = Self::address(path, is_answer);
        if table == "netloom" && verdict.family == Some(Family::Bridge) {
            return Cause::new(
                format!(
                    "{sentence}: the container sends from another hardware or IP address than ADD gave it"
                ),
                "give the interface its addresses back, or remove `macspoofchk` and `ipspoofchk` from the network",
            );
        }
        let is_iptables = is_of_iptables(verdict);
        let command = if is_iptables {
            let program = if family == "ip" { "iptables" } else { "ip6tables" };
            format!(
                "{program} -t {table} -I {chain} {} {address} -j ACCEPT",
                if side == "saddr" { "-s" } else { "-d" }
            )
        } else {
            let protocol = if address.is_ipv4() { "ip" } else { "ip6" };
            format!("nft insert rule {family} {table} {chain} {protocol} {side} {address} accept")
        };
        self.remedy(sentence, path, &command)
    }

    fn remedy(&self, sentence: String, path: &Path<'_>, command: &str) -> Cause {
        if let Some(place) = self.place {
            let remedy = format!("let it through: {}", place.inside(command));
            return Cause::new(sentence, remedy).of(cause::Kind::ContainerRule);
        }
        let list = path.from.or(path.target).and_then(|place| place.list.as_ref());
        let lacks_firewall =
            list.filter(|list| !list.plugins.iter().any(|plugin| plugin.kind() == "firewall"));
        let lasting = lacks_firewall.map_or_else(String::new, |list| {
            format!("; to let all containers through, add the plugin `firewall` to network `{}`", list.name)
        });
        Cause::new(sentence, format!("let it through: `{command}`{lasting}")).of(cause::Kind::HostRule)
    }

    /// Returns the container's address that a rule for this packet can name, and the side of the packet on which it is.
    fn address(path: &Path<'_>, is_answer: bool) -> (IpAddr, &'static str) {
        match (path.from, is_answer) {
            (Some(place), false) => (path.source.or(place.address_for(path.to)).unwrap_or(path.to), "saddr"),
            (Some(place), true) => (path.source.or(place.address_for(path.to)).unwrap_or(path.to), "daddr"),
            (None, false) => (path.end(), "daddr"),
            (None, true) => (path.end(), "saddr"),
        }
    }

    /// The comment of the rule in brackets.
    fn comment(&self, verdict: &Verdict) -> String {
        let (Some((_, socket)), Some(family), Some(handle)) = (&self.trace, verdict.family, verdict.rule)
        else {
            return String::new();
        };
        let rules =
            nft::rules(socket, Table { family, name: &verdict.table }, &verdict.chain).unwrap_or_default();
        let comment = rules.into_iter().find(|rule| rule.handle == handle).and_then(|rule| rule.comment);
        comment.map(|comment| format!(" (\"{comment}\")")).unwrap_or_default()
    }

    fn legacy_cause(&self, path: &Path<'_>, (v4, table, chain, number): &Counted) -> Cause {
        let program = if *v4 { "iptables" } else { "ip6tables" };
        let rule = if *number == 0 { "the policy".to_owned() } else { format!("rule {number}") };
        let sentence = format!(
            "on {}, {rule} of chain `{chain}` in table `{table}` of {program}-legacy drops the packet",
            self.name()
        );
        let (address, side) = Self::address(path, false);
        let option = if side == "saddr" { "-s" } else { "-d" };
        self.remedy(
            sentence,
            path,
            &format!("{program}-legacy -t {table} -I {chain} {option} {address} -j ACCEPT"),
        )
    }
}

fn is_of_iptables(verdict: &Verdict) -> bool {
    let tables = ["filter", "nat", "mangle", "raw", "security"];
    matches!(verdict.family, Some(Family::Ip | Family::Ip6))
        && tables.contains(&verdict.table.as_str())
        && (verdict.chain.chars().all(|char| char.is_ascii_uppercase() || char == '-' || char == '_')
            || verdict.chain.contains('-'))
}

fn describe_rule(verdict: &Verdict) -> String {
    let family = verdict.family.map_or("netdev", Family::as_str);
    let Verdict { table, chain, .. } = verdict;
    let rule = verdict
        .rule
        .map_or_else(|| "the policy".to_owned(), |handle| format!("the rule with handle {handle}"));
    if is_of_iptables(verdict) {
        let program = if family == "ip" { "iptables" } else { "ip6tables" };
        return format!("{rule} of chain `{chain}` in table `{table}` of {program}");
    }
    format!("{rule} of chain `{chain}` in table `{family} {table}`")
}

/// Builds the table whose rules trace the probe's packets, and the answers to them.
fn tracing(table: &str, path: &Path<'_>, shot: &Shot) -> Batch {
    let protocol = [path.kind.protocol(path.to)];
    let local = shot.local().to_be_bytes();
    let is_it = |offset| {
        [
            Expr::Protocol(Reg(0)),
            Expr::Equal(Reg(0), &protocol),
            Expr::Payload { base: TRANSPORT, offset, length: 2, to: Reg(1) },
            Expr::Equal(Reg(1), &local),
            Expr::Trace(Reg(0)),
        ]
    };
    let places: &[u32] = if matches!(path.kind, Kind::Echo(_)) { &[4] } else { &[0, 2] };
    let mut batch = Batch::new();
    let sender = path.from.and_then(|place| path.source.or(place.address_for(path.to)));
    let sender = sender.map(ruleset::octets);
    for family in [Family::Inet, Family::Bridge] {
        let table = Table { family, name: table };
        batch.create_owned_table(table, "traces the packets of a running `netloom why`");
        for (chain, number) in [("prerouting", 0), ("output", 3)] {
            let hook = Hook { kind: "filter", number, priority: FIRST };
            batch.create_chain(table, chain, Some(hook), "");
            for offset in places {
                batch.add_rule(table, chain, At::Last, &is_it(*offset), "");
            }
            if let Some(rule) = sender.as_deref().map(resolving)
                && family == Family::Bridge
            {
                batch.add_rule(table, chain, At::Last, &rule, "");
            }
        }
    }
    batch
}

/// Traces the requests for the next hop's hardware address that the probe causes: ARP, or neighbour solicitations.
fn resolving(sender: &[u8]) -> Vec<Expr<'_>> {
    let length = if sender.len() == 4 { 4 } else { 16 };
    let matches: &[Expr<'_>] = if sender.len() == 4 {
        &[
            Expr::EtherType(Reg(0)),
            Expr::Equal(Reg(0), &[8, 6]),
            Expr::Payload { base: NETWORK, offset: 14, length: 4, to: Reg(1) },
        ]
    } else {
        &[
            Expr::Protocol(Reg(0)),
            Expr::Equal(Reg(0), &[58]),
            Expr::Payload { base: TRANSPORT, offset: 0, length: 1, to: Reg(1) },
            Expr::Equal(Reg(1), &[135]),
            Expr::Payload { base: NETWORK, offset: 8, length, to: Reg(4) },
        ]
    };
    let at = if length == 4 { Reg(1) } else { Reg(4) };
    [matches, &[Expr::Equal(at, sender), Expr::Trace(Reg(0))]].concat()
}

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// Before every other chain: the first of others is at -400 in the IP families, and at -300 in bridges.
const FIRST: i32 = -1000;

/// Counts the packets of each rule of iptables-legacy that drops, in the calling thread's namespace.
fn counters(path: &Path<'_>) -> BTreeMap<Counted, u64> {
    let v4 = path.to.is_ipv4();
    let family = if v4 { xtables::Family::V4 } else { xtables::Family::V6 };
    let mut counted = BTreeMap::new();
    for name in ["raw", "mangle", "nat", "filter", "security"] {
        let Ok(Some(table)) = xtables::read(family, name) else { continue };
        for (chain, number, rule) in table.all_rules() {
            let drops = *rule.target() == Target::Drop || rule.target_name().is_some_and(|it| it == "REJECT");
            if drops {
                counted.insert((v4, name, chain.to_owned(), number), rule.packets());
            }
        }
    }
    counted
}

/// Counts the IPv4 packets that reverse path filtering dropped in the calling thread's namespace.
fn reverse_path_drops() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let position = names.split(' ').position(|name| name == "IPReversePathFilter");
    position.and_then(|at| values.split(' ').nth(at)?.parse().ok()).unwrap_or_default()
}
