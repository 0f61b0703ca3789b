//! `vrf`: adds the container's interface to a VRF, a routing domain of its own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use kernel::{
    Kind, Socket,
    addr::{self, Detection},
    link::{self, Change, Driver, Link, New},
    route::{self, Route},
};
use netloom_plugin::{Code, Error, Plugin, Request, Sandbox, SpecVersion, Undo, result::v100::Success};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    container_netns::ContainerNetns,
    error::{Explain, check_failed, invalid},
    prev_result::prev_result,
};

/// The plugin.
#[derive(Debug)]
pub struct Vrf;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Written {
    /// Name of the VRF. The plugin creates it if the container has none of this name. Required
    #[schemars(example = &"blue")]
    vrfname: String,
    /// Routing table of the VRF. 0 is the first table that no VRF uses
    #[schemars(example = 1001, range(min = 0, max = 4_294_967_295_u32))]
    table: i64,
}

/// The validated configuration.
struct Conf {
    name: String,
    /// The table, or `None` for the first that no VRF uses.
    table: Option<u32>,
}

const TABLES: RangeInclusive<u32> = 1..=u32::MAX;

impl Conf {
    /// Reads and validates the configuration.
    fn of(request: &Request) -> Result<Self, Error> {
        let Written { vrfname: name, table } = request.read()?;
        if name.is_empty() {
            return Err(invalid("`vrfname` is missing: configuration is expected to have a valid vrf name")
                .details("set `vrfname` to a name of at most 15 characters"));
        }
        if name.len() > 15 || name.contains(['/', ':']) || name.contains(char::is_whitespace) || name == ".."
        {
            return Err(invalid(format!("`vrfname` {name:?} is not a valid link name"))
                .details("use at most 15 characters, without spaces, / and :"));
        }
        let table = u32::try_from(table).map_err(|_| {
            invalid(format!("`table` {table} is not a routing table"))
                .details("use a number from 1 to 4294967295, or leave it out")
        })?;
        Ok(Self { name, table: Some(table).filter(|table| *table != 0) })
    }
}

