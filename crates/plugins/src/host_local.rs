//! `host-local`: addresses from ranges, with reservations in the reference plugin's files on this host.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipam::{Cooldown, Locked, Owner, Range, RangeSet, Store};
use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, Undo,
    capability::IpRange,
    is_abandoned,
    result::{
        Dns, Route,
        v100::{IpConfig, Success},
    },
};
use netloom_types::address::parse_ip_maybe_cidr;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    error::{Explain, check_failed, invalid},
    runtime_args::{IpamConf, require_one_per_family},
};

/// The plugin.
#[derive(Debug)]
pub struct HostLocal;

/// Default folder of reservations.
pub(crate) const DATA_DIR: &str = "/var/lib/cni/networks";

/// The value of `ipam` as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ipam {
    /// A single range, in the old form
    #[schemars(example = &"10.88.0.0/16")]
    subnet: String,
    /// First address of `subnet` to assign
    #[schemars(with = "Option<String>", example = &"10.88.1.0")]
    #[serde(with = "netloom_types::address::optional_ip")]
    range_start: Option<IpAddr>,
    /// Last address of `subnet` to assign
    #[schemars(with = "Option<String>", example = &"10.88.1.255")]
    #[serde(with = "netloom_types::address::optional_ip")]
    range_end: Option<IpAddr>,
    /// Gateway of `subnet`
    #[schemars(with = "Option<String>", example = &"10.88.0.1")]
    #[serde(with = "netloom_types::address::optional_ip")]
    gateway: Option<IpAddr>,
    /// Range sets. A container gets one address of each set, so two sets make it dual-stack. A set of several ranges acts as one larger range
    #[schemars(example = serde_json::json!([[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:db8:1::/64"}]]))]
    ranges: Vec<Vec<IpRange>>,
    /// Routes of the container
    #[schemars(example = serde_json::json!([{"dst": "0.0.0.0/0"}]))]
    routes: Vec<Route>,
    /// Folder of reservations, with a subfolder for each network
    #[schemars(example = &"/run/cni/networks", extend("default" = DATA_DIR))]
    data_dir: String,
    /// File in the format of resolv.conf(5) from which the result's DNS settings are read
    #[schemars(example = &"/etc/resolv.conf")]
    resolv_conf: String,
    /// File in which the network's daemon (`netloomd`) writes `ready`, or why the network is not. STATUS fails unless it reads `ready`
    #[schemars(example = &"/run/netloom/netloom.ready")]
    ready_file: String,
    /// Seconds for which a released address is not assigned again while others are free. 0 reuses it at once
    #[schemars(example = 60)]
    cooldown: u32,
}

impl Ipam {
    /// Returns the network's store of reservations.
    fn store(&self, request: &Request) -> Store {
        let data_dir = if self.data_dir.is_empty() { DATA_DIR } else { &self.data_dir };
        let cooldown = Duration::from_secs(self.cooldown.into());
        let rest = (!cooldown.is_zero()).then(|| Cooldown { cooldown, now: SystemTime::now() });
        Store::new(Path::new(data_dir), request.config.name.as_str()).with_rest(rest)
    }
}

/// The validated configuration.
struct Conf {
    sets: Vec<RangeSet>,
    requested: Vec<IpAddr>,
    routes: Vec<Route>,
    resolv_conf: Option<PathBuf>,
    ready_file: Option<PathBuf>,
    store: Store,
}

