//! Keys that several configurations share.

use std::borrow::Cow;

use netloom_plugin::{
    Code, Error, Request,
    result::{Dns, v100::Success},
};
use netloom_types::name::IfName;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use crate::error::invalid;

// The comments of configuration keys, here and in the plugins' modules, are what `netloom schema` and docs/plugins show.

/// The IPAM configuration. Without it, or with an empty `type`, the interface has no addresses
// An interface plugin reads only the type of the plugin that it delegates to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Ipam {
    /// Type of the IPAM plugin: `host-local`, `static`, `dhcp` or any other. Its keys stand beside `type`
    #[schemars(example = &"host-local")]
    r#type: String,
}

impl Ipam {
    /// Returns the IPAM plugin's type, or `None` for a network without addresses.
    pub(crate) fn kind(self) -> Option<String> {
        Some(self.r#type).filter(|kind| !kind.is_empty())
    }
}

/// Reads the IPAM plugin's type and nothing else, so that DEL works with a configuration that ADD would refuse.
pub(crate) fn ipam_of(request: &Request) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        ipam: Ipam,
    }
    Ok(request.read::<Part>()?.ipam.kind())
}

/// The DNS settings of a configuration, or `None` without any. An explicit empty list is a setting.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "DnsKeys")]
pub(crate) struct OwnDns(Option<Dns>);

#[derive(Default, Deserialize)]
#[serde(default)]
struct DnsKeys {
    nameservers: Option<Vec<String>>,
    domain: String,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl From<DnsKeys> for OwnDns {
    fn from(keys: DnsKeys) -> Self {
        let DnsKeys { nameservers, domain, search, options } = keys;
        let is_absent = nameservers.is_none() && domain.is_empty() && search.is_none() && options.is_none();
        Self((!is_absent).then(|| Dns {
            nameservers: nameservers.unwrap_or_default(),
            domain,
            search: search.unwrap_or_default(),
            options: options.unwrap_or_default(),
        }))
    }
}

impl OwnDns {
    /// Replaces the settings of the IPAM plugin if the configuration has some.
    pub(crate) fn replace_in(&self, result: &mut Success) {
        if let Some(dns) = &self.0 {
            result.dns = dns.clone();
        }
    }
}

impl JsonSchema for OwnDns {
    fn schema_name() -> Cow<'static, str> {
        Dns::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Dns::json_schema(generator)
    }
}

/// The name of a link that must exist: its name or one of its alternative names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkName(String);

impl LinkName {
    /// Lengths of names that only an alternative name can have, in bytes (`IFNAMSIZ` and `ALTIFNAMSIZ` of `linux/if.h`).
    const ALTERNATIVE: std::ops::RangeInclusive<usize> = 16..=127;

    /// Parses the value of `key`.
    pub(crate) fn parse(key: &str, text: &str) -> Result<Self, Error> {
        if let Err(error) = IfName::parse(text) {
            let is_alternative = Self::ALTERNATIVE.contains(&text.len())
                && !text.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
            if !is_alternative {
                return Err(invalid(format!("`{key}` {text:?}: {error}"))
                    .details(format!("set `{key}` to the name of a link; `ip link` lists them")));
            }
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Validates an MTU. Returns `None` for 0, which leaves the choice to the kernel.
pub(crate) fn mtu(written: i64) -> Result<Option<u32>, Error> {
    if written == 0 {
        return Ok(None);
    }
    let mtu = u32::try_from(written).ok().filter(|mtu| (68..=65535).contains(mtu));
    mtu.map(Some).ok_or_else(|| {
        invalid(format!("`mtu` {written} must be between 68 and 65535"))
            .details("set `mtu` to such a number, or leave it out")
    })
}

/// Validates `ipMasqBackend`. Both names are accepted; masquerade uses nftables either way.
pub(crate) fn require_masquerade_backend(written: Option<&str>) -> Result<(), Error> {
    match written {
        None | Some("iptables" | "nftables") => Ok(()),
        Some(other) => Err(Error::new(
            Code::UnsupportedField,
            format!("unknown ipmasq backend {other:?} in `ipMasqBackend`"),
        )
        .details("set it to \"nftables\" or \"iptables\", or leave it out")),
    }
}
