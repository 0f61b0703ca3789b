//! Keys that several configurations have in common, as written.

use netloom_plugin::{Code, Error, Request};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::invalid;

// The comments of the keys in this and the plugins' files are what `netloom schema` and docs/plugins say of them.

/// Where the addresses come from; without it, or with an empty `type`, there are none
// An interface plugin reads no more of it than who it is delegated to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Ipam {
    /// The IPAM plugin: `host-local`, `static`, `dhcp`, or anybody's; its own keys stand beside
    #[schemars(example = &"host-local")]
    r#type: String,
}

impl Ipam {
    /// Returns the IPAM plugin; none for a network without addresses.
    pub(crate) fn kind(self) -> Option<String> {
        Some(self.r#type).filter(|kind| !kind.is_empty())
    }
}

/// Reads no more of a configuration than DEL needs, so that it works with one that ADD would refuse.
pub(crate) fn ipam_of(request: &Request) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        ipam: Ipam,
    }
    Ok(request.read::<Part>()?.ipam.kind())
}

/// Checks an MTU; 0 is the kernel's default.
pub(crate) fn mtu(written: i64) -> Result<Option<u32>, Error> {
    if written == 0 {
        return Ok(None);
    }
    let mtu = u32::try_from(written).ok().filter(|mtu| (68..=65535).contains(mtu));
    mtu.map(Some).ok_or_else(|| invalid(format!("`mtu` {written} must be between 68 and 65535")))
}

/// Either name of a backend asks for masquerade, and gets it by nftables.
pub(crate) fn require_masquerade_backend(written: Option<&str>) -> Result<(), Error> {
    match written {
        None | Some("iptables" | "nftables") => Ok(()),
        Some(other) => Err(Error::new(
            Code::UnsupportedField,
            format!("unknown ipmasq backend {other:?} in `ipMasqBackend`"),
        )
        .details("use \"nftables\", \"iptables\" or leave it out")),
    }
}
