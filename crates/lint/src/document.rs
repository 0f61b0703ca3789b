//! A configuration file as a network: its plugins, name and version.

use netloom_types::{SpecVersion, version::SemVer};

use crate::{
    Source,
    node::{Node, Span},
};

/// A file that is a JSON object.
#[derive(Debug)]
pub(crate) struct Document<'t> {
    /// The index of the source.
    pub(crate) file: usize,
    pub(crate) source: &'t Source,
    pub(crate) root: Node<'t>,
}

/// A plugin's configuration in a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plugin<'a, 't> {
    pub(crate) node: &'a Node<'t>,
}

/// Returns the extension of a file's name.
pub(crate) fn extension(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path).rsplit_once('.').map_or("", |(_, ending)| ending)
}

/// Returns whether a name such as `NAME.conflist.json` is that of an example: no runtime would read it as a list.
pub(crate) fn is_example(path: &str) -> bool {
    path.contains(".conflist.")
}

/// Returns whether runtimes read a file as a list of plugins.
pub(crate) fn is_list(source: &Source) -> bool {
    match extension(&source.path) {
        "conflist" => true,
        "conf" | "json" if !is_example(&source.path) => false,
        // Not a name that runtimes read: what it is to become shows in the text.
        _ => String::from_utf8_lossy(&source.bytes).contains("\"plugins\""),
    }
}

impl<'t> Document<'t> {
    /// Returns whether the text is a list of plugins, whatever the file is called.
    pub(crate) fn is_list(&self) -> bool {
        self.root.get("plugins").is_some()
            || (extension(&self.source.path) == "conflist" && self.root.get("type").is_none())
    }

    /// Lists the plugins in the order of ADD.
    pub(crate) fn plugins(&self) -> Vec<Plugin<'_, 't>> {
        if self.is_list() {
            let items = self.root.get("plugins").map_or(&[][..], Node::items);
            items.iter().map(|node| Plugin { node }).collect()
        } else {
            vec![Plugin { node: &self.root }]
        }
    }

    /// Returns the network's name and its place. The name is empty if there is none.
    pub(crate) fn name(&self) -> (&str, Span) {
        match self.root.get("name") {
            Some(node) => (node.text().unwrap_or_default(), node.span.clone()),
            None => ("", self.start()),
        }
    }

    /// Returns the place of the first character, for what is wrong with the whole text.
    pub(crate) fn start(&self) -> Span {
        self.root.span.start..self.root.span.start + 1
    }

    /// Returns the newest of the versions in `cniVersion` and `cniVersions`, or 0.1.0 if there is none. Returns `None` if a
    /// version cannot be read.
    pub(crate) fn version(&self) -> Option<SemVer> {
        let one = self.root.get("cniVersion").map_or(Some(""), Node::text)?;
        let more = self.root.get("cniVersions").map_or(&[][..], Node::items).iter();
        let all = std::iter::once(Some(one)).chain(more.map(Node::text));
        let parsed = all.map(|text| SpecVersion::parse(text?).map(SemVer::from));
        parsed.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

impl<'a, 't> Plugin<'a, 't> {
    /// Returns `type`, or nothing if there is none.
    pub(crate) fn kind(self) -> &'a str {
        self.node.text_of("type").unwrap_or_default()
    }

    /// Returns the place that stands for the plugin: its `type`.
    pub(crate) fn place(self) -> Span {
        let node = self.node.get("type").unwrap_or(self.node);
        if node.span.len() > 200 { node.span.start..node.span.start + 1 } else { node.span.clone() }
    }

    /// Returns the IPAM configuration with its type, if it has one.
    pub(crate) fn ipam(self) -> Option<(&'a Node<'t>, &'a str)> {
        let node = self.node.get("ipam")?;
        Some((node, node.text_of("type").filter(|kind| !kind.is_empty())?))
    }

    /// Returns whether a capability is declared.
    pub(crate) fn declares(self, capability: &str) -> bool {
        let declared = self.node.get("capabilities").map_or(&[][..], Node::members);
        declared.iter().any(|member| {
            member.key == capability && matches!(member.node.value, crate::node::Value::Bool(true))
        })
    }
}
