//! `bandwidth`: limits the rates at which a container sends and receives.

use ipnet::IpNet;
use kernel::{
    Kind, Protocol, Socket, deferred,
    link::{self, Driver, Link, New},
    qdisc::{self, Bucket, OtherSide, Part},
};
use netloom_plugin::{Attachment, Error, Plugin, Request, Sandbox, SpecVersion, Undo, result::v100::Success};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleanup,
    container_netns::ContainerNetns,
    error::{Explain, check_failed, invalid},
    interface,
    owner::Owner,
    prev_result::{host_end, prev_result},
};

/// The plugin.
#[derive(Debug)]
pub struct Bandwidth;

/// The configuration as written, apart from the network's own [`Rates`].
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    runtime_config: RuntimeBandwidth,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct RuntimeBandwidth {
    /// Capability `bandwidth`: the same keys for one container. Used only if the network sets none of them
    #[schemars(example = serde_json::json!({"ingressRate": 1_000_000, "ingressBurst": 1_000_000}))]
    bandwidth: Rates,
}

/// Rates in bits per second, bursts in bits.
#[derive(Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rates {
    /// Rate at which the container receives, in bit/s
    #[schemars(example = 100_000_000)]
    ingress_rate: Option<u64>,
    /// Burst that it receives above the rate, in bits. Required with the rate
    #[schemars(example = 10_000_000)]
    ingress_burst: Option<u64>,
    /// Rate at which the container sends, in bit/s
    #[schemars(example = 100_000_000)]
    egress_rate: Option<u64>,
    /// Burst that it sends above the rate, in bits. Required with the rate
    #[schemars(example = 10_000_000)]
    egress_burst: Option<u64>,
    /// Subnets whose traffic is not limited
    #[schemars(example = serde_json::json!(["10.0.0.0/8"]))]
    unshaped_subnets: Vec<String>,
    /// Subnets whose traffic is limited; other traffic is not
    #[schemars(example = serde_json::json!(["192.0.2.0/24"]))]
    shaped_subnets: Vec<String>,
}

/// The configuration as meant.
#[derive(Debug)]
struct Conf {
    /// Limits what the container receives.
    ingress: Option<Bucket>,
    /// Limits what the container sends.
    egress: Option<Bucket>,
    unshaped: Vec<IpNet>,
    shaped: Vec<IpNet>,
}

/// Time that a packet may wait in the queue.
const LATENCY_MS: u64 = 25;

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        // The network's own keys take precedence over the runtime's.
        let network: Rates = request.read()?;
        let rates = if network == Rates::default() {
            request.read::<Written>()?.runtime_config.bandwidth
        } else {
            network
        };
        if !rates.unshaped_subnets.is_empty() && !rates.shaped_subnets.is_empty() {
            return Err(invalid("`unshapedSubnets` and `shapedSubnets` exclude each other")
                .details("set one of them"));
        }
        Ok(Self {
            ingress: bucket("ingress", rates.ingress_rate, rates.ingress_burst)?,
            egress: bucket("egress", rates.egress_rate, rates.egress_burst)?,
            unshaped: subnets("unshapedSubnets", &rates.unshaped_subnets)?,
            shaped: subnets("shapedSubnets", &rates.shaped_subnets)?,
        })
    }

    fn is_empty(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }

    /// Returns the part of the traffic that is limited, or `None` for all of it.
    fn part(&self) -> Option<Part<'_>> {
        match (&self.unshaped[..], &self.shaped[..]) {
            ([], []) => None,
            ([], shaped) => Some(Part::Only(shaped)),
            (unshaped, _) => Some(Part::AllBut(unshaped)),
        }
    }

    fn limit(
        &self,
        host: &Socket,
        link: &Link,
        bucket: &Bucket,
        other_side: OtherSide,
    ) -> kernel::Result<()> {
        match self.part() {
            None => qdisc::add_bucket(host, link, bucket),
            Some(part) => qdisc::add_bucket_for(host, link, bucket, part, other_side),
        }
    }

    fn is_limited(&self, host: &Socket, link: &Link, bucket: &Bucket) -> Result<bool, Error> {
        let (root, _) = qdisc::look(host, link).explain()?;
        let whole = self.part().is_none();
        Ok(root.is_some_and(|root| if whole { root.is(bucket) } else { root.kind == "htb" }))
    }
}

fn bucket(direction: &str, rate: Option<u64>, burst: Option<u64>) -> Result<Option<Bucket>, Error> {
    let (rate, burst) = (rate.unwrap_or_default(), burst.unwrap_or_default());
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (_, 0) => {
            return Err(invalid(format!("`{direction}Rate` is set, so `{direction}Burst` must be too"))
                .details("if rate is set, burst must also be set"));
        }
        (0, _) => {
            return Err(invalid(format!("`{direction}Burst` is set, so `{direction}Rate` must be too"))
                .details("if burst is set, rate must also be set"));
        }
        (1..8, _) | (_, 1..8) => {
            return Err(invalid(format!(
                "`{direction}Rate` and `{direction}Burst` must be at least 8: they are in bits"
            )));
        }
        _ => {}
    }
    let rate = rate / 8;
    let burst = u32::try_from(burst / 8)
        .ok()
        .filter(|burst| *burst < u32::MAX)
        .ok_or_else(|| invalid(format!("`{direction}Burst` cannot be more than 4 GB")))?;
    let waiting = rate.saturating_mul(LATENCY_MS) / 1000;
    let limit = u32::try_from(waiting.saturating_add(burst.into())).unwrap_or(u32::MAX);
    Ok(Some(Bucket { rate, burst, limit }))
}

