//! Plugins whose work is one link in the container and nothing on the host: macvlan, ipvlan, vlan, tap and dummy.
//!
//! Such a plugin implements [`ContainerLink`]; [`LinkPlugin`] turns that into the verbs. `host-device` uses the functions
//! here too, but has verbs of its own, because its link must return to the host.

use kernel::link::{self, Change, Link};
use netloom_plugin::{Attachment, Code, Error, Plugin, Request, Sandbox, Undo, result::v100::Success};

use crate::{
    cleanup,
    common_config::{OwnDns, ipam_of},
    container_netns::{ContainerNetns, Duplicates, Settings},
    error::{Explain, no_addresses},
    interface,
    owner::Owner,
};

/// The parts in which the plugins with one container link differ.
pub(crate) trait ContainerLink: Sync {
    /// The plugin's type.
    const NAME: &'static str;
    /// The kernel's name for the link's driver.
    const KIND: &'static str;
    /// The validated configuration.
    type Conf;

    /// Reads and validates the configuration.
    fn conf(request: &Request) -> Result<Self::Conf, Error>;

    /// Returns how the link gets its addresses.
    fn addressing(conf: &Self::Conf) -> &Addressing;

    /// Creates the link in the container under its final name, and registers its removal.
    fn create(
        conf: &Self::Conf,
        request: &Request,
        sandbox: &Sandbox,
        container: &ContainerNetns,
        undo: &mut Undo,
    ) -> Result<Link, Error>;

    /// Compares what only this kind of link has with the configuration (CHECK).
    fn check(conf: &Self::Conf, container: &ContainerNetns, link: &Link) -> Result<(), Error>;

    /// Fails if ADD could not create the link (STATUS).
    fn status(conf: &Self::Conf) -> Result<(), Error> {
        let _ = conf;
        Ok(())
    }
}

/// The verbs of a plugin with one container link.
#[derive(Debug)]
pub(crate) struct LinkPlugin<T>(pub(crate) T);

impl<T: ContainerLink> Plugin for LinkPlugin<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = T::conf(request)?;
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        require_free(&container, sandbox)?;
        let link = T::create(&conf, request, sandbox, &container, undo)?;
        configure(request, sandbox, undo, &container, &link, T::addressing(&conf))
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let owner = Owner::of(request, sandbox);
        cleanup::remove_link_and_addresses(request, sandbox, || remove_link(&owner, sandbox))
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = T::conf(request)?;
        let ipam = T::addressing(&conf).ipam.as_deref();
        let (container, link) = check(request, sandbox, ipam, Some(T::KIND))?;
        T::check(&conf, &container, &link)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let conf = T::conf(request)?;
        T::status(&conf)?;
        status(request, T::addressing(&conf).ipam.as_deref())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        gc(request, valid)
    }
}

/// How a link gets its addresses, and what the result says about them.
#[derive(Debug)]
pub(crate) struct Addressing {
    /// The IPAM plugin, or `None` if there is none.
    pub(crate) ipam: Option<String>,
    /// The previous plugin's result, whose addresses the link gets if there is no IPAM plugin.
    pub(crate) chained: Option<Success>,
    /// DNS settings of the configuration.
    pub(crate) dns: OwnDns,
    /// How addresses that another host may have are detected.
    pub(crate) duplicates: Duplicates,
    /// Whether the kernel announces the addresses to neighbours.
    pub(crate) announce: bool,
}

impl Addressing {
    /// Returns the addressing of a link on a segment shared with other hosts.
    pub(crate) fn on_segment(ipam: Option<String>, dns: OwnDns, enabledad: bool) -> Self {
        Self { ipam, chained: None, dns, duplicates: Duplicates::of(enabledad), announce: true }
    }
}

