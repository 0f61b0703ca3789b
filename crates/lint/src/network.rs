//! The file's name against its content, the network's name and versions, and the types of plugins.

use netloom_types::{
    SpecVersion,
    name::{NetworkName, is_plugin_type},
    version::SemVer,
};

use crate::{
    document::{Document, Plugin, extension, is_example},
    node::Node,
    report::Report,
    table::Rule,
    types,
};

pub(crate) fn check(document: &Document<'_>, report: &mut Report<'_>) {
    if !document.source.is_plugin_file {
        form(document, report);
        name(document, report);
        versions(document, report);
    }
    for (index, plugin) in document.plugins().iter().enumerate() {
        kind(*plugin, index, report);
        ipam(*plugin, report);
    }
}

/// Compares the file's extension with its content.
fn form(document: &Document<'_>, report: &mut Report<'_>) {
    let root = &document.root;
    let path = &document.source.path;
    let (has_plugins, has_type) = (root.get("plugins").is_some(), root.get("type").is_some());
    match extension(path) {
        "conf" | "json" if has_plugins && !is_example(path) => {
            let help = "give the file a name that ends in .conflist";
            let message = "a list of plugins in a file for a single plugin";
            report.add(Rule::ListInConf, document.start(), message, help);
        }
        "conf" | "json" if !has_plugins && document.version() >= Some(SpecVersion::V1_0_0.into()) => {
            let help = "put it into `plugins` of a .conflist, with `cniVersion` and `name` beside `plugins`";
            let message = "a single plugin's configuration, which CNI 1.0.0 replaced by lists";
            report.add(Rule::SinglePluginFile, document.start(), message, help);
        }
        "conflist" if !has_plugins && has_type => {
            let help = "put it into `plugins`, with `cniVersion` and `name` beside `plugins`";
            let message = "a single plugin's configuration in a file for a list";
            report.add(Rule::PluginInConflist, document.start(), message, help);
        }
        _ if document.is_list() && !has_plugins && !document.source.has_plugin_files => {
            let help = "add `plugins` with at least one plugin";
            report.add(Rule::PluginsMissing, document.start(), "the list has no `plugins`", help);
        }
        _ => {}
    }
    if let Some(plugins) = root.get("plugins")
        && matches!(&plugins.value, crate::node::Value::Array(items) if items.is_empty())
    {
        let help = "add at least one plugin";
        report.add(Rule::PluginsEmpty, plugins.span.clone(), "`plugins` is empty", help);
    }
}

fn name(document: &Document<'_>, report: &mut Report<'_>) {
    let (name, place) = document.name();
    match document.root.get("name") {
        Some(node) if node.text().is_none() || node.is_placeholder() => return,
        _ if name.is_empty() => {
            let help = "add `name`, unique on the host";
            report.add(Rule::NameMissing, place, "the network has no `name`", help);
            return;
        }
        _ => {}
    }
    if let Err(error) = NetworkName::parse(name) {
        let help =
            "begin with a letter or digit, and use letters, digits, `_`, `.` and `-`, at most 255 in all";
        report.add(Rule::NameInvalid, place.clone(), error.msg, help);
    }
    if !document.is_list() {
        return;
    }
    for plugin in document.plugins() {
        let Some(own) = plugin.node.get("name") else { continue };
        if own.text().is_some_and(|text| !text.is_empty() && text != name) && !own.is_placeholder() {
            let message = format!("the plugin gets the list's name, `{name}`, instead of this one");
            report
                .add(Rule::NameDiffers, own.span.clone(), message, "remove it")
                .also(place.clone(), "the list's name");
        }
    }
}

