//! What a runtime asks of a plugin beside its configuration: `runtimeConfig`, `args.cni` and `CNI_ARGS`.

use std::net::IpAddr;

use kernel::link::Mac;
use netloom_plugin::{Code, Error, Request, SpecVersion, capability::IpRange};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};

use crate::error::invalid;

/// Holds the configuration of an IPAM plugin as written: its own part, and what is asked for.
#[derive(Debug)]
pub(crate) struct Asked<T> {
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

/// What stands under `args.cni`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct AddressCniArgs {
    /// Addresses that the orchestrator asks for
    #[schemars(example = serde_json::json!(["10.88.0.7"]))]
    pub(crate) ips: Vec<String>,
}

/// `runtimeConfig` of an IPAM plugin: the capabilities `ips` and `ipRanges`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RuntimeAddresses {
    /// Capability `ips`: addresses that the runtime asks for
    #[schemars(example = serde_json::json!(["10.88.0.7/16"]))]
    pub(crate) ips: Vec<String>,
    /// Capability `ipRanges`: ranges before those of the configuration, for `host-local`
    #[schemars(example = serde_json::json!([[{"subnet": "10.88.0.0/16"}]]))]
    pub(crate) ip_ranges: Vec<Vec<IpRange>>,
}

/// `args` of an interface plugin.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Args {
    pub(crate) cni: CniArgs,
}

/// What stands under `args.cni`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct CniArgs {
    /// The hardware address that the orchestrator asks for
    #[schemars(example = &"c2:11:22:33:44:55")]
    pub(crate) mac: String,
}

/// The configuration of an IPAM plugin as written.
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

/// The keys of `CNI_ARGS` that plugins here know: one variable serves the interface plugin and its IPAM.
const KNOWN_ARGS: [&str; 3] = ["IP", "GATEWAY", "MAC"];

impl<T: DeserializeOwned> Asked<T> {
    pub(crate) fn of(request: &Request) -> Result<Self, Error> {
        let written: Written<T> = request.read()?;
        let ipam = written.ipam.ok_or_else(|| invalid("IPAM config missing 'ipam' key"))?;
        require_known_args(request)?;
        Ok(Self { ipam, args: written.args, runtime_config: written.runtime_config })
    }
}

/// `runtimeConfig` of interface plugins: the capability `mac`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct RuntimeMac {
    /// Capability `mac`: the hardware address that the runtime asks for
    #[schemars(example = &"c2:11:22:33:44:55")]
    pub(crate) mac: String,
}

/// Takes the hardware address from where it is asked for: `first` (key and text, in order), then `CNI_ARGS`, then the
/// configuration's own `mac`.
pub(crate) fn requested_mac(
    request: &Request,
    first: &[(&str, &str)],
    configured: &str,
) -> Result<Option<Mac>, Error> {
    let last = [("MAC of CNI_ARGS", request.args.value("MAC").unwrap_or_default()), ("mac", configured)];
    let asked = first.iter().copied().chain(last).find(|(_, text)| !text.is_empty());
    let Some((key, text)) = asked else { return Ok(None) };
    let mac: Mac = text.parse().map_err(|error| invalid(format!("`{key}` {text:?}: {error}")))?;
    if mac.0[0] & 1 != 0 {
        return Err(invalid(format!("`{key}` {text:?} is a group address, which no interface can have")));
    }
    Ok(Some(mac))
}

/// Refuses keys of `CNI_ARGS` that no plugin here knows, unless they are to be ignored.
pub(crate) fn require_known_args(request: &Request) -> Result<(), Error> {
    request
        .args
        .require_known(&KNOWN_ARGS)
        .map_err(|error| Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: {error}")))
}

/// Versions before 0.3.0 cannot say more than one address of a family.
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
