//! Finds cached attachments by what a person knows of a container: its ID, a prefix of it, its namespace or its process.

use std::path::{Path, PathBuf};

use netloom_invoke::FileId;
use netloom_runtime::{
    Container,
    cache::Entry,
    types::{NetworkList, Object},
};

use super::{Failure, Outcome, networks::Runtime};

/// The shortest prefix of a container ID that is accepted.
const SHORTEST_PREFIX: usize = 4;

/// What a person typed to name a container.
#[derive(Debug)]
pub(crate) struct Target {
    text: String,
    netns: Option<FileId>,
}

impl Target {
    pub(crate) fn new(text: &str) -> Self {
        let netns = if text.bytes().all(|byte| byte.is_ascii_digit()) {
            FileId::of(&Path::new("/proc").join(text).join("ns/net"))
        } else if text.contains('/') {
            FileId::of(Path::new(text))
        } else {
            FileId::of(&Path::new("/run/netns").join(text))
        };
        Self { text: text.to_owned(), netns }
    }

    /// Returns the path of the namespace that the text names, if it exists.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let text = self.text.as_str();
        let candidates = [
            Path::new("/proc").join(text).join("ns/net"),
            Path::new("/run/netns").join(text),
            PathBuf::from(text),
        ];
        candidates.into_iter().find(|path| self.netns.is_some() && FileId::of(path) == self.netns)
    }

    /// Returns whether the text names a container with this ID, this namespace and these arguments.
    pub(crate) fn matches(&self, container_id: &str, netns: &str, args: &[(String, String)]) -> bool {
        let by_id = container_id == self.text
            || (self.text.len() >= SHORTEST_PREFIX && container_id.starts_with(&self.text));
        let path = Path::new(netns);
        let by_path = !netns.is_empty()
            && (netns == self.text || path.file_name().is_some_and(|name| name == self.text.as_str()));
        // podman puts the container's name there, and a CRI runtime the pod's.
        let by_name = args.iter().any(|(key, value)| key == "K8S_POD_NAME" && *value == self.text);
        by_id
            || by_path
            || by_name
            || (!netns.is_empty() && self.netns.is_some() && FileId::of(path) == self.netns)
    }
}

/// A cached attachment that matches a [`Target`].
#[derive(Debug)]
pub(crate) struct Found {
    id: String,
    netns: String,
    ifname: String,
    args: Vec<(String, String)>,
    capability_args: Object,
}

impl Found {
    /// Returns whether a runtime other than this command created the attachment.
    pub(crate) fn is_foreign(&self) -> bool {
        !["cnitool-", "netloom-"].iter().any(|prefix| self.id.starts_with(prefix))
    }

    /// The attachment and its owner for an error message.
    pub(crate) fn describe(&self) -> String {
        let argument = |key: &str| self.args.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        let owner = match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => format!(" (pod `{namespace}/{name}`)"),
            (None, Some(name)) => format!(" (`{name}`)"),
            _ => String::new(),
        };
        format!("attachment `{}` of container `{}`{owner}", self.ifname, self.id)
    }

    /// Replaces the identity of `container`. Arguments that the caller gave stay.
    pub(crate) fn apply(self, container: &mut Container) {
        container.id = self.id;
        container.netns = self.netns;
        container.ifname = self.ifname;
        if container.args.is_empty() {
            container.args = self.args;
        }
        if container.capability_args.is_empty() {
            container.capability_args = self.capability_args;
        }
    }
}

/// Returns the cached attachment to a network that `target` names, preferring the one `exact` identifies.
///
/// # Errors
/// If the state cannot be read, or several attachments match.
pub(crate) fn find(
    runtime: &Runtime,
    list: &NetworkList,
    target: &Target,
    ifname: Option<&str>,
    exact: &Container,
) -> Outcome<Option<Found>> {
    let mut found: Vec<Found> = Vec::new();
    for entry in runtime.attachments()? {
        if entry.network != list.name {
            continue;
        }
        if entry.container_id == exact.id && entry.ifname == exact.ifname {
            return Ok(None);
        }
        if target.matches(&entry.container_id, entry.sandbox(), &entry.args)
            && ifname.is_none_or(|name| name == entry.ifname)
        {
            found.push(Found {
                netns: entry.sandbox().to_owned(),
                id: entry.container_id,
                ifname: entry.ifname,
                args: entry.args,
                capability_args: entry.capability_args,
            });
        }
    }
    // The whole ID of one may be the beginning of another's.
    if found.iter().any(|found| found.id == target.text) {
        found.retain(|found| found.id == target.text);
    }
    if found.len() > 1 {
        let all: Vec<String> = found.iter().map(Found::describe).collect();
        return Err(Failure::new(format!(
            "`{}` matches several attachments: {}",
            target.text,
            all.join(", ")
        ))
        .hint("name one with --container-id and --ifname"));
    }
    if found.is_empty() && !Path::new(&exact.netns).exists() {
        return require_path(&target.text).map(|()| None);
    }
    Ok(found.pop())
}

/// Returns the cached attachment, of any network, that has the interface which a DEL for `container` on `list` would remove, if that is
/// another attachment. A plugin's DEL removes the interface by its name, regardless of its owner.
///
/// # Errors
/// If the state cannot be read.
pub(crate) fn other_owner(
    runtime: &Runtime,
    list: &NetworkList,
    container: &Container,
) -> Outcome<Option<String>> {
    let Some(netns) = FileId::of(Path::new(&container.netns)) else { return Ok(None) };
    let is_other = |entry: &Entry| {
        entry.ifname == container.ifname
            && (entry.container_id != container.id || entry.network != list.name)
            && FileId::of(Path::new(entry.sandbox())) == Some(netns)
    };
    let other = runtime.attachments()?.into_iter().find(is_other);
    Ok(other.map(|entry| format!("container `{}` on network `{}`", entry.container_id, entry.network)))
}

/// Refuses a name that matches nothing. A path may be gone: DEL without a cached result still releases resources.
fn require_path(text: &str) -> Outcome {
    if PathBuf::from(text).is_absolute() || text.contains('/') {
        return Ok(());
    }
    Err(Failure::new(format!("no attachment matches `{text}`"))
        .hint("list the attachments with `netloom list`"))
}
