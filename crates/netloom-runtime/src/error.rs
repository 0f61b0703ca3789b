//! The errors of this crate, each with its plugin or file.

use std::{io, path::PathBuf};

use netloom_invoke::{ExecError, FindError, Verb};
use netloom_types::{CniError, config::ConfigError, result::ResultError};

/// The reason a network could not be loaded or a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration file is invalid.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The file's error.
        source: ConfigError,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The operation, the words after "cannot".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The folder contains no configuration.
    #[error("no net configurations found in {}", .0.display())]
    NoConfigs(PathBuf),
    /// The folder contains no configuration of that name.
    #[error("no net configuration with name {name:?} in {}{}", dir.display(), skipped_hint(skipped))]
    NotFound {
        /// The network's name.
        name: String,
        /// The folder.
        dir: PathBuf,
        /// The errors of files that could not be loaded. One of them may be the network's.
        skipped: Vec<String>,
    },
    /// The list contains no plugin, neither inlined nor in files.
    #[error("no plugin configs found for network {0:?}")]
    NoPlugins(String),
    /// The specification does not allow a name, an ID or a version; no plugin was called.
    #[error("{0}")]
    Invalid(CniError),
    /// A plugin was not found.
    #[error("{0}")]
    Find(#[from] FindError),
    /// DEL could not call a plugin because it is not installed any more. The other plugins were called.
    #[error(
        "what plugin {kind:?} created for container {container:?} is left: {source}; install the plugin and repeat DEL"
    )]
    Left {
        /// The plugin's type.
        kind: String,
        /// The container's ID.
        container: String,
        /// Where the plugin was looked for.
        source: FindError,
    },
    /// A plugin failed: its own error, whole.
    #[error("plugin type={kind:?} failed ({}): {source}", verb_text(*verb))]
    Plugin {
        /// The plugin's type.
        kind: String,
        /// The verb of the call.
        verb: Verb,
        /// The plugin's error object, with its log in the details.
        source: CniError,
    },
    /// A plugin could not be run.
    #[error("plugin type={kind:?} failed ({}): {source}", verb_text(*verb))]
    Exec {
        /// The plugin's type.
        kind: String,
        /// The verb of the call.
        verb: Verb,
        /// The reason.
        source: ExecError,
    },
    /// The answer of a plugin is not a result.
    #[error("plugin type={kind:?} failed ({}): its answer is not a result: {source}", verb_text(*verb))]
    Answer {
        /// The plugin's type.
        kind: String,
        /// The verb of the call.
        verb: Verb,
        /// The error in the answer.
        source: ResultError,
    },
    /// The configuration's version does not have the verb.
    #[error("configuration version {version:?} does not support the {verb} command")]
    Unsupported {
        /// The version.
        version: String,
        /// The verb.
        verb: Verb,
    },
    /// The cached result cannot be used.
    #[error("failed to get network {network:?} cached result: {reason}")]
    Cache {
        /// The network.
        network: String,
        /// The reason.
        reason: String,
    },
    /// A cache file that may belong to the network cannot be read. Its container may be alive, so nothing was removed.
    #[error(
        "cannot tell which attachments are in use: cache file {}: {reason}; try again, or remove the file if no container uses it",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The reason the file cannot be used.
        reason: String,
    },
    /// The attachment already exists.
    #[error(
        "container {container:?} is already attached to network {network:?} with interface {ifname:?}: delete it first"
    )]
    Attached {
        /// The container.
        container: String,
        /// The network.
        network: String,
        /// The interface.
        ifname: String,
    },
    /// Several errors; the remaining work was done.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Error>),
}

impl Error {
    /// Returns the error object if a plugin failed or the specification does not allow a name, an ID or a version. Of several
    /// errors it is the first one's: an ADD that failed comes before the DELs after it.
    pub fn plugin_error(&self) -> Option<&CniError> {
        match self {
            Self::Plugin { source, .. } | Self::Invalid(source) => Some(source),
            Self::Several(errors) => errors.first()?.plugin_error(),
            _ => None,
        }
    }

    /// Combines errors into one. Succeeds if there are none.
    pub(crate) fn collect(errors: Vec<Self>) -> Result<(), Self> {
        let mut errors = errors;
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

fn skipped_hint(skipped: &[String]) -> String {
    if skipped.is_empty() {
        return String::new();
    }
    format!("; these could not be used: {}", skipped.join("; "))
}

fn verb_text(verb: Verb) -> &'static str {
    match verb {
        Verb::Add => "add",
        Verb::Del => "delete",
        Verb::Check => "check",
        Verb::Status => "status",
        Verb::Gc => "gc",
        Verb::Version => "version",
    }
}
