//! Netlink sockets: sending requests, reading answers and the kernel's explanations of errors.

use std::{
    cell::Cell,
    fmt, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
    sync::Mutex,
};

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink,
        sockopt::set_socket_send_buffer_size_force,
    },
};

use crate::{
    error::{Error, Kind, Result},
    inject,
    message::{Attrs, HEADER, Message, Messages, Received, read_text, read_u32},
};

/// The netlink families in use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables.
    Netfilter,
}

/// A netlink socket of the namespace in which it was opened. Clones share the socket.
#[derive(Debug, Clone)]
pub struct Socket(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

/// A request for a change, to send alone or with others ([`Socket::make`]).
#[derive(Debug)]
pub struct Request {
    pub(crate) message: Message,
    /// The operation, as in [`Error::doing`].
    pub(crate) doing: &'static str,
    /// The object, as in [`Error::object`].
    pub(crate) object: String,
}

/// The receive buffer that all sockets share. While one thread uses it, another allocates its own.
static BUFFER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// The size of the receive buffer. The kernel uses up to 32 KiB for a dump message if the reader offers as much.
const RECEIVE: usize = 32 * 1024;
const DUMP_ATTEMPTS: usize = 8;

pub(crate) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(crate) const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub(crate) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(crate) const EXCL: u16 = libc::NLM_F_EXCL as u16;

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel lacks the family, or file descriptors or memory have run out.
    pub fn open(protocol: Protocol) -> Result<Self> {
        Self::open_listening(protocol, 0)
    }

    /// Opens a socket that also receives from the multicast groups in `groups` (a bit mask).
    pub(crate) fn open_listening(protocol: Protocol, groups: u32) -> Result<Self> {
        let (number, name) = match protocol {
            Protocol::Route => (None, "route"),
            Protocol::Netfilter => (Some(netlink::NETFILTER), "netfilter"),
        };
        let error = |errno| Error::new("open a netlink socket for", name, errno);
        let fd =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, number)
                .map_err(error)?;
        if groups != 0 {
            rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, groups)).map_err(error)?;
        }
        // Kernels before 4.12 send no explanations; errors are then shorter.
        if groups == 0 {
            set_option(&fd, libc::NETLINK_EXT_ACK);
            // Strict checking makes the kernel filter dumps, such as the addresses of one link among thousands (5.0).
            set_option(&fd, libc::NETLINK_GET_STRICT_CHK);
        }
        Ok(Self(Rc::new(Inner { fd, sequence: Cell::new(1) })))
    }

    /// Sends a change and waits for the kernel's answer.
    pub(crate) fn change(
        &self,
        message: Message,
        doing: &'static str,
        object: &dyn fmt::Display,
    ) -> Result<()> {
        self.make([Request { message, doing, object: object.to_string() }])
    }

    /// Sends changes in order in one send, and waits for the answer to the last. The kernel applies the changes after a refused
    /// one too, so use this only if the caller discards everything on a failure.
    ///
    /// # Errors
    /// The first refusal.
    pub fn make(&self, requests: impl IntoIterator<Item = Request>) -> Result<()> {
        let (mut messages, whats) = split(requests.into_iter());
        for (doing, object) in &whats {
            inject::point(doing, object)?;
        }
        let Some(last) = messages.last_mut() else { return Ok(()) };
        last.add_flags(ACK);
        let of = |index: usize, refusal: Refusal| {
            let (doing, object) = &whats[index];
            refusal.into_error(doing, object.clone())
        };
        let first = self.send(&mut messages).map_err(|errno| of(0, errno.into()))?;
        let mut outcome = Ok(());
        while !self
            .receive(|received| {
                let index = received.sequence.wrapping_sub(first) as usize;
                if index >= whats.len() || i32::from(received.kind) != libc::NLMSG_ERROR {
                    return false;
                }
                if let Some(refusal) = Refusal::read(&received)
                    && outcome.is_ok()
                {
                    outcome = Err(of(index, refusal));
                }
                index + 1 == whats.len()
            })
            .map_err(|errno| of(0, errno.into()))?
        {}
        outcome
    }

    /// Sends a change and the request for an object in one send.
    ///
    /// # Errors
    /// The first refusal, reported as that of the change.
    pub(crate) fn make_and_ask(
        &self,
        request: Request,
        question: Message,
        mut read: impl FnMut(Received<'_>),
    ) -> Result<()> {
        let Request { message, doing, object } = request;
        inject::point(doing, &object)?;
        let mut outcome = Ok(());
        let answered = self.send(&mut [message, question]).and_then(|first| {
            while !self.receive(|received| {
                if i32::from(received.kind) != libc::NLMSG_ERROR {
                    read(received);
                } else if outcome.is_ok() {
                    outcome = Refusal::read(&received).map_or(Ok(()), Err);
                }
                // The answer to the request, or its refusal, ends the exchange.
                received.sequence == first.wrapping_add(1)
            })? {}
            Ok(())
        });
        answered.map_err(Refusal::from).and(outcome).map_err(|refusal| refusal.into_error(doing, object))
    }

    /// Sends many changes, each of which may fail, in as few sends as the socket's receive buffer allows. Returns the refusals,
    /// each with the number of its change. The removal of an absent object is no refusal.
    pub(crate) fn change_all(&self, changes: impl Iterator<Item = Request>) -> Vec<(usize, Error)> {
        const AT_ONCE: usize = 100;
        let mut changes = changes.peekable();
        let (mut refused, mut done) = (Vec::new(), 0);
        while changes.peek().is_some() {
            let (mut messages, whats) = split(changes.by_ref().take(AT_ONCE));
            for message in &mut messages {
                message.add_flags(ACK);
            }
            let are_removals: Vec<bool> = messages.iter().map(Message::is_removal).collect();
            let failed = |errno| Error::new("send changes over", "the socket", errno);
            let first = match self.send(&mut messages) {
                Ok(first) => first,
                Err(errno) => {
                    refused.push((done, failed(errno)));
                    return refused;
                }
            };
            let mut left = messages.len();
            while left > 0 {
                let outcome = self.receive(|received| {
                    let index = received.sequence.wrapping_sub(first) as usize;
                    if index >= whats.len() || i32::from(received.kind) != libc::NLMSG_ERROR {
                        return false;
                    }
                    left -= 1;
                    if let Some(refusal) = Refusal::read(&received) {
                        let (doing, object) = &whats[index];
                        let error = refusal.into_error(doing, object.clone());
                        if !(error.kind() == Kind::NotFound && are_removals[index]) {
                            refused.push((done + index, error));
                        }
                    }
                    false
                });
                if let Err(errno) = outcome {
                    refused.push((done, failed(errno)));
                    return refused;
                }
            }
            done += whats.len();
        }
        refused
    }

    /// Requests one object without acknowledgement: the answer or the refusal ends the exchange.
    pub(crate) fn ask(
        &self,
        message: Message,
        doing: &'static str,
        object: &dyn fmt::Display,
        mut read: impl FnMut(Received<'_>),
    ) -> Result<()> {
        self.ask_until(message, doing, object, |received| {
            read(received);
            true
        })
    }

    /// Requests an object, and reads until the refusal, the acknowledgement if the message requests one ([`ACK`]), or until `read` returns
    /// true.
    pub(crate) fn ask_until(
        &self,
        message: Message,
        doing: &'static str,
        object: &dyn fmt::Display,
        mut read: impl FnMut(Received<'_>) -> bool,
    ) -> Result<()> {
        self.exchange(message, &mut read).map_err(|refusal| refusal.into_error(doing, object.to_string()))
    }

    /// Requests all objects, and repeats the request if the kernel's list changed meanwhile.
    ///
    /// `read` converts a message to a value, or returns `None` to skip it.
    pub(crate) fn dump<T>(
        &self,
        message: &Message,
        doing: &'static str,
        object: &dyn fmt::Display,
        mut read: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let mut interrupted = false;
            self.exchange(message.clone(), &mut |received| {
                interrupted |= received.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                found.extend(read(received));
                false
            })
            .map_err(|refusal| refusal.into_error(doing, object.to_string()))?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Error::new(doing, object, Errno::AGAIN))
    }

    /// Numbers the messages, sends them in one write, and returns the first sequence number.
    pub(crate) fn send(&self, messages: &mut [Message]) -> Result<u32, Errno> {
        let first = self.0.sequence.get();
        let mut bytes = Vec::new();
        for message in messages {
            let sequence = self.0.sequence.get();
            self.0.sequence.set(sequence.wrapping_add(1));
            bytes.extend_from_slice(message.finish(sequence));
        }
        let send = || rustix::io::retry_on_intr(|| rustix::net::send(&self.0.fd, &bytes, SendFlags::empty()));
        match send() {
            // An atomic batch must be sent at once, and may exceed the default send buffer.
            Err(Errno::MSGSIZE) => {
                set_socket_send_buffer_size_force(&self.0.fd, bytes.len() + 4096)?;
                send()?;
            }
            other => drop(other?),
        }
        Ok(first)
    }

    /// Reserves a sequence number for a message that a child of this process sends.
    pub(crate) fn reserve(&self) -> u32 {
        let sequence = self.0.sequence.get();
        self.0.sequence.set(sequence.wrapping_add(1));
        sequence
    }

    /// Reads pending messages and returns the refusal of the message with that sequence number, if any.
    pub(crate) fn refusal_of(&self, sequence: u32) -> Result<Option<Refusal>, Errno> {
        let mut refusal = None;
        self.receive(|received| {
            if received.sequence == sequence && i32::from(received.kind) == libc::NLMSG_ERROR {
                refusal = Refusal::read(&received);
            }
            false
        })?;
        Ok(refusal)
    }

    /// Reads one datagram and passes its messages to `read` until it returns true.
    pub(crate) fn receive(&self, mut read: impl FnMut(Received<'_>) -> bool) -> Result<bool, Errno> {
        let mut buffer = BUFFER.try_lock().map_or_else(|_| Vec::new(), |mut buffer| mem::take(&mut *buffer));
        buffer.clear();
        buffer.reserve_exact(RECEIVE);
        // Receive into uninitialized memory: most answers touch one page of it.
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.0.fd, spare_capacity(&mut buffer), RecvFlags::TRUNC)
        });
        let enough = match received {
            Ok((_, length)) if length > buffer.len() => Err(Errno::MSGSIZE),
            Ok(_) => Ok(Messages(&buffer).any(&mut read)),
            Err(errno) => Err(errno),
        };
        if let Ok(mut spare) = BUFFER.try_lock() {
            *spare = buffer;
        }
        enough
    }

    /// Sends a message and reads until its acknowledgement, its refusal, the end of a dump, or until `read` returns true.
    fn exchange(&self, message: Message, read: &mut dyn FnMut(Received<'_>) -> bool) -> Result<(), Refusal> {
        let sequence = self.send(&mut [message])?;
        let mut outcome = Ok(());
        while !self.receive(|received| {
            if received.sequence != sequence {
                return false;
            }
            match i32::from(received.kind) {
                libc::NLMSG_ERROR => {
                    outcome = Refusal::read(&received).map_or(Ok(()), Err);
                    true
                }
                libc::NLMSG_DONE => {
                    // A dump that fails part-way carries the error in its last message.
                    if let Some(code) = read_u32(received.payload)
                        && code.cast_signed() < 0
                    {
                        outcome = Err(errno(code.cast_signed()).into());
                    }
                    true
                }
                _ => read(received),
            }
        })? {}
        outcome
    }
}

