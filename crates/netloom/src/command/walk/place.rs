//! The host and a container's attachment, as the kernel has them now and as the cached result says they were.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use kernel::{
    IpFamily, Netns, Protocol, Socket,
    addr::{self, Address},
    link::{self, Link},
    netns, route,
};
use netloom_runtime::{
    cache::Entry,
    types::{NetworkList, capability::PortMapping, result::v100::Success},
};

use super::super::{
    Outcome,
    list::{current_result, published_ports},
};

/// Addresses beyond every host (RFC 5737, RFC 3849), which show the path that packets to the outside take.
const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Returns an address beyond every host, of the family of `like`.
pub(crate) fn outside(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { OUTSIDE_V4 } else { OUTSIDE_V6 }
}

/// A network namespace and a socket in it.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) netns: Netns,
    pub(crate) socket: Socket,
    pub(crate) links: Vec<Link>,
}

impl Side {
    fn open(netns: Netns) -> Outcome<Self> {
        let socket = netns.run(|| Socket::open(Protocol::Route))??;
        let links = link::list(&socket)?;
        Ok(Self { netns, socket, links })
    }

    /// Opens the namespace of the calling thread.
    pub(crate) fn of_host() -> Outcome<Self> {
        Self::open(Netns::own()?)
    }

    pub(crate) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns whether an address is one of this namespace.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        route::way_to(&self.socket, ip).is_ok_and(|way| way.is_some_and(|way| way.local))
    }

    /// Reads a setting below `/proc/sys/net`.
    pub(crate) fn setting(&self, setting: kernel::sysctl::Setting<'_>) -> Option<String> {
        self.netns.run(|| kernel::sysctl::read(setting)).ok()?.ok()?
    }
}

/// One interface of a container, and the host's side of it.
#[derive(Debug)]
pub(crate) struct Place {
    /// How a person knows the container.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) side: Side,
    pub(crate) ifname: String,
    pub(crate) link: Option<Link>,
    pub(crate) addresses: Vec<Address>,
    /// The cached result of ADD, if a runtime cached one.
    pub(crate) result: Option<Success>,
    pub(crate) ports: Vec<PortMapping>,
    pub(crate) list: Option<NetworkList>,
    /// The other end of a veth pair, in the host's namespace.
    pub(crate) host_end: Option<Link>,
    /// The link of the host that a macvlan, ipvlan or VLAN is on.
    pub(crate) parent: Option<Link>,
    /// The bridge that the host end is a port of.
    pub(crate) bridge: Option<Link>,
}

impl Place {
    /// Opens the attachment of a cache entry.
    ///
    /// # Errors
    /// If its namespace is gone.
    pub(crate) fn of_entry(host: &Side, entry: &Entry) -> Outcome<Self> {
        let name = entry.args.iter().find(|(key, _)| key == "K8S_POD_NAME").map(|(_, name)| name.clone());
        Ok(Self {
            name: name.unwrap_or_else(|| entry.container_id.clone()),
            result: current_result(entry),
            ports: published_ports(&entry.capability_args),
            list: entry.network_list(),
            ..Self::of_netns(host, Path::new(entry.sandbox()), Some(&entry.ifname))?
        })
    }

