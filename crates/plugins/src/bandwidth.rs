//! `bandwidth`: limits how fast a container sends and receives.

use ipnet::IpNet;
use kernel::{
    Kind, Protocol, Socket, deferred,
    link::{self, Change, Driver, Link, New},
    qdisc::{self, Bucket, OtherSide, Part},
};
use netloom_plugin::{Attachment, Error, Plugin, Request, Sandbox, SpecVersion, Undo, result::v100::Success};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleanup,
    container_netns::ContainerNetns,
    error::{Errors, Explain, check_failed, invalid},
    interface,
    owner::Owner,
    prev_result::{host_end, prev_result},
};

/// The plugin.
#[derive(Debug)]
pub struct Bandwidth;

/// The configuration as written, beside the network's own [`Wishes`].
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    runtime_config: RuntimeBandwidth,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct RuntimeBandwidth {
    /// Capability `bandwidth`: the same keys, for one container; they count where the network's own say nothing at all
    #[schemars(example = serde_json::json!({"ingressRate": 1_000_000, "ingressBurst": 1_000_000}))]
    bandwidth: Wishes,
}

/// Rates in bits per second, bursts in bits.
#[derive(Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Wishes {
    /// Most that the container receives, in bit/s
    #[schemars(example = 100_000_000)]
    ingress_rate: Option<u64>,
    /// What it receives at once beyond that, in bits; goes with the rate
    #[schemars(example = 10_000_000)]
    ingress_burst: Option<u64>,
    /// Most that it sends, in bit/s
    #[schemars(example = 100_000_000)]
    egress_rate: Option<u64>,
    /// What it sends at once beyond that, in bits
    #[schemars(example = 10_000_000)]
    egress_burst: Option<u64>,
    /// Traffic with these subnets is not limited
    #[schemars(example = serde_json::json!(["10.0.0.0/8"]))]
    unshaped_subnets: Vec<String>,
    /// Only traffic with these subnets is limited
    #[schemars(example = serde_json::json!(["192.0.2.0/24"]))]
    shaped_subnets: Vec<String>,
}

/// The configuration as meant.
#[derive(Debug)]
struct Conf {
    /// Of what the container receives.
    ingress: Option<Bucket>,
    /// Of what it sends.
    egress: Option<Bucket>,
    unshaped: Vec<IpNet>,
    shaped: Vec<IpNet>,
}

/// How long a packet may wait.
const LATENCY_MS: u64 = 25;

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        // The network's own keys count; if there are none, the runtime's.
        let of_network: Wishes = request.read()?;
        let wishes = if of_network == Wishes::default() {
            request.read::<Written>()?.runtime_config.bandwidth
        } else {
            of_network
        };
        if !wishes.unshaped_subnets.is_empty() && !wishes.shaped_subnets.is_empty() {
            return Err(invalid("`unshapedSubnets` and `shapedSubnets` exclude each other"));
        }
        Ok(Self {
            ingress: bucket("ingress", wishes.ingress_rate, wishes.ingress_burst)?,
            egress: bucket("egress", wishes.egress_rate, wishes.egress_burst)?,
            unshaped: subnets("unshapedSubnets", &wishes.unshaped_subnets)?,
            shaped: subnets("shapedSubnets", &wishes.shaped_subnets)?,
        })
    }

    fn is_empty(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }

    /// Returns the part of the traffic that is limited; none for all of it.
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

fn bucket(way: &str, rate: Option<u64>, burst: Option<u64>) -> Result<Option<Bucket>, Error> {
    let (rate, burst) = (rate.unwrap_or_default(), burst.unwrap_or_default());
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (_, 0) => {
            return Err(invalid(format!("`{way}Rate` is set, so `{way}Burst` must be too"))
                .details("if rate is set, burst must also be set"));
        }
        (0, _) => {
            return Err(invalid(format!("`{way}Burst` is set, so `{way}Rate` must be too"))
                .details("if burst is set, rate must also be set"));
        }
        (1..8, _) | (_, 1..8) => {
            return Err(invalid(format!("`{way}Rate` and `{way}Burst` are in bits, and less than a byte")));
        }
        _ => {}
    }
    let rate = rate / 8;
    let burst = u32::try_from(burst / 8)
        .ok()
        .filter(|burst| *burst < u32::MAX)
        .ok_or_else(|| invalid(format!("`{way}Burst` cannot be more than 4 GB")))?;
    let waiting = rate.saturating_mul(LATENCY_MS) / 1000;
    let limit = u32::try_from(waiting.saturating_add(burst.into())).unwrap_or(u32::MAX);
    Ok(Some(Bucket { rate, burst, limit }))
}

