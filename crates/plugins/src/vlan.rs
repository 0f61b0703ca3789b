//! `vlan`: a link in the container that sends and receives by one of the host's, in a VLAN.

use kernel::link::Driver;
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
};

/// The plugin.
#[derive(Debug)]
pub struct Vlan;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// The link of the host to send by; required
    #[schemars(example = &"eth0")]
    master: String,
    /// The VLAN, 0 to 4094
    #[schemars(example = 100, range(min = 0, max = 4094))]
    #[serde(rename = "vlanId")]
    vlan: i64,
    /// MTU of the link, 68 to 65535; 0 is the master's
    #[schemars(example = 1450)]
    mtu: i64,
    /// `master` is a link of the container, not of the host
    link_in_container: bool,
    /// IPv6 duplicate address detection: the ADD waits for the full second that an answer may take. Without it, a hundredth
    enabledad: bool,
    ipam: Ipam,
    /// What the result says of DNS, where the IPAM plugin says nothing
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
}

/// The configuration as meant.
struct Conf {
    master: Master,
    id: u16,
    mtu: Option<u32>,
    addressing: Addressing,
}

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let master = Master::of(&written.master, written.link_in_container)?;
        if master.name.is_none() {
            return Err(invalid("`master` is missing").details("it names the link to make the VLAN for"));
        }
        let id = u16::try_from(written.vlan).ok().filter(|id| *id <= 4094).ok_or_else(|| {
            invalid(format!("invalid VLAN ID {} in `vlanId` (must be between 0 and 4094)", written.vlan))
        })?;
        let ipam = written.ipam.kind().ok_or_else(|| {
            invalid("`ipam.type` is missing").details("a VLAN of a container is nothing without addresses")
        })?;
        Ok(Self {
            master,
            id,
            mtu: mtu(written.mtu)?,
            addressing: Addressing {
                ipam: Some(ipam),
                dns: written.dns,
                duplicates: Duplicates::of(written.enabledad),
                announce: true,
            },
        })
    }
}

impl Plugin for Vlan {
    fn name(&self) -> &'static str {
        "vlan"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let over = Over { driver: Driver::Vlan { id: conf.id }, mtu: conf.mtu, mac: None };
        let inside = parent_link::create(request, sandbox, undo, &container, &conf.master, over)?;
        container_link::configure(request, sandbox, undo, &container, &inside, &conf.addressing)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        container_link::del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let (container, inside) =
            container_link::check(request, sandbox, conf.addressing.ipam.as_deref(), Some("vlan"))?;
        conf.master.check(&container, &inside)?;
        if inside.driver == Some(Driver::Vlan { id: conf.id }) {
            Ok(())
        } else {
            Err(differs(format!("`{}` is not in VLAN {}", inside.name, conf.id)))
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
