//! Network configurations: in the form that an administrator writes ([`NetworkList`], [`PluginConfig`]) and in the form that a
//! plugin receives ([`RequestConfig`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{CniError, Code},
    json::{self, JsonError, Object},
    name::{NetworkName, is_plugin_type},
    result::{CniResult, ResultError},
    version::{SemVer, SemVerError, SpecVersion},
};

/// A network: a name and a list of plugins (SPEC, "Network configuration objects").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkList {
    /// The network's name. It is checked against the naming rules only when the list is used.
    pub name: String,
    /// The version of every plugin's configuration: the highest of `cniVersion` and `cniVersions` that is not newer than this
    /// crate, or `cniVersion` as written if `cniVersions` is absent. It may be a version that this crate does not know.
    pub cni_version: String,
    /// Whether the runtime must skip CHECK.
    pub disable_check: bool,
    /// Whether the runtime must skip GC.
    pub disable_gc: bool,
    /// Whether the runtime must ignore plugin files beside the list.
    pub load_only_inlined_plugins: bool,
    /// The plugins in the order of ADD.
    pub plugins: Vec<PluginConfig>,
    /// The text that the list was parsed from.
    pub bytes: Vec<u8>,
}

/// The configuration of one plugin. Every key keeps its spelling and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    object: Object,
    kind: String,
    capabilities: Vec<String>,
}

/// The container ID and interface name of an attachment, an entry of GC's list (SPEC, "GC: Clean up any stale resources").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The container's ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
}

/// The reason a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a list.
    #[error("error parsing configuration list: {0}")]
    List(String),
    /// One of the plugins of a list has an error.
    #[error("failed to parse plugin config {index}: {source}")]
    Plugin {
        /// The plugin's index, from 0.
        index: usize,
        /// The plugin's error.
        source: Box<ConfigError>,
    },
    /// The text is not a plugin configuration.
    #[error("error parsing configuration: {0}")]
    Single(String),
}

impl NetworkList {
    /// Parses a list (`.conflist`).
    ///
    /// A list without `plugins` is accepted: its plugins may be in separate files.
    ///
    /// # Errors
    /// If the text is not a JSON object, or a protocol key has a wrong type or value.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let list = |error: JsonError| ConfigError::List(error.to_string());
        let object = json::parse_object(bytes).map_err(list)?;
        let name = match json::lookup(&object, "name") {
            None => return Err(ConfigError::List("no name".into())),
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                return Err(ConfigError::List(format!("invalid name type: {}", json::kind_of(other))));
            }
        };
        let load_only_inlined_plugins = flag(&object, "loadOnlyInlinedPlugins")?;
        let plugins = match object.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case("plugins")) {
            None if load_only_inlined_plugins => {
                return Err(ConfigError::List(
                    "`loadOnlyInlinedPlugins` is true, and no 'plugins' key".into(),
                ));
            }
            None => Vec::new(),
            Some((_, Value::Array(items))) if items.is_empty() => {
                return Err(ConfigError::List("no plugins in list".into()));
            }
            Some((_, Value::Array(items))) => items
                .iter()
                .enumerate()
                .map(|(index, item)| {
                    PluginConfig::from_value(item.clone())
                        .map_err(|source| ConfigError::Plugin { index, source: Box::new(source) })
                })
                .collect::<Result<_, _>>()?,
            Some((_, other)) => {
                return Err(ConfigError::List(format!("invalid 'plugins' type: {}", json::kind_of(other))));
            }
        };
        Ok(Self {
            name,
            cni_version: chosen_version(&object)?,
            disable_check: flag(&object, "disableCheck")?,
            disable_gc: flag(&object, "disableGC")?,
            load_only_inlined_plugins,
            plugins,
            bytes: bytes.to_vec(),
        })
    }

    /// Parses a single plugin's configuration (`.conf`, `.json`) as a list of one.
    ///
    /// # Errors
    /// If the text is not a plugin configuration. A list in a file with the wrong extension is the most common mistake and has
    /// its own message.
    pub fn parse_single(bytes: &[u8]) -> Result<Self, ConfigError> {
        let object = json::parse_object(bytes).map_err(|error| ConfigError::Single(error.to_string()))?;
        if json::lookup(&object, "type").is_none() && json::lookup(&object, "plugins").is_some() {
            return Err(ConfigError::Single(
                "missing 'type': this is a list of plugins, so its file name must end in .conflist".into(),
            ));
        }
        let text = |key: &str| match json::lookup(&object, key) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(ConfigError::Single(format!(
                "`{key}`: expected a string, found {}",
                json::kind_of(other)
            ))),
        };
        Ok(Self {
            name: text("name")?,
            cni_version: text("cniVersion")?,
            disable_check: false,
            disable_gc: false,
            load_only_inlined_plugins: false,
            plugins: vec![PluginConfig::from_value(Value::Object(object.clone()))?],
            bytes: bytes.to_vec(),
        })
    }

    /// Returns the chosen version, or `None` if no published specification has it.
    pub fn version(&self) -> Option<SpecVersion> {
        SpecVersion::parse(&self.cni_version)
    }

    /// Returns the chosen version in a form that can be compared.
    ///
    /// # Errors
    /// If `cniVersion` is not a version number.
    pub fn semver(&self) -> Result<SemVer, SemVerError> {
        SemVer::parse(&self.cni_version)
    }
}

