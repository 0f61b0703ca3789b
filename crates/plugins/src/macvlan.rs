//! `macvlan`: a link in the container with a hardware address of its own, on the segment of one of the host's.

use kernel::link::{Driver, Mac, MacvlanMode};
use netloom_plugin::{
    Attachment, Error, Plugin, Request, Sandbox, Undo,
    result::{Dns, v100::Success},
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, mtu},
    container_link::{self, Addressing},
    container_netns::{ContainerNetns, Duplicates},
    failure::{Explain, differs, invalid},
    parent_link::{self, Master, Over},
    runtime_args::{RuntimeMac, asked_mac, require_known_args},
};

/// The plugin.
#[derive(Debug)]
pub struct Macvlan;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// The link of the host to send by; without it, the one of the default route
    #[schemars(example = &"eth0")]
    master: String,
    /// Who reaches whom: containers of the same master each other (`bridge`), nobody (`private`), by the switch (`vepa`), or one container that has the whole link (`passthru`)
    #[schemars(extend("enum" = ["bridge", "private", "vepa", "passthru"], "default" = "bridge"))]
    mode: String,
    /// MTU of the link, 68 to 65535; 0 is the master's
    #[schemars(example = 1450)]
    mtu: i64,
    /// Hardware address of the interface; without it the kernel chooses one
    #[schemars(example = &"c2:11:22:33:44:55")]
    mac: String,
    /// `master` is a link of the container, not of the host
    link_in_container: bool,
    /// Length of the queue of broadcast frames, of the master; 0 is the kernel's 1000
    #[schemars(example = 2000)]
    #[serde(rename = "bcqueuelen")]
    broadcasts: u32,
    /// IPv6 duplicate address detection: the ADD waits for the full second that an answer may take. Without it, a hundredth
    enabledad: bool,
    ipam: Ipam,
    /// What the result says of DNS, where the IPAM plugin says nothing
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
    runtime_config: RuntimeMac,
}

/// The configuration as meant.
struct Conf {
    master: Master,
    mode: MacvlanMode,
    broadcasts: Option<u32>,
    mtu: Option<u32>,
    mac: Option<Mac>,
    addressing: Addressing,
}

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let mode = match written.mode.as_str() {
            "" | "bridge" => MacvlanMode::Bridge,
            "private" => MacvlanMode::Private,
            "vepa" => MacvlanMode::Vepa,
            "passthru" => MacvlanMode::Passthru,
            other => {
                return Err(invalid(format!("unknown macvlan mode: {other:?} in `mode`"))
                    .details("use \"bridge\", \"private\", \"vepa\" or \"passthru\""));
            }
        };
        Ok(Self {
            master: Master::of(&written.master, written.link_in_container)?,
            mode,
            broadcasts: Some(written.broadcasts).filter(|length| *length != 0),
            mtu: mtu(written.mtu)?,
            mac: asked_mac(request, &[("runtimeConfig.mac", &written.runtime_config.mac)], &written.mac)?,
            addressing: Addressing {
                ipam: written.ipam.kind(),
                dns: written.dns,
                duplicates: Duplicates::of(written.enabledad),
                announce: true,
            },
        })
    }
}

impl Plugin for Macvlan {
    fn name(&self) -> &'static str {
        "macvlan"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let driver = Driver::Macvlan { mode: conf.mode, broadcasts: conf.broadcasts };
        let over = Over { driver, mtu: conf.mtu, mac: conf.mac };
        let inside = parent_link::create(request, sandbox, undo, &container, &conf.master, over)?;
        container_link::configure(request, sandbox, undo, &container, &inside, &conf.addressing)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        container_link::del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let (container, inside) =
            container_link::check(request, sandbox, conf.addressing.ipam.as_deref(), Some("macvlan"))?;
        conf.master.check(&container, &inside)?;
        match inside.driver {
            Some(Driver::Macvlan { mode, .. }) if mode == conf.mode => Ok(()),
            other => Err(differs(format!("container macvlan mode {other:?} does not match {:?}", conf.mode))),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        conf.master.require()?;
        container_link::status(request, conf.addressing.ipam.as_deref())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        container_link::gc(request, valid)
    }
}
