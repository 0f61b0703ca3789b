//! The IPv4 client (RFC 2131).

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use dhcproto::{
    Encodable,
    v4::{DhcpOption, Flags, Message, MessageType, OptionCode, UnknownOption},
};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{
    decoded,
    lease::{Dns, Lease, Output, Patience, Route, Server, Time, next_try},
};

/// The client's port.
pub const PORT: u16 = 68;
/// The servers' port.
pub const SERVER_PORT: u16 = 67;

/// The client's identity and the requested options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wishes {
    /// The client identifier (option 61).
    pub client_id: Vec<u8>,
    /// Additional options to send: number and value.
    pub provide: Vec<(u8, Vec<u8>)>,
    /// Numbers of the options to request.
    pub request: Vec<u8>,
    /// Servers must broadcast their answers.
    pub broadcast: bool,
}

/// Requests what every container needs: mask, router, DNS, routes of both kinds (RFC 2132, 3397, 3442).
pub const DEFAULT_REQUEST: [u8; 7] = [1, 3, 6, 15, 33, 119, 121];

/// How the client expects answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// None.
    No,
    /// On a packet socket: the client has no valid address.
    ToEverything,
    /// On a socket bound to the leased address.
    ToAddress(Ipv4Addr),
}

#[derive(Debug, Clone)]
enum State {
    Selecting,
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    Bound(Lease),
    Renewing(Lease),
    Rebinding(Lease),
}

/// A client on one interface.
#[derive(Debug)]
pub struct Client {
    mac: [u8; 6],
    wishes: Wishes,
    patience: Patience,
    state: State,
    xid: u32,
    tries: u32,
    /// The start of this exchange.
    since: Time,
    /// The time of the next timer.
    due: Time,
}

impl Client {
    /// Creates a client that starts its search for a server at its first [`Self::tick`].
    pub fn new(mac: [u8; 6], wishes: Wishes, patience: Patience, now: Time) -> Self {
        Self { mac, wishes, patience, state: State::Selecting, xid: 0, tries: 0, since: now, due: now }
    }

    /// Creates a client that already has a lease.
    pub fn with_lease(mac: [u8; 6], wishes: Wishes, patience: Patience, lease: Lease) -> Self {
        let due = lease.renew;
        Self { mac, wishes, patience, state: State::Bound(lease), xid: 0, tries: 0, since: due, due }
    }

