//! Runs the verbs of a network.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use netloom_invoke::{Call, Environment, Executor, Processes, Verb, error_of, find_in_path};
use netloom_types::{
    Attachment, CniArgs, CniResult, NetworkList, Object, PluginConfig, SemVer, SpecVersion, VersionInfo,
    config::Derive,
    name::{ContainerId, IfName, NetworkName},
};
use serde_json::Value;

use crate::{
    Container, Error,
    cache::{self, Cached},
    lock::{self, LockFile},
};

/// A runtime: runs the plugins of networks.
#[derive(Debug, Clone)]
pub struct Runtime<E = Processes> {
    /// The folders with plugins, in order of search; passed to plugins as `CNI_PATH`.
    pub paths: Vec<PathBuf>,
    /// The folder of the cache and the locks. Defaults to `/var/lib/cni`, shared with Go's libcni.
    pub state: PathBuf,
    /// The time limit of one plugin, or `None` for no limit.
    pub timeout: Option<Duration>,
    /// The executor of plugins.
    pub executor: E,
    /// The function that takes the locks. Defaults to one that waits silently; a command line may name what it waits for.
    pub lock_file: LockFile,
}

/// What a GC of a network keeps, and which cached attachments it removes.
#[derive(Debug, Clone, PartialEq)]
pub struct Stale {
    /// The attachments that stay.
    pub valid: Vec<Attachment>,
    /// The cached attachments that are removed with DEL.
    pub entries: Vec<cache::Entry>,
}

/// The folder in which Go's libcni caches its results.
const STATE: &str = "/var/lib/cni";

impl Runtime {
    /// Creates a runtime that searches plugins in `paths`, with libcni's folder and no time limit.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, state: STATE.into(), timeout: None, executor: Processes, lock_file: lock::lock_file }
    }
}

impl<E: Executor> Runtime<E> {
    /// Attaches a container to a network: calls ADD of every plugin in order, each with the result of the previous one.
    ///
    /// If a later plugin fails, the runtime calls DEL of that plugin and of those before it in reverse order, so that nothing of
    /// this call remains. If the first plugin fails, the caller must call [`Self::del`], as the specification requires, unless
    /// the container was attached before.
    ///
    /// # Errors
    /// If a name is invalid, the attachment already exists, or a plugin fails.
    pub fn add(&self, list: &NetworkList, container: &Container) -> Result<CniResult, Error> {
        require_valid(list, container)?;
        let version = version_of(list)?;
        let _order = self.lock(list, container)?;
        let path = cache::path(&self.state, &list.name, &container.id, &container.ifname)?;
        if let Cached::Entry(_) = cache::read(&path, &list.name, container) {
            return Err(Error::Attached {
                container: container.id.clone(),
                network: list.name.clone(),
                ifname: container.ifname.clone(),
            });
        }
        let mut result: Option<CniResult> = None;
        for (index, plugin) in list.plugins.iter().enumerate() {
            let prev = result.as_ref().map(CniResult::to_value);
            let (error, done) = match self.call(list, plugin, Verb::Add, container, prev.as_ref()) {
                Ok(stdout) => match CniResult::parse(&stdout, version)
                    .and_then(|result| result.convert(version))
                {
                    Ok(added) => {
                        result = Some(added);
                        continue;
                    }
                    Err(source) => {
                        (Error::Answer { kind: plugin.kind().to_owned(), verb: Verb::Add, source }, index + 1)
                    }
                },
                // If the first plugin fails, no DEL is called: the interface may belong to another attachment, which DEL
                // would remove.
                Err(error) => (error, if index == 0 { 0 } else { index + 1 }),
            };
            return Err(self.take_back(list, &list.plugins[..done], container, prev.as_ref(), error));
        }
        let result = result.ok_or_else(|| Error::NoPlugins(list.name.clone()))?;
        if let Err(error) = cache::write(&self.state, list, container, &result) {
            let prev = result.to_value();
            return Err(self.take_back(list, &list.plugins, container, Some(&prev), error));
        }
        Ok(result)
    }