    /// Opens a namespace. Without the interface's name, takes the one of the default route, or else the first one.
    ///
    /// # Errors
    /// If it is no namespace.
    pub(crate) fn of_netns(host: &Side, path: &Path, ifname: Option<&str>) -> Outcome<Self> {
        let side = Side::open(Netns::open(path)?)?;
        let link = match ifname {
            Some(name) => side.named(name).cloned(),
            None => main_link(&side),
        };
        let addresses = match &link {
            Some(link) => addr::list(&side.socket, link)?,
            None => Vec::new(),
        };
        let own = side.netns.is(&host.netns)?;
        let number = netns::number_in(&side.socket, &host.netns)?;
        let of_host =
            link.as_ref().filter(|link| !own && link.peer_netns.is_some() && link.peer_netns == number);
        let other = of_host.and_then(|link| link.peer).and_then(|index| host.link(index)).cloned();
        let is_veth = link.as_ref().is_some_and(|link| link.kind.as_deref() == Some("veth"));
        let (host_end, parent) = if is_veth { (other, None) } else { (None, other) };
        let bridge = host_end.as_ref().and_then(|end| end.master).and_then(|index| host.link(index)).cloned();
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self {
            name,
            path: path.to_owned(),
            ifname: ifname
                .map(str::to_owned)
                .or(link.as_ref().map(|link| link.name.clone()))
                .unwrap_or_default(),
            side,
            link,
            addresses,
            result: None,
            ports: Vec::new(),
            list: None,
            host_end,
            parent,
            bridge,
        })
    }

    /// The addresses that ADD set on this interface, with their gateways; without a cached result, the present ones.
    pub(crate) fn expected(&self) -> Vec<(ipnet::IpNet, Option<IpAddr>)> {
        let Some(result) = &self.result else {
            let is_usable = |net: &ipnet::IpNet| match net.addr() {
                IpAddr::V4(_) => true,
                IpAddr::V6(ip) => !ip.is_unicast_link_local(),
            };
            let nets = self.addresses.iter().map(|address| address.net).filter(is_usable);
            return nets.map(|net| (net, self.gateway_in_use(net.addr()))).collect();
        };
        let is_own = |ip: &&netloom_runtime::types::result::v100::IpConfig| {
            result.interface_of(ip).is_none_or(|interface| interface.name == self.ifname)
        };
        result.ips.iter().filter(is_own).map(|ip| (ip.address, ip.gateway)).collect()
    }

    /// Returns the present address for packets to `to`, or `None` if the interface has none of its family.
    pub(crate) fn address_for(&self, to: IpAddr) -> Option<IpAddr> {
        let fits = |net: &ipnet::IpNet| net.addr().is_ipv4() == to.is_ipv4();
        let of_family = self.expected().into_iter().map(|(net, _)| net).find(fits)?.addr();
        self.addresses.iter().any(|address| address.net.addr() == of_family).then_some(of_family)
    }

    /// Returns the gateway that ADD set for a family, or the one that the default route uses.
    pub(crate) fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        let of_result = self
            .expected()
            .into_iter()
            .filter_map(|(net, gateway)| gateway.filter(|_| net.addr().is_ipv4() == like.is_ipv4()));
        of_result.into_iter().next().or_else(|| self.gateway_in_use(like))
    }

    fn gateway_in_use(&self, like: IpAddr) -> Option<IpAddr> {
        route::way_to(&self.side.socket, outside(like)).ok().flatten().and_then(|way| way.gateway)
    }

    /// The kernel's name for the kind of the interface.
    pub(crate) fn kind(&self) -> &str {
        self.link.as_ref().and_then(|link| link.kind.as_deref()).unwrap_or_default()
    }

    /// The link by which its packets enter the host's IP layer: the bridge, or the host end.
    pub(crate) fn enters(&self) -> Option<&Link> {
        self.bridge.as_ref().or(self.host_end.as_ref())
    }

    /// A command that runs `command` in the container's namespace.
    pub(crate) fn inside(&self, command: &str) -> String {
        format!("`nsenter --net={} {command}`", self.path.display())
    }

    /// Returns whether a plugin of the network's configuration has this key set to true.
    pub(crate) fn asks_for(&self, key: &str) -> bool {
        let plugins = self.list.iter().flat_map(|list| &list.plugins);
        plugins
            .map(|plugin| plugin.object().get(key))
            .any(|value| value == Some(&serde_json::Value::Bool(true)))
    }

    /// Returns whether ADD set a default route of a family.
    pub(crate) fn wants_default(&self, family: IpFamily) -> bool {
        let routes = self.result.iter().flat_map(|result| &result.routes);
        routes.into_iter().any(|route| route.dst.prefix_len() == 0 && family.has(route.dst.addr()))
    }

    /// What to do if packets reach the container and it does not answer.
    pub(crate) fn look_inside(&self) -> String {
        format!(
            "check the container's rules and routes: {}, {}",
            self.inside("nft list ruleset"),
            self.inside("ip route")
        )
    }

    /// What to do if something that ADD created is gone.
    pub(crate) fn add_again(&self) -> String {
        match &self.list {
            Some(list) => format!(
                "create it again: restart the container, or `netloom del {0} {1}` and `netloom add {0} {1}`",
                list.name,
                self.path.display()
            ),
            None => "create it again: restart the container".to_owned(),
        }
    }
}

fn main_link(side: &Side) -> Option<Link> {
    let of_default = [OUTSIDE_V4, OUTSIDE_V6].into_iter().find_map(|ip| {
        let way = route::way_to(&side.socket, ip).ok().flatten().filter(|way| !way.local)?;
        side.link(way.link)
    });
    of_default.or_else(|| side.links.iter().find(|link| link.name != "lo")).cloned()
}
