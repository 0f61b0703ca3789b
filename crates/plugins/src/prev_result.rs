//! What chained plugins take from `prevResult`, and how they find the interface that it describes.

use std::net::IpAddr;

use kernel::{
    Socket,
    link::{self, Link},
};
use netloom_plugin::{
    Error, Request, Sandbox,
    result::v100::{IpConfig, Success},
};

use crate::{
    container_netns::ContainerNetns,
    error::{Explain, invalid},
    veth,
};

/// Returns the result of the previous plugin.
///
/// # Errors
/// If the request has none.
pub(crate) fn prev_result(request: &Request) -> Result<Success, Error> {
    request.prev_result.clone().ok_or_else(|| {
        invalid("must be called as chained plugin, prevResult is missing")
            .details("put this plugin after the interface plugin, in the same `plugins` list")
    })
}

/// Returns the addresses of the container's interface. An address that names no interface counts as one of them.
pub(crate) fn addresses<'a>(
    prev: &'a Success,
    sandbox: &'a Sandbox,
) -> impl Iterator<Item = &'a IpConfig> + Clone {
    prev.ips.iter().filter(|ip| {
        prev.interface_of(ip).is_none_or(|interface| {
            interface.name == sandbox.ifname.as_str() && !interface.sandbox.is_empty()
        })
    })
}

/// Returns the first address of the container's interface in each family.
pub(crate) fn first_of_each_family(prev: &Success, sandbox: &Sandbox) -> Vec<IpAddr> {
    let ips: Vec<IpAddr> = addresses(prev, sandbox).map(|ip| ip.address.addr()).collect();
    let first = |v4: bool| ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
    [first(true), first(false)].into_iter().flatten().collect()
}

/// Returns the host end of the container's interface.
///
/// # Errors
/// If the interface is not a veth link with its peer on this host.
pub(crate) fn host_end(host: &Socket, container: &ContainerNetns, sandbox: &Sandbox) -> Result<Link, Error> {
    let ifname = sandbox.ifname.as_str();
    let inside = link::require(&container.socket, ifname).explain()?;
    veth::host_end(host, container, &inside)?.ok_or_else(|| {
        invalid(format!("container interface {ifname} has no veth peer on the host"))
            .details("put this plugin after one that creates a veth pair, such as bridge or ptp")
    })
}
