//! `vlan`: a link in the container that sends and receives the frames of one VLAN of a parent link.

use kernel::link::{Driver, Link};
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
pub struct Vlan;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Parent link on the host. Required
    #[schemars(example = &"eth0")]
    master: String,
    /// VLAN ID, 0 to 4094
    #[schemars(example = 100, range(min = 0, max = 4094))]
    #[serde(rename = "vlanId")]
    vlan: i64,
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
    id: u16,
    mtu: Option<u32>,
    addressing: Addressing,
}

impl ContainerLink for Vlan {
    const NAME: &'static str = "vlan";
    const KIND: &'static str = "vlan";
    type Conf = Conf;

    fn conf(request: &Request) -> Result<Conf, Error> {
        let written: Written = request.read()?;
        let parent = Parent::of(&written.master, written.link_in_container)?;
        if parent.name.is_none() {
            return Err(invalid("`master` is missing").details("set `master` to the parent link of the VLAN"));
        }
        let id = u16::try_from(written.vlan).ok().filter(|id| *id <= 4094).ok_or_else(|| {
            invalid(format!("invalid VLAN ID {} in `vlanId` (must be between 0 and 4094)", written.vlan))
        })?;
        let ipam = written.ipam.kind();
        Ok(Conf {
            parent,
            id,
            mtu: mtu(written.mtu)?,
            addressing: Addressing::on_segment(ipam, written.dns, written.enabledad),
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
        let child = Child { driver: Driver::Vlan { id: conf.id }, mtu: conf.mtu, mac: None };
        parent_link::create(request, sandbox, container, &conf.parent, child, undo)
    }

    fn check(conf: &Conf, container: &ContainerNetns, link: &Link) -> Result<(), Error> {
        conf.parent.check(container, link)?;
        if link.driver == Some(Driver::Vlan { id: conf.id }) {
            Ok(())
        } else {
            Err(check_failed(format!("`{}` is not in VLAN {}", link.name, conf.id)))
        }
    }

    fn status(conf: &Conf) -> Result<(), Error> {
        conf.parent.require()
    }
}
