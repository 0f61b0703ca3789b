//! What a runtime passes to a plugin beside the configuration: `runtimeConfig`, `args.cni` and `CNI_ARGS`.

use std::net::IpAddr;

use kernel::link::Mac;
use netloom_plugin::{Code, Error, Request, SpecVersion, capability::IpRange};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};

use crate::error::invalid;

/// The configuration of an IPAM plugin as written: its own keys, and the addresses that the runtime requests.
#[derive(Debug)]
pub(crate) struct IpamConf<T> {
    /// The value of `ipam`.
    pub(crate) ipam: T,
    pub(crate) args: AddressArgs,
    pub(crate) runtime_config: RuntimeAddresses,
}

/// `args` of an IPAM plugin (CONVENTIONS.md, "args in network config").
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct AddressArgs {
    pub(crate) cni: AddressCniArgs,
}

/// `args.cni` of an IPAM plugin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct AddressCniArgs {
    /// Addresses that the orchestrator requests
    #[schemars(example = serde_json::json!(["10.88.0.7"]))]
    pub(crate) ips: Vec<String>,
}

/// `runtimeConfig` of an IPAM plugin: the capabilities `ips` and `ipRanges`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RuntimeAddresses {
    /// Capability `ips`: addresses that the runtime requests
    #[schemars(example = serde_json::json!(["10.88.0.7/16"]))]
    pub(crate) ips: Vec<String>,
    /// Capability `ipRanges`: range sets that `host-local` uses in addition to the configured ones, and before them
    #[schemars(example = serde_json::json!([[{"subnet": "10.88.0.0/16"}]]))]
    pub(crate) ip_ranges: Vec<Vec<IpRange>>,
}

/// `args` of an interface plugin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Args {
    pub(crate) cni: CniArgs,
}

/// `args.cni` of an interface plugin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct CniArgs {
    /// Hardware address that the orchestrator requests
    #[schemars(example = &"c2:11:22:33:44:55")]
    pub(crate) mac: String,
}

/// The configuration that contains an IPAM plugin's keys.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", bound = "T: DeserializeOwned")]
pub(crate) struct Written<T> {
    #[serde(default)]
    #[schemars(with = "T")]
    ipam: Option<T>,
    #[serde(default)]
    args: AddressArgs,
    #[serde(default)]
    runtime_config: RuntimeAddresses,
}

/// Keys of `CNI_ARGS` that the plugins know. The interface plugin and its IPAM plugin get the same variable.
const KNOWN_ARGS: [&str; 3] = ["IP", "GATEWAY", "MAC"];

impl<T: DeserializeOwned> IpamConf<T> {
    /// Reads the configuration.
    pub(crate) fn of(request: &Request) -> Result<Self, Error> {
        let written: Written<T> = request.read()?;
        let ipam = written.ipam.ok_or_else(missing_ipam)?;
        require_known_args(request)?;
        Ok(Self { ipam, args: written.args, runtime_config: written.runtime_config })
    }
}

/// `runtimeConfig` of interface plugins: the capability `mac`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct RuntimeMac {
    /// Capability `mac`: hardware address that the runtime requests
    #[schemars(example = &"c2:11:22:33:44:55")]
    pub(crate) mac: String,
}

/// Returns the requested hardware address. The sources are `first` (key and text, in order), then `CNI_ARGS`, then the
/// configuration's own `mac`.
pub(crate) fn requested_mac(
    request: &Request,
    first: &[(&str, &str)],
    configured: &str,
) -> Result<Option<Mac>, Error> {
    let others = [("MAC of CNI_ARGS", request.args.value("MAC").unwrap_or_default()), ("mac", configured)];
    let requested = first.iter().copied().chain(others).find(|(_, text)| !text.is_empty());
    let Some((key, text)) = requested else { return Ok(None) };
    let mac: Mac =
        text.parse().map_err(|error| invalid(format!("`{key}` {text:?}: {error}")).details(MAC_HINT))?;
    if mac.0[0] & 1 != 0 {
        return Err(invalid(format!("`{key}` {text:?} is a group address, which no interface can have"))
            .details(MAC_HINT));
    }
    Ok(Some(mac))
}

/// A hardware address to try instead: locally administered, and not a group address.
const MAC_HINT: &str = "use a unicast address, such as c2:11:22:33:44:55";

/// Creates the error of an IPAM plugin's configuration without `ipam`.
pub(crate) fn missing_ipam() -> Error {
    invalid("IPAM config missing 'ipam' key").details("put the plugin's keys under `ipam`, beside `type`")
}

/// Fails if `CNI_ARGS` has a key that no plugin knows, unless it says `IgnoreUnknown=1`.
pub(crate) fn require_known_args(request: &Request) -> Result<(), Error> {
    request.args.require_known(&KNOWN_ARGS).map_err(|error| {
        Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: {error}"))
            .details("remove the key from CNI_ARGS, or add `IgnoreUnknown=1`")
    })
}

/// Fails if there are more addresses than the result of an old version can hold: one of each family before 0.3.0.
pub(crate) fn require_one_per_family(
    version: SpecVersion,
    ips: impl Iterator<Item = IpAddr> + Clone,
) -> Result<(), Error> {
    let v4 = ips.clone().filter(IpAddr::is_ipv4).count();
    if version < SpecVersion::V0_3_0 && (v4 > 1 || ips.count() - v4 > 1) {
        return Err(invalid(format!(
            "CNI version {version} does not support more than 1 address per family"
        ))
        .details("set `cniVersion` to 0.3.1 or later"));
    }
    Ok(())
}
