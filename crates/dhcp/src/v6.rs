//! The IPv6 client (RFC 8415): one address (IA_NA) for each interface.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use dhcproto::{
    Encodable,
    v6::{
        DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, ORO, OptionCode, Status, UnknownOption,
    },
};
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use crate::{
    decoded,
    lease::{Dns, Lease, Output, Patience, Server, Time, next_try},
};

/// The client's port.
pub const PORT: u16 = 546;
/// The servers' port.
pub const SERVER_PORT: u16 = 547;
/// All servers and relays on a link (RFC 8415, section 7.1).
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// The client's identity and additional options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wishes {
    /// The DUID.
    pub duid: Vec<u8>,
    /// The IAID: identifies the interface's address among those of the DUID.
    pub iaid: u32,
    /// Additional options to send: number and value.
    pub provide: Vec<(u16, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum State {
    Soliciting,
    Requesting { address: Ipv6Addr, server: Vec<u8> },
    Bound(Lease),
    Renewing(Lease),
    Rebinding(Lease),
}

/// A client on one interface.
#[derive(Debug)]
pub struct Client {
    wishes: Wishes,
    patience: Patience,
    state: State,
    xid: u32,
    tries: u32,
    since: Time,
    due: Time,
}

impl Client {
    /// Creates a client that starts its search for a server at its first [`Self::tick`].
    pub fn new(wishes: Wishes, patience: Patience, now: Time) -> Self {
        Self { wishes, patience, state: State::Soliciting, xid: 0, tries: 0, since: now, due: now }
    }

    /// Creates a client that already has a lease.
    pub fn with_lease(wishes: Wishes, patience: Patience, lease: Lease) -> Self {
        let due = lease.renew;
        Self { wishes, patience, state: State::Bound(lease), xid: 0, tries: 0, since: due, due }
    }

    /// Returns the current lease.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => Some(lease),
            State::Soliciting | State::Requesting { .. } => None,
        }
    }

    /// Returns the time of the next [`Self::tick`].
    pub fn due(&self) -> Time {
        self.due
    }

    /// Returns whether the client expects answers.
    pub fn is_listening(&self) -> bool {
        !matches!(self.state, State::Bound(_))
    }

    /// Postpones a message that could not be sent because the link-local address is still tentative.
    pub fn postpone(&mut self, until: Time) {
        self.tries = self.tries.saturating_sub(1);
        self.due = until;
    }

    /// Runs the due timers.
    pub fn tick(&mut self, now: Time, mut random: impl FnMut() -> u32) -> Vec<Output> {
        const REQUESTS: u32 = 4;
        if now < self.due {
            return Vec::new();
        }
        match self.state.clone() {
            State::Soliciting => {
                if self.tries == 0 {
                    (self.since, self.xid) = (now, transaction(random()));
                }
                self.again(now, random());
                let mut message = self.message(now, MessageType::Solicit, None);
                message.opts_mut().insert(self.association(None));
                vec![send(&message)]
            }
            State::Requesting { .. } if self.tries >= REQUESTS => {
                self.begin(now);
                self.tick(now, random)
            }
            State::Requesting { address, server } => {
                if self.tries == 0 {
                    (self.since, self.xid) = (now, transaction(random()));
                }
                self.again(now, random());
                let mut message = self.message(now, MessageType::Request, Some(&server));
                message.opts_mut().insert(self.association(Some(address)));
                vec![send(&message)]
            }
            State::Bound(lease) => {
                (self.since, self.xid) = (now, transaction(random()));
                self.state = State::Renewing(lease);
                self.tick(now, random)
            }
            State::Renewing(lease) if now >= lease.rebind => {
                (self.since, self.xid) = (now, transaction(random()));
                self.state = State::Rebinding(lease);
                self.tick(now, random)
            }
            State::Rebinding(lease) if now >= lease.expire => {
                self.begin(now);
                let mut outputs = vec![Output::Lost("it expired")];
                outputs.extend(self.tick(now, random));
                outputs
            }
            State::Renewing(lease) => {
                self.due = next_try(now, lease.rebind, lease.expire);
                vec![self.prolong(now, MessageType::Renew, &lease)]
            }
            State::Rebinding(lease) => {
                self.due = next_try(now, lease.expire, lease.expire);
                vec![self.prolong(now, MessageType::Rebind, &lease)]
            }
        }
    }

    /// Processes a packet. Ignores what does not answer this client's request or is invalid.
    pub fn receive(&mut self, now: Time, packet: &[u8], random: impl FnMut() -> u32) -> Vec<Output> {
        let Some(message) = decoded::<Message>(packet) else { return Vec::new() };
        let is_ours = matches!(
            message.opts().get(OptionCode::ClientId),
            Some(DhcpOption::ClientId(duid)) if *duid == self.wishes.duid
        );
        let Some(DhcpOption::ServerId(server)) = message.opts().get(OptionCode::ServerId) else {
            return Vec::new();
        };
        if !is_ours || message.xid_num() != self.xid {
            return Vec::new();
        }
        let refused = refusal(message.opts()).is_some();
        let given = self.given(&message);
        match (self.state.clone(), message.msg_type()) {
            (State::Soliciting, MessageType::Advertise) if !refused => {
                let Some((_, address)) = given else { return Vec::new() };
                self.state = State::Requesting { address: address.addr, server: server.clone() };
                (self.tries, self.due) = (0, now);
                self.tick(now, random)
            }
            (State::Requesting { server: asked, .. }, MessageType::Reply) if asked == *server => {
                match given {
                    Some((association, address)) if !refused => {
                        self.bound(now, &message, server, &association, &address)
                    }
                    _ => {
                        self.begin(now);
                        // Not at once: a server that refuses what it offered would cause an endless loop.
                        self.due = now + Duration::from_secs(1);
                        Vec::new()
                    }
                }
            }
            (State::Renewing(_) | State::Rebinding(_), MessageType::Reply) => match given {
                Some((association, address)) if !refused => {
                    self.bound(now, &message, server, &association, &address)
                }
                // A server that does not know the lease reports it within the association; a busy one outside of it.
                _ if refused => Vec::new(),
                _ => {
                    self.begin(now);
                    let mut outputs = vec![Output::Lost("the server took it back")];
                    outputs.extend(self.tick(now, random));
                    outputs
                }
            },
            _ => Vec::new(),
        }
    }

    /// Returns the message that releases the lease, to send once.
    pub fn release(&mut self, now: Time, random: u32) -> Option<Output> {
        let lease = self.lease()?.clone();
        (self.since, self.xid) = (now, transaction(random));
        let output = self.prolong(now, MessageType::Release, &lease);
        self.begin(now);
        Some(output)
    }

    fn begin(&mut self, now: Time) {
        (self.state, self.tries, self.due) = (State::Soliciting, 0, now);
    }

    fn again(&mut self, now: Time, random: u32) {
        self.tries += 1;
        self.due = now + self.patience.after(self.tries, random);
    }

    fn prolong(&self, now: Time, kind: MessageType, lease: &Lease) -> Output {
        let server = match &lease.server {
            Server::V6(duid) if kind != MessageType::Rebind => Some(&duid[..]),
            _ => None,
        };
        let mut message = self.message(now, kind, server);
        let address = match lease.address.addr() {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        };
        message.opts_mut().insert(self.association(address));
        send(&message)
    }

    fn message(&self, now: Time, kind: MessageType, server: Option<&[u8]>) -> Message {
        let [_, xid @ ..] = self.xid.to_be_bytes();
        let mut message = Message::new_with_id(kind, xid);
        let options = message.opts_mut();
        options.insert(DhcpOption::ClientId(self.wishes.duid.clone()));
        if let Some(server) = server {
            options.insert(DhcpOption::ServerId(server.to_vec()));
        }
        // In hundredths of a second.
        let elapsed = now.saturating_sub(self.since).as_millis() / 10;
        options.insert(DhcpOption::ElapsedTime(u16::try_from(elapsed).unwrap_or(u16::MAX)));
        if kind != MessageType::Release {
            let wanted = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList];
            options.insert(DhcpOption::ORO(ORO { opts: wanted }));
        }
        for (code, value) in &self.wishes.provide {
            options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(*code), value.clone())));
        }
        message
    }

    fn association(&self, address: Option<Ipv6Addr>) -> DhcpOption {
        let mut opts = DhcpOptions::new();
        if let Some(addr) = address {
            let none = DhcpOptions::new();
            opts.insert(DhcpOption::IAAddr(IAAddr { addr, preferred_life: 0, valid_life: 0, opts: none }));
        }
        DhcpOption::IANA(IANA { id: self.wishes.iaid, t1: 0, t2: 0, opts })
    }

    /// Returns the address that the server assigns to this interface, if its lifetime is not zero.
    fn given(&self, message: &Message) -> Option<(IANA, IAAddr)> {
        let associations = message.opts().get_all(OptionCode::IANA)?;
        let association = associations.iter().find_map(|option| match option {
            DhcpOption::IANA(association) if association.id == self.wishes.iaid => Some(association),
            _ => None,
        })?;
        if refusal(&association.opts).is_some() {
            return None;
        }
        let address = association.opts.iter().find_map(|option| match option {
            DhcpOption::IAAddr(address) if address.valid_life > 0 && is_usable(address.addr) => Some(address),
            _ => None,
        })?;
        Some((association.clone(), address.clone()))
    }

    fn bound(
        &mut self,
        now: Time,
        message: &Message,
        server: &[u8],
        association: &IANA,
        address: &IAAddr,
    ) -> Vec<Output> {
        let Ok(net) = Ipv6Net::new(address.addr, 128) else { return Vec::new() };
        let preferred = address.preferred_life.clamp(1, address.valid_life);
        let part =
            |percent: u64| u32::try_from(u64::from(preferred) * percent / 100).unwrap_or(preferred).max(1);
        let or = |said: u32, other: u32| if said == 0 { other } else { said };
        let rebind = or(association.t2, part(80)).min(address.valid_life).max(1);
        let renew = or(association.t1, part(50)).min(rebind);
        let after = |seconds: u32| now + Duration::from_secs(seconds.into());
        let lease = Lease {
            address: net.into(),
            gateway: None,
            // IPv6 routes come from router advertisements.
            routes: Vec::new(),
            dns: dns_of(message),
            server: Server::V6(server.to_vec()),
            renew: after(renew),
            rebind: after(rebind),
            expire: after(address.valid_life.max(2)),
        };
        self.due = lease.renew;
        self.state = State::Bound(lease.clone());
        vec![Output::Bound(lease)]
    }
}

fn send(message: &Message) -> Output {
    Output::Multicast(message.to_vec().unwrap_or_default())
}

fn transaction(random: u32) -> u32 {
    random & 0x00ff_ffff
}

fn is_usable(ip: Ipv6Addr) -> bool {
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || ip.is_unicast_link_local())
}

/// Returns the status code of a server's refusal.
fn refusal(options: &DhcpOptions) -> Option<Status> {
    match options.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(status)) if status.status != Status::Success => Some(status.status),
        _ => None,
    }
}

fn dns_of(message: &Message) -> Dns {
    let mut dns = Dns::default();
    if let Some(DhcpOption::DomainNameServers(servers)) = message.opts().get(OptionCode::DomainNameServers) {
        dns.servers = servers.iter().copied().map(IpAddr::from).collect();
    }
    if let Some(DhcpOption::DomainSearchList(names)) = message.opts().get(OptionCode::DomainSearchList) {
        dns.search = names.iter().map(|name| name.to_utf8().trim_end_matches('.').to_owned()).collect();
    }
    dns
}