    /// Checks an attachment: calls CHECK of every plugin in order, each with the cached result of the ADD.
    ///
    /// # Errors
    /// If the version does not have CHECK, the cached result is damaged, or a plugin finds a difference.
    pub fn check(&self, list: &NetworkList, container: &Container) -> Result<(), Error> {
        require_valid(list, container)?;
        if semver_of(list)? < SemVer::from(SpecVersion::V0_4_0) {
            return Err(Error::Unsupported { version: list.cni_version.clone(), verb: Verb::Check });
        }
        if list.disable_check {
            return Ok(());
        }
        let version = version_of(list)?;
        let _order = self.lock(list, container)?;
        let (_, cached) = self.remembered(list, container)?;
        let prev = cached
            .result(version)
            .map_err(|reason| Error::Cache { network: list.name.clone(), reason })?
            .map(|result| result.to_value());
        let container = with_remembered_args(container, &cached);
        for plugin in &list.plugins {
            self.call(list, plugin, Verb::Check, &container, prev.as_ref())?;
        }
        Ok(())
    }

    /// Detaches a container from a network: calls DEL of every plugin in reverse order, each with the cached result of the ADD.
    ///
    /// The call may be repeated, and works without a cached result. It stops at the first error, since releasing the address
    /// would let a new container use it while objects of this attachment remain.
    ///
    /// # Errors
    /// If a name is invalid or a plugin fails.
    pub fn del(&self, list: &NetworkList, container: &Container) -> Result<(), Error> {
        require_valid(list, container)?;
        let _order = self.lock(list, container)?;
        self.del_unlocked(list, container)
    }

    fn del_unlocked(&self, list: &NetworkList, container: &Container) -> Result<(), Error> {
        let (path, cached) = self.remembered(list, container)?;
        let mut prev = None;
        if semver_of(list)? >= SemVer::from(SpecVersion::V0_4_0) {
            // A damaged or missing cache file does not prevent the DEL.
            prev = cached.result(version_of(list)?).ok().flatten().map(|result| result.to_value());
        }
        let container = with_remembered_args(container, &cached);
        let mut missing = Vec::new();
        for plugin in list.plugins.iter().rev() {
            match self.call(list, plugin, Verb::Del, &container, prev.as_ref()) {
                // A plugin that is not installed any more does not keep the others from removing what they created.
                Err(Error::Find(source)) => missing.push(Error::Left {
                    kind: plugin.kind().to_owned(),
                    container: container.id.clone(),
                    source,
                }),
                other => drop(other?),
            }
        }
        if !missing.is_empty() {
            // The cache entry stays, so that DEL can be repeated once the plugin is back.
            return Error::collect(missing);
        }
        match cached {
            Cached::Absent => Ok(()),
            Cached::Entry(_) | Cached::Legacy(_) | Cached::Damaged(_) => cache::remove(&path),
        }
    }

    /// Returns whether the list's version has STATUS. For older versions [`Self::status`] succeeds without calling a plugin.
    ///
    /// # Errors
    /// If the version is invalid.
    pub fn has_status(&self, list: &NetworkList) -> Result<bool, Error> {
        Ok(semver_of(list)? >= SemVer::from(SpecVersion::V1_1_0))
    }

    /// Calls STATUS of every plugin. Versions before 1.1.0 do not have STATUS and count as ready.
    ///
    /// # Errors
    /// If a plugin is not ready; the error is that of the first one.
    pub fn status(&self, list: &NetworkList) -> Result<(), Error> {
        NetworkName::parse(&list.name).map_err(Error::Invalid)?;
        if !self.has_status(list)? {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.call_network(list, plugin, Verb::Status, None)?;
        }
        Ok(())
    }

    /// Removes everything of a network that belongs to no living cached attachment. Stale cached attachments are removed with DEL
    /// and the configuration of their ADD. The plugins' GC removes the rest.
    ///
    /// The cache is read under a lock that excludes [`Self::add`] and [`Self::del`] of this network in all processes. An
    /// attachment whose `add` returned earlier is in the cache. An `add` that comes later starts after this call. Neither loses
    /// anything. Runtimes that do not acquire this lock (Go's libcni has none) must not add to the network during the call: see
    /// [`Self::gc_except`].
    ///
    /// # Errors
    /// [`Error::Unknown`] if a cache file that may belong to the network cannot be read; nothing is removed then. Otherwise all
    /// errors of DEL and GC. An error does not stop the call, and a later call can remove what remains.
    pub fn gc(&self, list: &NetworkList, is_alive: impl FnMut(&cache::Entry) -> bool) -> Result<(), Error> {
        self.gc_after(list, is_alive, |_| ())
    }