/// Splits changes into the messages and the texts for errors.
fn split(requests: impl Iterator<Item = Request>) -> (Vec<Message>, Vec<(&'static str, String)>) {
    requests.map(|request| (request.message, (request.doing, request.object))).unzip()
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// A refusal: the error number and the kernel's explanation.
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) extack: Option<String>,
}

impl Refusal {
    /// Reads an error message, or `None` if it is an acknowledgement.
    pub(crate) fn read(received: &Received<'_>) -> Option<Self> {
        let code = read_u32(received.payload).unwrap_or_default().cast_signed();
        if code == 0 {
            return None;
        }
        let explained = received.flags & libc::NLM_F_ACK_TLVS as u16 != 0;
        let capped = received.flags & libc::NLM_F_CAPPED as u16 != 0;
        let echoed = read_u32(received.payload.get(4..).unwrap_or_default()).unwrap_or_default();
        let skip = if capped { HEADER } else { usize::try_from(echoed).unwrap_or(HEADER).max(HEADER) };
        let extack = explained
            .then(|| Attrs::after(received.payload, (4 + skip).next_multiple_of(4)).find(EXTACK_TEXT))
            .flatten()
            .map(read_text);
        Some(Self { errno: errno(code), extack })
    }

    pub(crate) fn into_error(self, doing: &'static str, object: String) -> Error {
        Error { doing, object, errno: self.errno, extack: self.extack }
    }
}

/// Converts the negative error number of a message. An invalid number means a broken message.
fn errno(code: i32) -> Errno {
    const MOST: i32 = 4095;
    if (-MOST..0).contains(&code) { Errno::from_raw_os_error(-code) } else { Errno::BADMSG }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, extack: None }
    }
}

const EXTACK_TEXT: u16 = 1;

fn set_option(fd: &OwnedFd, option: i32) {
    let on: i32 = 1;
    // SAFETY: the descriptor is open and the value is an int of the length that is given.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            u32::try_from(size_of_val(&on)).unwrap_or(4),
        );
    }
}