impl Conf {
    /// Reads and validates the configuration.
    fn of(request: &Request) -> Result<Self, Error> {
        let written: IpamConf<Ipam> = IpamConf::of(request)?;
        let ipam = written.ipam;
        let store = ipam.store(request);

        let mut requested = Vec::new();
        if let Some(text) = request.args.value("IP").filter(|text| !text.is_empty()) {
            requested.push(ip("`IP` of CNI_ARGS", text)?);
        }
        for text in &written.args.cni.ips {
            requested.push(ip("`args.cni.ips`", text)?);
        }
        for text in &written.runtime_config.ips {
            requested.push(ip("`runtimeConfig.ips`", text)?);
        }

        let mut ranges = written.runtime_config.ip_ranges;
        if !ipam.subnet.is_empty() {
            let subnet = netloom_types::address::parse_cidr(&ipam.subnet).map_err(|error| {
                invalid(format!("`ipam.subnet`: {error}")).details("write it as 10.88.0.0/16")
            })?;
            ranges.push(vec![IpRange {
                subnet,
                range_start: ipam.range_start,
                range_end: ipam.range_end,
                gateway: ipam.gateway,
            }]);
        }
        ranges.extend(ipam.ranges);
        if ranges.is_empty() {
            return Err(invalid("no IP ranges specified")
                .details("set `ipam.ranges`, for example [[{\"subnet\": \"10.88.0.0/16\"}]]"));
        }
        let sets = ranges.iter().enumerate().map(|(index, set)| range_set(index, set));
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        let firsts = sets.iter().filter_map(|set| set.ranges().first()).map(|range| range.start);
        require_one_per_family(request.version, firsts)?;
        for (index, set) in sets.iter().enumerate() {
            for (other_index, other) in sets.iter().enumerate().skip(index + 1) {
                if let Some((a, b)) = set.overlap(other) {
                    return Err(invalid(format!(
                        "range set {index} overlaps with {other_index}: {a} and {b}"
                    ))
                    .details("use ranges that do not overlap, or put both into one set"));
                }
            }
        }
        Ok(Self {
            sets,
            requested,
            routes: ipam.routes,
            resolv_conf: Some(ipam.resolv_conf).filter(|path| !path.is_empty()).map(PathBuf::from),
            ready_file: Some(ipam.ready_file).filter(|path| !path.is_empty()).map(PathBuf::from),
            store,
        })
    }

    /// Returns the store alone, for verbs that must work whatever the ranges are.
    fn store_of(request: &Request) -> Result<Store, Error> {
        #[derive(Deserialize)]
        struct Part {
            #[serde(default)]
            ipam: Ipam,
        }
        Ok(request.read::<Part>()?.ipam.store(request))
    }
}

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn uses_netns(&self) -> bool {
        false
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let mut conf = Conf::of(request)?;
        let dns = conf.resolv_conf.as_deref().map(read_resolv_conf).transpose()?.unwrap_or_default();
        let owner = owner(sandbox);
        let mut ips = Vec::new();
        let mut locked = conf.store.lock().explain()?;
        let owned = locked.owned(owner).explain()?;
        for (index, set) in conf.sets.iter().enumerate() {
            let requested = conf.requested.iter().position(|ip| set.range_of(*ip).is_some());
            let requested = requested.map(|at| conf.requested.remove(at));
            let reserved = match requested {
                Some(ip) => reserve(&mut locked, set, index, ip, owner),
                None => pick(&mut locked, set, index, owner, &owned),
            };
            let (range, ip) = reserved.map_err(|mut error| {
                error.msg = format!("failed to allocate for range {index}: {}", error.msg);
                error
            })?;
            ips.push(IpConfig {
                address: range.with_prefix(ip),
                gateway: Some(range.gateway),
                interface: None,
            });
            let (store, sandbox) = (conf.store.clone(), sandbox.clone());
            undo.push(format!("release address {ip}"), move || {
                store.lock().and_then(|mut locked| locked.release_one(ip, self::owner(&sandbox))).explain()
            })?;
        }
        if !conf.requested.is_empty() {
            let left: Vec<String> = conf.requested.iter().map(ToString::to_string).collect();
            return Err(invalid(format!("failed to allocate all requested IPs: {}", left.join(" ")))
                .details("request addresses within the ranges, and at most one of each range set"));
        }
        Ok(Success { ips, routes: conf.routes, dns, ..Success::default() })
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let store = Conf::store_of(request)?;
        match store.lock_existing().explain()? {
            Some(mut locked) => locked.release(owner(sandbox)).explain(),
            None => Ok(()),
        }
    }

    fn checks_result(&self) -> bool {
        false
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let owned = match conf.store.lock_existing().explain()? {
            Some(mut locked) => locked.owned(owner(sandbox)).explain()?,
            None => Vec::new(),
        };
        if owned.is_empty() {
            return Err(check_failed(format!(
                "host-local: Failed to find address added by container {}",
                sandbox.container_id
            )));
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        if let Some(path) = &conf.ready_file {
            require_ready(path)?;
        }
        let Some(locked) = conf.store.lock_existing().explain()? else { return Ok(()) };
        for (index, set) in conf.sets.iter().enumerate() {
            if !locked.any_free(set, index).explain()? {
                return Err(Error::new(
                    Code::NotAvailable,
                    format!("no IP addresses available in range set: {set}"),
                )
                .details("run `netloom gc` to release addresses of containers that no longer exist, or add a range"));
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let store = Conf::store_of(request)?;
        let Some(mut locked) = store.lock_existing().explain()? else { return Ok(()) };
        locked
            .retain(|container, ifname| {
                valid
                    .iter()
                    .any(|a| a.container_id == container && ifname.is_none_or(|ifname| ifname == a.ifname))
                    || is_abandoned()
            })
            .explain()
    }
}

/// Fails unless the ready file says that the network is ready.
fn require_ready(path: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(path).map_err(|error| {
        Error::new(
            Code::NotAvailable,
            format!("the network is not ready: cannot read {}: {error}", path.display()),
        )
        .details("wait until the node daemon has written the file; `netloom cluster` and the daemon's log show its state")
    })?;
    if text.trim() == "ready" {
        return Ok(());
    }
    Err(Error::new(Code::NotAvailable, format!("the network is not ready: {}", text.trim()))
        .details("wait for the node daemon; `netloom cluster` and its log show what it waits for"))
}

fn owner(sandbox: &Sandbox) -> Owner<'_> {
    Owner { container: sandbox.container_id.as_str(), ifname: sandbox.ifname.as_str() }
}

/// Reserves a requested address.
fn reserve<'a>(
    locked: &mut Locked<'_>,
    set: &'a RangeSet,
    index: usize,
    ip: IpAddr,
    owner: Owner<'_>,
) -> Result<(&'a Range, IpAddr), Error> {
    let range = set.range_of(ip).ok_or_else(|| invalid(format!("{ip} is in no range of {set}")))?;
    if ip == range.gateway {
        return Err(invalid(format!("requested ip {ip} is subnet's gateway"))
            .details("request another address, or none"));
    }
    if locked.reserve(ip, owner, index).explain()? {
        return Ok((range, ip));
    }
    Err(Error::new(
        Code::TryAgainLater,
        format!("requested IP address {ip} is not available in range set {set}"),
    )
    .details(
        "request another address: another container has this one; `netloom gc` releases stale reservations",
    ))
}

