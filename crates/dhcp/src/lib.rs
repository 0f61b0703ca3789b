//! DHCP leases for containers: what to send when ([`v4`], [`v6`]), and the daemon that keeps them ([`daemon`]).
//!
//! The two clients are pure values: time, packets and random numbers go in, packets and leases come out, so a test can simulate a day
//! in a moment. The daemon opens their sockets in the containers' namespaces while an answer is expected, and stores each lease on
//! disk, so that it survives a restart of the daemon.
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

/// Parses an untrusted packet, or returns `None` if it is malformed.
///
/// The parser asserts properties that a packet need not have. Its panics are caught, so that no host on the link can end the daemon
/// with a packet.
fn decoded<T: dhcproto::Decodable>(packet: &[u8]) -> Option<T> {
    std::panic::catch_unwind(|| T::decode(&mut dhcproto::Decoder::new(packet)).ok()).ok().flatten()
}

// In Cargo.toml for its version alone, which has no Unicode tables. No name in a DHCP option needs them.
use idna_adapter as _;