/// Registers the removal of a link, in case a later step fails.
pub(crate) fn remove_on_failure(
    container: &ContainerNetns,
    name: &str,
    undo: &mut Undo,
) -> Result<(), Error> {
    let (socket, name) = (container.socket.clone(), name.to_owned());
    undo.push(format!("remove `{name}`"), move || match link::find(&socket, &name).explain()? {
        Some(link) => link::remove(&socket, &link).explain(),
        None => Ok(()),
    })
}

/// Fails if the container already has an interface of the requested name.
pub(crate) fn require_free(container: &ContainerNetns, sandbox: &Sandbox) -> Result<(), Error> {
    let ifname = sandbox.ifname.as_str();
    if link::find(&container.socket, ifname).explain()?.is_none() {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidEnvironment,
        format!("CNI_IFNAME: interface {ifname:?} already exists in the container"),
    )
    .details("delete the container before it is added again, or choose another CNI_IFNAME"))
}

/// Gives the link its addresses and routes, sets it up, and returns the result.
pub(crate) fn configure(
    request: &Request,
    sandbox: &Sandbox,
    undo: &mut Undo,
    container: &ContainerNetns,
    link: &Link,
    addressing: &Addressing,
) -> Result<Success, Error> {
    let mut result = match (&addressing.ipam, &addressing.chained) {
        (Some(ipam), _) => addresses_of(request, ipam, sandbox, undo)?,
        (None, Some(chained)) => chained.clone(),
        (None, None) => Success::default(),
    };
    if result.ips.is_empty() {
        link::change(&container.socket, link, &Change { up: Some(true), ..Change::default() }).explain()?;
    } else {
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
        let ipv6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
        let settings = Settings { ipv6, duplicates: addressing.duplicates, announce: addressing.announce };
        container.set_sysctls(sandbox.ifname.as_str(), settings)?;
        container.configure(link, &result, settings)?;
    }
    result.interfaces = vec![interface::in_container(link, sandbox)];
    addressing.dns.replace_in(&mut result);
    Ok(result)
}

/// Runs the IPAM plugin's ADD, and fails if it returns no address.
pub(crate) fn addresses_of(
    request: &Request,
    ipam: &str,
    sandbox: &Sandbox,
    undo: &mut Undo,
) -> Result<Success, Error> {
    let result = request.delegate_add(ipam, sandbox, undo)?;
    if result.ips.is_empty() { Err(no_addresses(ipam)) } else { Ok(result) }
}

/// Removes the container's link, if its namespace still exists.
fn remove_link(owner: &Owner<'_>, sandbox: &Sandbox) -> Result<(), Error> {
    let Some(container) = ContainerNetns::open_if_exists(sandbox.netns.as_deref())? else { return Ok(()) };
    let mark = owner.mark();
    let mut found = false;
    // A killed ADD may have left the link under its temporary name.
    for name in [sandbox.ifname.as_str(), &owner.host_link(0)] {
        if let Some(link) = link::find(&container.socket, name).explain()? {
            container.remove_link(&link)?;
            found |= link.alias.as_ref() == Some(&mark);
        }
    }
    if found {
        return Ok(());
    }
    // The link is gone, never had a mark, or was renamed in the container.
    let links = link::list(&container.socket).explain()?.into_iter();
    links.filter(|link| link.alias.as_ref() == Some(&mark)).try_for_each(|link| container.remove_link(&link))
}

/// Compares the interface with the previous result (CHECK), and returns it with its namespace.
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
    let link = interface::require_listed(&container, sandbox, &prev, kind)?;
    container.compare(&link, &prev)?;
    Ok((container, link))
}

/// Runs the IPAM plugin's STATUS.
pub(crate) fn status(request: &Request, ipam: Option<&str>) -> Result<(), Error> {
    ipam.map_or(Ok(()), |ipam| request.delegate_status(ipam))
}

/// Runs the IPAM plugin's GC. The links themselves disappear with their namespaces.
pub(crate) fn gc(request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    ipam_of(request)?.map_or(Ok(()), |ipam| request.delegate_gc(&ipam, valid))
}
