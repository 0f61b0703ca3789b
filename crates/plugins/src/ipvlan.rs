//! `ipvlan`: a link in the container that shares the hardware address and the segment of a parent link.

use kernel::link::{Driver, IpvlanMode, Link};
use netloom_plugin::{Error, Request, Sandbox, Undo};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, OwnDns, mtu},
    container_link::{Addressing, ContainerLink},
    container_netns::ContainerNetns,
    error::{check_failed, invalid},
    parent_link::{self, Child, Parent},
};

/// The plugin.
#[derive(Debug)]
pub struct Ipvlan;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Parent link on the host. Defaults to the interface of the previous plugin in the list, then to the link of the default route
    #[schemars(example = &"eth0")]
    master: String,
    /// `l2`: on the parent's segment. `l3`: routed by the host, without ARP. `l3s`: like `l3`, and the host's netfilter sees the packets
    #[schemars(extend("enum" = ["l2", "l3", "l3s"], "default" = "l2"))]
    mode: String,
    /// MTU of the link, 68 to 65535. 0 is the MTU of the parent link
    #[schemars(example = 1450)]
    mtu: i64,
    /// `master` is a link of the container, not of the host
    link_in_container: bool,
    /// IPv6 duplicate address detection waits a full second for an answer. Without it, a hundredth of a second
    enabledad: bool,
    ipam: Ipam,
    /// DNS settings of the result. They replace those of the IPAM plugin, even if they are an empty list
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: OwnDns,
}

/// The validated configuration.
pub(crate) struct Conf {
    parent: Parent,
    mode: IpvlanMode,
    mtu: Option<u32>,
    addressing: Addressing,
}

/// The values of `mode`.
const MODES: [(&str, IpvlanMode); 3] =
    [("l2", IpvlanMode::L2), ("l3", IpvlanMode::L3), ("l3s", IpvlanMode::L3s)];

fn mode_text(mode: IpvlanMode) -> &'static str {
    MODES.into_iter().find(|(_, known)| *known == mode).map_or("unknown", |(text, _)| text)
}

/// Returns the previous plugin's interface as the parent, if the configuration names none.
fn parent(conf: &Conf, request: &Request) -> Result<Option<Parent>, Error> {
    let (None, Some(prev)) = (&conf.parent.name, &request.prev_result) else { return Ok(None) };
    match &prev.interfaces[..] {
        [only] if !only.name.is_empty() => Parent::of(&only.name, conf.parent.in_container).map(Some),
        _ => Err(invalid("chained master failure. PrevResult lacks a single named interface")
            .details("set `master` to the parent link")),
    }
}

impl ContainerLink for Ipvlan {
    const NAME: &'static str = "ipvlan";
    const KIND: &'static str = "ipvlan";
    type Conf = Conf;

    fn conf(request: &Request) -> Result<Conf, Error> {
        let written: Written = request.read()?;
        let mode = if written.mode.is_empty() { "l2" } else { &written.mode };
        let (_, mode) = MODES.into_iter().find(|(text, _)| *text == mode).ok_or_else(|| {
            invalid(format!("unknown ipvlan mode: {mode:?} in `mode`"))
                .details("use \"l2\", \"l3\" or \"l3s\"")
        })?;
        let mut addressing = Addressing::on_segment(written.ipam.kind(), written.dns, written.enabledad);
        addressing.chained = request.prev_result.clone().filter(|prev| !prev.ips.is_empty());
        Ok(Conf {
            parent: Parent::of(&written.master, written.link_in_container)?,
            mode,
            mtu: mtu(written.mtu)?,
            addressing,
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
        let chained = parent(conf, request)?;
        if conf.addressing.ipam.is_none() && conf.addressing.chained.is_none() {
            return Err(invalid("`ipam.type` is missing").details(
                "set `ipam.type`, or chain ipvlan after a plugin that returns addresses: the interface shares its \
                 parent's hardware address and needs an address of its own",
            ));
        }
        let child = Child { driver: Driver::Ipvlan { mode: conf.mode }, mtu: conf.mtu, mac: None };
        let parent = chained.as_ref().unwrap_or(&conf.parent);
        parent_link::create(request, sandbox, container, parent, child, undo)
    }

    fn check(conf: &Conf, container: &ContainerNetns, link: &Link) -> Result<(), Error> {
        conf.parent.check(container, link)?;
        let mode = match link.driver {
            Some(Driver::Ipvlan { mode }) if mode == conf.mode => return Ok(()),
            Some(Driver::Ipvlan { mode }) => mode_text(mode),
            _ => "unknown",
        };
        Err(check_failed(format!("container ipvlan mode {mode} does not match {}", mode_text(conf.mode))))
    }

    fn status(conf: &Conf) -> Result<(), Error> {
        // Without a name the parent may be the previous plugin's interface, which is known only at ADD.
        if conf.parent.name.is_some() { conf.parent.require() } else { Ok(()) }
    }
}
