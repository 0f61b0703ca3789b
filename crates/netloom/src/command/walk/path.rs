//! A path: from where to where, and with what it is probed.

use std::net::{IpAddr, SocketAddr};

use kernel::Netns;

use super::{
    place::{Place, Side},
    shot::Kind,
};

/// A path of packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a> {
    pub(crate) host: &'a Side,
    /// The container that sends; `None` for the host.
    pub(crate) from: Option<&'a Place>,
    /// The source address; `None` for the one that the kernel selects.
    pub(crate) source: Option<IpAddr>,
    pub(crate) to: IpAddr,
    pub(crate) kind: Kind,
    /// The container of this host that has the address, or to which a published port leads.
    pub(crate) target: Option<&'a Place>,
    /// The address and port in the container that a published port leads to.
    pub(crate) published: Option<SocketAddr>,
}

impl<'a> Path<'a> {
    /// The namespace that sends.
    pub(crate) fn origin(&self) -> &'a Side {
        self.from.map_or(self.host, |place| &place.side)
    }

    pub(crate) fn netns(&self) -> &'a Netns {
        &self.origin().netns
    }

    /// The address at the end, after the translation of a published port.
    pub(crate) fn end(&self) -> IpAddr {
        self.published.map_or(self.to, |published| published.ip())
    }

    /// The port at the end.
    pub(crate) fn end_port(&self) -> Option<u16> {
        self.published.map(|published| published.port()).or(self.kind.port())
    }

    /// The destination, for a sentence.
    pub(crate) fn destination(&self) -> String {
        match self.kind.port() {
            Some(port) => SocketAddr::new(self.to, port).to_string(),
            None => self.to.to_string(),
        }
    }

    /// The sender, for a sentence.
    pub(crate) fn sender(&self) -> String {
        self.from.map_or_else(|| "the host".to_owned(), |place| format!("container `{}`", place.name))
    }
}
