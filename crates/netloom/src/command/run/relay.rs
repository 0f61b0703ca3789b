//! Published TCP ports on `::1`, carried in user space.
//!
//! The kernel routes no packet from `::1` to another link, and IPv6 has no `route_localnet`. So address translation cannot
//! publish a port there, and this process accepts the connections as long as the command runs.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use ruleset::portmap::Protocol;

use super::{
    super::{Failure, Outcome, note},
    ports::Mapping,
};

/// The connections of one port at a time. More wait until the kernel's queue is full.
const MOST_CONNECTIONS: usize = 200;
/// Time limit for one address of the container.
const LIMIT: Duration = Duration::from_secs(5);

/// Listeners on `::1` for the mappings that include it. They close when the value is dropped.
#[derive(Debug, Default)]
pub(crate) struct Relays(Vec<(Arc<TcpListener>, u16)>);

impl Relays {
    /// Listens for each mapping of TCP that includes `::1`. A port of all addresses on which another program listens there stays
    /// with that program.
    pub(crate) fn listen(mappings: &[Mapping]) -> Outcome<Self> {
        let mut relays = Self::default();
        for mapping in mappings.iter().filter(|mapping| mapping.protocol == Protocol::Tcp) {
            let at = SocketAddr::from((Ipv6Addr::LOCALHOST, mapping.host));
            let is_for_it = match mapping.ip {
                None => true,
                Some(IpAddr::V6(ip)) => ip.is_unspecified() || ip.is_loopback(),
                Some(IpAddr::V4(_)) => false,
            };
            if !is_for_it {
                continue;
            }
            match TcpListener::bind(at) {
                Ok(listener) => relays.0.push((Arc::new(listener), mapping.container)),
                Err(error) if mapping.ip == Some(at.ip()) => {
                    return Err(Failure::new(format!("cannot listen on {at}: {error}"))
                        .hint("choose another port of the host, or leave it out: `-p [::1]::CONTAINER`"));
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    note(format!("netloom: {at} is not published: another program listens on it"));
                }
                // A host without IPv6 has no such address.
                Err(_) => {}
            }
        }
        Ok(relays)
    }

    /// Forwards connections to the first of the container's addresses that answers.
    pub(crate) fn start(&self, container: &[IpAddr]) {
        let mut addresses = container.to_vec();
        addresses.sort_by_key(IpAddr::is_ipv4);
        for (listener, port) in &self.0 {
            let listener = Arc::clone(listener);
            let to: Vec<SocketAddr> = addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect();
            thread::spawn(move || forward(&listener, &Arc::new(to)));
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for (listener, _) in &self.0 {
            // Wakes the thread that accepts.
            rustix::net::shutdown(listener, rustix::net::Shutdown::Both).ok();
        }
    }
}

/// The number of open connections.
#[derive(Debug, Default)]
struct Open {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Open {
    /// Counts a connection, after waiting for a place.
    fn enter(self: &Arc<Self>) -> Place {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |count: &mut usize| *count >= MOST_CONNECTIONS;
        *self.fewer.wait_while(count, full).unwrap_or_else(PoisonError::into_inner) += 1;
        Place(Arc::clone(self))
    }
}

struct Place(Arc<Open>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.fewer.notify_one();
    }
}

fn forward(listener: &TcpListener, to: &Arc<Vec<SocketAddr>>) {
    let open = Arc::new(Open::default());
    loop {
        let place = open.enter();
        match listener.accept() {
            Ok((caller, _)) => {
                let to = Arc::clone(to);
                thread::spawn(move || {
                    // Either end may close the connection at any time.
                    drop(connect(&to).and_then(|container| join(&caller, &container)));
                    drop(place);
                });
            }
            Err(error) if [ErrorKind::ConnectionAborted, ErrorKind::Interrupted].contains(&error.kind()) => {}
            // The listener was shut down.
            Err(_) => return,
        }
    }
}

fn connect(to: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in to {
        match TcpStream::connect_timeout(address, LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Copies both directions until both have ended.
fn join(caller: &TcpStream, container: &TcpStream) -> io::Result<()> {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let copied = io::copy(&mut from, &mut to);
        // The other direction may go on, unless this one failed.
        match copied {
            Ok(_) => to.shutdown(Shutdown::Write),
            Err(_) => from.shutdown(Shutdown::Both).and(to.shutdown(Shutdown::Both)),
        }
    };
    thread::scope(|scope| {
        let back = scope.spawn(|| copy(container, caller));
        let sent = copy(caller, container);
        back.join().unwrap_or(Ok(())).and(sent)
    })
}
