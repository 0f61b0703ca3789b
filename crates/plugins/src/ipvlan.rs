//! `ipvlan`: a link in the container that shares hardware address and segment with one of the host's.

use kernel::link::{Driver, IpvlanMode};
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
pub struct Ipvlan;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// The link of the host to send by; without it, the interface of the plugin before in the list, or the one of the default route
    #[schemars(example = &"eth0")]
    master: String,
    /// `l2`: as if on the master's segment; `l3`: routed by the host, without ARP; `l3s`: the same, seen by the host's netfilter
    #[schemars(extend("enum" = ["l2", "l3", "l3s"], "default" = "l2"))]
    mode: String,
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
    mode: IpvlanMode,
    mtu: Option<u32>,
    /// The addresses of the plugin before it in the list, which gives no link its own.
    given: Option<Success>,
    addressing: Addressing,
}

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let mode = match written.mode.as_str() {
            "" | "l2" => IpvlanMode::L2,
            "l3" => IpvlanMode::L3,
            "l3s" => IpvlanMode::L3s,
            other => {
                return Err(invalid(format!("unknown ipvlan mode: {other:?} in `mode`"))
                    .details("use \"l2\", \"l3\" or \"l3s\""));
            }
        };
        let ipam = written.ipam.kind();
        let prev = request.prev_result.as_ref();
        Ok(Self {
            master: Master::of(&written.master, written.link_in_container)?,
            mode,
            mtu: mtu(written.mtu)?,
            given: prev.filter(|prev| ipam.is_none() && !prev.ips.is_empty()).cloned(),
            addressing: Addressing {
                ipam,
                dns: written.dns,
                duplicates: Duplicates::of(written.enabledad),
                announce: true,
            },
        })
    }

    /// A link of the plugin before is the master, if none is named.
    fn master_of_prev(mut self, request: &Request) -> Result<Self, Error> {
        if let (None, Some(prev)) = (&self.master.name, &request.prev_result) {
            match &prev.interfaces[..] {
                [only] if !only.name.is_empty() => {
                    self.master = Master::of(&only.name, self.master.in_container)?;
                }
                _ => {
                    return Err(invalid("chained master failure. PrevResult lacks a single named interface")
                        .details("name the link in `master`"));
                }
            }
        }
        Ok(self)
    }
}

impl Plugin for Ipvlan {
    fn name(&self) -> &'static str {
        "ipvlan"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?.master_of_prev(request)?;
        if conf.addressing.ipam.is_none() && conf.given.is_none() {
            return Err(invalid("`ipam.type` is missing").details(
                "ipvlan shares a hardware address, so it is nothing without addresses of its own: from IPAM, or from the \
                 plugin before",
            ));
        }
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let over = Over { driver: Driver::Ipvlan { mode: conf.mode }, mtu: conf.mtu, mac: None };
        let inside = parent_link::create(request, sandbox, undo, &container, &conf.master, over)?;
        match conf.given {
            Some(given) => container_link::apply(sandbox, &container, &inside, &conf.addressing, given),
            None => container_link::configure(request, sandbox, undo, &container, &inside, &conf.addressing),
        }
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        container_link::del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let (container, inside) =
            container_link::check(request, sandbox, conf.addressing.ipam.as_deref(), Some("ipvlan"))?;
        conf.master.check(&container, &inside)?;
        match inside.driver {
            Some(Driver::Ipvlan { mode }) if mode == conf.mode => Ok(()),
            other => Err(differs(format!("container ipvlan mode {other:?} does not match {:?}", conf.mode))),
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        // Without a name it may be the one of the plugin before, which is known at ADD alone.
        if conf.master.name.is_some() {
            conf.master.require()?;
        }
        container_link::status(request, conf.addressing.ipam.as_deref())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        container_link::gc(request, valid)
    }
}