fn subnets(key: &str, written: &[String]) -> Result<Vec<IpNet>, Error> {
    let parse = |(index, text): (usize, &String)| {
        text.parse().map_err(|_| {
            invalid(format!("`{key}[{index}]` {text:?} is not a subnet")).details("write it as 10.0.0.0/8")
        })
    };
    written.iter().enumerate().map(parse).collect()
}

impl Plugin for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth"
    }

    fn versions(&self) -> &'static [SpecVersion] {
        SpecVersion::from_on(SpecVersion::V0_3_0)
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let mut result = prev_result(request)?;
        let conf = Conf::of(request)?;
        if conf.is_empty() {
            return Ok(result);
        }
        let owner = Owner::of(request, sandbox);
        let host = Socket::open(Protocol::Route).explain()?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let outside = host_end(&host, &container, sandbox)?;
        undo.push(format!("remove the rate limit of `{}`", outside.name), {
            let (host, outside) = (host.clone(), outside.clone());
            move || qdisc::remove(&host, &outside).explain()
        })?;
        if let Some(bucket) = &conf.ingress {
            replace_if_exists(&host, &outside, || conf.limit(&host, &outside, bucket, OtherSide::Source))?;
        }
        if let Some(bucket) = &conf.egress {
            let ifb = create_ifb(&host, &owner, outside.mtu, undo)?;
            conf.limit(&host, &ifb, bucket, OtherSide::Destination).explain()?;
            match qdisc::redirect(&host, &outside, &ifb) {
                // An earlier ADD of this interface was killed.
                Err(error) if error.kind() == Kind::Exists && conf.ingress.is_none() => {
                    qdisc::remove(&host, &outside).explain()?;
                    qdisc::redirect(&host, &outside, &ifb).explain()?;
                }
                other => other.explain()?,
            }
            result.interfaces.push(interface::on_host(&ifb));
        }
        Ok(result)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let owner = Owner::of(request, sandbox);
        let host = Socket::open(Protocol::Route).explain()?;
        let mark = owner.mark();
        for name in owner.limiting_links() {
            if let Some(ifb) = link::find(&host, &name).explain()?
                && ifb.alias.as_ref().is_none_or(|alias| *alias == mark)
            {
                deferred::remove_link(&host, &ifb).explain()?;
            }
        }
        Ok(())
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        prev_result(request)?;
        let conf = Conf::of(request)?;
        if conf.is_empty() {
            return Ok(());
        }
        let owner = Owner::of(request, sandbox);
        let host = Socket::open(Protocol::Route).explain()?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let outside = host_end(&host, &container, sandbox)?;
        let limited = |link: &Link, bucket: &Bucket| {
            if conf.is_limited(&host, link, bucket)? {
                return Ok(());
            }
            Err(check_failed(format!("the rate of `{}` is not limited as configured", link.name)))
        };
        if let Some(bucket) = &conf.ingress {
            limited(&outside, bucket)?;
        }
        if let Some(bucket) = &conf.egress {
            let mark = owner.mark();
            let mut of_owner = None;
            for name in owner.limiting_links() {
                let found = link::find(&host, &name).explain()?;
                of_owner = of_owner.or(found.filter(|ifb| ifb.alias.as_ref().is_none_or(|it| *it == mark)));
            }
            let ifb = of_owner.ok_or_else(|| {
                check_failed(format!("the ifb that limits what `{}` sends does not exist", sandbox.ifname))
            })?;
            limited(&ifb, bucket)?;
            if !qdisc::look(&host, &outside).explain()?.1 {
                return Err(check_failed(format!("what `{}` sends is not limited", sandbox.ifname)));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request).map(drop)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        // An ifb without a mark whose group is not this network's is another network's or another program's: an ADD may have
        // created it a moment ago.
        cleanup::gc_links(request, valid)
    }
}

/// Creates the ifb that limits what the container sends.
fn create_ifb(host: &Socket, owner: &Owner<'_>, mtu: u32, undo: &mut Undo) -> Result<Link, Error> {
    let mark = owner.mark();
    for name in owner.limiting_links() {
        if let Some(there) = link::find(host, &name).explain()? {
            // Another interface of this container on the same network has the first name.
            if there.alias.as_ref().is_some_and(|alias| *alias != mark) {
                continue;
            }
            // An earlier ADD was killed.
            link::remove(host, &there).explain()?;
        }
        undo.push(format!("remove `{name}`"), {
            let (host, name) = (host.clone(), name.clone());
            move || match link::find(&host, &name).explain()? {
                Some(ifb) => link::remove(&host, &ifb).explain(),
                None => Ok(()),
            }
        })?;
        let group = Some(owner.unmarked_group());
        let new = New { mtu: Some(mtu), queue: Some(0), group, up: true, ..New::of(&name, Driver::Ifb) };
        link::create(host, &new).explain()?;
        let ifb = link::require(host, &name).explain()?;
        link::change(host, &ifb, &cleanup::marked(&mark)).explain()?;
        return Ok(ifb);
    }
    Err(invalid("no name is free for the ifb that limits what the container sends")
        .details("remove the links whose names begin with `bwp` and that no container uses"))
}

/// Sets the limit, replacing that of an earlier ADD of this interface that was killed.
fn replace_if_exists(
    host: &Socket,
    link: &Link,
    limit: impl Fn() -> kernel::Result<()>,
) -> Result<(), Error> {
    match limit() {
        Err(error) if error.kind() == Kind::Exists => {
            qdisc::remove(host, link).explain()?;
            limit().explain()
        }
        other => other.explain(),
    }
}