impl PluginConfig {
    /// Parses one plugin's object.
    ///
    /// # Errors
    /// If the text is not a JSON object, has no usable `type`, or a protocol key has the wrong type.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let object = json::parse_object(bytes).map_err(|error| ConfigError::Single(error.to_string()))?;
        Self::from_value(Value::Object(object))
    }

    fn from_value(value: Value) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[derive(Default)]
        struct Wire {
            cni_version: String,
            name: String,
            r#type: String,
            capabilities: std::collections::BTreeMap<String, bool>,
            ipam: Ipam,
            dns: crate::result::Dns,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Ipam {
            r#type: String,
        }
        let single = |message: String| ConfigError::Single(message);
        let Value::Object(object) = value else {
            return Err(single(format!("expected an object, found {}", json::kind_of(&value))));
        };
        let wire: Wire = json::from_object(&object).map_err(|error| single(error.to_string()))?;
        // These are parsed only to report a wrong type when the file is loaded, not when a container starts.
        drop((wire.cni_version, wire.name, wire.ipam.r#type, wire.dns));
        if wire.r#type.is_empty() {
            return Err(single("missing 'type'".into()));
        }
        if !is_plugin_type(&wire.r#type) {
            return Err(single(format!(
                "invalid plugin name: {} (`type` is the name of a file in CNI_PATH, without any path)",
                wire.r#type.escape_debug()
            )));
        }
        let capabilities =
            wire.capabilities.into_iter().filter(|(_, declared)| *declared).map(|(name, _)| name).collect();
        Ok(Self { object, kind: wire.r#type, capabilities })
    }

    /// Returns `type`: the name of the plugin's binary.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Returns the object with its keys as written.
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Returns the capabilities that the plugin declares.
    pub fn capabilities(&self) -> &[String] {
        &self.capabilities
    }

    /// Derives the configuration for one call (SPEC, "Deriving request configuration from plugin
    /// configuration"). Name and version are the list's. `capabilities` and the keys that only a runtime may set are removed.
    /// Everything else stays unchanged.
    pub fn derive(&self, call: &Derive<'_>) -> Object {
        let mut object = self.object.clone();
        object.retain(|key, _| {
            let reserved = ["capabilities", "prevResult", "runtimeConfig", "cniVersions"];
            !reserved.iter().any(|name| key.eq_ignore_ascii_case(name))
                && !key.to_ascii_lowercase().starts_with("cni.dev/")
        });
        json::replace(&mut object, "cniVersion", call.version.into());
        json::replace(&mut object, "name", call.name.into());
        let offered: Object = self
            .capabilities
            .iter()
            .filter_map(|name| Some((name.clone(), call.capability_args?.get(name)?.clone())))
            .collect();
        if !offered.is_empty() {
            object.insert("runtimeConfig".into(), offered.into());
        }
        if let Some(prev) = call.prev_result {
            object.insert("prevResult".into(), prev.clone());
        }
        if let Some(valid) = call.valid_attachments {
            let valid: Vec<Value> = valid
                .iter()
                .map(|a| serde_json::json!({"containerID": a.container_id, "ifname": a.ifname}))
                .collect();
            // `cni.dev/attachments` is the key's name in the tag of 1.1.0; plugins of that time read it.
            object.insert("cni.dev/valid-attachments".into(), valid.clone().into());
            object.insert("cni.dev/attachments".into(), valid.into());
        }
        object
    }
}

/// The values that [`PluginConfig::derive`] inserts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Derive<'a> {
    /// The network's name.
    pub name: &'a str,
    /// The version that the runtime chose.
    pub version: &'a str,
    /// The runtime's values for capabilities.
    pub capability_args: Option<&'a Object>,
    /// The previous plugin's result (ADD), or the final one (CHECK, DEL).
    pub prev_result: Option<&'a Value>,
    /// The attachments that GC must keep.
    pub valid_attachments: Option<&'a [Attachment]>,
}

/// The configuration that a plugin receives on standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestConfig {
    /// Every key as received.
    pub object: Object,
    /// The network's name.
    pub name: NetworkName,
    /// `cniVersion` as received.
    pub cni_version: String,
}

