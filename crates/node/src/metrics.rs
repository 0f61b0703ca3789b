//! The status as metrics in the OpenMetrics text format.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::status::{Peer, Status};

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AnswerLabel {
    answer: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BlockLabel {
    block: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NetworkLabel {
    network: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PathLabel {
    path: String,
}

/// Renders the status, and the round-trip times of probes. The number of series depends on this node's blocks and networks, not on the
/// number of nodes: in a large cluster every node has every other as a peer.
pub(crate) fn render(status: &Status, round_trips: &Histogram) -> String {
    let mut registry = Registry::with_prefix("netloomd");
    let flag = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    flag(&mut registry, "ready", "Whether pods can start and reach other nodes' pods", status.ready.into());
    flag(&mut registry, "store_connected", "Whether the store can be reached", status.store.connected.into());
    let refused = number(status.store.refused.len());
    flag(&mut registry, "records_refused", "Refused node records", refused);
    let claims = number(status.store.refused_claims);
    flag(&mut registry, "claims_refused", "Claims in node records that this node does not honour", claims);
    let notes = number(status.notes.len());
    flag(&mut registry, "notes", "Conditions that an operator should know although the node is ready", notes);
    let mtus: Family<NetworkLabel, Gauge> = Family::default();
    for network in &status.networks {
        mtus.get_or_create(&NetworkLabel { network: network.name.clone() }).set(network.mtu.into());
    }
    registry.register("mtu_bytes", "MTU of pods' links in bytes", mtus);
    let paths: Family<PathLabel, Gauge> = Family::default();
    let answers: Family<AnswerLabel, Gauge> = Family::default();
    for answer in ["yes", "no", "not probed"] {
        answers.get_or_create(&AnswerLabel { answer }).set(0);
    }
    for path in ["direct", "tunnel", "learnt", "segment", "none"] {
        paths.get_or_create(&PathLabel { path: path.into() }).set(0);
    }
    for peer in &status.peers {
        let path = peer.path.clone().unwrap_or_else(|| "none".into());
        paths.get_or_create(&PathLabel { path }).inc();
        let answer = match peer.answers {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not probed",
        };
        answers.get_or_create(&AnswerLabel { answer }).inc();
    }
    registry.register("peers", "Peers by the path to them", paths);
    registry.register("peers_probed", "Peers by whether their daemons answered the last probe", answers);
    let count =
        |is_counted: fn(&Peer) -> bool| number(status.peers.iter().filter(|peer| is_counted(peer)).count());
    let silent = count(|peer| peer.silent_seconds.is_some());
    flag(&mut registry, "peers_silent", "Peers whose leases have ended", silent);
    let with_problem = count(|peer| peer.problem.is_some());
    flag(
        &mut registry,
        "peers_with_problem",
        "Peers whose records this node does not follow as a whole",
        with_problem,
    );
    registry.register_with_unit(
        "probe_round_trip",
        "Round-trip time of probes of peers' daemons",
        Unit::Seconds,
        round_trips.clone(),
    );
    let (used, size): (Family<BlockLabel, Gauge>, Family<BlockLabel, Gauge>) = Default::default();
    for block in &status.blocks {
        let label = BlockLabel { block: block.prefix.to_string() };
        if let Some(count) = block.used {
            used.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        size.get_or_create(&label).set(i64::try_from(block.size).unwrap_or(i64::MAX));
    }
    registry.register("addresses_used", "Addresses in use by block", used);
    registry.register("addresses", "Addresses that pods can use by block", size);
    let longest: Gauge<f64, AtomicU64> = Gauge::default();
    longest.set(Duration::from_micros(status.counters.longest_micros).as_secs_f64());
    registry.register_with_unit(
        "longest_pass",
        "Longest comparison of desired and actual state, its changes included",
        Unit::Seconds,
        longest,
    );
    registry.register_collector(Box::new(Counters(status.counters.clone())));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _: std::fmt::Result = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[derive(Debug)]
struct Counters(crate::status::Counters);

impl prometheus_client::collector::Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = [
            ("comparisons", "Comparisons of desired and actual state", self.0.comparisons),
            ("changes", "Objects created, changed or removed", self.0.changes),
            ("repairs", "Changes that restored objects after foreign changes", self.0.repairs),
            ("watches_reopened", "Watches of the host that ended and were opened again", self.0.reopened),
            ("refusals", "Changes that the kernel refused", self.0.refusals),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}
