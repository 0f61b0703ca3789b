//! `macvlan`: a link in the container with its own hardware address, on the segment of a parent link.

use kernel::link::{Driver, Link, Mac, MacvlanMode};
use netloom_plugin::{Error, Request, Sandbox, Undo};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, OwnDns, mtu},
    container_link::{Addressing, ContainerLink},
    container_netns::ContainerNetns,
    error::{check_failed, invalid},
    parent_link::{self, Child, Parent},
    runtime_args::{RuntimeMac, requested_mac, require_known_args},
};

/// The plugin.
#[derive(Debug)]
pub struct Macvlan;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Parent link on the host. Defaults to the link of the default route
    #[schemars(example = &"eth0")]
    master: String,
    /// Which macvlans of one parent reach each other: all (`bridge`), none (`private`), or those whose frames the switch sends back (`vepa`). With `passthru` the parent has one macvlan, which uses the parent's hardware address
    #[schemars(extend("enum" = ["bridge", "private", "vepa", "passthru"], "default" = "bridge"))]
    mode: String,
    /// MTU of the link, 68 to 65535. 0 is the MTU of the parent link
    #[schemars(example = 1450)]
    mtu: i64,
    /// Hardware address of the interface. Defaults to an address that the kernel chooses
    #[schemars(example = &"c2:11:22:33:44:55")]
    mac: String,
    /// `master` is a link of the container, not of the host
    link_in_container: bool,
    /// Length of the parent link's queue of broadcast frames. 0 is the kernel's default, 1000
    #[schemars(example = 2000)]
    #[serde(rename = "bcqueuelen")]
    broadcast_queue: u32,
    /// IPv6 duplicate address detection waits a full second for an answer. Without it, a hundredth of a second
    enabledad: bool,
    ipam: Ipam,
    /// DNS settings of the result. They replace those of the IPAM plugin, even if they are an empty list
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: OwnDns,
    runtime_config: RuntimeMac,
}

/// The validated configuration.
pub(crate) struct Conf {
    parent: Parent,
    mode: MacvlanMode,
    broadcast_queue: Option<u32>,
    mtu: Option<u32>,
    mac: Option<Mac>,
    addressing: Addressing,
}

/// The values of `mode`.
const MODES: [(&str, MacvlanMode); 4] = [
    ("bridge", MacvlanMode::Bridge),
    ("private", MacvlanMode::Private),
    ("vepa", MacvlanMode::Vepa),
    ("passthru", MacvlanMode::Passthru),
];

fn mode_text(mode: MacvlanMode) -> &'static str {
    MODES.into_iter().find(|(_, known)| *known == mode).map_or("unknown", |(text, _)| text)
}

impl ContainerLink for Macvlan {
    const NAME: &'static str = "macvlan";
    const KIND: &'static str = "macvlan";
    type Conf = Conf;

    fn conf(request: &Request) -> Result<Conf, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let mode = if written.mode.is_empty() { "bridge" } else { &written.mode };
        let (_, mode) = MODES.into_iter().find(|(text, _)| *text == mode).ok_or_else(|| {
            invalid(format!("unknown macvlan mode: {mode:?} in `mode`"))
                .details("use \"bridge\", \"private\", \"vepa\" or \"passthru\"")
        })?;
        Ok(Conf {
            parent: Parent::of(&written.master, written.link_in_container)?,
            mode,
            broadcast_queue: Some(written.broadcast_queue).filter(|length| *length != 0),
            mtu: mtu(written.mtu)?,
            mac: requested_mac(request, &[("runtimeConfig.mac", &written.runtime_config.mac)], &written.mac)?,
            addressing: Addressing::on_segment(written.ipam.kind(), written.dns, written.enabledad),
        })
    }

    fn addressing(conf: &Conf) -> &Addressing {
        &conf.addressing
    }

    fn create(
        conf: &Conf,
        request: &Request,
        sandbox: &Sandbox,
        container: &ContainerNetns,
        undo: &mut Undo,
    ) -> Result<Link, Error> {
        let driver = Driver::Macvlan { mode: conf.mode, broadcasts: conf.broadcast_queue };
        let child = Child { driver, mtu: conf.mtu, mac: conf.mac };
        parent_link::create(request, sandbox, container, &conf.parent, child, undo)
    }

    fn check(conf: &Conf, container: &ContainerNetns, link: &Link) -> Result<(), Error> {
        conf.parent.check(container, link)?;
        let mode = match link.driver {
            Some(Driver::Macvlan { mode, .. }) if mode == conf.mode => return Ok(()),
            Some(Driver::Macvlan { mode, .. }) => mode_text(mode),
            _ => "unknown",
        };
        Err(check_failed(format!("container macvlan mode {mode} does not match {}", mode_text(conf.mode))))
    }

    fn status(conf: &Conf) -> Result<(), Error> {
        conf.parent.require()
    }
}
