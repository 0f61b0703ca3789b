//! One container interface with its clients, sockets and leases.

use std::{os::unix::net::UnixStream, path::PathBuf, time::Duration};

use kernel::{IpFamily, link::Link};

use super::clock::boottime;
use crate::{
    call::{self, Answer, Owner},
    exchange::Exchange,
    interface,
    lease::{Lease, Output, Time},
    store::Stored,
    v4, v6,
};

/// A container interface with its leases.
pub(super) struct Holder {
    pub(super) owner: Owner,
    pub(super) netns: PathBuf,
    pub(super) identity: (u64, u64),
    pub(super) link: Link,
    pub(super) priority: u32,
    pub(super) v4: Option<(v4::Client, v4::Wishes)>,
    pub(super) v6: Option<(v6::Client, v6::Wishes)>,
    pub(super) exchange4: Option<Exchange>,
    pub(super) exchange6: Option<Exchange>,
    /// The leases whose addresses are on the interface.
    pub(super) given: Vec<Lease>,
    /// The request that waits for the first leases, and its deadline.
    pub(super) waiting: Option<(UnixStream, Time)>,
    /// Whether the namespace or link is gone.
    pub(super) gone: bool,
}

impl Holder {
    pub(super) fn new(owner: Owner, netns: PathBuf, identity: (u64, u64), link: Link) -> Self {
        Self {
            owner,
            netns,
            identity,
            link,
            priority: 0,
            v4: None,
            v6: None,
            exchange4: None,
            exchange6: None,
            given: Vec::new(),
            waiting: None,
            gone: false,
        }
    }

    pub(super) fn due(&self) -> Option<Time> {
        let of_clients = [
            self.v4.as_ref().map(|(client, _)| client.due()),
            self.v6.as_ref().map(|(client, _)| client.due()),
            self.waiting.as_ref().map(|(_, until)| *until),
        ];
        of_clients.into_iter().flatten().min()
    }

    /// Returns the leases, if all requested ones are granted.
    pub(super) fn leases(&self) -> Option<Vec<Lease>> {
        let of_v4 = self.v4.as_ref().map(|(client, _)| client.lease());
        let of_v6 = self.v6.as_ref().map(|(client, _)| client.lease());
        [of_v4, of_v6].into_iter().flatten().map(Option::<&Lease>::cloned).collect()
    }

    pub(super) fn stored(&self) -> Stored {
        Stored {
            v4: self.v4.as_ref().and_then(|(client, wishes)| Some((wishes.clone(), client.lease()?.clone()))),
            v6: self.v6.as_ref().and_then(|(client, wishes)| Some((wishes.clone(), client.lease()?.clone()))),
            ..Stored::new(&self.owner, &self.netns, self.identity, self.priority)
        }
    }

    /// Answers the waiting plugin once all leases are bound.
    pub(super) fn reply(&mut self) {
        if let Some(leases) = self.leases()
            && let Some((mut stream, _)) = self.waiting.take()
        {
            drop(call::write(&mut stream, &Answer::Leases(leases)));
        }
    }

    /// Sends a message on a socket that is opened if necessary.
    pub(super) fn send(&mut self, family: IpFamily, output: &Output) -> kernel::Result<()> {
        let (link, identity) = (&self.link, Some(self.identity));
        if family == IpFamily::V4 {
            let listening = match output {
                Output::Unicast { from, .. } => v4::Listening::ToAddress(*from),
                _ => v4::Listening::ToEverything,
            };
            if !self.exchange4.as_ref().is_some_and(|exchange| exchange.fits(listening)) {
                self.exchange4 = None;
                self.exchange4 = interface::within(&self.netns, identity, || {
                    interface::ready(&self.owner.ifname)?;
                    Exchange::of_v4(link, listening)
                })?;
            }
        } else if self.exchange6.is_none() {
            self.exchange6 = interface::within(&self.netns, identity, || Exchange::of_v6(link))?;
            if self.exchange6.is_none()
                && let Some((client, _)) = &mut self.v6
            {
                const SOON: Duration = Duration::from_millis(100);
                client.postpone(boottime() + SOON);
                return Ok(());
            }
        }
        let exchange = if family == IpFamily::V4 { &self.exchange4 } else { &self.exchange6 };
        match (exchange, output) {
            (Some(exchange), Output::Broadcast(packet)) => exchange.broadcast(packet),
            (Some(exchange), Output::Unicast { packet, to, .. }) => exchange.unicast(packet, *to),
            (Some(exchange), Output::Multicast(packet)) => exchange.multicast(packet),
            _ => Ok(()),
        }
    }

    /// Removes the address of an expired lease from the interface.
    pub(super) fn lose(&mut self, family: IpFamily) -> kernel::Result<()> {
        let Some(lost) = self.no_longer_given(family) else { return Ok(()) };
        interface::within(&self.netns, Some(self.identity), || {
            interface::take_away(&self.owner.ifname, lost.address)
        })
    }

    /// Records a lease. The plugin adds the address of the first lease to the interface; this adds a different or lost one.
    pub(super) fn keep(&mut self, lease: &Lease) -> kernel::Result<()> {
        let before = self.no_longer_given(IpFamily::of(lease.address.addr()));
        self.given.push(lease.clone());
        let is_as_before = before.as_ref().is_some_and(|before| before.address == lease.address);
        if self.waiting.is_some() || is_as_before {
            return Ok(());
        }
        interface::within(&self.netns, Some(self.identity), || {
            if let Some(before) = before {
                interface::take_away(&self.owner.ifname, before.address)?;
            }
            interface::give(&self.owner.ifname, lease, self.priority)
        })
    }

    fn no_longer_given(&mut self, family: IpFamily) -> Option<Lease> {
        let index = self.given.iter().position(|lease| family.has(lease.address.addr()))?;
        Some(self.given.swap_remove(index))
    }

    /// Closes a socket on which no answer is expected.
    pub(super) fn close(&mut self, family: IpFamily) {
        if family == IpFamily::V4 {
            let listening = self.v4.as_ref().map_or(v4::Listening::No, |(client, _)| client.listening());
            self.exchange4.take_if(|exchange| !exchange.fits(listening));
        } else if !self.v6.as_ref().is_some_and(|(client, _)| client.is_listening()) {
            self.exchange6 = None;
        }
    }
}
