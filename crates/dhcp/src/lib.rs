//! DHCP leases for containers: what to send when ([`v4`], [`v6`]), and the daemon that keeps them ([`daemon`]).
//!
//! The two clients are values: time, packets and random numbers go in, packets and leases come out, so that a test can
//! live through a day in a moment. The daemon opens their sockets in the containers' namespaces, for as long as something
//! is expected, and writes each lease to disk, so that it outlives the daemon.
#![forbid(unsafe_code)]

pub mod call;
pub mod daemon;
mod exchange;
mod interface;
pub mod lease;
mod store;
pub mod v4;
pub mod v6;

pub use exchange::udp_payload;

/// Reads a packet of anybody, or `None` if it is broken.
///
/// The crate that reads it asserts here and there what the network has not promised, so its panics are caught: nobody on a
/// link may end the daemon by a packet.
fn decoded<T: dhcproto::Decodable>(packet: &[u8]) -> Option<T> {
    std::panic::catch_unwind(|| T::decode(&mut dhcproto::Decoder::new(packet)).ok()).ok().flatten()
}

// Named in Cargo.toml for its version alone: without Unicode's tables, which no name in a DHCP option needs.
use idna_adapter as _;
