//! `firewall`: admits a container's traffic on a host that drops forwarded packets by default.

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
    /// What admits the traffic. Defaults to firewalld if it runs, otherwise to nftables and a rule in every other chain that would drop
    #[schemars(extend("enum" = ["nftables", "iptables", "firewalld"]))]
    backend: String,
    /// Iptables chain for the administrator's own rules, evaluated first
    #[schemars(example = &"CNI-ADMIN")]
    iptables_admin_chain_name: String,
    /// Firewalld zone that the container's addresses are added to
    #[schemars(example = &"trusted", extend("default" = "trusted"))]
    firewalld_zone: String,
    /// Which containers reach this one: all (`open`), all but those of other bridges with a policy (`same-bridge`), or none of any bridge with a policy (`isolated`). Traffic from outside the host is not affected
    #[schemars(extend("enum" = ["open", "same-bridge", "isolated"], "default" = "open"))]
    ingress_policy: String,
}

/// The validated configuration.
struct Conf {
    /// Whether to use firewalld instead of rules in foreign chains, or `None` to use it if it runs.
    firewalld: Option<bool>,
    zone: String,
    /// Whether to create the iptables chains even if no other rules use iptables.
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

impl Policy {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::SameBridge => "same-bridge",
            Self::Isolated => "isolated",
        }
    }
}

impl Conf {
    /// Reads and validates the configuration.
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
                .details("set it to \"nftables\", \"iptables\" or \"firewalld\", or leave it out"));
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
        // The restrictions of iptables.
        if admin_chain.len() > 28 || admin_chain.starts_with('-') || admin_chain.contains(char::is_whitespace)
        {
            return Err(invalid(format!(
                "`iptablesAdminChainName` {admin_chain:?} is not a valid chain name"
            ))
            .details("use at most 28 characters, without spaces, not beginning with -"));
        }
        Ok(Self {
            firewalld,
            zone: or(written.firewalld_zone, "trusted"),
            iptables: iptables || !written.iptables_admin_chain_name.is_empty(),
            admin_chain,
            policy,
        })
    }

    /// Returns the rules to have at the forward hook.
    fn wanted(&self) -> Wanted<'_> {
        Wanted { admin_chain: &self.admin_chain, always: self.iptables }
    }

    /// Returns a connection to firewalld, or `None` if firewalld is not used.
    fn bus(&self) -> Result<Option<firewalld::Bus>, Error> {
        match self.firewalld {
            Some(false) => Ok(None),
            None => Ok(firewalld::Bus::connect().ok()),
            Some(true) => firewalld::Bus::connect().map(Some),
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
        undo.push("remove the container from the firewall", move || {
            firewall::remove(&socket, &mark).map(drop).explain()
        })?;
        if let Some(mut bus) = bus {
            for ip in &admission.addresses {
                bus.add_source(&conf.zone, *ip)?;
                let (zone, ip) = (conf.zone.clone(), *ip);
                undo.push(format!("remove {ip} from zone {zone}"), move || {
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
        let mut addresses = firewall::remove(&netfilter, &owner.mark()).explain()?;
        // Rules of the reference plugins, and firewalld, identify containers by their addresses alone.
        if let Some(prev) = &request.prev_result {
            addresses.extend(prev.ips.iter().map(|ip| ip.address.addr()));
        }
        addresses.sort_unstable();
        addresses.dedup();
        reference::remove_forward_rules(&netfilter, &addresses).explain()?;
        let Ok(conf) = Conf::of(request) else { return Ok(()) };
        if conf.firewalld != Some(false)
            && !addresses.is_empty()
            && let Ok(mut bus) = firewalld::Bus::connect()
        {
            for ip in addresses {
                // Fails if the address or the zone does not exist. Nothing is left either way.
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
            return Err(check_failed("the firewall does not admit the container's addresses"));
        }
        if conf.policy != Policy::Open {
            let bridge = bridge(&prev, conf.policy)?;
            let together = conf.policy == Policy::SameBridge;
            if !firewall::is_guarded(&netfilter, &owner.network_mark(), bridge, together).explain()? {
                return Err(check_failed(format!("`{bridge}` is not isolated from other bridges")));
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
            Err(check_failed("a chain at the forward hook does not admit the containers' traffic"))
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

/// Returns what the firewall admits for the container.
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

/// Returns the bridge, which the previous plugin lists first.
fn bridge(prev: &Success, policy: Policy) -> Result<&str, Error> {
    prev.interfaces.first().map(|it| it.name.as_str()).filter(|name| !name.is_empty()).ok_or_else(|| {
        invalid(format!("prevResult lists no bridge, which `ingressPolicy` {:?} needs", policy.as_str()))
            .details("put firewall after bridge in `plugins`, or use \"open\"")
    })
}
