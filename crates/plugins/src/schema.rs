//! JSON Schemas of configurations (draft 2020-12), from the types that the plugins parse them into.

use netloom_plugin::SpecVersion;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    ALL, bandwidth, bridge, by_name, dhcp, dummy, firewall, host_device, host_local, ipvlan, macvlan,
    portmap, ptp, runtime_args, sbr, static_ips, tap, tuning, vlan, vrf, wait_for_removal,
};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// The IPAM plugins, whose keys are under `ipam` in an interface plugin's configuration.
const IPAM: [&str; 3] = ["host-local", "static", "dhcp"];

/// Returns the schema of one plugin's configuration, in a list or alone. Returns `None` for an unknown plugin.
///
/// The schema of an IPAM plugin has its keys under `ipam`, as in an interface plugin's configuration.
pub fn of_plugin(name: &str) -> Option<Value> {
    by_name(name)?;
    let mut properties = Map::new();
    if !IPAM.contains(&name) {
        properties.insert("type".to_owned(), json!({"const": name, "description": "Type of the plugin"}));
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

/// Returns the schema of a network configuration list (`*.conflist`). Unknown plugins may have any keys.
pub fn of_list() -> Value {
    let plugins = ALL.iter().map(|plugin| plugin.name()).filter(|name| !IPAM.contains(name));
    let plugin_schemas: Value =
        plugins.clone().filter_map(|name| Some(when(name, of_plugin(name)?))).collect();
    json!({
        "$schema": DRAFT,
        "title": "CNI network configuration list",
        "type": "object",
        "required": ["cniVersion", "name"],
        "$defs": {"ipam": any_ipam()},
        "properties": {
            "cniVersion": version("Version of the specification that the list is written for"),
            "cniVersions": {
                "type": "array",
                "items": version("A version that the list can be used with"),
                "description": "All versions that the list can be used with. The runtime uses the newest one that it supports",
            },
            "name": {
                "type": "string",
                "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$",
                "description": "Name of the network, unique on the host",
            },
            "disableCheck": {"type": ["boolean", "string"], "default": false, "description": "Runtimes must not run CHECK"},
            "disableGC": {"type": ["boolean", "string"], "default": false, "description": "Runtimes must not run GC"},
            "loadOnlyInlinedPlugins": {
                "type": "boolean",
                "default": false,
                "description": "Use only the plugins in `plugins`, not those of files in the folder beside the list",
            },
            "plugins": {
                "type": "array",
                "description": "The plugins in the order of ADD. DEL runs them in reverse order",
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {
                        "type": {"type": "string", "examples": plugins.collect::<Vec<_>>(), "description": "Type of the plugin: the name of its executable"},
                    },
                    "allOf": plugin_schemas,
                },
            },
        },
    })
}

/// Returns the keys of a plugin, without those that every configuration has.
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
            let mut keys = read_by::<tuning::Settings>();
            keys.extend(read_by::<tuning::Written>());
            keys
        }
        "bandwidth" => {
            let mut keys = read_by::<bandwidth::Rates>();
            keys.extend(read_by::<bandwidth::Written>());
            keys
        }
        "sbr" => read_by::<sbr::Written>(),
        "vrf" => read_by::<vrf::Written>(),
        _ => Map::new(),
    }
}

/// Returns the keys of a configuration type.
fn read_by<T: JsonSchema>() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    remove_implementation_details(&mut schema);
    match schema.get_mut("properties").map(Value::take) {
        Some(Value::Object(keys)) => keys,
        _ => Map::new(),
    }
}

/// Removes what describes the code rather than the configuration: number formats, empty defaults, and the documentation of types.
///
/// A type's documentation ends with a full stop, that of a key does not.
fn remove_implementation_details(schema: &mut Value) {
    match schema {
        Value::Object(keys) => {
            let is_empty = |value: &Value| match value {
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
                    "default" => !is_empty(value),
                    "description" => value.as_str().is_none_or(|text| !text.ends_with('.')),
                    _ => true,
                });
            }
            keys.values_mut().for_each(remove_implementation_details);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_implementation_details),
        _ => {}
    }
}

/// Returns the schema of `ipam`, which depends on its `type`.
fn any_ipam() -> Value {
    let each = IPAM.iter().map(|kind| when(kind, keys(kind).remove("ipam").unwrap_or_default()));
    json!({"allOf": each.collect::<Vec<_>>()})
}

/// Creates a schema apply only to configurations of a type. Its definitions are those of the enclosing schema.
fn when(kind: &str, mut then: Value) -> Value {
    if let Some(keys) = then.as_object_mut() {
        keys.retain(|key, _| !key.starts_with('$'));
    }
    json!({"if": {"properties": {"type": {"const": kind}}, "required": ["type"]}, "then": then})
}

/// Returns the keys that every plugin's configuration may have.
fn protocol_keys() -> Map<String, Value> {
    let keys = json!({
        "cniVersion": version("Version of the specification. A list has it once for all plugins"),
        "name": {"type": "string", "description": "Name of the network. A list has it once for all plugins"},
        "capabilities": {
            "type": "object",
            "additionalProperties": {"type": "boolean"},
            "description": "Keys of `runtimeConfig` that the runtime passes to this plugin",
            "examples": [{"portMappings": true}],
        },
        wait_for_removal::KEY: {
            "type": "boolean",
            "default": false,
            "description": "DEL waits until the kernel has released every removed object, instead of returning once none of them is visible",
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
