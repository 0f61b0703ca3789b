//! Links created on a parent link of the host: macvlan, ipvlan and vlan.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel::{
    Kind, Protocol, Socket,
    link::{self, Change, Driver, Link, Mac, New},
    netns, route,
};
use netloom_plugin::{Code, Error, Request, Sandbox, Undo};

use crate::{
    common_config::LinkName,
    container_link,
    container_netns::ContainerNetns,
    error::{Explain, check_failed, invalid, kernel_error},
    owner::Owner,
};

/// The configured parent link (`master`).
#[derive(Debug)]
pub(crate) struct Parent {
    /// Its name, or `None` for the link of the default route.
    pub(crate) name: Option<LinkName>,
    /// Whether the link is in the container rather than on the host.
    pub(crate) in_container: bool,
}

impl Parent {
    /// Parses `master` and `linkInContainer`.
    pub(crate) fn of(name: &str, in_container: bool) -> Result<Self, Error> {
        let parse = |name| LinkName::parse("master", name);
        Ok(Self { name: Some(name).filter(|name| !name.is_empty()).map(parse).transpose()?, in_container })
    }

    /// Finds the link.
    fn find(&self, socket: &Socket) -> Result<Link, Error> {
        let found = match &self.name {
            Some(name) => link::find(socket, name.as_str()).explain()?,
            None => by_default_route(socket)?,
        };
        found.ok_or_else(|| match &self.name {
            Some(name) => {
                invalid(format!("failed to lookup master {:?}: there is no such link", name.as_str()))
                    .details(if self.in_container {
                        "create the link in the container first, or unset `linkInContainer`"
                    } else {
                        "set `master` to a link of the host; `ip link` lists them"
                    })
            }
            None => invalid("no default route interface found").details("set `master` to a link of the host"),
        })
    }

    /// Fails if the link does not exist (STATUS). A link of the container is known only at ADD.
    pub(crate) fn require(&self) -> Result<(), Error> {
        if self.in_container {
            return Ok(());
        }
        let host = Socket::open(Protocol::Route).explain()?;
        self.find(&host).map(drop).map_err(|error| Error { code: Code::NotAvailable, ..error })
    }

    /// Fails if a container's link is not on this parent (CHECK).
    pub(crate) fn check(&self, container: &ContainerNetns, child: &Link) -> Result<(), Error> {
        // The default route may have moved to another link since ADD.
        let Some(name) = &self.name else { return Ok(()) };
        let parent = if self.in_container {
            self.find(&container.socket)?
        } else {
            self.find(&Socket::open(Protocol::Route).explain()?)?
        };
        let netns = if self.in_container {
            None
        } else {
            netns::number_in(&container.socket, &container.host).explain()?
        };
        if (child.peer, child.peer_netns) == (Some(parent.index), netns) {
            Ok(())
        } else {
            Err(check_failed(format!("`{}` is not on the parent link `{}`", child.name, name.as_str())))
        }
    }
}

/// A link to create on a parent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) driver: Driver,
    /// MTU in bytes, or `None` for the parent's.
    pub(crate) mtu: Option<u32>,
    /// Hardware address, or `None` for one that the kernel chooses.
    pub(crate) mac: Option<Mac>,
}

/// Creates the container's link on its parent.
pub(crate) fn create(
    request: &Request,
    sandbox: &Sandbox,
    container: &ContainerNetns,
    parent: &Parent,
    child: Child,
    undo: &mut Undo,
) -> Result<Link, Error> {
    let socket = if parent.in_container {
        container.socket.clone()
    } else {
        Socket::open(Protocol::Route).explain()?
    };
    let parent = parent.find(&socket)?;
    if let Some(mtu) = child.mtu.filter(|mtu| *mtu > parent.mtu) {
        return Err(invalid(format!("invalid MTU {mtu}, must be [0, master MTU({})]", parent.mtu))
            .details("lower `mtu`, or leave it out to use the MTU of the parent link"));
    }
    // The link gets its final name only once it is in the container: some kernels also look for that name on the host.
    let owner = Owner::of(request, sandbox);
    let temporary_name = owner.host_link(0);
    // A killed ADD may have left it behind.
    if let Some(stale) = link::find(&container.socket, &temporary_name).explain()? {
        link::remove(&container.socket, &stale).explain()?;
    }
    let new = New {
        over: Some(parent.index),
        netns: Some(&container.netns),
        mtu: child.mtu,
        mac: child.mac,
        ..New::of(&temporary_name, child.driver)
    };
    link::create(&socket, &new).map_err(|error| {
        let hint = match error.kind() {
            Kind::Busy => {
                "use another parent link: this one already carries links of another kind (macvlan, ipvlan) or is a port"
            }
            Kind::Exists => "use another parent link or VLAN ID: the parent already has such a link",
            _ => return kernel_error(&error),
        };
        kernel_error(&error).details(hint)
    })?;
    container_link::remove_on_failure(container, &temporary_name, undo)?;
    let link = link::require(&container.socket, &temporary_name).explain()?;
    let ifname = sandbox.ifname.as_str();
    container_link::remove_on_failure(container, ifname, undo)?;
    // The mark identifies the link even if the container renames it.
    let mark = owner.mark();
    let change = Change { name: Some(ifname), alias: Some(&mark), ..Change::default() };
    link::change(&container.socket, &link, &change).explain()?;
    Ok(Link { name: ifname.to_owned(), ..link })
}

/// Finds the link of the default route with the lowest metric. The IPv4 route is looked up first.
fn by_default_route(socket: &Socket) -> Result<Option<Link>, Error> {
    for family in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let routes = route::list(socket, family).explain()?;
        let defaults = routes.iter().filter(|route| {
            route.dst.prefix_len() == 0 && route.table == route::TABLE_MAIN && route.link != 0
        });
        if let Some(first) = defaults.min_by_key(|route| route.priority) {
            return link::find_index(socket, first.link).explain();
        }
    }
    Ok(None)
}
