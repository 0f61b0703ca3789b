//! The networks of a folder against each other, and names of files.

use std::collections::{BTreeMap, HashMap};

use crate::{
    Severity, Source,
    document::{Document, Plugin, extension},
    node::{Node, Span},
    ranges,
    report::{Finding, Report},
    table::{Rule, Scope},
    types,
};

/// What runtimes read.
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

/// A place in a file.
type Place = (usize, Span);

pub(crate) fn check(sources: &[Source], documents: &[Document<'_>], findings: &mut Vec<Finding>) {
    names(sources, documents, findings);
    stems(sources, documents, findings);
    let mut links = Links::default();
    let mut pools = Pools::default();
    for (index, document) in documents.iter().enumerate() {
        for plugin in document.plugins() {
            links.add(index, document, plugin, findings);
            pools.add(index, document, plugin);
        }
    }
    pools.report(documents, findings);
}

/// Returns the extension that a file's was probably meant to be, if runtimes do not read the file.
pub fn meant_extension(path: &str) -> Option<&'static str> {
    let written = extension(path);
    let is_word = !written.is_empty() && written.bytes().all(|byte| byte.is_ascii_alphabetic());
    if EXTENSIONS.contains(&written) || !is_word {
        return None;
    }
    types::nearest(written, EXTENSIONS.into_iter())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Reports networks that several files contain, and which file is used.
///
/// cnitool and Netloom look through lists first and then through single plugins. Other runtimes go by file name alone
/// (`ConfFiles` of libcni, sorted): containerd's go-cni, CRI-O's ocicni and podman.
fn names(sources: &[Source], documents: &[Document<'_>], findings: &mut Vec<Finding>) {
    let mut by_name: BTreeMap<&str, Vec<&Document<'_>>> = BTreeMap::new();
    for document in documents {
        let (name, _) = document.name();
        if !name.is_empty() && crate::node::placeholder(name).is_none() {
            by_name.entry(name).or_default().push(document);
        }
    }
    for (name, mut by_file) in by_name.into_iter().filter(|(_, files)| files.len() > 1) {
        let path = |document: &Document<'_>| file_name(&sources[document.file].path).to_owned();
        by_file.sort_by_key(|document| path(document));
        let mut in_order = by_file.clone();
        in_order.sort_by_key(|document| extension(&sources[document.file].path) != "conflist");
        let ignored: Vec<String> = in_order[1..].iter().map(|document| path(document)).collect();
        let (used, ignored) = (path(in_order[0]), ignored.join(", "));
        let is_invalid = findings.iter().any(|finding| {
            let info = finding.rule.info();
            finding.file == in_order[0].file && info.severity == Severity::Error && info.scope == Scope::File
        });
        let mut message = format!("network `{name}` has several files");
        message += &if is_invalid {
            format!(" and cannot be used: {used} comes first and is invalid, so {ignored} is ignored")
        } else {
            format!(": Netloom uses {used} and ignores {ignored}")
        };
        let first = path(by_file[0]);
        if first != used {
            message +=
                &format!("; runtimes that go by file name alone (containerd, CRI-O, podman) use {first}");
        }
        let mut report = Report { file: in_order[1].file, findings };
        report.add(Rule::NetworkTwice, in_order[1].name().1, message, "keep one of them").also_in(
            in_order[0].file,
            in_order[0].name().1,
            "the one that is used",
        );
    }
}

/// Reports a `.conf` and a `.conflist` of the same name with different networks.
fn stems(sources: &[Source], documents: &[Document<'_>], findings: &mut Vec<Finding>) {
    let mut by_stem: HashMap<&str, &Document<'_>> = HashMap::new();
    for document in documents {
        let path = &sources[document.file].path;
        let Some((stem, ending)) = path.rsplit_once('.').filter(|(_, ending)| EXTENSIONS.contains(ending))
        else {
            continue;
        };
        let Some(other) = by_stem.insert(stem, document) else { continue };
        let other_ending = extension(&sources[other.file].path);
        if other_ending != ending && other.name().0 != document.name().0 {
            let message = format!(
                "{} has the same name but for the extension, and another network",
                file_name(&sources[other.file].path)
            );
            let mut report = Report { file: document.file, findings };
            report
                .add(Rule::ConfAndConflist, document.name().1, message, "keep one of them, or rename one")
                .also_in(other.file, other.name().1, "the other network");
        }
    }
}

/// A bridge as one network uses it.
struct Bridge {
    document: usize,
    place: Place,
    gateway: ipnet::IpNet,
}

/// Links of the host that networks use.
#[derive(Default)]
struct Links {
    bridges: HashMap<(String, i128), Bridge>,
    vlans: HashMap<(String, i128), (usize, Place)>,
    devices: HashMap<String, (usize, Place)>,
    parents: HashMap<String, (usize, &'static str, Place)>,
}

impl Links {
    fn add(
        &mut self,
        index: usize,
        document: &Document<'_>,
        plugin: Plugin<'_, '_>,
        findings: &mut Vec<Finding>,
    ) {
        let mut report = Report { file: document.file, findings };
        let node = plugin.node;
        let at = |key: &str| {
            (document.file, node.get(key).map_or_else(|| plugin.place(), |node| node.span.clone()))
        };
        let text = |key: &str| node.text_of(key).filter(|text| !text.is_empty()).map(str::to_owned);
        let number = |key: &str| node.get(key).and_then(Node::integer).unwrap_or_default();
        match plugin.kind() {
            "bridge" => self.bridge(index, at("bridge"), plugin, &mut report),
            "vlan" => {
                let Some(master) = text("master").filter(|_| !node.is_set("linkInContainer")) else { return };
                let (id, place) = (number("vlanId"), at("vlanId"));
                let other = self.vlans.insert((master.clone(), id), (index, place.clone()));
                if let Some((_, other)) = other.filter(|(other, _)| *other != index) {
                    let message = format!("another network has VLAN {id} of `{master}` too");
                    let help = "use one network for it, with macvlan or bridge on the VLAN's link";
                    report.add(Rule::VlanTwice, place.1, message, help).also_in(
                        other.0,
                        other.1,
                        "the other network",
                    );
                }
            }
            "host-device" => {
                let Some(key) = ["device", "hwaddr", "kernelpath", "pciBusID"]
                    .into_iter()
                    .find(|key| text(key).is_some())
                else {
                    return;
                };
                let (device, place) = (text(key).unwrap_or_default(), at(key));
                let other = self.devices.insert(device.clone(), (index, place.clone()));
                if let Some((_, other)) = other.filter(|(other, _)| *other != index) {
                    let message = format!("another network moves `{device}` too");
                    report
                        .add(Rule::DeviceTwice, place.1, message, "give each network a device of its own")
                        .also_in(other.0, other.1, "the other network");
                }
            }
            "macvlan" | "ipvlan" => {
                let kind = if plugin.kind() == "macvlan" { "macvlan" } else { "ipvlan" };
                let Some(master) = text("master").filter(|_| !node.is_set("linkInContainer")) else { return };
                let place = at("master");
                let (_, other, first) = self
                    .parents
                    .entry(master.clone())
                    .or_insert_with(|| (index, kind, place.clone()))
                    .clone();
                if other != kind {
                    let message = format!(
                        "`{master}` is the parent of {other} in another network, and cannot be of {kind} too"
                    );
                    report
                        .add(
                            Rule::MacvlanBesideIpvlan,
                            place.1,
                            message,
                            "use the same plugin in both, or another parent",
                        )
                        .also_in(first.0, first.1, format!("the network with {other}"));
                }
            }
            _ => {}
        }
    }

    fn bridge(&mut self, index: usize, place: Place, plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
        let node = plugin.node;
        let is_gateway = node.is_set("isGateway") || node.is_set("isDefaultGateway");
        let ranges = ranges::of(plugin);
        let ipv4 = ranges.iter().find(|found| found.range.start.is_ipv4());
        let gateway = ipv4.filter(|_| is_gateway).map(|found| found.range.with_prefix(found.range.gateway));
        let Some(gateway) = gateway.filter(|_| !node.is_set("forceAddress")) else { return };
        let name = node.text_of("bridge").unwrap_or("cni0").to_owned();
        let vlan = node.get("vlan").and_then(Node::integer).unwrap_or_default();
        let here = Bridge { document: index, place: place.clone(), gateway };
        let Some(other) = self.bridges.insert((name.clone(), vlan), here) else { return };
        let first = other.gateway;
        if first != gateway && other.document != index {
            let message =
                format!("bridge `{name}` is to have the gateway {gateway}, and in another network {first}");
            report
                .add(Rule::BridgeTwoGateways, place.1, message, "give each network a bridge of its own")
                .also_in(other.place.0, other.place.1, "the other network");
        }
    }
}

/// Ranges of addresses by the segment on which they must be unique.
#[derive(Default)]
struct Pools(BTreeMap<String, Vec<(usize, ranges::Located)>>);

impl Pools {
    fn add(&mut self, index: usize, document: &Document<'_>, plugin: Plugin<'_, '_>) {
        let node = plugin.node;
        let text = |key: &str, default: &str| node.text_of(key).unwrap_or(default).to_owned();
        let number = |key: &str| node.get(key).and_then(Node::integer).unwrap_or_default();
        let mut segments = Vec::new();
        match plugin.kind() {
            "bridge" => {
                segments.push(format!("bridge {} {}", text("bridge", "cni0"), number("vlan")));
                if node.is_set("isGateway") || node.is_set("isDefaultGateway") {
                    segments.push("host".to_owned());
                }
            }
            "ptp" => segments.push("host".to_owned()),
            "macvlan" | "ipvlan" => segments.push(format!("parent {}", text("master", ""))),
            _ => {}
        }
        if segments.is_empty() || document.name().0.is_empty() {
            return;
        }
        for found in ranges::of(plugin) {
            for segment in &segments {
                self.0.entry(segment.clone()).or_default().push((index, found.clone()));
            }
        }
    }

    fn report(self, documents: &[Document<'_>], findings: &mut Vec<Finding>) {
        let mut reported: Vec<Place> = Vec::new();
        for (_, mut pool) in self.0 {
            pool.sort_by_key(|(index, found)| (found.range.start, *index));
            // Of what begins earlier only the range that reaches furthest can overlap first.
            let mut furthest: Option<&(usize, ranges::Located)> = None;
            for entry in &pool {
                let (index, found) = entry;
                let document = &documents[*index];
                if let Some((other_index, other)) = furthest
                    && documents[*other_index].name().0 != document.name().0
                    && ranges::overlap(&found.range, &other.range)
                {
                    let other_document = &documents[*other_index];
                    // The later file has the finding.
                    let (later, earlier) = if document.file > other_document.file {
                        ((document, found), (other_document, other))
                    } else {
                        ((other_document, other), (document, found))
                    };
                    let place = (later.0.file, later.1.span.clone());
                    if !reported.contains(&place) {
                        let message = format!(
                            "network `{}` assigns addresses of {} too: {}",
                            earlier.0.name().0,
                            later.1.range.subnet,
                            earlier.1.range
                        );
                        Report { file: place.0, findings }
                            .add(
                                Rule::RangeReused,
                                place.1.clone(),
                                message,
                                "use another subnet, or ranges without a common address",
                            )
                            .also_in(earlier.0.file, earlier.1.span.clone(), "the other network");
                        reported.push(place);
                    }
                }
                if furthest.is_none_or(|(_, other)| {
                    found.range.end > other.range.end
                        || found.range.start.is_ipv4() != other.range.start.is_ipv4()
                }) {
                    furthest = Some(entry);
                }
            }
        }
    }
}
