//! `dummy`: a link in the container that drops what is sent by it, for addresses that need one.

use kernel::link::{self, Driver, New};
use netloom_plugin::{
    Attachment, Error, Plugin, Request, Sandbox, Undo,
    result::{Dns, v100::Success},
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::Ipam,
    container_link::{self, Addressing},
    container_netns::{ContainerNetns, Duplicates},
    failure::{Explain, differs, invalid},
};

/// The plugin.
#[derive(Debug)]
pub struct Dummy;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Written {
    ipam: Ipam,
    /// What the result says of DNS, where the IPAM plugin says nothing
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
}

impl Addressing {
    fn of_dummy(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let ipam = written.ipam.kind().ok_or_else(|| {
            invalid("dummy interface requires an IPAM configuration").details("`ipam.type` is missing")
        })?;
        // Nobody can be on this link, so the kernel does not ask.
        let duplicates = Duplicates::Unasked;
        Ok(Self { ipam: Some(ipam), dns: written.dns, duplicates, announce: false })
    }
}

impl Plugin for Dummy {
    fn name(&self) -> &'static str {
        "dummy"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let addressing = Addressing::of_dummy(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        container_link::require_free(&container, sandbox)?;
        let ifname = sandbox.ifname.as_str();
        link::create(&container.socket, &New::of(ifname, Driver::Dummy)).explain()?;
        container_link::remove_later(&container, ifname, undo)?;
        let inside = link::require(&container.socket, ifname).explain()?;
        container_link::configure(request, sandbox, undo, &container, &inside, &addressing)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        container_link::del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let addressing = Addressing::of_dummy(request)?;
        let (_, inside) = container_link::check(request, sandbox, addressing.ipam.as_deref(), Some("dummy"))?;
        if inside.up { Ok(()) } else { Err(differs(format!("Interface {} is down", inside.name))) }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        container_link::status(request, Addressing::of_dummy(request)?.ipam.as_deref())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        container_link::gc(request, valid)
    }
}
