//! JSON Schemas of configurations (draft 2020-12), from the types that the plugins read them by.

use netloom_plugin::SpecVersion;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    ALL, bandwidth, bridge, by_name, dhcp, dummy, firewall, host_device, host_local, ipvlan, macvlan,
    portmap, ptp, runtime_args, sbr, static_ips, tap, tuning, vlan, vrf, wait_for_removal,
};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Plugins that others delegate to: their keys stand under `ipam` of another plugin's configuration.
const IPAM: [&str; 3] = ["host-local", "static", "dhcp"];

/// Describes the configuration of one plugin, as it stands in a list or alone; none for a type that is none of ours.
///
/// The keys of an IPAM plugin are described as they stand in an interface plugin's configuration: under `ipam`.
pub fn of_plugin(name: &str) -> Option<Value> {
    by_name(name)?;
    let mut properties = Map::new();
    if !IPAM.contains(&name) {
        properties.insert("type".to_owned(), json!({"const": name, "description": "The plugin"}));
    }
    properties.extend(protocol_keys());
    properties.extend(keys(name));
    let mut schema = json!({
        "$schema": DRAFT,
        "title": format!("CNI plugin {name}"),
        "type": "object",
        "required": ["type"],
        "properties": properties,
    });
    if let Some(ipam) = schema.pointer_mut("/properties/ipam").filter(|_| !IPAM.contains(&name)) {
        ipam["allOf"] = json!([{"$ref": "#/$defs/ipam"}]);
        schema["$defs"] = json!({"ipam": any_ipam()});
    }
    Some(schema)
}

/// Describes a network configuration list (`*.conflist`); plugins of other kinds than ours may have any keys.
pub fn of_list() -> Value {
    let plugins = ALL.iter().map(|plugin| plugin.name()).filter(|name| !IPAM.contains(name));
    let of_plugins: Value = plugins.clone().filter_map(|name| Some(when(name, of_plugin(name)?))).collect();
    json!({
        "$schema": DRAFT,
        "title": "CNI network configuration list",
        "type": "object",
        "required": ["cniVersion", "name"],
        "$defs": {"ipam": any_ipam()},
        "properties": {
            "cniVersion": version("The version of the specification that the list is written for"),
            "cniVersions": {
                "type": "array",
                "items": version("A version that the list can be used with"),
                "description": "All versions that it can be used with; the newest that the runtime knows is used",
            },
            "name": {
                "type": "string",
                "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$",
                "description": "The network; no other on this host may have the same name",
            },
            "disableCheck": {"type": ["boolean", "string"], "default": false, "description": "Runtimes are not to CHECK"},
            "disableGC": {"type": ["boolean", "string"], "default": false, "description": "Runtimes are not to GC"},
            "loadOnlyInlinedPlugins": {
                "type": "boolean",
                "default": false,
                "description": "Plugins are those of `plugins` alone, not those of files in a folder beside the list too",
            },
            "plugins": {
                "type": "array",
                "description": "The plugins, in the order in which they add; they delete in the other",
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {
                        "type": {"type": "string", "examples": plugins.collect::<Vec<_>>(), "description": "The plugin, by the name of its file"},
                    },
                    "allOf": of_plugins,
                },
            },
        },
    })
}

/// What a plugin reads beside what every configuration has.
fn keys(name: &str) -> Map<String, Value> {
    match name {
        "loopback" => Map::new(),
        "bridge" => read_by::<bridge::Written>(),
        "ptp" => read_by::<ptp::Written>(),
        "macvlan" => read_by::<macvlan::Written>(),
        "ipvlan" => read_by::<ipvlan::Written>(),
        "vlan" => read_by::<vlan::Written>(),
        "dummy" => read_by::<dummy::Written>(),
        "tap" => read_by::<tap::Written>(),
        "host-device" => read_by::<host_device::Written>(),
        "host-local" => read_by::<runtime_args::Written<host_local::Ipam>>(),
        "static" => read_by::<runtime_args::Written<static_ips::Ipam>>(),
        "dhcp" => read_by::<dhcp::Written>(),
        "portmap" => read_by::<portmap::Written>(),
        "firewall" => read_by::<firewall::Written>(),
        "tuning" => {
            let mut keys = read_by::<tuning::Wishes>();
            keys.extend(read_by::<tuning::Written>());
            keys
        }
        "bandwidth" => {
            let mut keys = read_by::<bandwidth::Wishes>();
            keys.extend(read_by::<bandwidth::Written>());
            keys
        }
        "sbr" => read_by::<sbr::Written>(),
        "vrf" => read_by::<vrf::Written>(),
        _ => Map::new(),
    }
}

fn read_by<T: JsonSchema>() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    tell_only_what_is_known(&mut schema);
    match schema.get_mut("properties").map(Value::take) {
        Some(Value::Object(keys)) => keys,
        _ => Map::new(),
    }
}

/// Takes out what speaks of the code and not of the configuration: widths of numbers, defaults that are "nothing", and
/// what types say of themselves, which ends with a full stop, as what they say of keys does not.
fn tell_only_what_is_known(schema: &mut Value) {
    match schema {
        Value::Object(keys) => {
            let is_nothing = |value: &Value| match value {
                Value::Null => true,
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(_) => true,
                Value::Number(number) => number.as_i64() == Some(0),
                Value::Bool(_) => false,
            };
            if keys.contains_key("type") {
                keys.retain(|key, value| match key.as_str() {
                    "format" => false,
                    "default" => !is_nothing(value),
                    "description" => value.as_str().is_none_or(|text| !text.ends_with('.')),
                    _ => true,
                });
            }
            keys.values_mut().for_each(tell_only_what_is_known);
        }
        Value::Array(items) => items.iter_mut().for_each(tell_only_what_is_known),
        _ => {}
    }
}

/// Describes what stands under `ipam`, by its `type`.
fn any_ipam() -> Value {
    let each = IPAM.iter().map(|kind| when(kind, keys(kind).remove("ipam").unwrap_or_default()));
    json!({"allOf": each.collect::<Vec<_>>()})
}

/// Has a schema count for configurations of this type alone. Its definitions stand where the whole begins.
fn when(kind: &str, mut then: Value) -> Value {
    if let Some(keys) = then.as_object_mut() {
        keys.retain(|key, _| !key.starts_with('$'));
    }
    json!({"if": {"properties": {"type": {"const": kind}}, "required": ["type"]}, "then": then})
}

/// The keys of a configuration that the specification knows.
fn protocol_keys() -> Map<String, Value> {
    let keys = json!({
        "cniVersion": version("The version of the specification; a list says it once for all its plugins"),
        "name": {"type": "string", "description": "The network; a list says it once for all its plugins"},
        "capabilities": {
            "type": "object",
            "additionalProperties": {"type": "boolean"},
            "description": "What of `runtimeConfig` the runtime is to hand to this plugin",
            "examples": [{"portMappings": true}],
        },
        wait_for_removal::KEY: {
            "type": "boolean",
            "default": false,
            "description": "DEL returns only when the kernel has let go of everything, not as soon as it is gone for everybody",
        },
    });
    match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}

fn version(description: &str) -> Value {
    let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    json!({"enum": versions, "description": description})
}
