//! `netloom gc`: removes what belongs to no existing container.

use std::path::Path;

use clap::Args;
use kernel::{Netns, netns::is_gone};
use netloom_runtime::{
    Stale,
    cache::Entry,
    load,
    types::{Attachment, NetworkList, PluginConfig, SemVer, SpecVersion},
};
use plugins::stale::{self, Which};

use super::{
    Failure, Outcome, Places,
    networks::{self, Runtime},
    note, say,
    temporary_netns::{self, Dead},
};

/// Which network.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Name of the network. Defaults to all networks.
    network: Option<String>,
    /// Print what would be removed and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn gc(places: &Places, options: &Options) -> Outcome {
    let (removed, outcome) = collect(places, options)?;
    removed.iter().for_each(say);
    if removed.is_empty() && outcome.is_ok() {
        say("nothing to remove");
    } else if options.dry_run {
        note("netloom: dry run: nothing was removed");
    }
    outcome
}

/// Does as `cnitool gc`, which prints nothing.
pub(crate) fn quietly(places: &Places, network: String) -> Outcome {
    collect(places, &Options { network: Some(network), dry_run: false })?.1
}

/// Keeps the attachments that are cached and whose namespace exists, whichever runtime made them, and removes everything else of
/// the network. Returns what was removed, or with --dry-run what would be, and the errors.
fn collect(places: &Places, options: &Options) -> Outcome<(Vec<String>, Outcome)> {
    let lists = lists(places, options.network.as_deref())?;
    let runtime = if options.dry_run { places.runtime() } else { places.runtime_with_own_plugins()? };
    let collector = Collector { runtime, dead: temporary_netns::dead(places) };
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    for list in lists {
        if list.disable_gc {
            note(format!("netloom: network `{}` is skipped: its configuration sets `disableGC`", list.name));
            continue;
        }
        let done = if options.dry_run {
            collector.preview(&list).map(|items| removed.extend(items))
        } else {
            collector.gc(&list, &mut removed)
        };
        failures.extend(done.err());
    }
    for dead in collector.dead {
        // A process may have been killed before it created its namespace, or after it removed it.
        let item = dead.netns.exists().then(|| format!("network namespace {}", dead.netns.display()));
        match if options.dry_run { Ok(()) } else { dead.remove() } {
            Ok(()) => removed.extend(item),
            Err(failure) => failures.push(failure),
        }
    }
    Ok((removed, Failure::all(failures)))
}

/// Returns the network of that name, or all, also the embedded one.
fn lists(places: &Places, network: Option<&str>) -> Outcome<Vec<NetworkList>> {
    if let Some(name) = network {
        return Ok(vec![places.network(Some(name))?.0]);
    }
    let embedded = networks::embedded()?;
    let mut lists: Vec<NetworkList> = Vec::new();
    for (_, list) in load::networks(&places.conf_dir)? {
        lists.extend(list.ok());
    }
    if !lists.iter().any(|list| list.name == embedded.name) {
        lists.push(embedded);
    }
    Ok(lists)
}

struct Collector {
    runtime: Runtime,
    /// The namespaces of killed processes, which exist but count as gone.
    dead: Vec<Dead>,
}

impl Collector {
    /// Older runtimes do not record the namespace. Whether theirs exists is not known, so the attachment stays.
    fn is_alive(&self, entry: &Entry) -> bool {
        let netns = Path::new(&entry.netns);
        let is_dead = self.dead.iter().any(|dead| dead.netns == netns);
        entry.netns.is_empty() || !is_dead && !matches!(Netns::open(netns), Err(error) if is_gone(&error))
    }

    fn preview(&self, list: &NetworkList) -> Outcome<Vec<String>> {
        self.removable(list, &self.runtime.stale(list, |entry| self.is_alive(entry))?)
    }

    /// Removes what is stale, and adds what is gone afterwards to `removed`, also if something failed.
    ///
    /// Plugins do not report what their GC removes. The objects are therefore listed before it, under the network's lock, and
    /// after it.
    fn gc(&self, list: &NetworkList, removed: &mut Vec<String>) -> Outcome {
        let mut found = None;
        let is_alive = |entry: &Entry| self.is_alive(entry);
        let done = self.runtime.gc_after(list, is_alive, |stale| {
            found = Some((stale.clone(), self.removable(list, stale)));
        });
        if let Some((stale, before)) = found {
            let left = self.removable(list, &stale)?;
            removed.extend(before?.into_iter().filter(|item| !left.contains(item)));
        }
        Ok(done?)
    }

    /// Lists what a GC would remove now, in words: cached attachments, and the objects of Netloom's plugins.
    fn removable(&self, list: &NetworkList, stale: &Stale) -> Outcome<Vec<String>> {
        let cached = self.runtime.attachments()?;
        let mut items = Vec::new();
        for entry in &stale.entries {
            let attachment =
                Attachment { container_id: entry.container_id.clone(), ifname: entry.ifname.clone() };
            let is_it = |other: &Entry| {
                (&other.network, &other.container_id, &other.ifname)
                    == (&entry.network, &entry.container_id, &entry.ifname)
            };
            if cached.iter().any(is_it) {
                items.push(format!("attachment {} of container {}", entry.ifname, entry.container_id));
            }
            let then = entry.network_list();
            let plugins = then.as_ref().map_or(&list.plugins, |then| &then.plugins);
            items.extend(listed(&list.name, plugins, Which::Only(&attachment))?);
        }
        // Only these versions have GC. Otherwise nothing but the cached attachments is removed.
        if list.semver().is_ok_and(|version| version >= SemVer::from(SpecVersion::V1_1_0)) {
            items.extend(listed(&list.name, &list.plugins, Which::AllBut(&stale.valid))?);
        }
        let mut once: Vec<String> = Vec::new();
        for item in items {
            let item = format!("network {}: {item}", list.name);
            if !once.contains(&item) {
                once.push(item);
            }
        }
        Ok(once)
    }
}

fn listed(network: &str, plugins: &[PluginConfig], which: Which<'_>) -> Outcome<Vec<String>> {
    stale::list(network, plugins, which).map_err(|error| {
        Failure::new(format!("cannot list what is stale on network `{network}`: {}", error.msg))
            .hint(error.details)
    })
}
