//! What went wrong, with which plugin or file.

use std::{io, path::PathBuf};

use netloom_invoke::{ExecError, FindError, Verb};
use netloom_types::{CniError, config::ConfigError, result::ResultError};

/// The reason why a network could not be loaded, or a verb not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration file is wrong.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The operation, as the rest of "cannot …".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The folder has no configuration at all.
    #[error("no net configurations found in {}", .0.display())]
    NoConfigs(PathBuf),
    /// The folder has no configuration of that name.
    #[error("no net configuration with name {name:?} in {}{}", dir.display(), skipped_hint(skipped))]
    NotFound {
        /// The name.
        name: String,
        /// The folder.
        dir: PathBuf,
        /// Files that could not be read, one of which may be it.
        skipped: Vec<String>,
    },
    /// The list has no plugin, neither inlined nor in files.
    #[error("no plugin configs found for network {0:?}")]
    NoPlugins(String),
    /// A name or ID that the specification does not allow; nothing was run.
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
        /// What it was asked.
        verb: Verb,
        /// Its error object, with what it logged in the details.
        source: CniError,
    },
    /// A plugin could not be run.
    #[error("plugin type={kind:?} failed ({}): {source}", verb_text(*verb))]
    Exec {
        /// The plugin's type.
        kind: String,
        /// What it was asked.
        verb: Verb,
        /// Why not.
        source: ExecError,
    },
    /// A plugin answered with something that is no result.
    #[error("plugin type={kind:?} failed ({}): its answer is no result: {source}", verb_text(*verb))]
    Answer {
        /// The plugin's type.
        kind: String,
        /// What it was asked.
        verb: Verb,
        /// What is wrong with the answer.
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
    /// The remembered result cannot be used.
    #[error("failed to get network {network:?} cached result: {reason}")]
    Cache {
        /// The network.
        network: String,
        /// Why not.
        reason: String,
    },
    /// A cache file that may belong to the network cannot be read, so its attachment may be alive: nothing was removed.
    #[error(
        "cannot tell which attachments are in use: cache file {}: {reason}; try again, or remove the file if no container uses it",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// The attachment exists already.
    #[error(
        "container {container:?} is on network {network:?} with interface {ifname:?} already: delete it first"
    )]
    Attached {
        /// The container.
        container: String,
        /// The network.
        network: String,
        /// The interface.
        ifname: String,
    },
    /// Several things went wrong; the rest was done.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Error>),
}

impl Error {
    /// Returns the plugin's error object, where a plugin failed.
    pub fn plugin_error(&self) -> Option<&CniError> {
        match self {
            Self::Plugin { source, .. } | Self::Invalid(source) => Some(source),
            _ => None,
        }
    }

    /// Combines errors into one; `Ok` if there are none.
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