impl RequestConfig {
    /// Parses standard input.
    ///
    /// # Errors
    /// Code 6 if the input is not a JSON object or a key has the wrong type, code 7 if the name is missing or invalid.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let decode = |error: JsonError| {
            CniError::new(Code::Decode, format!("error unmarshall network config: {error}"))
        };
        let object = match json::parse_value(bytes).map_err(decode)? {
            Value::Object(object) => object,
            Value::Null => Object::new(),
            other => {
                return Err(decode(JsonError::new(format!(
                    "expected a JSON object, found {}",
                    json::kind_of(&other)
                ))));
            }
        };
        let name = match json::lookup(&object, "name") {
            None => "",
            Some(Value::String(name)) => name,
            Some(other) => {
                return Err(decode(
                    JsonError::new(format!("expected a string, found {}", json::kind_of(other)))
                        .within("name"),
                ));
            }
        };
        let name = NetworkName::parse(name)?;
        let cni_version = match json::lookup(&object, "cniVersion") {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => {
                return Err(CniError::new(
                    Code::Decode,
                    format!(
                        "decoding version from network config: `cniVersion`: expected a string, found {}",
                        json::kind_of(other)
                    ),
                ));
            }
        };
        Ok(Self { object, name, cni_version })
    }

    /// Deserializes the configuration into a plugin's own type with [`json::from_object`].
    ///
    /// # Errors
    /// Code 6 with the path to the wrong key.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, CniError> {
        json::from_object(&self.object)
            .map_err(|error| CniError::new(Code::Decode, format!("failed to load netconf: {error}")))
    }

    /// Returns `prevResult`, or `None` if it is absent.
    ///
    /// The result may have another version than the configuration.
    ///
    /// # Errors
    /// Code 6 if `prevResult` is not a result.
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        let refuse =
            |error: ResultError| CniError::new(Code::Decode, format!("could not parse prevResult: {error}"));
        let assumed = SpecVersion::parse(&self.cni_version).unwrap_or(SpecVersion::NEWEST);
        match json::lookup(&self.object, "prevResult") {
            None => Ok(None),
            Some(Value::Object(object)) => CniResult::from_object(object, assumed).map(Some).map_err(refuse),
            Some(other) => Err(refuse(
                JsonError::new(format!("expected an object, found {}", json::kind_of(other))).into(),
            )),
        }
    }

    /// Returns the attachments that GC must keep, or `None` if the key is absent. `None` differs from an empty list: without
    /// the key the plugin must not delete anything.
    ///
    /// # Errors
    /// Code 6 if the value is not a list of attachments.
    pub fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, CniError> {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some((key, value)) =
            keys.iter().find_map(|key| json::lookup(&self.object, key).map(|value| (*key, value)))
        else {
            return Ok(None);
        };
        json::from_value(value)
            .map(Some)
            .map_err(|error| CniError::new(Code::Decode, format!("`{key}`: {}", error.within("list"))))
    }
}

/// Returns a boolean, which older lists write as a string.
fn flag(object: &Object, key: &str) -> Result<bool, ConfigError> {
    match json::lookup(object, key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) => match text.to_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(ConfigError::List(format!("invalid value {other:?} for {key}"))),
        },
        Some(other) => Err(ConfigError::List(format!("invalid type {} for {key}", json::kind_of(other)))),
    }
}

fn chosen_version(object: &Object) -> Result<String, ConfigError> {
    let list = |text: String| ConfigError::List(text);
    let written = match json::lookup(object, "cniVersion") {
        None => "",
        Some(Value::String(text)) => text,
        Some(other) => return Err(list(format!("invalid cniVersion type: {}", json::kind_of(other)))),
    };
    let mut candidates = match json::lookup(object, "cniVersions") {
        None => return Ok(written.to_owned()),
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(index, item)| match item {
                Value::String(text) => {
                    SemVer::parse(text).map(|version| (version, text.as_str())).map_err(|error| {
                        list(format!("invalid cniVersions entry {text} at index {index}: {error}"))
                    })
                }
                other => {
                    Err(list(format!("invalid type for cniVersions index {index}: {}", json::kind_of(other))))
                }
            })
            .collect::<Result<Vec<_>, _>>()?,
        Some(other) => return Err(list(format!("invalid type for cniVersions: {}", json::kind_of(other)))),
    };
    if !written.is_empty() {
        let version =
            SemVer::parse(written).map_err(|error| list(format!("invalid cniVersion {written}: {error}")))?;
        candidates.push((version, written));
    }
    let newest = SemVer::from(SpecVersion::NEWEST);
    let highest =
        candidates.into_iter().filter(|(version, _)| *version <= newest).max_by_key(|(version, _)| *version);
    Ok(highest.map_or(written, |(_, text)| text).to_owned())
}
