//! Removing what an owner has, or what nobody has any more, of the things that several plugins make.

use kernel::{Kind, Protocol, Socket, link};
use netloom_plugin::{Attachment, Error, Request};
use ruleset::{masquerade, spoof};

use crate::{
    failure::{Errors, Explain},
    owner::{Owner, is_stale},
};

/// Removes what nftables has of this container, whatever the configuration says by now.
pub(crate) fn remove_rules(owner: &Owner<'_>) -> Result<(), Error> {
    let netfilter = match Socket::open(Protocol::Netfilter) {
        Ok(socket) => socket,
        // A kernel without nftables has nothing to remove.
        Err(error) if error.kind() == Kind::Unsupported => return Ok(()),
        Err(error) => return Err(error).explain(),
    };
    let mark = owner.mark();
    masquerade::remove(&netfilter, &mark).explain()?;
    spoof::remove(&netfilter, &mark).explain()
}

/// Removes rules, links and addresses of this network that belong to no valid attachment.
pub(crate) fn gc(request: &Request, valid: &[Attachment], ipam: Option<&str>) -> Result<(), Error> {
    let network = request.config.name.as_str();
    let stale = |mark: &str| is_stale(mark, network, valid);
    let mut errors = Errors::default();
    errors.note(
        Socket::open(Protocol::Netfilter)
            .explain()
            .and_then(|netfilter| ruleset::retain(&netfilter, &stale).explain()),
    );
    let host = Socket::open(Protocol::Route).explain()?;
    for link in link::list(&host).explain()? {
        if link.alias.as_deref().is_some_and(stale) {
            errors.note(link::remove(&host, &link).explain());
        }
    }
    if let Some(ipam) = ipam {
        errors.note(request.delegate_gc(ipam, valid));
    }
    errors.into_result()
}