/// Reserves the next free address. Fails if the owner already has one of the set.
fn pick<'a>(
    locked: &mut Locked<'_>,
    set: &'a RangeSet,
    index: usize,
    owner: Owner<'_>,
    owned: &[IpAddr],
) -> Result<(&'a Range, IpAddr), Error> {
    if let Some(ip) = owned.iter().find(|ip| set.range_of(**ip).is_some()) {
        return Err(invalid(format!(
            "{ip} has been allocated to {}, duplicate allocation is not allowed",
            owner.container
        ))
        .details("call DEL first: the container was added before and never deleted"));
    }
    locked.reserve_next(set, owner, index).explain()?.ok_or_else(|| {
        Error::new(Code::TryAgainLater, format!("no IP addresses available in range set: {set}")).details(
            "run `netloom gc` to release addresses of containers that no longer exist, or use a larger range",
        )
    })
}

fn range_set(index: usize, ranges: &[IpRange]) -> Result<RangeSet, Error> {
    let range = |range: &IpRange| Range::new(range.subnet, range.range_start, range.range_end, range.gateway);
    ranges.iter().map(range).collect::<Result<Vec<_>, _>>().and_then(RangeSet::new).map_err(|error| {
        invalid(format!("invalid range set {index}: {error}"))
            .details("correct `ipam.ranges`, for example [[{\"subnet\": \"10.88.0.0/16\"}]]")
    })
}

fn ip(key: &str, text: &str) -> Result<IpAddr, Error> {
    parse_ip_maybe_cidr(text).map(|(ip, _)| ip).map_err(|error| {
        invalid(format!("{key}: {error}")).details("pass an address, such as 10.88.0.7 or 10.88.0.7/16")
    })
}

fn read_resolv_conf(path: &Path) -> Result<Dns, Error> {
    let text = fs::read_to_string(path).map_err(|error| {
        Error::new(Code::Io, format!("cannot read `ipam.resolvConf` {}: {error}", path.display()))
            .details("set `ipam.resolvConf` to a readable file, or leave it out")
    })?;
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(keyword), Some(value)) = (words.next(), words.next()) else { continue };
        match keyword.as_str() {
            "nameserver" => dns.nameservers.push(value),
            "domain" => dns.domain = value,
            "search" => dns.search.extend(std::iter::once(value).chain(words)),
            "options" => dns.options.extend(std::iter::once(value).chain(words)),
            _ => {}
        }
    }
    Ok(dns)
}
