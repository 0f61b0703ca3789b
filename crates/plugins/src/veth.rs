//! veth pairs between a container and the host. They are created in the container and identified by their owner.

use std::net::IpAddr;

use kernel::{
    IpFamily, Kind, Protocol, Socket, deferred,
    link::{self, Change, Handle, Link, Mac, Veth},
    netns, sysctl,
};
use netloom_plugin::{Code, Error, Sandbox, Undo};

use crate::{
    cleanup::marked,
    container_netns::ContainerNetns,
    error::{Explain, check_failed},
    owner::Owner,
};

/// Properties of a new veth pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct New {
    /// MTU of both ends in bytes, or `None` for the kernel's default.
    pub(crate) mtu: Option<u32>,
    /// Hardware address of the container end, or `None` for a random one.
    pub(crate) mac: Option<Mac>,
    /// The host end becomes a port of a bridge.
    pub(crate) port: bool,
}

/// Creates the veth pair and returns the host end and the container end.
///
/// The pair is created in the container, because the interface name there is fixed and may be taken; the host end has several
/// names to choose from.
pub(crate) fn create(
    host: &Socket,
    container: &ContainerNetns,
    sandbox: &Sandbox,
    owner: &Owner<'_>,
    new: New,
    undo: &mut Undo,
) -> Result<(Handle, Link), Error> {
    const ATTEMPTS: u32 = 8;
    let ifname = sandbox.ifname.as_str();
    for attempt in 0..ATTEMPTS {
        let name = owner.host_link(attempt);
        let created = link::create_veth(
            &container.socket,
            &Veth {
                name: ifname,
                peer_name: &name,
                peer_netns: Some(&container.host),
                peer_group: Some(owner.unmarked_group()),
                mtu: new.mtu,
                mac: new.mac,
                peer_mac: new.port.then(|| owner.port_mac(attempt)),
            },
        );
        match created {
            Ok(inside) => {
                let (socket, host_name) = (host.clone(), name.clone());
                undo.push(format!("remove veth pair `{name}`"), move || {
                    match link::find(&socket, &host_name).explain()? {
                        Some(link) => link::remove(&socket, &link).explain(),
                        None => Ok(()),
                    }
                })?;
                let Some(index) = inside.peer else {
                    return Err(Error::new(Code::Internal, format!("`{ifname}` has no peer on the host"))
                        .details("another process removed or moved the host end: add the container again"));
                };
                return Ok((Handle { index, name }, inside));
            }
            // One of the two names is taken. Only the host end can get another one.
            Err(error) if error.kind() == Kind::Exists => {
                if link::find(&container.socket, ifname).explain()?.is_some() {
                    return Err(Error::new(
                        Code::InvalidEnvironment,
                        format!("CNI_IFNAME: container veth name {ifname:?} already exists"),
                    )
                    .details("delete the container before it is added again, or choose another CNI_IFNAME"));
                }
            }
            Err(error) => return Err(error).explain(),
        }
    }
    Err(Error::new(Code::Internal, "no name is free for the host end of the veth pair").details(
        "remove unused links whose name is `veth` and eight hexadecimal digits: every name this attachment can have is taken",
    ))
}

/// Returns the change that sets the host end up and marks it.
pub(crate) fn up_and_marked(mark: &str) -> Change<'_> {
    Change { up: Some(true), ..marked(mark) }
}

/// Removes the veth pair by either end: the host end by its name and mark, the container end by its name.
///
/// Returns once the kernel has announced the removal, without waiting for its grace periods.
pub(crate) fn remove(owner: &Owner<'_>, sandbox: &Sandbox) -> Result<(), Error> {
    let host = Socket::open(Protocol::Route).explain()?;
    let mark = owner.mark();
    for attempt in 0.. {
        let Some(outside) = link::find(&host, &owner.host_link(attempt)).explain()? else { break };
        // A killed ADD may have left it without a mark.
        if outside.alias.as_ref().is_none_or(|alias| *alias == mark) {
            deferred::remove_link(&host, &outside).explain()?;
        }
    }
    // The ADD of another implementation gave the host end another name.
    if let Some(container) = ContainerNetns::open_if_exists(sandbox.netns.as_deref())?
        && let Some(inside) = link::find(&container.socket, sandbox.ifname.as_str()).explain()?
    {
        container.remove_link(&inside)?;
    }
    Ok(())
}

/// Returns the host end of the container's veth link, or `None` if the other end is not on this host.
///
/// Indices repeat across namespaces, so a link of the host with a matching pair of indices proves nothing: the namespace of
/// the peer must be the host's.
pub(crate) fn host_end(
    host: &Socket,
    container: &ContainerNetns,
    inside: &Link,
) -> Result<Option<Link>, Error> {
    let Some(peer) = inside.peer.filter(|_| inside.kind.as_deref() == Some("veth")) else { return Ok(None) };
    let on_host = match inside.peer_netns {
        Some(_) => inside.peer_netns == netns::number_in(&container.socket, &container.host).explain()?,
        None => container.netns.is(&container.host).explain()?,
    };
    if !on_host {
        return Ok(None);
    }
    Ok(link::find_index(host, peer).explain()?.filter(|end| end.peer == Some(inside.index)))
}

/// Fails if the host does not forward packets of an address's family, as ADD made it do (CHECK).
pub(crate) fn require_forwarding(host: &Socket, address: IpAddr) -> Result<(), Error> {
    if sysctl::is_forwarding(host, address) {
        return Ok(());
    }
    let family = IpFamily::of(address);
    let key = match family {
        IpFamily::V4 => "net.ipv4.ip_forward",
        IpFamily::V6 => "net.ipv6.conf.all.forwarding",
    };
    Err(check_failed(format!("the host does not forward {family} packets: {key} is 0")).details(format!(
        "set it with `sysctl -w {key}=1`, and find out what turned it off: a file in /etc/sysctl.d or another program"
    )))
}