fn subnets(key: &str, written: &[String]) -> Result<Vec<IpNet>, Error> {
    let parse = |(index, text): (usize, &String)| {
        text.parse().map_err(|_| {
            invalid(format!("`{key}[{index}]` {text:?} is no subnet")).details("write it as 10.0.0.0/8")
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
        undo.push(format!("unlimit `{}`", outside.name), {
            let (host, outside) = (host.clone(), outside.clone());
            move || qdisc::remove(&host, &outside).explain()
        })?;
        if let Some(bucket) = &conf.ingress {
            again_if_there(&host, &outside, || conf.limit(&host, &outside, bucket, OtherSide::Source))?;
        }
        if let Some(bucket) = &conf.egress {
            let ifb = create_ifb(&host, &owner, outside.mtu, undo)?;
            conf.limit(&host, &ifb, bucket, OtherSide::Destination).explain()?;
            match qdisc::redirect(&host, &outside, &ifb) {
                // An ADD that was killed, of this very interface.
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
                check_failed(format!("the link that limits what `{}` sends is gone", sandbox.ifname))
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
        let mut errors = Errors::default();
        errors.note(cleanup::gc_links(request, valid));
        // Those that say nothing of their owner are the reference's, or of an ADD that was killed. Whose interface is
        // gone has nothing redirected to it any more; the names of valid ones are known.
        let host = Socket::open(Protocol::Route).explain()?;
        let network = request.config.name.as_str();
        let known = |name: &String| {
            valid.iter().any(|a| {
                Owner { network, container: &a.container_id, ifname: &a.ifname }
                    .limiting_links()
                    .contains(name)
            })
        };
        let mut nameless = link::list(&host).explain()?;
        nameless.retain(|it| {
            it.kind.as_deref() == Some("ifb")
                && it.alias.is_none()
                && it.name.len() == 15
                && it.name.starts_with("bwp")
                && !known(&it.name)
        });
        if !nameless.is_empty() {
            let in_use = qdisc::redirect_targets(&host).explain()?;
            nameless.retain(|ifb| !in_use.contains(&ifb.index));
            for refused in link::remove_all(&host, &nameless) {
                errors.note(Err::<(), _>(refused).explain());
            }
        }
        errors.into_result()
    }
}

/// Creates the link by which what the container sends is limited.
fn create_ifb(host: &Socket, owner: &Owner<'_>, mtu: u32, undo: &mut Undo) -> Result<Link, Error> {
    let mark = owner.mark();
    for name in owner.limiting_links() {
        if let Some(there) = link::find(host, &name).explain()? {
            // Another interface of this container in the same network has the first name.
            if there.alias.as_ref().is_some_and(|alias| *alias != mark) {
                continue;
            }
            // An ADD that was killed.
            link::remove(host, &there).explain()?;
        }
        undo.push(format!("remove `{name}`"), {
            let (host, name) = (host.clone(), name.clone());
            move || match link::find(&host, &name).explain()? {
                Some(ifb) => link::remove(&host, &ifb).explain(),
                None => Ok(()),
            }
        })?;
        let new = New { mtu: Some(mtu), queue: Some(0), up: true, ..New::of(&name, Driver::Ifb) };
        link::create(host, &new).explain()?;
        // Seen on a busy host: gone again a moment after it was made. A second one stays.
        if link::find(host, &name).explain()?.is_none() {
            link::create(host, &new).explain()?;
        }
        let ifb = link::require(host, &name).explain()?;
        link::change(host, &ifb, &Change { alias: Some(&mark), ..Change::default() }).explain()?;
        return Ok(ifb);
    }
    Err(invalid("no name is free for the link that limits what the container sends"))
}

/// Limits anew where an ADD that was killed, of this very interface, has done it.
fn again_if_there(host: &Socket, link: &Link, limit: impl Fn() -> kernel::Result<()>) -> Result<(), Error> {
    match limit() {
        Err(error) if error.kind() == Kind::Exists => {
            qdisc::remove(host, link).explain()?;
            limit().explain()
        }
        other => other.explain(),
    }
}