    /// Calls `before` with what is stale and then removes it as [`Self::gc`] does, both under the network's lock.
    ///
    /// # Errors
    /// The errors of [`Self::gc`].
    pub fn gc_after(
        &self,
        list: &NetworkList,
        is_alive: impl FnMut(&cache::Entry) -> bool,
        before: impl FnOnce(&Stale),
    ) -> Result<(), Error> {
        NetworkName::parse(&list.name).map_err(Error::Invalid)?;
        let _alone = self.locks().whole_network(&list.name)?;
        let stale = self.partition(list, is_alive)?;
        before(&stale);
        self.gc_locked(list, &stale.valid, stale.entries)
    }

    /// Returns what [`Self::gc`] would find stale, without a change. Waits for operations on the network.
    ///
    /// # Errors
    /// [`Error::Unknown`] if a cache file that may belong to the network cannot be read.
    pub fn stale(
        &self,
        list: &NetworkList,
        is_alive: impl FnMut(&cache::Entry) -> bool,
    ) -> Result<Stale, Error> {
        NetworkName::parse(&list.name).map_err(Error::Invalid)?;
        let _alone = self.locks().whole_network_if_used(&list.name)?;
        self.partition(list, is_alive)
    }

    fn partition(
        &self,
        list: &NetworkList,
        mut is_alive: impl FnMut(&cache::Entry) -> bool,
    ) -> Result<Stale, Error> {
        let (alive, entries): (Vec<_>, Vec<_>) =
            cache::all_of(&self.state, &list.name)?.into_iter().partition(|entry| is_alive(entry));
        let valid = alive
            .into_iter()
            .map(|entry| Attachment { container_id: entry.container_id, ifname: entry.ifname })
            .collect();
        Ok(Stale { valid, entries })
    }

    /// Removes everything of a network that belongs to no attachment in `valid`, for a runtime that keeps its own list.
    ///
    /// **The list must be complete from the call until it returns**: every attachment that is not in the list is removed, even if
    /// it was added a moment ago. The caller must therefore hold back its own ADDs of this network from before it creates the
    /// list until the call returns. The list must contain the attachments of all other runtimes on the host that use the network.
    /// A caller that cannot guarantee this uses [`Self::gc`]. The same applies to `cni.dev/valid-attachments` if a runtime calls
    /// plugins directly (SPEC section 4, "Garbage-collect"). An empty list removes everything.
    ///
    /// # Errors
    /// The errors of [`Self::gc`].
    pub fn gc_except(&self, list: &NetworkList, valid: &[Attachment]) -> Result<(), Error> {
        NetworkName::parse(&list.name).map_err(Error::Invalid)?;
        let _alone = self.locks().whole_network(&list.name)?;
        let is_valid = |entry: &cache::Entry| {
            valid.iter().any(|a| a.container_id == entry.container_id && a.ifname == entry.ifname)
        };
        let mut dead = cache::entries(&self.state)?;
        dead.retain(|entry| entry.network == list.name && !is_valid(entry));
        self.gc_locked(list, valid, dead)
    }

    /// The caller holds the network's lock, and has listed the cache once: an entry that another runtime writes meanwhile is in
    /// neither list.
    fn gc_locked(
        &self,
        list: &NetworkList,
        valid: &[Attachment],
        dead: Vec<cache::Entry>,
    ) -> Result<(), Error> {
        if list.disable_gc {
            return Ok(());
        }
        let mut errors = Vec::new();
        for entry in dead {
            let then = entry.network_list();
            let container = Container {
                id: entry.container_id,
                netns: entry.netns,
                ifname: entry.ifname,
                args: entry.args,
                capability_args: entry.capability_args,
            };
            let deleted = require_valid(list, &container)
                .and_then(|()| self.locks().container(&container.id))
                .and_then(|_order| self.del_unlocked(then.as_ref().unwrap_or(list), &container));
            errors.extend(deleted.err());
        }
        if semver_of(list)? >= SemVer::from(SpecVersion::V1_1_0) {
            for plugin in &list.plugins {
                errors.extend(self.call_network(list, plugin, Verb::Gc, Some(valid)).err());
            }
        }
        Error::collect(errors)
    }

