//! What plugins have in common whose work is one link in the container, and nothing on the host.

use kernel::link::{self, Change, Link};
use netloom_plugin::{
    Attachment, Error, Request, Sandbox, Undo,
    result::{Dns, v100::Success},
};

use crate::{
    cleanup,
    common_config::ipam_of,
    container_netns::{ContainerNetns, Duplicates, Settings},
    failure::{Explain, invalid},
    interface,
    owner::Owner,
};

/// Says where a link's addresses come from and what is told of them.
#[derive(Debug)]
pub(crate) struct Addressing {
    /// The IPAM plugin; none for a link without addresses.
    pub(crate) ipam: Option<String>,
    /// What the configuration says of DNS.
    pub(crate) dns: Dns,
    /// What is done about others that may have the addresses.
    pub(crate) duplicates: Duplicates,
    /// Neighbours are told of them.
    pub(crate) announce: bool,
}

/// Has a link that was just made taken away again if a later step fails.
pub(crate) fn remove_later(container: &ContainerNetns, name: &str, undo: &mut Undo) -> Result<(), Error> {
    let (socket, name) = (container.socket.clone(), name.to_owned());
    undo.push(format!("remove `{name}`"), move || match link::find(&socket, &name).explain()? {
        Some(link) => link::remove(&socket, &link).explain(),
        None => Ok(()),
    })
}

/// Refuses an interface that is there, before anything is made.
pub(crate) fn require_free(container: &ContainerNetns, sandbox: &Sandbox) -> Result<(), Error> {
    let ifname = sandbox.ifname.as_str();
    if link::find(&container.socket, ifname).explain()?.is_none() {
        return Ok(());
    }
    Err(Error::new(
        netloom_plugin::Code::InvalidEnvironment,
        format!("CNI_IFNAME: interface {ifname:?} already exists in the container"),
    )
    .details("delete the container before it is added again, or choose another CNI_IFNAME"))
}

/// Returns the link its addresses and routes, up, and makes the result.
pub(crate) fn configure(
    request: &Request,
    sandbox: &Sandbox,
    undo: &mut Undo,
    container: &ContainerNetns,
    inside: &Link,
    conf: &Addressing,
) -> Result<Success, Error> {
    let result = match &conf.ipam {
        Some(ipam) => addresses_of(request, ipam, sandbox, undo)?,
        None => Success::default(),
    };
    apply(sandbox, container, inside, conf, result)
}

/// Gets the addresses; an IPAM plugin that gives none is in error.
pub(crate) fn addresses_of(
    request: &Request,
    ipam: &str,
    sandbox: &Sandbox,
    undo: &mut Undo,
) -> Result<Success, Error> {
    let result = request.delegate_add(ipam, sandbox, undo)?;
    if result.ips.is_empty() {
        return Err(invalid(format!("IPAM plugin {ipam:?} returned missing IP config")));
    }
    Ok(result)
}

/// Returns the link what a result says of addresses and routes.
pub(crate) fn apply(
    sandbox: &Sandbox,
    container: &ContainerNetns,
    inside: &Link,
    conf: &Addressing,
    mut result: Success,
) -> Result<Success, Error> {
    if result.ips.is_empty() {
        link::change(&container.socket, inside, &Change { up: Some(true), ..Change::default() }).explain()?;
    } else {
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
        let ipv6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
        let settings = Settings { ipv6, duplicates: conf.duplicates, announce: conf.announce };
        container.set_sysctls(sandbox.ifname.as_str(), settings)?;
        container.configure(inside, &result, settings)?;
    }
    result.interfaces = vec![interface::in_container(inside, sandbox)];
    if !conf.dns.is_empty() {
        result.dns = conf.dns.clone();
    }
    Ok(result)
}

/// Removes the interface and releases its addresses (DEL).
pub(crate) fn del(request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
    let owner = Owner::of(request, sandbox);
    cleanup::remove_link_and_addresses(request, sandbox, || remove_link(&owner, sandbox))
}

fn remove_link(owner: &Owner<'_>, sandbox: &Sandbox) -> Result<(), Error> {
    let Some(container) = ContainerNetns::open_if_there(sandbox.netns.as_deref())? else { return Ok(()) };
    let mark = owner.mark();
    let mut found = false;
    // An ADD that was killed may have left the link under its first name.
    for name in [sandbox.ifname.as_str(), &owner.host_link(0)] {
        if let Some(inside) = link::find(&container.socket, name).explain()? {
            container.remove_link(&inside)?;
            found |= inside.alias.as_ref() == Some(&mark);
        }
    }
    if found {
        return Ok(());
    }
    // Gone, or somebody else's, or the container has given it another name.
    let renamed = link::list(&container.socket).explain()?.into_iter();
    renamed
        .filter(|link| link.alias.as_ref() == Some(&mark))
        .try_for_each(|link| container.remove_link(&link))
}

/// Compares the interface with the previous result (CHECK), and gives it.
pub(crate) fn check(
    request: &Request,
    sandbox: &Sandbox,
    ipam: Option<&str>,
    kind: Option<&str>,
) -> Result<(ContainerNetns, Link), Error> {
    if let Some(ipam) = ipam {
        request.delegate_check(ipam, sandbox)?;
    }
    let prev = request.require_prev_result()?;
    let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
    let inside = interface::require_listed(&container, sandbox, &prev, kind)?;
    container.compare(&inside, &prev)?;
    Ok((container, inside))
}

/// Asks the IPAM plugin whether it is ready (STATUS).
pub(crate) fn status(request: &Request, ipam: Option<&str>) -> Result<(), Error> {
    ipam.map_or(Ok(()), |ipam| request.delegate_status(ipam))
}

/// Has the IPAM plugin release what belongs to no valid attachment (GC); links go with their namespaces.
pub(crate) fn gc(request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    ipam_of(request)?.map_or(Ok(()), |ipam| request.delegate_gc(&ipam, valid))
}
