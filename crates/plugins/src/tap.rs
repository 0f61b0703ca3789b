//! `tap`: a link in the container whose other end is a program, such as a virtual machine monitor.

use kernel::{
    link::{self, Change, Link, Mac},
    tun,
};
use netloom_plugin::{Error, Request, Sandbox, Undo};
use netloom_types::name::IfName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, OwnDns, mtu},
    container_link::{self, Addressing, ContainerLink},
    container_netns::{ContainerNetns, Duplicates},
    error::{Explain, check_failed, invalid, kernel_error},
    runtime_args::{RuntimeMac, requested_mac, require_known_args},
};

/// The plugin.
#[derive(Debug)]
pub struct Tap;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// The program may open the link several times, once for each queue
    multi_queue: bool,
    /// MTU of the link, 68 to 65535. 0 is the kernel's default, 1500
    #[schemars(example = 1450)]
    mtu: i64,
    /// Hardware address of the interface. Defaults to an address that the kernel chooses
    #[schemars(example = &"c2:11:22:33:44:55")]
    mac: String,
    /// ID of the user who may open the link. Defaults to root alone
    #[schemars(example = 107)]
    owner: Option<u32>,
    /// ID of the group that may open the link
    #[schemars(example = 107)]
    group: Option<u32>,
    /// SELinux context in which the link is created, so that a confined program may open it
    #[schemars(example = &"system_u:system_r:container_t:s0")]
    selinux_context: String,
    /// Bridge in the container that the link becomes a port of
    #[schemars(example = &"br0")]
    bridge: String,
    ipam: Ipam,
    /// DNS settings of the result. They replace those of the IPAM plugin, even if they are an empty list
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: OwnDns,
    runtime_config: RuntimeMac,
}

/// The validated configuration.
pub(crate) struct Conf {
    multi_queue: bool,
    mtu: Option<u32>,
    mac: Option<Mac>,
    owner: Option<u32>,
    group: Option<u32>,
    selinux_context: Option<String>,
    bridge: Option<IfName>,
    addressing: Addressing,
}

impl ContainerLink for Tap {
    const NAME: &'static str = "tap";
    const KIND: &'static str = "tun";
    type Conf = Conf;

    fn conf(request: &Request) -> Result<Conf, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let bridge = Some(written.bridge).filter(|name| !name.is_empty()).map(|name| {
            IfName::parse(&name).map_err(|error| {
                invalid(format!("`bridge` {name:?}: {error}"))
                    .details("set `bridge` to the name of a bridge in the container")
            })
        });
        Ok(Conf {
            multi_queue: written.multi_queue,
            mtu: mtu(written.mtu)?,
            mac: requested_mac(request, &[("runtimeConfig.mac", &written.runtime_config.mac)], &written.mac)?,
            owner: written.owner,
            group: written.group,
            selinux_context: Some(written.selinux_context).filter(|context| !context.is_empty()),
            bridge: bridge.transpose()?,
            addressing: Addressing {
                ipam: written.ipam.kind(),
                chained: None,
                dns: written.dns,
                // Until a program opens the link there is no peer to answer, and afterwards that program is the only one.
                duplicates: Duplicates::Skip,
                announce: true,
            },
        })
    }

    fn addressing(conf: &Conf) -> &Addressing {
        &conf.addressing
    }

    fn create(
        conf: &Conf,
        _: &Request,
        sandbox: &Sandbox,
        container: &ContainerNetns,
        undo: &mut Undo,
    ) -> Result<Link, Error> {
        let ifname = sandbox.ifname.as_str();
        let tap = tun::Tap {
            name: ifname,
            multi_queue: conf.multi_queue,
            owner: conf.owner,
            group: conf.group,
            context: conf.selinux_context.as_deref(),
        };
        container_link::remove_on_failure(container, ifname, undo)?;
        container.netns.run_from(&container.host, || tun::create(&tap)).and_then(|done| done).map_err(
            |error| {
                kernel_error(&error).details(
                    "load the module with `modprobe tun`; `selinuxContext` needs SELinux and permission to change the \
                     context",
                )
            },
        )?;
        let link = link::require(&container.socket, ifname).explain()?;
        let bridge = match &conf.bridge {
            None => None,
            Some(name) => Some(link::find(&container.socket, name.as_str()).explain()?.ok_or_else(|| {
                invalid(format!("failed to get bridge {name}: the container has no such link"))
                    .details("create the bridge in the container first, or leave `bridge` out")
            })?),
        };
        let change = Change {
            mtu: conf.mtu,
            mac: conf.mac,
            master: bridge.as_ref().map(|bridge| bridge.index),
            ..Change::default()
        };
        link::change(&container.socket, &link, &change).explain()?;
        link::require(&container.socket, ifname).explain()
    }

    fn check(conf: &Conf, container: &ContainerNetns, link: &Link) -> Result<(), Error> {
        let Some(name) = &conf.bridge else { return Ok(()) };
        let bridge = link::find(&container.socket, name.as_str()).explain()?;
        if bridge.is_some_and(|bridge| link.master == Some(bridge.index)) {
            Ok(())
        } else {
            Err(check_failed(format!("`{}` is not a port of bridge `{name}`", link.name)))
        }
    }
}
