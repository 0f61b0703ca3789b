//! veth pairs between a container and the host: made from inside the container, found again by the owner.

use kernel::{
    Kind, Protocol, Socket, deferred,
    link::{self, Change, Handle, Link, Mac, Veth},
};
use netloom_plugin::{Code, Error, Sandbox, Undo};

use crate::{
    container_netns::ContainerNetns,
    error::{Explain, check_failed},
    owner::Owner,
};

/// Says what the container's end is to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct New {
    /// MTU in bytes, of both ends; none for the kernel's default.
    pub(crate) mtu: Option<u32>,
    /// Hardware address; none for a random one.
    pub(crate) mac: Option<Mac>,
}

/// Makes the veth pair from inside the container, as the name there is the one that may be taken.
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
        let made = link::create_veth(
            &container.socket,
            &Veth {
                name: ifname,
                peer_name: &name,
                peer_netns: Some(&container.host),
                peer_group: Some(owner.unmarked_group()),
                mtu: new.mtu,
                mac: new.mac,
            },
        );
        match made {
            Ok(inside) => {
                let (socket, of) = (host.clone(), name.clone());
                undo.push(format!("remove veth pair `{name}`"), move || {
                    match link::find(&socket, &of).explain()? {
                        Some(link) => link::remove(&socket, &link).explain(),
                        None => Ok(()),
                    }
                })?;
                // The container's end says which link of the host is the other.
                let outside = match inside.peer {
                    Some(index) => Handle { index, name },
                    None => return Err(check_failed(format!("`{ifname}` has no other end"))),
                };
                return Ok((outside, inside));
            }
            // One of the two names is taken: the container's is final, the host's is one of many.
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
    Err(Error::new(Code::Internal, "no name is free for the host's end of the veth pair").details(
        "other links have all that it might get: remove those called `veth` and digits that nobody uses",
    ))
}

/// Sets the host's end up and marks it. Until then its group says whose it is, the one thing that a link can have from
/// its creation and that another can look for: should the ADD be killed between the two, GC finds it.
pub(crate) fn owned(mark: &str) -> Change<'_> {
    Change { up: Some(true), alias: Some(mark), group: Some(0), ..Change::default() }
}

/// Removes the veth pair by whichever end is found: the host's by its name and mark, the container's by its name.
///
/// Returns once it is gone for everybody; what the kernel still has to wait for is not waited for.
pub(crate) fn remove(owner: &Owner<'_>, sandbox: &Sandbox) -> Result<(), Error> {
    let host = Socket::open(Protocol::Route).explain()?;
    let mark = owner.mark();
    for attempt in 0.. {
        let Some(outside) = link::find(&host, &owner.host_link(attempt)).explain()? else { break };
        // An ADD that was killed may not have come to mark it.
        if outside.alias.as_ref().is_none_or(|alias| *alias == mark) {
            deferred::remove_link(&host, &outside).explain()?;
        }
    }
    // Somebody else's ADD gave the host's end another name.
    if let Some(container) = ContainerNetns::open_if_there(sandbox.netns.as_deref())?
        && let Some(inside) = link::find(&container.socket, sandbox.ifname.as_str()).explain()?
    {
        container.remove_link(&inside)?;
    }
    Ok(())
}