    /// Returns the current lease.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => Some(lease),
            State::Selecting | State::Requesting { .. } => None,
        }
    }

    /// Returns the time of the next [`Self::tick`].
    pub fn due(&self) -> Time {
        self.due
    }

    /// Returns how the client expects answers.
    pub fn listening(&self) -> Listening {
        match &self.state {
            State::Bound(_) => Listening::No,
            State::Renewing(lease) => match lease.address.addr() {
                IpAddr::V4(ip) => Listening::ToAddress(ip),
                IpAddr::V6(_) => Listening::No,
            },
            State::Selecting | State::Requesting { .. } | State::Rebinding(_) => Listening::ToEverything,
        }
    }

    /// Runs the due timers.
    pub fn tick(&mut self, now: Time, mut random: impl FnMut() -> u32) -> Vec<Output> {
        const REQUESTS: u32 = 4;
        if now < self.due {
            return Vec::new();
        }
        match self.state.clone() {
            State::Selecting => {
                if self.tries == 0 {
                    (self.since, self.xid) = (now, random());
                }
                self.discover(now, random())
            }
            State::Requesting { .. } if self.tries >= REQUESTS => {
                self.begin(now);
                self.tick(now, random)
            }
            State::Requesting { address, server } => self.request(now, random(), address, server),
            State::Bound(lease) => {
                (self.since, self.xid, self.tries) = (now, random(), 0);
                self.state = State::Renewing(lease);
                self.tick(now, random)
            }
            State::Renewing(lease) if now >= lease.rebind => {
                (self.xid, self.tries) = (random(), 0);
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
                let packet = self.prolong(now, &lease);
                match (lease.address.addr(), lease.server) {
                    (IpAddr::V4(from), Server::V4(to)) => vec![Output::Unicast { packet, from, to }],
                    _ => Vec::new(),
                }
            }
            State::Rebinding(lease) => {
                self.due = next_try(now, lease.expire, lease.expire);
                vec![Output::Broadcast(self.prolong(now, &lease))]
            }
        }
    }

    /// Processes a packet. Ignores what does not answer this client's request or is invalid.
    pub fn receive(&mut self, now: Time, packet: &[u8], mut random: impl FnMut() -> u32) -> Vec<Output> {
        let Some(message) = decoded::<Message>(packet) else { return Vec::new() };
        // The length is checked first: the parser accepts any length of a hardware address, and reads at most 16 bytes.
        let is_for_us = usize::from(message.hlen()) == self.mac.len() && message.chaddr() == self.mac;
        if message.xid() != self.xid || !is_for_us {
            return Vec::new();
        }
        let server = match message.opts().get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
            _ => None,
        };
        match (self.state.clone(), message.opts().msg_type(), server) {
            (State::Selecting, Some(MessageType::Offer), Some(server)) if is_usable(message.yiaddr()) => {
                self.tries = 0;
                self.state = State::Requesting { address: message.yiaddr(), server };
                self.request(now, random(), message.yiaddr(), server)
            }
            (State::Selecting | State::Bound(_), ..) => Vec::new(),
            (State::Requesting { server: asked, .. }, _, server) if server.is_some_and(|it| it != asked) => {
                Vec::new()
            }
            (State::Requesting { server, .. }, Some(MessageType::Ack), _) => {
                self.acknowledged(now, &message, server)
            }
            (State::Renewing(lease) | State::Rebinding(lease), Some(MessageType::Ack), _) => {
                let known = match lease.server {
                    Server::V4(known) => known,
                    Server::V6(_) => Ipv4Addr::UNSPECIFIED,
                };
                self.acknowledged(now, &message, server.unwrap_or(known))
            }
            (State::Requesting { .. }, Some(MessageType::Nak), _) => {
                self.begin(now);
                // Not at once: a server that refuses what it offered would cause an endless loop.
                self.due = now + Duration::from_secs(1);
                Vec::new()
            }
            (State::Renewing(_) | State::Rebinding(_), Some(MessageType::Nak), _) => {
                self.begin(now);
                let mut outputs = vec![Output::Lost("the server took it back")];
                outputs.extend(self.tick(now, random));
                outputs
            }
            _ => Vec::new(),
        }
    }

    /// Returns the message that releases the lease, to send once.
    pub fn release(&mut self, now: Time, xid: u32) -> Option<Output> {
        let lease = self.lease()?.clone();
        let (IpAddr::V4(from), Server::V4(to)) = (lease.address.addr(), lease.server) else { return None };
        self.xid = xid;
        let mut message = self.message(now, MessageType::Release);
        message.set_ciaddr(from).set_secs(0);
        message.opts_mut().insert(DhcpOption::ServerIdentifier(to));
        message.opts_mut().remove(OptionCode::ParameterRequestList);
        self.begin(now);
        Some(Output::Unicast { packet: encoded(&message), from, to })
    }

    fn begin(&mut self, now: Time) {
        (self.state, self.tries, self.due) = (State::Selecting, 0, now);
    }

    fn discover(&mut self, now: Time, random: u32) -> Vec<Output> {
        self.again(now, random);
        vec![Output::Broadcast(encoded(&self.message(now, MessageType::Discover)))]
    }

    fn request(&mut self, now: Time, random: u32, address: Ipv4Addr, server: Ipv4Addr) -> Vec<Output> {
        self.again(now, random);
        let mut message = self.message(now, MessageType::Request);
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
        vec![Output::Broadcast(encoded(&message))]
    }

    fn prolong(&mut self, now: Time, lease: &Lease) -> Vec<u8> {
        self.tries += 1;
        let mut message = self.message(now, MessageType::Request);
        if let IpAddr::V4(address) = lease.address.addr() {
            message.set_ciaddr(address);
        }
        // Answers can be sent to the address.
        message.set_flags(Flags::default());
        encoded(&message)
    }

    fn again(&mut self, now: Time, random: u32) {
        self.tries += 1;
        self.due = now + self.patience.after(self.tries, random);
    }

    fn message(&self, now: Time, kind: MessageType) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, none, none, none, none, &self.mac);
        message.set_secs(u16::try_from(now.saturating_sub(self.since).as_secs()).unwrap_or(u16::MAX));
        if self.wishes.broadcast {
            message.set_flags(Flags::default().set_broadcast());
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier(self.wishes.client_id.clone()));
        if !self.wishes.request.is_empty() {
            let codes = self.wishes.request.iter().map(|code| OptionCode::from(*code)).collect();
            options.insert(DhcpOption::ParameterRequestList(codes));
        }
        for (code, value) in &self.wishes.provide {
            options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(*code), value.clone())));
        }
        message
    }

    fn acknowledged(&mut self, now: Time, message: &Message, server: Ipv4Addr) -> Vec<Output> {
        let Some(lease) = lease_of(now, message, server) else { return Vec::new() };
        self.due = lease.renew;
        self.state = State::Bound(lease.clone());
        vec![Output::Bound(lease)]
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    // Fails only for options of more than 64 KiB, which a configuration cannot contain.
    message.to_vec().unwrap_or_default()
}

