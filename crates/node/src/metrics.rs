//! The status as metrics in the OpenMetrics text format.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::status::Status;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabel {
    node: String,
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

/// Renders the status.
pub(crate) fn render(status: &Status) -> String {
    let mut registry = Registry::with_prefix("netloomd");
    let flag = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    flag(&mut registry, "ready", "Whether pods can start and reach other nodes' pods", status.ready.into());
    flag(&mut registry, "store_connected", "Whether the store can be reached", status.store.connected.into());
    let refused = i64::try_from(status.store.refused.len()).unwrap_or(i64::MAX);
    flag(&mut registry, "records_refused", "Refused node records", refused);
    let claims = i64::try_from(status.store.refused_claims).unwrap_or(i64::MAX);
    flag(&mut registry, "claims_refused", "Claims in node records that this node does not honour", claims);
    let notes = i64::try_from(status.notes.len()).unwrap_or(i64::MAX);
    flag(&mut registry, "notes", "Conditions that an operator should know although the node is ready", notes);
    let mtus: Family<NetworkLabel, Gauge> = Family::default();
    for network in &status.networks {
        mtus.get_or_create(&NetworkLabel { network: network.name.clone() }).set(network.mtu.into());
    }
    registry.register("mtu_bytes", "MTU of pods' links in bytes", mtus);
    let paths: Family<PathLabel, Gauge> = Family::default();
    let answers: Family<NodeLabel, Gauge> = Family::default();
    for path in ["direct", "tunnel", "learnt", "segment", "none"] {
        paths.get_or_create(&PathLabel { path: path.into() }).set(0);
    }
    for peer in &status.peers {
        let path = peer.path.clone().unwrap_or_else(|| "none".into());
        paths.get_or_create(&PathLabel { path }).inc();
        if let Some(answered) = peer.answers {
            answers.get_or_create(&NodeLabel { node: peer.name.clone() }).set(answered.into());
        }
    }
    registry.register("peers", "Peers by the path to them", paths);
    registry.register("peer_answers", "Whether the peer's daemon answers probes", answers);
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
    registry.register_collector(Box::new(Counters(status.counters.clone())));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _: std::fmt::Result = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
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
