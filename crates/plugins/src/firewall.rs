//! `firewall`: lets a container's traffic through a host that drops what it forwards.

mod firewalld;

use std::net::IpAddr;

use kernel::deferred;
use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, SpecVersion, Undo, result::v100::Success,
};
use ruleset::{
    firewall::{self, Admission},
    forward_hook::{self, Wanted},
    reference,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleanup,
    error::{Explain, check_failed, invalid},
    owner::Owner,
    prev_result::{addresses, prev_result},
};

/// The plugin.
#[derive(Debug)]
pub struct Firewall;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Who lets the traffic through. Without it: firewalld where it runs, nftables and what else drops elsewhere
    #[schemars(extend("enum" = ["nftables", "iptables", "firewalld"]))]
    backend: String,
    /// A chain of iptables that comes first, for the administrator's own rules
    #[schemars(example = &"CNI-ADMIN")]
    iptables_admin_chain_name: String,
    /// The zone that gets the container's addresses
    #[schemars(example = &"trusted", extend("default" = "trusted"))]
    firewalld_zone: String,
    /// Who reaches the container: everybody, containers of its own bridge alone, or no other bridge's containers
    #[schemars(extend("enum" = ["open", "same-bridge", "isolated"], "default" = "open"))]
    ingress_policy: String,
}

/// The configuration as meant.
struct Conf {
    /// Ask firewalld rather than open other tables; none for where it runs.
    firewalld: Option<bool>,
    zone: String,
    /// Iptables' chains are wanted even where nobody uses them.
    iptables: bool,
    admin_chain: String,
    policy: Policy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Open,
    SameBridge,
    Isolated,
}

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let (firewalld, iptables) = match written.backend.as_str() {
            "" => (None, false),
            "nftables" => (Some(false), false),
            "iptables" => (Some(false), true),
            "firewalld" => (Some(true), false),
            other => {
                return Err(Error::new(
                    Code::UnsupportedField,
                    format!("unrecognized backend {other:?} in `backend`"),
                )
                .details("use \"nftables\", \"iptables\", \"firewalld\" or leave it out"));
            }
        };
        let policy = match written.ingress_policy.as_str() {
            "" | "open" => Policy::Open,
            "same-bridge" => Policy::SameBridge,
            "isolated" => Policy::Isolated,
            other => {
                return Err(invalid(format!("unknown ingress policy: {other:?} in `ingressPolicy`"))
                    .details("use \"open\", \"same-bridge\" or \"isolated\""));
            }
        };
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let admin_chain = or(written.iptables_admin_chain_name.clone(), "CNI-ADMIN");
        // What iptables takes for a name of a chain.
        if admin_chain.len() > 28 || admin_chain.starts_with('-') || admin_chain.contains(char::is_whitespace)
        {
            return Err(invalid(format!("`iptablesAdminChainName` {admin_chain:?} is no name of a chain"))
                .details("at most 28 characters, without spaces, not beginning with -"));
        }
        Ok(Self {
            firewalld,
            zone: or(written.firewalld_zone, "trusted"),
            iptables: iptables || !written.iptables_admin_chain_name.is_empty(),
            admin_chain,
            policy,
        })
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { admin_chain: &self.admin_chain, always: self.iptables }
    }

    /// Returns the bus of firewalld, if that is to be asked.
    fn bus(&self) -> Result<Option<firewalld::Bus>, Error> {
        match self.firewalld {
            Some(false) => Ok(None),
            None => Ok(firewalld::Bus::connect().ok()),
            Some(true) => firewalld::Bus::connect().map(Some).map_err(|error| {
                Error::new(Code::Internal, format!("cannot reach firewalld: {error}"))
                    .details("start firewalld, or leave `backend` out")
            }),
        }
    }
}