fn is_usable(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback())
}

/// Reads the lease that a server granted. Invalid times are replaced with those of RFC 2131, section 4.4.5.
fn lease_of(now: Time, message: &Message, server: Ipv4Addr) -> Option<Lease> {
    const HOUR: u32 = 3600;
    /// The shortest lease time that is honoured, so that a server is not queried more often.
    const LEAST: u32 = 2;
    let options = message.opts();
    let address = message.yiaddr();
    let seconds = |code| match options.get(code) {
        Some(DhcpOption::AddressLeaseTime(it) | DhcpOption::Renewal(it) | DhcpOption::Rebinding(it)) => {
            Some(*it)
        }
        _ => None,
    };
    let whole = seconds(OptionCode::AddressLeaseTime).unwrap_or(HOUR).max(LEAST);
    let rebind = seconds(OptionCode::Rebinding).filter(|it| (1..whole).contains(it));
    let rebind = rebind.unwrap_or_else(|| u32::try_from(u64::from(whole) * 7 / 8).unwrap_or(whole)).max(1);
    let renew = seconds(OptionCode::Renewal).filter(|it| (1..=rebind).contains(it));
    let renew = renew.unwrap_or(whole / 2).clamp(1, rebind);
    let Some(DhcpOption::SubnetMask(mask)) = options.get(OptionCode::SubnetMask) else { return None };
    let net = Ipv4Net::with_netmask(address, *mask).ok().filter(|_| is_usable(address))?;
    let gateway = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied().filter(|it| is_usable(*it)),
        _ => None,
    };
    let after = |seconds: u32| now + Duration::from_secs(seconds.into());
    Some(Lease {
        address: net.into(),
        gateway: gateway.map(IpAddr::from),
        routes: routes_of(message, gateway),
        dns: dns_of(message),
        server: Server::V4(server),
        renew: after(renew),
        rebind: after(rebind),
        expire: after(whole),
    })
}

/// Returns the routes. Classless routes replace all others (RFC 3442).
fn routes_of(message: &Message, gateway: Option<Ipv4Addr>) -> Vec<Route> {
    let by = |dst: Ipv4Net, gateway: Ipv4Addr| Route {
        dst: IpNet::from(dst).trunc(),
        gateway: Some(gateway).filter(|it| !it.is_unspecified()).map(IpAddr::from),
    };
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) =
        message.opts().get(OptionCode::ClasslessStaticRoute)
    {
        return routes.iter().map(|(dst, gateway)| by(*dst, *gateway)).collect();
    }
    let mut all = Vec::new();
    if let Some(DhcpOption::StaticRoutingTable(routes)) = message.opts().get(OptionCode::StaticRoutingTable) {
        let classful = |ip: Ipv4Addr| match ip.octets()[0] {
            0..128 => 8,
            128..192 => 16,
            _ => 24,
        };
        all.extend(
            routes
                .iter()
                .filter_map(|(dst, by_whom)| Some(by(Ipv4Net::new(*dst, classful(*dst)).ok()?, *by_whom))),
        );
    }
    all.extend(gateway.map(|gateway| by(Ipv4Net::default(), gateway)));
    all
}

fn dns_of(message: &Message) -> Dns {
    let mut dns = Dns::default();
    if let Some(DhcpOption::DomainNameServer(servers)) = message.opts().get(OptionCode::DomainNameServer) {
        dns.servers = servers.iter().copied().map(IpAddr::from).collect();
    }
    if let Some(DhcpOption::DomainName(name)) = message.opts().get(OptionCode::DomainName) {
        name.trim_end_matches('\0').clone_into(&mut dns.domain);
    }
    if let Some(DhcpOption::DomainSearch(names)) = message.opts().get(OptionCode::DomainSearch) {
        dns.search = names.iter().map(|name| name.to_utf8().trim_end_matches('.').to_owned()).collect();
    }
    dns
}
