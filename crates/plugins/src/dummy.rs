//! `dummy`: a link in the container that drops every packet, for addresses that need an interface.

use kernel::link::{self, Driver, Link, New};
use netloom_plugin::{Error, Request, Sandbox, Undo};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, OwnDns},
    container_link::{self, Addressing, ContainerLink},
    container_netns::{ContainerNetns, Duplicates},
    error::{Explain, check_failed, invalid},
};

/// The plugin.
#[derive(Debug)]
pub struct Dummy;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Written {
    ipam: Ipam,
    /// DNS settings of the result. They replace those of the IPAM plugin, even if they are an empty list
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: OwnDns,
}

impl ContainerLink for Dummy {
    const NAME: &'static str = "dummy";
    const KIND: &'static str = "dummy";
    type Conf = Addressing;

    fn conf(request: &Request) -> Result<Addressing, Error> {
        let written: Written = request.read()?;
        let ipam = written.ipam.kind().ok_or_else(|| {
            invalid("dummy interface requires an IPAM configuration").details("set `ipam.type`")
        })?;
        Ok(Addressing {
            ipam: Some(ipam),
            chained: None,
            dns: written.dns,
            // No other host is on this link.
            duplicates: Duplicates::Skip,
            announce: false,
        })
    }

    fn addressing(conf: &Addressing) -> &Addressing {
        conf
    }

    fn create(
        _: &Addressing,
        _: &Request,
        sandbox: &Sandbox,
        container: &ContainerNetns,
        undo: &mut Undo,
    ) -> Result<Link, Error> {
        let ifname = sandbox.ifname.as_str();
        link::create(&container.socket, &New::of(ifname, Driver::Dummy)).explain()?;
        container_link::remove_on_failure(container, ifname, undo)?;
        link::require(&container.socket, ifname).explain()
    }

    fn check(_: &Addressing, _: &ContainerNetns, link: &Link) -> Result<(), Error> {
        if link.up { Ok(()) } else { Err(check_failed(format!("Interface {} is down", link.name))) }
    }
}
