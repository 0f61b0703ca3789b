//! `tap`: a link in the container whose other end is a program, such as a virtual machine.

use kernel::{
    link::{self, Change, Mac},
    tun,
};
use netloom_plugin::{
    Attachment, Error, Plugin, Request, Sandbox, Undo,
    result::{Dns, v100::Success},
};
use netloom_types::name::IfName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, mtu},
    container_link::{self, Addressing},
    container_netns::{ContainerNetns, Duplicates},
    failure::{Explain, differs, explained, invalid},
    runtime_args::{RuntimeMac, asked_mac, require_known_args},
};

/// The plugin.
#[derive(Debug)]
pub struct Tap;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// A program may open the link several times, for a queue each
    multi_queue: bool,
    /// MTU of the link, 68 to 65535; 0 is the kernel's 1500
    #[schemars(example = 1450)]
    mtu: i64,
    /// Hardware address of the interface; without it the kernel chooses one
    #[schemars(example = &"c2:11:22:33:44:55")]
    mac: String,
    /// User ID that may open it; without it, root alone
    #[schemars(example = 107)]
    owner: Option<u32>,
    /// Group ID that may open it
    #[schemars(example = 107)]
    group: Option<u32>,
    /// SELinux context in which the link is made, so that a confined program may open it
    #[schemars(example = &"system_u:system_r:container_t:s0")]
    selinux_context: String,
    /// A bridge in the container whose port it becomes
    #[schemars(example = &"br0")]
    bridge: String,
    ipam: Ipam,
    /// What the result says of DNS, where the IPAM plugin says nothing
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
    runtime_config: RuntimeMac,
}

/// The configuration as meant.
struct Conf {
    multi_queue: bool,
    mtu: Option<u32>,
    mac: Option<Mac>,
    owner: Option<u32>,
    group: Option<u32>,
    /// The SELinux context in which the link is made.
    context: Option<String>,
    /// A bridge in the container, whose port it becomes.
    bridge: Option<IfName>,
    addressing: Addressing,
}

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let bridge = Some(written.bridge)
            .filter(|name| !name.is_empty())
            .map(|name| IfName::parse(&name).map_err(|error| invalid(format!("`bridge` {name:?}: {error}"))));
        Ok(Self {
            multi_queue: written.multi_queue,
            mtu: mtu(written.mtu)?,
            mac: asked_mac(request, &[("runtimeConfig.mac", &written.runtime_config.mac)], &written.mac)?,
            owner: written.owner,
            group: written.group,
            context: Some(written.selinux_context).filter(|context| !context.is_empty()),
            bridge: bridge.transpose()?,
            addressing: Addressing {
                ipam: written.ipam.kind(),
                dns: written.dns,
                // Before a program opens it nobody can be asked, and afterwards that program is the only one.
                duplicates: Duplicates::Unasked,
                announce: true,
            },
        })
    }
}

impl Plugin for Tap {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        container_link::require_free(&container, sandbox)?;
        let ifname = sandbox.ifname.as_str();
        let tap = tun::Tap {
            name: ifname,
            multi_queue: conf.multi_queue,
            owner: conf.owner,
            group: conf.group,
            context: conf.context.as_deref(),
        };
        container_link::remove_later(&container, ifname, undo)?;
        container.netns.run_from(&container.host, || tun::create(&tap)).and_then(|done| done).map_err(
            |error| {
                explained(&error)
                    .details("load the module tun; a context needs SELinux and leave to change it")
            },
        )?;
        let inside = link::require(&container.socket, ifname).explain()?;
        let master = match &conf.bridge {
            None => None,
            Some(name) => Some(link::find(&container.socket, name.as_str()).explain()?.ok_or_else(|| {
                invalid(format!("failed to get bridge {name}: there is none in the container"))
            })?),
        };
        let change = Change {
            mtu: conf.mtu,
            mac: conf.mac,
            master: master.as_ref().map(|master| master.index),
            ..Change::default()
        };
        link::change(&container.socket, &inside, &change).explain()?;
        let inside = link::require(&container.socket, ifname).explain()?;
        container_link::configure(request, sandbox, undo, &container, &inside, &conf.addressing)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        container_link::del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let (container, inside) =
            container_link::check(request, sandbox, conf.addressing.ipam.as_deref(), Some("tun"))?;
        if let Some(name) = &conf.bridge {
            let bridge = link::find(&container.socket, name.as_str()).explain()?;
            if bridge.is_none_or(|bridge| inside.master != Some(bridge.index)) {
                return Err(differs(format!("`{}` is no port of bridge `{name}`", inside.name)));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        container_link::status(request, Conf::of(request)?.addressing.ipam.as_deref())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        container_link::gc(request, valid)
    }
}
