//! Queueing disciplines: rates, bursts, and redirection to another link.
//!
//! Source: the kernel's `include/uapi/linux/pkt_sched.h` and `pkt_cls.h`.

use ipnet::IpNet;

use crate::{
    error::Result,
    link::Link,
    message::{Attrs, Message, Received, read_text, read_u32},
    socket::{ACK, CREATE, EXCL, REQUEST, Socket},
};

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// The burst in bytes.
    pub burst: u32,
    /// The length of the queue in bytes.
    pub limit: u32,
}

impl Bucket {
    /// Returns the burst in the kernel's unit: the time to send it at the rate, in ticks of 64 ns.
    fn buffer(&self) -> u32 {
        let microseconds = u64::from(self.burst) * 1_000_000 / self.rate.max(1);
        u32::try_from(microseconds * 1000 / 64).unwrap_or(u32::MAX)
    }

    fn rate_spec(&self) -> [u8; 12] {
        let mut spec = [0; 12];
        spec[8..].copy_from_slice(&u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        spec
    }
}

/// The packets that a rate limits, by the remote address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// All packets except those of these subnets.
    AllBut(&'a [IpNet]),
    /// Only packets of these subnets.
    Only(&'a [IpNet]),
}

/// The address of a packet that is the remote one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherSide {
    /// The source: packets to the container.
    Source,
    /// The destination: packets from the container.
    Destination,
}

/// The discipline at the root of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// `tbf`, `htb`, …
    pub kind: String,
    /// The settings of a token bucket filter: bytes per second, queue length in bytes, burst in ticks.
    pub bucket: Option<(u64, u32, u32)>,
}

impl Root {
    /// Returns whether it matches the token bucket filter that [`add_bucket`] creates.
    pub fn is(&self, bucket: &Bucket) -> bool {
        self.bucket == Some((bucket.rate, bucket.limit, bucket.buffer()))
    }
}

/// Limits the packets that leave on a link with a token bucket filter.
///
/// # Errors
/// [`crate::Kind::Exists`] if the link has a discipline, or if the kernel refuses the request.
pub fn add_bucket(socket: &Socket, link: &Link, bucket: &Bucket) -> Result<()> {
    let mut message = new(libc::RTM_NEWQDISC, link, ROOT_HANDLE, TC_H_ROOT, 0);
    let mut parameters = Vec::with_capacity(36);
    parameters.extend(bucket.rate_spec());
    parameters.extend([0; 12]);
    for word in [bucket.limit, bucket.buffer(), 0] {
        parameters.extend(word.to_ne_bytes());
    }
    message.text(libc::TCA_KIND, "tbf").nest(libc::TCA_OPTIONS, |options| {
        options.attr(TBF_PARMS, &parameters);
        if u32::try_from(bucket.rate).is_err() {
            options.attr(TBF_RATE64, &bucket.rate.to_ne_bytes());
        }
    });
    socket.change(message, "limit the rate of", &format_args!("`{}`", link.name))
}

