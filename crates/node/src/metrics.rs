//! The status as metrics, in OpenMetrics' text.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::status::Status;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfNode {
    node: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfBlock {
    block: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfNetwork {
    network: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfWay {
    way: String,
}

/// Writes the status as a scraper reads it.
pub(crate) fn render(status: &Status) -> String {
    let mut registry = Registry::with_prefix("netloomd");
    let flag = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    flag(&mut registry, "ready", "Pods can be started and reach the others", status.ready.into());
    flag(&mut registry, "store_connected", "The store is heard of", status.store.connected.into());
    let refused = i64::try_from(status.store.refused.len()).unwrap_or(i64::MAX);
    flag(&mut registry, "records_refused", "Records of nodes that are not used", refused);
    let notes = i64::try_from(status.notes.len()).unwrap_or(i64::MAX);
    flag(&mut registry, "notes", "What is in nobody's way, and may not be meant, in number", notes);
    let mtus: Family<OfNetwork, Gauge> = Family::default();
    for network in &status.networks {
        mtus.get_or_create(&OfNetwork { network: network.name.clone() }).set(network.mtu.into());
    }
    registry.register("mtu_bytes", "MTU of pods' links", mtus);
    let ways: Family<OfWay, Gauge> = Family::default();
    let answers: Family<OfNode, Gauge> = Family::default();
    for way in ["direct", "tunnel", "learnt", "segment", "none"] {
        ways.get_or_create(&OfWay { way: way.into() }).set(0);
    }
    for peer in &status.peers {
        let way = peer.way.clone().unwrap_or_else(|| "none".into());
        ways.get_or_create(&OfWay { way }).inc();
        if let Some(answered) = peer.answers {
            answers.get_or_create(&OfNode { node: peer.name.clone() }).set(answered.into());
        }
    }
    registry.register("peers", "Other nodes, by the way to them", ways);
    registry.register("peer_answers", "The node's daemon answers", answers);
    let (used, size): (Family<OfBlock, Gauge>, Family<OfBlock, Gauge>) = Default::default();
    for block in &status.blocks {
        let label = OfBlock { block: block.prefix.to_string() };
        used.get_or_create(&label).set(i64::try_from(block.used).unwrap_or(i64::MAX));
        size.get_or_create(&label).set(i64::try_from(block.size).unwrap_or(i64::MAX));
    }
    registry.register("addresses_used", "Addresses that pods have, by block", used);
    registry.register("addresses", "Addresses that pods can have, by block", size);
    registry.register_collector(Box::new(Counters(status.counters.clone())));
    let mut text = String::new();
    // Writing to a text does not fail.
    let _: std::fmt::Result = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Counters(crate::status::Counters);

impl prometheus_client::collector::Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = [
            ("comparisons", "Comparisons of what there should be with what there is", self.0.comparisons),
            ("changes", "Objects put there, changed or taken away", self.0.changes),
            ("repairs", "Of these, such as somebody else had changed", self.0.repairs),
            ("refusals", "What the kernel refused", self.0.refusals),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}
