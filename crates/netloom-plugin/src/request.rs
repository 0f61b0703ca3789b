//! Parsing of requests. No other module of this crate reads variables or standard input.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    path::{Path, PathBuf},
};

use netloom_invoke::{Environment, Verb, split_path};
use netloom_types::{
    CniArgs, CniError, Code, RequestConfig, RuntimeConfig, SemVer, SpecVersion,
    name::{ContainerId, IfName},
    result::v100::Success,
};

use crate::{Plugin, linked::Delegates};

/// The `CNI_*` variables as received. A test can pass its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Reads the variables of the specification and `CNI_NETNS_OVERRIDE` from the process's environment.
    pub fn of_process() -> Self {
        // Read one by one: `std::env::vars` would copy the caller's whole environment.
        let known = [
            "CNI_COMMAND",
            "CNI_CONTAINERID",
            "CNI_NETNS",
            "CNI_IFNAME",
            "CNI_ARGS",
            "CNI_PATH",
            "CNI_NETNS_OVERRIDE",
        ];
        known
            .into_iter()
            .filter_map(|key| Some((key, std::env::var_os(key)?.to_string_lossy().into_owned())))
            .collect()
    }

    /// Returns the value of a variable, or `None` if it is unset or empty.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn text(&self, key: &str) -> String {
        self.value(key).unwrap_or_default().to_owned()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// A request of any verb except VERSION.
pub struct Request {
    /// The value of `CNI_COMMAND`.
    pub verb: Verb,
    /// The configuration.
    pub config: RequestConfig,
    /// The version of the configuration and of the answer.
    pub version: SpecVersion,
    /// `CNI_ARGS`.
    pub args: CniArgs,
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// The variables of this call, for delegated plugins.
    pub environment: Environment,
    /// The result of the previous plugin (ADD) or of the whole ADD (CHECK, DEL). `None` if the runtime sent none.
    pub prev_result: Option<Success>,
    pub(crate) delegates: Delegates,
}

impl fmt::Debug for Request {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Request")
            .field("verb", &self.verb)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The sandbox of an ADD, DEL or CHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// `CNI_CONTAINERID`
    pub container_id: ContainerId,
    /// `CNI_IFNAME`
    pub ifname: IfName,
    /// `CNI_NETNS`; always present at ADD and CHECK.
    pub netns: Option<PathBuf>,
}

impl Sandbox {
    /// Returns the namespace's path. It is always present at ADD and CHECK.
    ///
    /// # Errors
    /// Code 4 if `CNI_NETNS` is absent.
    pub fn require_netns(&self) -> Result<&Path, CniError> {
        self.netns.as_deref().ok_or_else(|| {
            CniError::new(Code::InvalidEnvironment, "required env variables [CNI_NETNS] missing")
        })
    }

    /// Returns the namespace's path as a string, for results. It is empty if `CNI_NETNS` is absent.
    pub fn netns_text(&self) -> String {
        self.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    }
}

impl Request {
    /// Returns the previous result, for chained plugins.
    ///
    /// # Errors
    /// Code 7 if it is absent.
    pub fn require_prev_result(&self) -> Result<Success, CniError> {
        self.prev_result.clone().ok_or_else(|| {
            CniError::new(Code::InvalidNetworkConfig, "prevResult is missing").details(
                "this plugin changes the result of another plugin: place it after that plugin in `plugins`",
            )
        })
    }

    /// Deserializes the configuration into a plugin's own type, without regard to the case of keys.
    ///
    /// # Errors
    /// Code 6 with the path to the wrong key.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, CniError> {
        self.config.read()
    }

    /// Deserializes `runtimeConfig`.
    ///
    /// # Errors
    /// Code 6 with the path to the wrong key.
    pub fn runtime_config(&self) -> Result<RuntimeConfig, CniError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            #[serde(default)]
            runtime_config: RuntimeConfig,
        }
        self.read::<Wire>().map(|wire| wire.runtime_config)
    }
}

/// The requirements of a verb. They follow the specification and the behaviour that runtimes rely on (`docs/decisions.md` lists
/// the differences).
struct Needs {
    verb: Verb,
    attachment: bool,
    netns: bool,
    since: SpecVersion,
}

const NEEDS: [Needs; 5] = [
    Needs { verb: Verb::Add, attachment: true, netns: true, since: SpecVersion::V0_1_0 },
    Needs { verb: Verb::Check, attachment: true, netns: true, since: SpecVersion::V0_4_0 },
    Needs { verb: Verb::Del, attachment: true, netns: false, since: SpecVersion::V0_1_0 },
    Needs { verb: Verb::Gc, attachment: false, netns: false, since: SpecVersion::V1_1_0 },
    Needs { verb: Verb::Status, attachment: false, netns: false, since: SpecVersion::V1_1_0 },
];

/// Size limit of standard input. Configurations have some kilobytes.
const STDIN_LIMIT: u64 = 16 * 1024 * 1024;

