//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    error::{Result, absent_is_none},
    link::Named,
    message::{Attrs, Message, Received, read_ip, read_u32},
    socket::{CREATE, DUMP, EXCL, REQUEST, Request, Socket},
};

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Duplicate address detection is still running.
    pub tentative: bool,
    /// Duplicate address detection found another owner.
    pub duplicate: bool,
}

/// Whether the kernel probes for another owner before it uses an IPv6 address (duplicate address detection).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detection {
    /// According to the link's setting (`accept_dad`).
    AsSet,
    /// No probe: no other host can have the address.
    Skip,
}

/// Adds an address. Fails if the link has it already. An IPv4 address gets the broadcast address of its prefix.
///
/// # Errors
/// [`crate::Kind::Exists`] if the link has the address.
#[doc(alias = "RTM_NEWADDR")]
pub fn add(socket: &Socket, link: &dyn Named, net: IpNet, detection: Detection) -> Result<()> {
    socket.make([addition(link, net, detection)])
}

/// Returns the request of [`add`], to send together with others.
pub fn addition(link: &dyn Named, net: IpNet, detection: Detection) -> Request {
    let mut message = Message::new(libc::RTM_NEWADDR, REQUEST | CREATE | EXCL, &ifaddr(net, link.index()));
    message.ip(libc::IFA_LOCAL, net.addr()).ip(libc::IFA_ADDRESS, net.addr());
    if let IpNet::V4(v4) = net
        && v4.prefix_len() < 31
    {
        message.ip(libc::IFA_BROADCAST, v4.broadcast().into());
    }
    if net.addr().is_ipv6() && detection == Detection::Skip {
        message.u32(IFA_FLAGS, libc::IFA_F_NODAD);
    }
    Request { message, doing: "add address", object: format!("{net} to `{}`", link.name()) }
}

/// Removes an address. Succeeds if it is already gone.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove(socket: &Socket, link: &dyn Named, net: IpNet) -> Result<()> {
    let mut message = Message::new(libc::RTM_DELADDR, REQUEST, &ifaddr(net, link.index()));
    message.ip(libc::IFA_LOCAL, net.addr()).ip(libc::IFA_ADDRESS, net.addr());
    absent_is_none(socket.change(message, "remove address", &format_args!("{net} from `{}`", link.name())))
        .map(drop)
}

/// Lists the addresses of a link, of both families.
///
/// # Errors
/// If the kernel refuses the request.
pub fn list(socket: &Socket, link: &dyn Named) -> Result<Vec<Address>> {
    let mut fixed = [0; IFADDR];
    fixed[4..8].copy_from_slice(&link.index().to_ne_bytes());
    let message = Message::new(libc::RTM_GETADDR, REQUEST | DUMP, &fixed);
    socket.dump(&message, "list addresses of", &format_args!("`{}`", link.name()), |received| {
        read(&received).filter(|address| address.link == link.index())
    })
}

/// Lists the addresses of all links, of both families.
///
/// # Errors
/// If the kernel refuses the request.
pub fn list_all(socket: &Socket) -> Result<Vec<Address>> {
    let message = Message::new(libc::RTM_GETADDR, REQUEST | DUMP, &[0; IFADDR]);
    socket.dump(&message, "list", &"addresses", |received| read(&received))
}

pub(crate) fn read(received: &Received<'_>) -> Option<Address> {
    if received.kind != libc::RTM_NEWADDR {
        return None;
    }
    let fixed = received.payload.first_chunk::<IFADDR>()?;
    let (mut local, mut address): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let mut flags = u32::from(fixed[2]);
    for (kind, data) in Attrs::after(received.payload, IFADDR) {
        match kind {
            libc::IFA_LOCAL => local = read_ip(data),
            libc::IFA_ADDRESS => address = read_ip(data),
            IFA_FLAGS => flags = read_u32(data)?,
            _ => {}
        }
    }
    Some(Address {
        link: read_u32(&fixed[4..])?,
        net: IpNet::new(local.or(address)?, fixed[1]).ok()?,
        tentative: flags & libc::IFA_F_TENTATIVE != 0,
        duplicate: flags & libc::IFA_F_DADFAILED != 0,
    })
}

const IFADDR: usize = 8;
const IFA_FLAGS: u16 = 8;

/// Builds `struct ifaddrmsg`.
fn ifaddr(net: IpNet, index: u32) -> [u8; IFADDR] {
    let mut bytes = [0; IFADDR];
    bytes[0] = family(net.addr());
    bytes[1] = net.prefix_len();
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes
}

pub(crate) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}
