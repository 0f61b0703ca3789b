//! Lists what DEL of a stale attachment and GC of a network remove, without a change.
//!
//! The specification does not let a plugin report what its GC removed. The list is read from the same marks, so it
//! holds for these plugins, not for foreign ones. DHCP leases are not in it: only the lease daemon knows them.

use std::path::{Path, PathBuf};

use kernel::{Protocol, Socket, link};
use netloom_plugin::{Attachment, Error};
use netloom_types::{PluginConfig, json};
use ruleset::reference;
use serde_json::Value;

use crate::{
    cleanup::netfilter,
    error::Explain,
    host_local,
    owner::{Owner, is_stale, named_in, stale_references},
    tuning,
};

/// The attachments whose objects are listed.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// One that DEL removes.
    Only(&'a Attachment),
    /// All except these, as GC does.
    AllBut(&'a [Attachment]),
}

/// Lists the links, rules, published ports, reservations and files of a network's attachments that its plugins would remove,
/// each in words. An object that several plugins would remove is listed once.
///
/// # Errors
/// If the kernel or a folder cannot be read.
pub fn list(network: &str, plugins: &[PluginConfig], which: Which<'_>) -> Result<Vec<String>, Error> {
    let search = Search { network, which };
    let mut found = Vec::new();
    let has = |kinds: &[&str]| plugins.iter().any(|plugin| kinds.contains(&plugin.kind()));
    if has(&["bridge", "ptp", "bandwidth"]) {
        found.extend(search.links()?);
    }
    if has(&["bridge", "ptp", "firewall", "portmap"]) {
        found.extend(search.rules()?);
    }
    for plugin in plugins {
        if let Some(data_dir) = reservations_of(plugin) {
            found.extend(search.reservations(data_dir)?);
        }
        if plugin.kind() == "tuning" {
            found.extend(search.saved_files(text(plugin.object(), "dataDir"))?);
        }
    }
    let mut once = Vec::new();
    for item in found {
        if !once.contains(&item) {
            once.push(item);
        }
    }
    Ok(once)
}

struct Search<'a> {
    network: &'a str,
    which: Which<'a>,
}

impl Search<'_> {
    fn has_mark(&self, mark: &str) -> bool {
        match self.which {
            Which::Only(attachment) => mark == self.owner(attachment).mark(),
            Which::AllBut(valid) => is_stale(mark, self.network, valid),
        }
    }

    /// Returns whether the attachment is one of those sought; without an interface, whether the container is.
    fn is_sought(&self, container: &str, ifname: Option<&str>) -> bool {
        let same =
            |a: &Attachment| a.container_id == container && ifname.is_none_or(|ifname| ifname == a.ifname);
        match self.which {
            Which::Only(attachment) => same(attachment),
            Which::AllBut(valid) => !valid.iter().any(same),
        }
    }

    fn owner<'o>(&'o self, attachment: &'o Attachment) -> Owner<'o> {
        Owner { network: self.network, container: &attachment.container_id, ifname: &attachment.ifname }
    }

    fn links(&self) -> Result<Vec<String>, Error> {
        let host = Socket::open(Protocol::Route).explain()?;
        let of_network = Owner { network: self.network, container: "", ifname: "" };
        let described = |link: link::Link| match &link.alias {
            Some(mark) if self.has_mark(mark) => Some(format!("link {} ({})", link.name, named_in(mark))),
            None if matches!(self.which, Which::AllBut(_)) && of_network.is_unmarked(&link) => {
                Some(format!("link {} (an unfinished ADD)", link.name))
            }
            _ => None,
        };
        Ok(link::list(&host).explain()?.into_iter().filter_map(described).collect())
    }

    fn rules(&self) -> Result<Vec<String>, Error> {
        let Some(netfilter) = netfilter()? else { return Ok(Vec::new()) };
        let ours = ruleset::list(&netfilter).explain()?.into_iter();
        let ours = ours.filter(|element| self.has_mark(&element.owner));
        let mut found: Vec<String> =
            ours.map(|element| format!("{} ({})", element.what, named_in(&element.owner))).collect();
        let is_reference_mark: Box<dyn Fn(&str) -> bool> = match self.which {
            Which::Only(attachment) => {
                let mark = self.owner(attachment).reference_mark();
                Box::new(move |comment| comment.starts_with(&mark))
            }
            Which::AllBut(valid) => Box::new(stale_references(self.network, valid)),
        };
        for comment in reference::masquerade_comments(&netfilter).explain()? {
            if is_reference_mark(&comment) {
                found.push(format!("masquerade rule {comment:?} of the reference plugins"));
            }
        }
        for container in reference::containers_with_nat_chains(&netfilter, self.network).explain()? {
            if self.is_sought(&container, None) {
                found.push(format!("iptables chains of the reference plugins for container {container}"));
            }
        }
        Ok(found)
    }

    fn reservations(&self, data_dir: &str) -> Result<Vec<String>, Error> {
        let store = ipam::Store::new(Path::new(data_dir), self.network);
        let mut reserved = store.reservations().explain()?;
        reserved.retain(|it| self.is_sought(&it.container, it.ifname.as_deref()));
        reserved.sort_by_key(|it| it.ip);
        let described = reserved.into_iter().map(|it| match it.ifname {
            Some(ifname) => format!("address {} ({ifname} of container {})", it.ip, it.container),
            None => format!("address {} (container {})", it.ip, it.container),
        });
        Ok(described.collect())
    }

    fn saved_files(&self, data_dir: Option<&str>) -> Result<Vec<String>, Error> {
        let files = tuning::saved_files(data_dir.unwrap_or_default(), self.network)?;
        let is_sought = |file: &PathBuf| {
            let is_of = |a: &Attachment| tuning::is_saved_file(file, a);
            match self.which {
                Which::Only(attachment) => is_of(attachment),
                Which::AllBut(valid) => !valid.iter().any(is_of),
            }
        };
        Ok(files.into_iter().filter(is_sought).map(|file| format!("file {}", file.display())).collect())
    }
}

/// Returns the folder of reservations if the plugin delegates to host-local.
fn reservations_of(plugin: &PluginConfig) -> Option<&str> {
    let Some(Value::Object(ipam)) = json::lookup(plugin.object(), "ipam") else { return None };
    let is_host_local = text(ipam, "type") == Some("host-local");
    is_host_local.then(|| text(ipam, "dataDir").unwrap_or(host_local::DATA_DIR))
}

fn text<'a>(object: &'a netloom_types::Object, key: &str) -> Option<&'a str> {
    json::lookup(object, key).and_then(Value::as_str).filter(|text| !text.is_empty())
}