/// Reads and checks a request of any verb except VERSION. The sandbox is present for ADD, DEL and CHECK.
///
/// # Errors
/// Code 4 if a variable is missing or invalid, 5 or 6 if standard input cannot be read or decoded, 7 if the network name is
/// invalid, 1 if the version is not supported.
pub(crate) fn read(
    plugin: &dyn Plugin,
    variables: &Variables,
    stdin: &mut dyn Read,
    delegates: Delegates,
) -> Result<(Request, Option<Sandbox>), CniError> {
    let command = variables.value("CNI_COMMAND").ok_or_else(|| missing(&["CNI_COMMAND"]))?;
    let needs = NEEDS.iter().find(|needs| needs.verb.as_str() == command);
    let mut sandbox = None;
    if let Some(needs) = needs {
        sandbox = read_sandbox(needs, variables)?;
    }
    let mut bytes = Vec::new();
    stdin
        .take(STDIN_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| CniError::new(Code::Io, format!("error reading from stdin: {error}")))?;
    if bytes.len() as u64 > STDIN_LIMIT {
        return Err(CniError::new(
            Code::Decode,
            "error unmarshall network config: more than 16 MiB on stdin",
        ));
    }
    let config = RequestConfig::parse(&bytes)?;
    let Some(needs) = needs else {
        return Err(CniError::new(
            Code::InvalidEnvironment,
            format!("unknown CNI_COMMAND: {}", command.escape_debug()),
        ));
    };
    let version = negotiate(plugin, needs, &config.cni_version)?;
    let with_version = |mut error: CniError| {
        error.cni_version = Some(version);
        error
    };
    // Only a plugin that reads arguments refuses what is not a list of pairs.
    let args = CniArgs::parse_lazily(variables.value("CNI_ARGS").unwrap_or_default());
    let prev_result = match config.prev_result() {
        Ok(prev) => prev.map(netloom_types::CniResult::into_current),
        // DEL must work without a usable `prevResult`.
        Err(_) if needs.verb == Verb::Del => None,
        Err(error) => return Err(with_version(error)),
    };
    let environment = Environment {
        container_id: variables.text("CNI_CONTAINERID"),
        netns: variables.text("CNI_NETNS"),
        ifname: variables.text("CNI_IFNAME"),
        args: variables.text("CNI_ARGS"),
        path: variables.text("CNI_PATH"),
    };
    let path = split_path(&environment.path);
    let request =
        Request { verb: needs.verb, config, version, args, path, environment, prev_result, delegates };
    Ok((request, sandbox))
}

fn read_sandbox(needs: &Needs, variables: &Variables) -> Result<Option<Sandbox>, CniError> {
    let mut absent = Vec::new();
    let mut sandbox = None;
    if needs.attachment {
        let container_id = variables.value("CNI_CONTAINERID").map(ContainerId::parse).transpose()?;
        let ifname = variables.value("CNI_IFNAME").map(IfName::parse).transpose()?;
        let netns = variables.value("CNI_NETNS");
        if container_id.is_none() {
            absent.push("CNI_CONTAINERID");
        }
        if needs.netns && netns.is_none() {
            absent.push("CNI_NETNS");
        }
        if ifname.is_none() {
            absent.push("CNI_IFNAME");
        }
        if let (Some(container_id), Some(ifname)) = (container_id, ifname) {
            sandbox = Some(Sandbox { container_id, ifname, netns: netns.map(PathBuf::from) });
        }
    }
    if variables.value("CNI_PATH").is_none() {
        absent.push("CNI_PATH");
    }
    if absent.is_empty() { Ok(sandbox) } else { Err(missing(&absent)) }
}

fn missing(names: &[&str]) -> CniError {
    CniError::new(Code::InvalidEnvironment, format!("required env variables [{}] missing", names.join(",")))
}

/// Returns the version of the configuration if the plugin supports it and the version has the verb.
fn negotiate(plugin: &dyn Plugin, needs: &Needs, wanted: &str) -> Result<SpecVersion, CniError> {
    let incompatible = |msg: &str| CniError::new(Code::IncompatibleVersion, msg);
    if needs.since > SpecVersion::V0_1_0 {
        let parsed = SemVer::parse(wanted).map_err(|error| CniError::new(Code::Decode, error.to_string()))?;
        if parsed < needs.since.into() {
            return Err(incompatible(&format!("config version does not allow {}", needs.verb)).details(
                format!(
                    "{} requires version {}, the configuration has cniVersion {wanted:?}",
                    needs.verb, needs.since
                ),
            ));
        }
        if !plugin.versions().iter().any(|version| SemVer::from(*version) >= parsed) {
            return Err(incompatible(&format!("plugin version does not allow {}", needs.verb)));
        }
    }
    SpecVersion::parse(wanted).filter(|version| plugin.versions().contains(version)).ok_or_else(|| {
        let wanted = if wanted.is_empty() { "0.1.0" } else { wanted };
        let supported: Vec<String> =
            plugin.versions().iter().map(|version| format!("\"{version}\"")).collect();
        incompatible("incompatible CNI versions")
            .details(format!("config is {wanted:?}, plugin supports [{}]", supported.join(" ")))
    })
}
