//! `netloom relay`: published TCP ports on `::1`, carried in user space.
//!
//! The kernel routes no packet from `::1` to another link, and IPv6 has no `route_localnet`. So address translation cannot
//! publish a port there, and a process has to accept the connections.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use clap::Args;
use listenfd::ListenFd;
use netloom_runtime::{
    cache,
    types::{address::parse_ip, capability::PortMapping},
};
use rustix::net::sockopt::set_socket_linger;

use super::{
    Failure, Outcome, Places,
    list::{current_result, published_ports},
    note,
};

/// The connections of one port at a time. More wait until the kernel's queue is full.
const MOST_CONNECTIONS: usize = 200;
/// Time limit for one address of the container.
const LIMIT: Duration = Duration::from_secs(5);

/// Options of `netloom relay`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Ports of `::1` to listen on. Not needed if a service manager passes sockets (sd_listen_fds(3)).
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
}

pub(crate) fn relay(places: &Places, options: &Options) -> Outcome {
    let mut listeners = passed()?;
    for port in &options.ports {
        let at = SocketAddr::from((Ipv6Addr::LOCALHOST, *port));
        let listener = TcpListener::bind(at).map_err(|error| {
            Failure::new(format!("cannot listen on {at}: {error}"))
                .hint("`ss -ltnp` lists the programs that listen")
        })?;
        listeners.push((listener, *port));
    }
    if listeners.is_empty() {
        return Err(Failure::new("no port to listen on")
            .hint("name ports, or start the command by a socket unit such as netloom-relay@8080.socket"));
    }
    thread::scope(|scope| {
        for (listener, port) in &listeners {
            let (places, port) = (places.clone(), *port);
            scope.spawn(move || forward(listener, move || publishers(&places, port)));
        }
    });
    Ok(())
}

/// Returns the sockets that the service manager passed, with their ports.
fn passed() -> Outcome<Vec<(TcpListener, u16)>> {
    let mut given = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..given.len() {
        if let Some(listener) = given.take_tcp_listener(index)? {
            listener.set_nonblocking(false)?;
            let port = listener.local_addr()?.port();
            listeners.push((listener, port));
        }
    }
    Ok(listeners)
}

/// Returns the addresses and ports of the containers that publish a TCP port of the host on `::1`.
fn publishers(places: &Places, port: u16) -> Vec<SocketAddr> {
    let entries = places.runtime().attachments().unwrap_or_else(|error| {
        note(format!("netloom: {error}"));
        Vec::new()
    });
    entries.iter().flat_map(|entry| destinations(entry, port)).collect()
}

fn destinations(entry: &cache::Entry, port: u16) -> Vec<SocketAddr> {
    let leads_here = |mapping: &PortMapping| {
        mapping.protocol.eq_ignore_ascii_case("tcp")
            && mapping.host_port == i64::from(port)
            && (mapping.host_ip.is_empty()
                || parse_ip(&mapping.host_ip).is_ok_and(|ip| includes_loopback(Some(ip))))
    };
    let ports = published_ports(&entry.capability_args);
    let Some(to) = ports.iter().find(|mapping| leads_here(mapping)) else { return Vec::new() };
    let Ok(to) = u16::try_from(to.container_port) else { return Vec::new() };
    let ips = current_result(entry).map(|result| result.ips).unwrap_or_default();
    ips.iter().map(|ip| SocketAddr::new(ip.address.addr(), to)).collect()
}

/// Returns whether a mapping's address of the host includes `::1`. Without an address a port is published on all.
pub(super) fn includes_loopback(host: Option<IpAddr>) -> bool {
    match host {
        None => true,
        Some(IpAddr::V6(ip)) => ip.is_unspecified() || ip.is_loopback(),
        Some(IpAddr::V4(_)) => false,
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

/// Forwards connections until the listener is shut down, each to the first destination that answers, IPv6 first. If none does, the
/// caller's connection is reset.
pub(super) fn forward(
    listener: &TcpListener,
    destinations: impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static,
) {
    let destinations = Arc::new(destinations);
    let open = Arc::new(Open::default());
    loop {
        let place = open.enter();
        match listener.accept() {
            Ok((caller, _)) => {
                let destinations = Arc::clone(&destinations);
                thread::spawn(move || {
                    match connect(destinations()) {
                        // Either end may close the connection at any time.
                        Ok(container) => drop(join(&caller, &container)),
                        Err(_) => drop(set_socket_linger(&caller, Some(Duration::ZERO))),
                    }
                    drop(place);
                });
            }
            Err(error) if [ErrorKind::ConnectionAborted, ErrorKind::Interrupted].contains(&error.kind()) => {}
            // The listener was shut down.
            Err(_) => return,
        }
    }
}

fn connect(mut to: Vec<SocketAddr>) -> io::Result<TcpStream> {
    to.sort_by_key(SocketAddr::is_ipv4);
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in to {
        match TcpStream::connect_timeout(&address, LIMIT) {
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
