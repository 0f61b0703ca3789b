//! The shapes of configurations: which keys and values there can be, from the schemas that `netloom schema` prints.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::Value as Json;

use crate::{node::Value, types};

/// What a value can be.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    /// The types of the JSON Schema. Empty if any is possible.
    pub(crate) kinds: Vec<Kind>,
    /// The texts that are possible. Empty if any is.
    pub(crate) values: Vec<String>,
    pub(crate) least: Option<i128>,
    pub(crate) most: Option<i128>,
    /// The keys of an object. Without any and without `other`, all keys are possible.
    pub(crate) keys: Vec<(String, Shape)>,
    pub(crate) required: Vec<String>,
    /// The items of an array.
    pub(crate) item: Option<Box<Shape>>,
    /// The values of all further keys.
    pub(crate) other: Option<Box<Shape>>,
}

/// A type of value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Boolean,
    Integer,
    Text,
    Array,
    Object,
}

impl Kind {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Boolean => "a boolean",
            Self::Integer => "an integer",
            Self::Text => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

static PLUGINS: LazyLock<HashMap<&str, Shape>> = LazyLock::new(|| {
    let known = types::INTERFACE.iter().chain(&types::CHAINED).chain(&["loopback"]);
    let mut shapes: HashMap<&str, Shape> = known
        .filter_map(|name| {
            let mut schema = plugins::schema::of_plugin(name)?;
            // Beside the configuration: any orchestrator may put anything there.
            schema["properties"]["args"] = serde_json::json!({"type": "object"});
            Some((*name, Shape::of(&schema)))
        })
        .collect();
    shapes.insert("flannel", flannel());
    shapes
});

static IPAM: LazyLock<HashMap<&str, Shape>> = LazyLock::new(|| {
    let of = |name: &&'static str| {
        let mut schema = plugins::schema::of_plugin(name)?;
        let ipam = &mut schema["properties"]["ipam"];
        ipam["properties"]["type"] = serde_json::json!({"type": "string"});
        Some((*name, Shape::of(ipam)))
    };
    types::IPAM.iter().filter_map(of).collect()
});

static LIST: LazyLock<Shape> = LazyLock::new(|| Shape::of(&plugins::schema::of_list()));

/// Returns the shape of a plugin's configuration, or `None` if its keys are not known.
pub(crate) fn of_plugin(kind: &str) -> Option<&'static Shape> {
    PLUGINS.get(kind)
}

/// Returns the shape of `ipam`, or `None` if the plugin's keys are not known.
pub(crate) fn of_ipam(kind: &str) -> Option<&'static Shape> {
    IPAM.get(kind)
}

/// Returns the shape of a list.
pub(crate) fn of_list() -> &'static Shape {
    &LIST
}

/// Finds a plugin that has a key at the top of its configuration.
pub(crate) fn owner_of(key: &str) -> Option<&'static str> {
    let names = types::INTERFACE.iter().chain(&types::CHAINED);
    names.copied().find(|name| PLUGINS.get(name).is_some_and(|shape| shape.key(key).is_some()))
}

/// The keys of flannel's plugin. Its `delegate` is the configuration of another plugin.
fn flannel() -> Shape {
    let text = serde_json::json!({"type": "string"});
    Shape::of(&serde_json::json!({"type": "object", "properties": {
        "type": text, "name": text, "cniVersion": text, "subnetFile": text, "dataDir": text,
        "delegate": {"type": "object"}, "ipam": {"type": "object"}, "args": {"type": "object"}, "dns": {"type": "object"},
        "capabilities": {"type": "object", "additionalProperties": {"type": "boolean"}},
    }}))
}

impl Shape {
    fn of(schema: &Json) -> Self {
        let kind = |kind: &Json| match kind.as_str()? {
            "boolean" => Some(Kind::Boolean),
            "integer" => Some(Kind::Integer),
            "string" => Some(Kind::Text),
            "array" => Some(Kind::Array),
            "object" => Some(Kind::Object),
            _ => None,
        };
        let texts = |value: &Json| -> Vec<String> {
            value
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect()
        };
        let nested =
            |key: &str| schema.get(key).filter(|below| below.is_object()).map(|it| Box::new(Self::of(it)));
        Self {
            kinds: match &schema["type"] {
                Json::Array(kinds) => kinds.iter().filter_map(kind).collect(),
                one => kind(one).into_iter().collect(),
            },
            values: texts(&schema["enum"]),
            least: schema["minimum"].as_i64().map(i128::from),
            most: schema["maximum"].as_i64().map(i128::from),
            keys: schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, below)| (key.clone(), Self::of(below)))
                .collect(),
            required: texts(&schema["required"]),
            item: nested("items"),
            other: nested("additionalProperties"),
        }
    }

    /// Finds a key in any capitals.
    pub(crate) fn key(&self, key: &str) -> Option<&(String, Self)> {
        let exact = self.keys.iter().find(|(name, _)| name == key);
        exact.or_else(|| self.keys.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)))
    }

    /// Returns whether a value has one of the types.
    pub(crate) fn accepts(&self, value: &Value<'_>) -> bool {
        let found = match value {
            Value::Null => return true,
            Value::Bool(_) => Kind::Boolean,
            // Go refuses `1.0` and `1e3` for an integer.
            Value::Number(text) if text.contains(['.', 'e', 'E']) => return self.kinds.is_empty(),
            Value::Number(_) => Kind::Integer,
            Value::Text(_) => Kind::Text,
            Value::Array(_) => Kind::Array,
            Value::Object(_) => Kind::Object,
        };
        self.kinds.is_empty() || self.kinds.contains(&found)
    }
}