    /// Returns the versions that a plugin supports. A plugin without VERSION supports 0.1.0.
    ///
    /// # Errors
    /// If the plugin is not found or its answer contains no versions.
    pub fn version(&self, kind: &str) -> Result<VersionInfo, Error> {
        let program = find_in_path(kind, &self.paths)?;
        let dummy = || "dummy".to_owned();
        let environment =
            Environment { netns: dummy(), ifname: dummy(), path: dummy(), ..Environment::default() };
        let stdin = format!("{{\"cniVersion\":\"{}\"}}", SpecVersion::NEWEST);
        let asked = self.execute(kind, &program, Verb::Version, &environment, stdin.as_bytes());
        match asked {
            Ok(stdout) => VersionInfo::parse(&stdout).map_err(|error| Error::Plugin {
                kind: kind.to_owned(),
                verb: Verb::Version,
                source: netloom_types::CniError::new(netloom_types::Code::Decode, error.to_string()),
            }),
            Err(Error::Plugin { source, .. }) if source.msg == "unknown CNI_COMMAND: VERSION" => {
                Ok(VersionInfo { cni_version: "0.1.0".into(), supported_versions: vec!["0.1.0".into()] })
            }
            Err(error) => Err(error),
        }
    }

    /// Checks that every plugin of a list exists and supports the list's version. Returns the capabilities that the plugins
    /// declare.
    ///
    /// # Errors
    /// If the network's name is invalid, or a plugin is missing or does not support the version. The error contains all of them.
    pub fn validate(&self, list: &NetworkList) -> Result<Vec<String>, Error> {
        let mut errors = Vec::new();
        errors.extend(NetworkName::parse(&list.name).map_err(Error::Invalid).err());
        let wanted = if list.cni_version.is_empty() { "0.1.0" } else { &list.cni_version };
        let mut capabilities = Vec::new();
        for plugin in &list.plugins {
            match self.version(plugin.kind()) {
                Ok(info) if info.supported_versions.iter().any(|version| version == wanted) => {}
                Ok(_) => errors.push(Error::Plugin {
                    kind: plugin.kind().to_owned(),
                    verb: Verb::Version,
                    source: netloom_types::CniError::new(
                        netloom_types::Code::IncompatibleVersion,
                        format!("plugin {} does not support config version {wanted:?}", plugin.kind()),
                    ),
                }),
                Err(error) => errors.push(error),
            }
            capabilities.extend_from_slice(plugin.capabilities());
        }
        capabilities.sort();
        capabilities.dedup();
        Error::collect(errors).map(|()| capabilities)
    }

    /// Lists the cached attachments of all networks.
    ///
    /// # Errors
    /// If the folder of the cache cannot be read.
    pub fn attachments(&self) -> Result<Vec<cache::Entry>, Error> {
        cache::entries(&self.state)
    }