impl Plugin for Vrf {
    fn name(&self) -> &'static str {
        "vrf"
    }

    fn versions(&self) -> &'static [SpecVersion] {
        SpecVersion::from_on(SpecVersion::V0_3_1)
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let prev = prev_result(request)?;
        let conf = Conf::of(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let socket = &container.socket;
        // Another plugin must not choose the same table or create the same VRF meanwhile.
        let _lock = container.netns.lock().explain()?;
        let inside = link::require(socket, sandbox.ifname.as_str()).explain()?;
        if let Some(master) = inside.master {
            let name = link::find_index(socket, master).explain()?.map(|link| link.name).unwrap_or_default();
            return Err(invalid(format!("interface {} has already a master set: {name}", inside.name))
                .details("remove the interface from that bridge, bond or VRF first: a link has one master"));
        }
        let vrf = find_or_create(socket, &conf, undo)?;
        let before = Saved::read(socket, &inside)?;
        undo.push(format!("remove `{}` from `{}`", inside.name, vrf.name), {
            let (socket, inside, before) = (socket.clone(), inside.clone(), before.clone());
            move || {
                set_master(&socket, &inside, 0)?;
                before.restore(&socket, &inside, route::TABLE_MAIN)
            }
        })?;
        set_master(socket, &inside, vrf.index)?;
        before.restore(socket, &inside, table_of(&vrf).unwrap_or(route::TABLE_MAIN))?;
        Ok(prev)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let Some(container) = ContainerNetns::open_if_exists(sandbox.netns.as_deref())? else {
            return Ok(());
        };
        let socket = &container.socket;
        let _lock = container.netns.lock().explain()?;
        let Some(vrf) = link::find(socket, &conf.name).explain()?.filter(is_vrf) else { return Ok(()) };
        if let Some(inside) = link::find(socket, sandbox.ifname.as_str()).explain()?
            && inside.master == Some(vrf.index)
        {
            set_master(socket, &inside, 0)?;
        }
        let others = link::list(socket).explain()?;
        if others.iter().any(|link| link.master == Some(vrf.index)) {
            return Ok(());
        }
        container.remove_link(&vrf)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        prev_result(request)?;
        let conf = Conf::of(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        let socket = &container.socket;
        let vrf = link::find(socket, &conf.name).explain()?.filter(is_vrf);
        let vrf = vrf.ok_or_else(|| check_failed(format!("VRF {} does not exist", conf.name)))?;
        let inside = link::require(socket, sandbox.ifname.as_str()).explain()?;
        if inside.master != Some(vrf.index) {
            return Err(check_failed(format!(
                "failed to find {} associated to vrf {}",
                inside.name, conf.name
            )));
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Conf::of(request).map(drop)
    }
}

fn is_vrf(link: &Link) -> bool {
    table_of(link).is_some()
}

fn table_of(link: &Link) -> Option<u32> {
    match link.driver {
        Some(Driver::Vrf { table }) => Some(table),
        _ => None,
    }
}

/// Finds the VRF, or creates it and registers its removal.
fn find_or_create(socket: &Socket, conf: &Conf, undo: &mut Undo) -> Result<Link, Error> {
    if let Some(existing) = link::find(socket, &conf.name).explain()? {
        if !is_vrf(&existing) {
            return Err(
                invalid(format!("link {} is not a VRF", conf.name)).details("set `vrfname` to another name")
            );
        }
        if conf.table.is_some_and(|table| table_of(&existing) != Some(table)) {
            return Err(invalid(format!(
                "VRF {} already exist with different routing table {}",
                conf.name,
                table_of(&existing).unwrap_or_default()
            ))
            .details("set `table` to that one, or `vrfname` to another name"));
        }
        return Ok(existing);
    }
    let links = link::list(socket).explain()?;
    let taken = |table: u32| links.iter().any(|link| table_of(link) == Some(table));
    let free = || TABLES.into_iter().find(|table| !taken(*table) && !route::TABLES_RESERVED.contains(table));
    let table = conf.table.or_else(free).unwrap_or(1);
    match link::create(socket, &New { up: true, ..New::of(&conf.name, Driver::Vrf { table }) }) {
        Err(error) if error.kind() == Kind::Unsupported => {
            return Err(
                Error::new(Code::Internal, error.to_string()).details("load the module with `modprobe vrf`")
            );
        }
        other => other.explain()?,
    }
    let vrf = link::require(socket, &conf.name).explain()?;
    undo.push(format!("remove VRF {}", vrf.name), {
        let (socket, vrf) = (socket.clone(), vrf.clone());
        move || link::remove(&socket, &vrf).explain()
    })?;
    Ok(vrf)
}

fn set_master(socket: &Socket, link: &Link, master: u32) -> Result<(), Error> {
    link::change(socket, link, &Change { master: Some(master), ..Change::default() }).explain()
}

/// The addresses and routes that an interface loses when its master changes.
#[derive(Debug, Clone)]
struct Saved {
    addresses: Vec<addr::Address>,
    routes: Vec<Route>,
}

impl Saved {
    /// Reads the global IPv6 addresses and the routes of the main table.
    fn read(socket: &Socket, link: &Link) -> Result<Self, Error> {
        let mut addresses = addr::list(socket, link).explain()?;
        addresses.retain(|address| is_global_v6(address.net.addr()));
        let mut routes = route::list(socket, Ipv4Addr::UNSPECIFIED.into()).explain()?;
        routes.extend(route::list(socket, Ipv6Addr::UNSPECIFIED.into()).explain()?);
        /// `RTPROT_KERNEL`: the kernel creates these routes again by itself.
        const BY_KERNEL: u8 = 2;
        routes.retain(|route| {
            route.link == link.index
                && route.scope == route::SCOPE_UNIVERSE
                && route.protocol != BY_KERNEL
                && route.table == route::TABLE_MAIN
        });
        Ok(Self { addresses, routes })
    }

    /// Adds them again, the routes in a given table.
    fn restore(&self, socket: &Socket, link: &Link, table: u32) -> Result<(), Error> {
        for address in &self.addresses {
            match addr::add(socket, link, address.net, Detection::Skip) {
                Err(error) if error.kind() == Kind::Exists => {}
                other => other.explain()?,
            }
        }
        for route in &self.routes {
            route::replace(socket, &Route { table, ..*route }).explain()?;
        }
        Ok(())
    }
}

fn is_global_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if !ip.is_unicast_link_local())
}
