//! `host-local`: addresses from ranges, remembered on this host in the reference plugin's own files.

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
    runtime_args::{Asked, require_one_per_family},
};

/// The plugin.
#[derive(Debug)]
pub struct HostLocal;

const DATA_DIR: &str = "/var/lib/cni/networks";

/// The part under `ipam`, as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ipam {
    /// The old form: one range, with its keys beside the others
    #[schemars(example = &"10.88.0.0/16")]
    subnet: String,
    /// First address of `subnet` to give out
    #[schemars(with = "Option<String>", example = &"10.88.1.0")]
    #[serde(with = "netloom_types::address::optional_ip")]
    range_start: Option<IpAddr>,
    /// Last address of `subnet` to give out
    #[schemars(with = "Option<String>", example = &"10.88.1.255")]
    #[serde(with = "netloom_types::address::optional_ip")]
    range_end: Option<IpAddr>,
    /// Gateway of `subnet`
    #[schemars(with = "Option<String>", example = &"10.88.0.1")]
    #[serde(with = "netloom_types::address::optional_ip")]
    gateway: Option<IpAddr>,
    /// Pools, of each of which a container gets one address: one pool of each family for both, several ranges in a pool when one is too small
    #[schemars(example = serde_json::json!([[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:db8:1::/64"}]]))]
    ranges: Vec<Vec<IpRange>>,
    /// Routes of the container
    #[schemars(example = serde_json::json!([{"dst": "0.0.0.0/0"}]))]
    routes: Vec<Route>,
    /// Folder of what is taken, one below it for each network
    #[schemars(example = &"/run/cni/networks", extend("default" = DATA_DIR))]
    data_dir: String,
    /// A file like resolv.conf(5), which becomes the result's DNS
    #[schemars(example = &"/etc/resolv.conf")]
    resolv_conf: String,
    /// A file of whoever keeps the network (`netloomd`), which says `ready` when it is, and else why not: STATUS fails without that
    #[schemars(example = &"/run/netloom/netloom.ready")]
    ready_file: String,
    /// How long an address that was given back rests, in seconds, while there are others; 0 for not at all
    #[schemars(example = 60)]
    cooldown: u32,
}

impl Ipam {
    /// Names the folder of a network.
    fn store(&self, request: &Request) -> Store {
        let data_dir = if self.data_dir.is_empty() { DATA_DIR } else { &self.data_dir };
        let cooldown = Duration::from_secs(self.cooldown.into());
        let rest = (!cooldown.is_zero()).then(|| Cooldown { cooldown, now: SystemTime::now() });
        Store::new(Path::new(data_dir), request.config.name.as_str()).with_rest(rest)
    }
}

/// The configuration as meant.
struct Conf {
    sets: Vec<RangeSet>,
    requested: Vec<IpAddr>,
    routes: Vec<Route>,
    resolv_conf: Option<PathBuf>,
    ready_file: Option<PathBuf>,
    store: Store,
}

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Asked<Ipam> = Asked::of(request)?;
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
            let subnet = netloom_types::address::parse_cidr(&ipam.subnet)
                .map_err(|error| invalid(format!("`ipam.subnet`: {error}")))?;
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
                    )));
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

    /// Names the folder alone, for verbs that must work whatever the ranges say.
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

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let mut conf = Conf::of(request)?;
        let dns = conf.resolv_conf.as_deref().map(read_resolv_conf).transpose()?.unwrap_or_default();
        let owner = owner(sandbox);
        let mut ips = Vec::new();
        let mut locked = conf.store.lock().explain()?;
        let owned = locked.owned(owner).explain()?;
        for (index, set) in conf.sets.iter().enumerate() {
            let wanted = conf.requested.iter().position(|ip| set.range_of(*ip).is_some());
            let wanted = wanted.map(|at| conf.requested.remove(at));
            let reserved = match wanted {
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
                .details("no range has them, or more were asked for than there are range sets"));
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
                .details("every address is reserved; `netloom gc` removes what no container has any more"));
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
            })
            .explain()
    }
}

/// Fails unless whoever keeps the network has said that it is ready.
fn require_ready(path: &Path) -> Result<(), Error> {
    let said = fs::read_to_string(path).map_err(|error| {
        Error::new(
            Code::NotAvailable,
            format!("the network is not ready: cannot read {}: {error}", path.display()),
        )
        .details("the node daemon has not said yet that it is: `netloom cluster` and its log say more")
    })?;
    if said.trim() == "ready" {
        return Ok(());
    }
    Err(Error::new(Code::NotAvailable, format!("the network is not ready: {}", said.trim()))
        .details("the node daemon says so: `netloom cluster` and its log say more"))
}

fn owner(sandbox: &Sandbox) -> Owner<'_> {
    Owner { container: sandbox.container_id.as_str(), ifname: sandbox.ifname.as_str() }
}

/// Reserves the address that was asked for.
fn reserve<'a>(
    locked: &mut Locked<'_>,
    set: &'a RangeSet,
    index: usize,
    ip: IpAddr,
    owner: Owner<'_>,
) -> Result<(&'a Range, IpAddr), Error> {
    let range = set.range_of(ip).ok_or_else(|| invalid(format!("{ip} is in no range of {set}")))?;
    if ip == range.gateway {
        return Err(invalid(format!("requested ip {ip} is subnet's gateway")));
    }
    if locked.reserve(ip, owner, index).explain()? {
        return Ok((range, ip));
    }
    Err(Error::new(
        Code::TryAgainLater,
        format!("requested IP address {ip} is not available in range set {set}"),
    )
    .details("another container has it"))
}

/// Reserves the next free address, unless the owner had one of the set before.
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
        .details("the container was added before and not deleted: call DEL first"));
    }
    locked.reserve_next(set, owner, index).explain()?.ok_or_else(|| {
        Error::new(Code::TryAgainLater, format!("no IP addresses available in range set: {set}")).details(
            "`netloom gc` removes reservations that no container has any more; or use a larger range",
        )
    })
}

fn range_set(index: usize, ranges: &[IpRange]) -> Result<RangeSet, Error> {
    let range = |range: &IpRange| Range::new(range.subnet, range.range_start, range.range_end, range.gateway);
    ranges
        .iter()
        .map(range)
        .collect::<Result<Vec<_>, _>>()
        .and_then(RangeSet::new)
        .map_err(|error| invalid(format!("invalid range set {index}: {error}")))
}

fn ip(key: &str, text: &str) -> Result<IpAddr, Error> {
    parse_ip_maybe_cidr(text).map(|(ip, _)| ip).map_err(|error| invalid(format!("{key}: {error}")))
}

fn read_resolv_conf(path: &Path) -> Result<Dns, Error> {
    let text = fs::read_to_string(path).map_err(|error| {
        Error::new(Code::Io, format!("cannot read `ipam.resolvConf` {}: {error}", path.display()))
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