/// Limits a part of the packets that leave on a link.
///
/// # Errors
/// As [`add_bucket`].
pub fn add_bucket_for(
    socket: &Socket,
    link: &Link,
    bucket: &Bucket,
    part: Part<'_>,
    other_side: OtherSide,
) -> Result<()> {
    let doing = "limit the rate of";
    let object = format_args!("`{}`", link.name);
    let (default, selected, subnets) = match part {
        Part::AllBut(subnets) => (LIMITED_CLASS, ROOT_HANDLE, subnets),
        // Packets of no class pass at once.
        Part::Only(subnets) => (0, ROOT_HANDLE | LIMITED_CLASS, subnets),
    };
    let mut message = new(libc::RTM_NEWQDISC, link, ROOT_HANDLE, TC_H_ROOT, 0);
    // struct tc_htb_glob: version, rate to quantum, default class, debug, direct packets.
    let global: Vec<u8> = [3, 10, default, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    message.text(libc::TCA_KIND, "htb").nest(libc::TCA_OPTIONS, |options| {
        // What is not limited passes by a queue of its own, which would be as long as the link's: none, of an ifb.
        options.attr(HTB_INIT, &global).u32(HTB_DIRECT_QLEN, 1000);
    });
    socket.change(message, doing, &object)?;
    let mut message = new(RTM_NEWTCLASS, link, ROOT_HANDLE | LIMITED_CLASS, ROOT_HANDLE, 0);
    let mut parameters = [bucket.rate_spec(), bucket.rate_spec()].concat();
    // Buffers, quantum (a frame at least, for slow rates), level, priority.
    for word in [bucket.buffer(), bucket.buffer(), 1514, 0, 0] {
        parameters.extend(word.to_ne_bytes());
    }
    message.text(libc::TCA_KIND, "htb").nest(libc::TCA_OPTIONS, |options| {
        options.attr(HTB_PARMS, &parameters);
        if u32::try_from(bucket.rate).is_err() {
            options.attr(HTB_RATE64, &bucket.rate.to_ne_bytes()).attr(HTB_CEIL64, &bucket.rate.to_ne_bytes());
        }
    });
    socket.change(message, doing, &object)?;
    // The class gets a queue as long as that of a token bucket filter.
    let mut message = new(libc::RTM_NEWQDISC, link, 0, ROOT_HANDLE | LIMITED_CLASS, 0);
    message.text(libc::TCA_KIND, "bfifo").attr(libc::TCA_OPTIONS, &bucket.limit.to_ne_bytes());
    socket.change(message, doing, &object)?;
    for subnet in subnets {
        let keys = keys(*subnet, other_side);
        let (protocol, priority) =
            if subnet.addr().is_ipv4() { (libc::ETH_P_IP, 1) } else { (libc::ETH_P_IPV6, 2) };
        let mut message = filter(link, ROOT_HANDLE, priority, protocol);
        message.text(libc::TCA_KIND, "u32").nest(libc::TCA_OPTIONS, |options| {
            options.u32(U32_CLASSID, selected).attr(U32_SEL, &selector(&keys));
        });
        socket.change(message, "select the packets of", subnet)?;
    }
    Ok(())
}

/// Redirects all packets that a link receives to the egress of another link.
///
/// # Errors
/// As [`add_bucket`].
pub fn redirect(socket: &Socket, from: &Link, to: &Link) -> Result<()> {
    let object = format_args!("`{}` to `{}`", from.name, to.name);
    let mut message = new(libc::RTM_NEWQDISC, from, INGRESS_HANDLE, TC_H_INGRESS, 0);
    message.text(libc::TCA_KIND, "ingress").nest(libc::TCA_OPTIONS, |_| ());
    socket.change(message, "redirect", &object)?;
    // struct tc_mirred: index, capabilities, action (stolen), two counters; redirect to egress; link.
    let mirred: Vec<u8> = [0, 0, 4, 0, 0, 1, to.index].into_iter().flat_map(u32::to_ne_bytes).collect();
    let mut message = filter(from, INGRESS_HANDLE, 1, libc::ETH_P_ALL);
    message.text(libc::TCA_KIND, "u32").nest(libc::TCA_OPTIONS, |options| {
        options.u32(U32_CLASSID, ROOT_HANDLE | 1).attr(U32_SEL, &selector(&[[0; 16]]));
        options.nest(U32_ACT, |actions| {
            actions.nest(1, |action| {
                action.text(ACT_KIND, "mirred").nest(ACT_OPTIONS, |options| {
                    options.attr(MIRRED_PARMS, &mirred);
                });
            });
        });
    });
    socket.change(message, "redirect", &object)
}

/// Removes the discipline at the root and the redirection of a link. Succeeds if they are already gone.
///
/// # Errors
/// If the kernel refuses the request.
pub fn remove(socket: &Socket, link: &Link) -> Result<()> {
    for parent in [TC_H_ROOT, TC_H_INGRESS] {
        let message = Message::new(libc::RTM_DELQDISC, REQUEST, &tcmsg(link, 0, parent, 0));
        let done = socket.change(message, "remove the rate limit of", &format_args!("`{}`", link.name));
        match crate::error::absent_is_none(done) {
            // The discipline does not exist. The kernel has several errors for this.
            Err(error) if error.errno == rustix::io::Errno::INVAL => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// Returns the discipline at the root of a link, and whether the link has an ingress discipline.
///
/// Each is requested separately. A dump of all disciplines is unreliable: the kernel stores its position as a count, and omits
/// links if others are removed meanwhile (`tc_dump_qdisc`).
///
/// # Errors
/// If the link does not exist.
#[doc(alias = "RTM_GETQDISC")]
pub fn look(socket: &Socket, link: &Link) -> Result<(Option<Root>, bool)> {
    let ask = |parent: u32| -> Result<Option<Root>> {
        // The kernel tells the group of listeners, and the one who asks only for an echo (`qdisc_get_notify`). It says nothing
        // at all of a discipline that it made itself, so the end is the acknowledgement.
        let message = Message::new(libc::RTM_GETQDISC, REQUEST | ECHO | ACK, &tcmsg(link, 0, parent, 0));
        let mut found = None;
        let asked = socket.ask_until(
            message,
            "look at the queues of",
            &format_args!("`{}`", link.name),
            |received| {
                found = found.take().or_else(|| read_root(&received));
                false
            },
        );
        match asked {
            Err(error) if error.errno == rustix::io::Errno::NOENT => Ok(None),
            other => other.map(|()| found),
        }
    };
    let ingress = ask(TC_H_INGRESS)?;
    let takes = ingress.is_some_and(|root| root.kind == "ingress" || root.kind == "clsact");
    Ok((ask(TC_H_ROOT)?, takes))
}

fn read_root(received: &Received<'_>) -> Option<Root> {
    let attrs = Attrs::after(received.payload, TCMSG);
    let kind = attrs.find(libc::TCA_KIND).map(read_text)?;
    let options = attrs.find(libc::TCA_OPTIONS).unwrap_or_default();
    let bucket = (kind == "tbf").then(|| read_bucket(options)).flatten();
    Some(Root { kind, bucket })
}

pub(crate) fn read_bucket(options: &[u8]) -> Option<(u64, u32, u32)> {
    let parameters = Attrs(options).find(TBF_PARMS)?;
    let rate = match Attrs(options).find(TBF_RATE64) {
        Some(rate) => u64::from_ne_bytes(*rate.first_chunk()?),
        None => u64::from(read_u32(parameters.get(8..)?)?),
    };
    Some((rate, read_u32(parameters.get(24..)?)?, read_u32(parameters.get(28..)?)?))
}

/// Builds `struct tc_u32_sel` that ends the search, with its keys.
fn selector(keys: &[[u8; 16]]) -> Vec<u8> {
    let mut selector = vec![0; 16];
    selector[0] = 1;
    selector[2] = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    selector.extend(keys.iter().flatten());
    selector
}

/// Builds a `struct tc_u32_key` for each word of a subnet: mask, value, offset in the packet.
fn keys(subnet: IpNet, other_side: OtherSide) -> Vec<[u8; 16]> {
    let (value, mask, first) = match subnet {
        IpNet::V4(net) => (net.network().octets().to_vec(), net.netmask().octets().to_vec(), 12),
        IpNet::V6(net) => (net.network().octets().to_vec(), net.netmask().octets().to_vec(), 8),
    };
    let first = if other_side == OtherSide::Source { first } else { first + value.len() };
    let words = value.chunks(4).zip(mask.chunks(4)).enumerate();
    words
        .map(|(index, (value, mask))| {
            let mut key = [0; 16];
            key[..4].copy_from_slice(mask);
            key[4..8].copy_from_slice(value);
            key[8..12].copy_from_slice(&u32::try_from(first + index * 4).unwrap_or_default().to_ne_bytes());
            key
        })
        .collect()
}

fn new(kind: u16, link: &Link, handle: u32, parent: u32, info: u32) -> Message {
    Message::new(kind, REQUEST | CREATE | EXCL, &tcmsg(link, handle, parent, info))
}

fn filter(link: &Link, parent: u32, priority: u32, protocol: i32) -> Message {
    let protocol = u16::try_from(protocol).unwrap_or_default().to_be();
    // The kernel keeps several filters of the same priority.
    let fixed = tcmsg(link, 0, parent, priority << 16 | u32::from(protocol));
    Message::new(RTM_NEWTFILTER, REQUEST | CREATE | EXCL, &fixed)
}

/// Builds `struct tcmsg`.
fn tcmsg(link: &Link, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (place, word) in [link.index, handle, parent, info].into_iter().enumerate() {
        bytes[4 + place * 4..8 + place * 4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

const TCMSG: usize = 20;
const ECHO: u16 = libc::NLM_F_ECHO as u16;
const RTM_NEWTCLASS: u16 = 40;
const RTM_NEWTFILTER: u16 = 44;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const ROOT_HANDLE: u32 = 0x1_0000;
const LIMITED_CLASS: u32 = 0x30;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const HTB_PARMS: u16 = 1;
const HTB_INIT: u16 = 2;
const HTB_DIRECT_QLEN: u16 = 5;
const HTB_RATE64: u16 = 6;
const HTB_CEIL64: u16 = 7;
const U32_CLASSID: u16 = 1;
const U32_SEL: u16 = 5;
const U32_ACT: u16 = 7;
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;