    fn locks(&self) -> lock::Locks<'_> {
        lock::Locks { state: &self.state, lock_file: self.lock_file }
    }

    fn lock(&self, list: &NetworkList, container: &Container) -> Result<(lock::Guard, lock::Guard), Error> {
        // The fixed order prevents a deadlock.
        Ok((self.locks().network(&list.name)?, self.locks().container(&container.id)?))
    }

    fn remembered(&self, list: &NetworkList, container: &Container) -> Result<(PathBuf, Cached), Error> {
        let path = cache::path(&self.state, &list.name, &container.id, &container.ifname)?;
        let cached = cache::read(&path, &list.name, container);
        Ok((path, cached))
    }

    /// Calls DEL of the plugins that this ADD has called. Returns the ADD's error, with the errors of the DELs.
    fn take_back(
        &self,
        list: &NetworkList,
        done: &[PluginConfig],
        container: &Container,
        prev: Option<&Value>,
        error: Error,
    ) -> Error {
        let failed: Vec<Error> = done
            .iter()
            .rev()
            .filter_map(|plugin| self.call(list, plugin, Verb::Del, container, prev).err())
            .collect();
        if failed.is_empty() { error } else { Error::Several(std::iter::once(error).chain(failed).collect()) }
    }

    fn call(
        &self,
        list: &NetworkList,
        plugin: &PluginConfig,
        verb: Verb,
        container: &Container,
        prev: Option<&Value>,
    ) -> Result<Vec<u8>, Error> {
        let config = plugin.derive(&Derive {
            name: &list.name,
            version: &list.cni_version,
            capability_args: Some(&container.capability_args),
            prev_result: prev,
            valid_attachments: None,
        });
        let environment = Environment {
            container_id: container.id.clone(),
            netns: container.netns.clone(),
            ifname: container.ifname.clone(),
            args: CniArgs::from_pairs(container.args.clone()).render(),
            path: self.joined_path(),
        };
        self.run(plugin, verb, &environment, config)
    }

    fn call_network(
        &self,
        list: &NetworkList,
        plugin: &PluginConfig,
        verb: Verb,
        valid: Option<&[Attachment]>,
    ) -> Result<Vec<u8>, Error> {
        let config = plugin.derive(&Derive {
            name: &list.name,
            version: &list.cni_version,
            valid_attachments: valid,
            ..Derive::default()
        });
        let environment = Environment { path: self.joined_path(), ..Environment::default() };
        self.run(plugin, verb, &environment, config)
    }

    fn run(
        &self,
        plugin: &PluginConfig,
        verb: Verb,
        environment: &Environment,
        config: Object,
    ) -> Result<Vec<u8>, Error> {
        let program = find_in_path(plugin.kind(), &self.paths)?;
        let stdin = Value::Object(config).to_string();
        self.execute(plugin.kind(), &program, verb, environment, stdin.as_bytes())
    }

    fn execute(
        &self,
        kind: &str,
        program: &Path,
        verb: Verb,
        environment: &Environment,
        stdin: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let call = Call { program, verb, environment, stdin, timeout: self.timeout };
        let outcome = self.executor.execute(&call).map_err(|source| Error::Exec {
            kind: kind.to_owned(),
            verb,
            source,
        })?;
        if outcome.status.success() {
            return Ok(outcome.stdout);
        }
        Err(Error::Plugin { kind: kind.to_owned(), verb, source: error_of(&outcome) })
    }

    fn joined_path(&self) -> String {
        let paths: Vec<String> = self.paths.iter().map(|path| path.display().to_string()).collect();
        paths.join(":")
    }
}

/// Checks the names that become variables and file names, before the runtime calls plugins or reads files.
fn require_valid(list: &NetworkList, container: &Container) -> Result<(), Error> {
    ContainerId::parse(&container.id).map_err(Error::Invalid)?;
    NetworkName::parse(&list.name).map_err(Error::Invalid)?;
    IfName::parse(&container.ifname).map_err(Error::Invalid)?;
    Ok(())
}

fn version_of(list: &NetworkList) -> Result<SpecVersion, Error> {
    list.version().ok_or_else(|| {
        Error::Invalid(netloom_types::CniError::new(
            netloom_types::Code::IncompatibleVersion,
            format!("unsupported CNI version {:?} of network {:?}", list.cni_version, list.name),
        ))
    })
}

fn semver_of(list: &NetworkList) -> Result<SemVer, Error> {
    list.semver().map_err(|error| {
        Error::Invalid(netloom_types::CniError::new(
            netloom_types::Code::IncompatibleVersion,
            format!("network {:?}: {error}", list.name),
        ))
    })
}

/// Returns the container for CHECK and DEL, with the arguments of the ADD unless the caller passes its own.
fn with_remembered_args(container: &Container, cached: &Cached) -> Container {
    let mut container = container.clone();
    if let Cached::Entry(entry) = cached {
        if container.args.is_empty() {
            container.args.clone_from(&entry.args);
        }
        if container.capability_args.is_empty() {
            container.capability_args.clone_from(&entry.capability_args);
        }
    }
    container
}
