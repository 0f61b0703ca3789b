//! What plugins have in common whose link is made over another one: macvlan, ipvlan, vlan.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel::{
    Kind, Protocol, Socket,
    link::{self, Change, Driver, Link, Mac, New},
    route,
};
use netloom_plugin::{Code, Error, Request, Sandbox, Undo};
use netloom_types::name::IfName;

use crate::{
    container_link,
    container_netns::ContainerNetns,
    failure::{Explain, differs, explained, invalid},
    owner::Owner,
};

/// Says which link it is made over.
#[derive(Debug)]
pub(crate) struct Master {
    /// Its name; none for the one of the default route.
    pub(crate) name: Option<IfName>,
    /// It is in the container.
    pub(crate) in_container: bool,
}

impl Master {
    /// Reads `master` and `linkInContainer`.
    pub(crate) fn of(name: &str, in_container: bool) -> Result<Self, Error> {
        let parse =
            |name| IfName::parse(name).map_err(|error| invalid(format!("`master` {name:?}: {error}")));
        Ok(Self { name: Some(name).filter(|name| !name.is_empty()).map(parse).transpose()?, in_container })
    }

    /// Finds it.
    fn find(&self, socket: &Socket) -> Result<Link, Error> {
        let found = match &self.name {
            Some(name) => link::find(socket, name.as_str()).explain()?,
            None => by_default_route(socket)?,
        };
        found.ok_or_else(|| match &self.name {
            Some(name) => {
                invalid(format!("failed to lookup master {:?}: there is no such link", name.as_str()))
                    .details(if self.in_container {
                        "`linkInContainer` is set: it must be in the container"
                    } else {
                        "`ip link` lists what there is; `master` names the host's"
                    })
            }
            None => invalid("no default route interface found").details("name the link in `master`"),
        })
    }

    /// Returns whether it is there (STATUS).
    pub(crate) fn require(&self) -> Result<(), Error> {
        if self.in_container {
            return Ok(());
        }
        let host = Socket::open(Protocol::Route).explain()?;
        self.find(&host).map(drop).map_err(|error| Error { code: Code::NotAvailable, ..error })
    }

    /// Compares (CHECK): the link is over this one.
    pub(crate) fn check(&self, container: &ContainerNetns, inside: &Link) -> Result<(), Error> {
        // By its number alone; a default route may go elsewhere by now.
        if self.name.is_none() {
            return Ok(());
        }
        let master = if self.in_container {
            self.find(&container.socket)?
        } else {
            self.find(&Socket::open(Protocol::Route).explain()?)?
        };
        if inside.peer != Some(master.index) {
            return Err(differs(format!("`{}` is not over `{}`", inside.name, master.name)));
        }
        Ok(())
    }
}

/// Describes the link to be made over a master.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Over {
    pub(crate) driver: Driver,
    /// MTU in bytes; none for the master's.
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
}

/// Makes the container's link over the master.
pub(crate) fn create(
    request: &Request,
    sandbox: &Sandbox,
    undo: &mut Undo,
    container: &ContainerNetns,
    master: &Master,
    over: Over,
) -> Result<Link, Error> {
    container_link::require_free(container, sandbox)?;
    let socket = if master.in_container {
        container.socket.clone()
    } else {
        Socket::open(Protocol::Route).explain()?
    };
    let master = master.find(&socket)?;
    if let Some(mtu) = over.mtu.filter(|mtu| *mtu > master.mtu) {
        return Err(invalid(format!("invalid MTU {mtu}, must be [0, master MTU({})]", master.mtu)));
    }
    // Not by its final name: kernels look for that one among the host's links too.
    let owner = Owner::of(request, sandbox);
    let first_name = owner.host_link(0);
    // An ADD that was killed left it.
    if let Some(left) = link::find(&container.socket, &first_name).explain()? {
        link::remove(&container.socket, &left).explain()?;
    }
    let new = New {
        over: Some(master.index),
        netns: Some(&container.netns),
        mtu: over.mtu,
        mac: over.mac,
        ..New::of(&first_name, over.driver)
    };
    link::create(&socket, &new).map_err(|error| {
        let hint = match error.kind() {
            Kind::Busy => "another macvlan, ipvlan or bridge has this link: use one kind, or another link",
            Kind::Exists => "the master has such a link already",
            _ => return explained(&error),
        };
        explained(&error).details(hint)
    })?;
    container_link::remove_later(container, &first_name, undo)?;
    let inside = link::require(&container.socket, &first_name).explain()?;
    let ifname = sandbox.ifname.as_str();
    container_link::remove_later(container, ifname, undo)?;
    // The mark finds it again under whatever name the container gives it.
    let mark = owner.mark();
    let change = Change { name: Some(ifname), alias: Some(&mark), ..Change::default() };
    link::change(&container.socket, &inside, &change).explain()?;
    Ok(Link { name: ifname.to_owned(), ..inside })
}

/// Finds the link of the default route with the lowest metric, IPv4 before IPv6.
fn by_default_route(socket: &Socket) -> Result<Option<Link>, Error> {
    for like in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let routes = route::list(socket, like).explain()?;
        let by_default = routes.iter().filter(|route| {
            route.dst.prefix_len() == 0 && route.table == route::TABLE_MAIN && route.link != 0
        });
        if let Some(first) = by_default.min_by_key(|route| route.priority) {
            return link::find_index(socket, first.link).explain();
        }
    }
    Ok(None)
}
