//! The published TCP ports of `netloom run` on `::1`: this process accepts the connections as long as the command runs.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use ruleset::portmap::Protocol;

use super::{
    super::{
        Failure, Outcome, note,
        relay::{forward, includes_loopback},
    },
    ports::Mapping,
};

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
            if !includes_loopback(mapping.ip) {
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
        for (listener, port) in &self.0 {
            let listener = Arc::clone(listener);
            let to: Vec<SocketAddr> = container.iter().map(|ip| SocketAddr::new(*ip, *port)).collect();
            thread::spawn(move || forward(&listener, move || to.clone()));
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