fn versions(document: &Document<'_>, report: &mut Report<'_>) {
    let root = &document.root;
    let single = root.get("cniVersion");
    let several = root.get("cniVersions").map_or(&[][..], Node::items);
    single.into_iter().chain(several).for_each(|node| version(node, report));
    if single.is_none_or(|node| node.text() == Some("")) && several.is_empty() {
        let place = single.map_or_else(|| document.start(), |node| node.span.clone());
        let help = format!(
            "add \"cniVersion\": \"{}\", or the newest version that the plugins support",
            SpecVersion::V1_0_0
        );
        report.add(Rule::VersionMissing, place, "the configuration has no `cniVersion`", help);
        return;
    }
    let Some(version) = document.version() else { return };
    let is_before = |wanted: SpecVersion| version < SemVer::from(wanted);
    let place = || single.unwrap_or(root).span.clone();
    if document.is_list() && root.get("plugins").is_some() && is_before(SpecVersion::V0_3_0) {
        let message = "lists of plugins exist since version 0.3.0";
        report.add(Rule::VersionBeforeLists, place(), message, "set `cniVersion` to 0.3.1 or later");
    }
    for (key, verb, since) in
        [("disableCheck", "CHECK", SpecVersion::V0_4_0), ("disableGC", "GC", SpecVersion::V1_1_0)]
    {
        if let Some(member) = root.member(key).filter(|_| document.is_list() && is_before(since)) {
            let message = format!("`{key}` has no effect: {verb} exists since version {since}");
            let help = format!("remove it, or set `cniVersion` to {since} or later");
            report.add(Rule::VersionWithoutEffect, member.key_span.clone(), message, help);
        }
    }
}

fn version(node: &Node<'_>, report: &mut Report<'_>) {
    let Some(text) = node.text() else {
        if !matches!(node.value, crate::node::Value::Null) {
            let message = format!("`cniVersion` must be a string, not {}", node.kind());
            report.add(Rule::WrongType, node.span.clone(), message, "write it as \"1.0.0\"");
        }
        return;
    };
    if SpecVersion::parse(text).is_some() || node.is_placeholder() {
        return;
    }
    let all: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    let trimmed = text.trim().trim_start_matches(['v', 'V']);
    let same = SpecVersion::parse(trimmed).filter(|_| !trimmed.is_empty());
    let padded = format!("{trimmed}.0");
    let likely = same.or_else(|| SpecVersion::parse(&padded));
    let help = match likely {
        Some(likely) => format!("did you mean \"{likely}\"?"),
        None => format!("use one of {}", all.join(", ")),
    };
    let message = format!("there is no version \"{text}\" of the specification");
    let finding = report.add(Rule::VersionUnknown, node.span.clone(), message, help);
    if let Some(same) = same {
        finding.replace(node.span.clone(), format!("\"{same}\""));
    }
}

fn kind(plugin: Plugin<'_, '_>, index: usize, report: &mut Report<'_>) {
    if plugin.node.members().is_empty() && !matches!(plugin.node.value, crate::node::Value::Object(_)) {
        return;
    }
    let Some(node) = plugin.node.get("type").filter(|node| node.text() != Some("")) else {
        let start = plugin.node.span.start..plugin.node.span.start + 1;
        let help = "add `type`: the name of the plugin's program";
        report.add(Rule::TypeMissing, start, "the plugin has no `type`", help);
        return;
    };
    let Some(text) = node.text().filter(|_| !node.is_placeholder()) else { return };
    let known = |reference: &str| types::IPAM.contains(&reference);
    if !is_plugin_type(text) {
        let help = "write the name of the program alone; runtimes look for it in their folders of plugins";
        let message = format!("`type` \"{text}\" is not a file name");
        report.add(Rule::TypeInvalid, node.span.clone(), message, help);
    } else if known(text) {
        let help = match index {
            0 => "put an interface plugin here, and this one into its `ipam`",
            _ => "put it into `ipam` of the interface plugin",
        };
        let message = format!("`{text}` assigns addresses and creates no interface");
        report.add(Rule::IpamInChain, node.span.clone(), message, help);
    } else {
        misspelt(node, text, report);
    }
}

fn ipam(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let Some((node, text)) = plugin.ipam() else { return };
    let Some(node) = node.get("type").filter(|node| !node.is_placeholder()) else { return };
    if !is_plugin_type(text) {
        let message = format!("`ipam.type` \"{text}\" is not a file name");
        report.add(Rule::TypeInvalid, node.span.clone(), message, "write the name of the program alone");
    } else if types::is_known(text) && !types::IPAM.contains(&text) {
        let message = format!("`{text}` assigns no addresses");
        let help = "use an IPAM plugin, such as host-local";
        report.add(Rule::InterfaceAsIpam, node.span.clone(), message, help);
    } else {
        misspelt(node, text, report);
    }
}

fn misspelt(node: &Node<'_>, text: &str, report: &mut Report<'_>) {
    if let Some(meant) = types::meant(text) {
        let message = format!("no known plugin is called \"{text}\"");
        report.add(Rule::TypeMisspelt, node.span.clone(), message, format!("did you mean \"{meant}\"?"));
    }
}
