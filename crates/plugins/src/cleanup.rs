//! Removal of an attachment's objects (DEL) and of stale ones (GC), for objects that several plugins create.

use kernel::{
    Kind, Protocol, Socket, deferred,
    link::{self, Change},
};
use netloom_plugin::{Attachment, Code, Error, Request, Sandbox, is_abandoned};
use ruleset::{masquerade, reference, spoof};

use crate::{
    common_config::ipam_of,
    error::{Errors, Explain},
    owner::{Owner, is_stale, stale_references},
};

/// Removes the owner's masquerade and spoof check from nftables, whatever the current configuration says.
pub(crate) fn remove_rules(owner: &Owner<'_>) -> Result<(), Error> {
    let Some(netfilter) = netfilter()? else { return Ok(()) };
    let mark = owner.mark();
    masquerade::remove(&netfilter, &mark).explain()?;
    spoof::remove(&netfilter, &mark).explain()?;
    remove_reference_masquerade(&netfilter, owner)
}

/// Removes the masquerade that the reference plugins created, in iptables or nftables.
fn remove_reference_masquerade(netfilter: &Socket, owner: &Owner<'_>) -> Result<(), Error> {
    let chain = Owner::reference_chain(owner.network, owner.container, "");
    reference::remove_nat_chains(netfilter, &[chain]).explain()?;
    let mark = owner.reference_mark();
    reference::remove_masquerade(netfilter, &|comment| comment.starts_with(&mark)).explain()
}

/// Opens a netfilter socket. Returns `None` on a kernel without nftables, where there is nothing to remove.
pub(crate) fn netfilter() -> Result<Option<Socket>, Error> {
    match deferred::netfilter() {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == Kind::Unsupported => Ok(None),
        Err(error) => Err(error).explain(),
    }
}

/// Fails with the code of STATUS if the kernel has no nftables.
pub(crate) fn require_nftables() -> Result<(), Error> {
    deferred::netfilter().and_then(|socket| kernel::nft::generation(&socket)).map(drop).map_err(|error| {
        Error::new(Code::NotAvailable, error.to_string())
            .details("load the module with `modprobe nf_tables`: this plugin needs nftables")
    })
}

/// Returns the change that marks a link which was created in its network's [`Owner::unmarked_group`].
///
/// A link can have a group from its creation, but no alias. If the ADD is killed between the two, GC finds the link by the group.
pub(crate) fn marked(mark: &str) -> Change<'_> {
    Change { alias: Some(mark), group: Some(0), ..Change::default() }
}

/// Removes host links of this network that belong to no valid attachment.
pub(crate) fn gc_links(request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    let network = request.config.name.as_str();
    let mut errors = Errors::default();
    let host = Socket::open(Protocol::Route).explain()?;
    let of_network = Owner { network, container: "", ifname: "" };
    let (mut stale, mut unmarked) = (Vec::new(), Vec::new());
    for link in link::list(&host).explain()? {
        let is_marked_stale = link.alias.as_ref().is_some_and(|mark| is_stale(mark, network, valid));
        if is_marked_stale && !is_abandoned() {
            stale.push(link);
        } else if of_network.is_unmarked(&link) && !is_abandoned() {
            unmarked.push(link);
        }
    }
    // Links without a mark are identified by the group alone, so they are removed one by one, not by group.
    for link in unmarked {
        errors.note(link::remove(&host, &link).explain());
    }
    for error in link::remove_all(&host, &stale) {
        errors.note(Err(error).explain());
    }
    errors.into_result()
}

/// Removes rules of this network that belong to no valid attachment, ours and those of the reference plugins.
pub(crate) fn gc_rules(request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    let Some(netfilter) = netfilter()? else { return Ok(()) };
    let network = request.config.name.as_str();
    let mut errors = Errors::default();
    let is_stale = |mark: &str| is_stale(mark, network, valid) && !is_abandoned();
    errors.note(ruleset::retain(&netfilter, &is_stale).explain());
    let is_stale = stale_references(network, valid);
    errors.note(
        reference::remove_masquerade(&netfilter, &|comment| is_stale(comment) && !is_abandoned()).explain(),
    );
    let containers = reference::containers_with_nat_chains(&netfilter, network).explain()?;
    let stale =
        containers.iter().filter(|id| !valid.iter().any(|a| a.container_id == **id) && !is_abandoned());
    let chains: Vec<String> = stale
        .flat_map(|id| ["", "DN-", "SN-"].map(|prefix| Owner::reference_chain(network, id, prefix)))
        .collect();
    errors.note(reference::remove_nat_chains(&netfilter, &chains).explain());
    errors.into_result()
}

/// Removes a container's link and releases its addresses, in the order that the IPAM plugin needs.
pub(crate) fn remove_link_and_addresses(
    request: &Request,
    sandbox: &Sandbox,
    remove_link: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let mut errors = Errors::default();
    match ipam_of(request)? {
        None => errors.note(remove_link()),
        // The address must not be reused while the link still has it.
        Some(ipam) if ["host-local", "static"].contains(&ipam.as_str()) => {
            errors.note(remove_link());
            errors.note(request.delegate_del(&ipam, sandbox));
        }
        // The IPAM plugin may need the link to tell a server that the address is released.
        Some(ipam) => {
            errors.note(request.delegate_del(&ipam, sandbox));
            errors.note(remove_link());
        }
    }
    errors.into_result()
}

/// Removes rules, links and addresses of this network that belong to no valid attachment.
pub(crate) fn gc(request: &Request, valid: &[Attachment], ipam: Option<&str>) -> Result<(), Error> {
    let mut errors = Errors::default();
    errors.note(gc_rules(request, valid));
    errors.note(gc_links(request, valid));
    if let Some(ipam) = ipam {
        errors.note(request.delegate_gc(ipam, valid));
    }
    errors.into_result()
}