impl Plugin for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn versions(&self) -> &'static [SpecVersion] {
        SpecVersion::from_on(SpecVersion::V0_4_0)
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let prev = prev_result(request)?;
        let conf = Conf::of(request)?;
        let owner = Owner::of(request, sandbox);
        let admission = admission(&conf, &prev, sandbox)?;
        let bus = conf.bus()?;
        let netfilter = deferred::netfilter().explain()?;
        if conf.policy != Policy::Open {
            let bridge = bridge(&prev, conf.policy)?;
            let together = conf.policy == Policy::SameBridge;
            firewall::guard(&netfilter, &owner.network_mark(), bridge, together).explain()?;
        }
        let mark = owner.mark();
        firewall::add(&netfilter, &mark, &admission).explain()?;
        let socket = netfilter.clone();
        undo.push("undo what the firewall lets through", move || {
            firewall::remove(&socket, &mark).map(drop).explain()
        })?;
        if let Some(mut bus) = bus {
            for ip in &admission.addresses {
                bus.add_source(&conf.zone, *ip)?;
                let (zone, ip) = (conf.zone.clone(), *ip);
                undo.push(format!("take {ip} out of zone {zone}"), move || {
                    firewalld::Bus::connect().and_then(|mut bus| bus.remove_source(&zone, ip)).or(Ok(()))
                })?;
            }
        } else {
            forward_hook::open(&netfilter, conf.wanted()).explain()?;
        }
        Ok(prev)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let owner = Owner::of(request, sandbox);
        let Some(netfilter) = cleanup::netfilter()? else { return Ok(()) };
        let mut gone = firewall::remove(&netfilter, &owner.mark()).explain()?;
        // What the reference plugins let through, and firewalld, know containers by their addresses alone.
        if let Some(prev) = &request.prev_result {
            gone.extend(prev.ips.iter().map(|ip| ip.address.addr()));
        }
        gone.sort_unstable();
        gone.dedup();
        reference::remove_forward_rules(&netfilter, &gone).explain()?;
        let Ok(conf) = Conf::of(request) else { return Ok(()) };
        if conf.firewalld != Some(false)
            && !gone.is_empty()
            && let Ok(mut bus) = firewalld::Bus::connect()
        {
            for ip in gone {
                // It was not there, or the zone is not: nothing is left either way.
                drop(bus.remove_source(&conf.zone, ip));
            }
        }
        Ok(())
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let prev = prev_result(request)?;
        let conf = Conf::of(request)?;
        let owner = Owner::of(request, sandbox);
        let admission = admission(&conf, &prev, sandbox)?;
        let netfilter = deferred::netfilter().explain()?;
        if !firewall::is_set(&netfilter, &owner.mark(), &admission).explain()? {
            return Err(check_failed("the firewall does not know the container's addresses"));
        }
        if conf.policy != Policy::Open {
            let bridge = bridge(&prev, conf.policy)?;
            let together = conf.policy == Policy::SameBridge;
            if !firewall::is_guarded(&netfilter, &owner.network_mark(), bridge, together).explain()? {
                return Err(check_failed(format!("`{bridge}` is not kept apart from other bridges")));
            }
        }
        if let Some(mut bus) = conf.bus()? {
            for ip in &admission.addresses {
                if !bus.has_source(&conf.zone, *ip)? {
                    return Err(check_failed(format!("{ip} is not in firewalld's zone {}", conf.zone)));
                }
            }
            return Ok(());
        }
        if forward_hook::is_open(&netfilter, conf.wanted()).explain()? {
            Ok(())
        } else {
            Err(check_failed("a chain at the forward hook does not let containers' traffic through"))
        }
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        cleanup::require_nftables()?;
        if conf.firewalld == Some(true) {
            conf.bus().map_err(|error| Error { code: Code::NotAvailable, ..error })?;
        }
        Ok(())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        cleanup::gc_rules(request, valid)
    }
}

fn admission(conf: &Conf, prev: &Success, sandbox: &Sandbox) -> Result<Admission, Error> {
    let ips: Vec<IpAddr> = addresses(prev, sandbox).map(|ip| ip.address.addr()).collect();
    let isolated = if conf.policy == Policy::Isolated {
        let bridge = bridge(prev, conf.policy)?;
        let on_host = prev.interfaces.iter().filter(|it| it.sandbox.is_empty() && it.name != bridge);
        on_host.map(|interface| interface.name.clone()).collect()
    } else {
        Vec::new()
    };
    Ok(Admission { addresses: ips, isolated })
}

/// Returns the bridge of the plugin before, which lists it first.
fn bridge(prev: &Success, policy: Policy) -> Result<&str, Error> {
    prev.interfaces.first().map(|it| it.name.as_str()).filter(|name| !name.is_empty()).ok_or_else(|| {
        invalid(format!("prevResult lists no interface, which ingress policy {policy:?} needs"))
            .details("chain firewall behind bridge")
    })
}
