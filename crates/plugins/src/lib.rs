//! The plugins, a module each, and the table that lists them.
//!
//! A plugin is read in this order: its configuration as written and as meant, then its verbs. What several of
//! them need stands beside them: `asked` is what a runtime asks for,
//! `owner` names whose things are, `container` is the inside of a sandbox, `chained` is what a plugin knows of those
//! before it, `single` what those do that make one link and no more, `over` those that make it over another.
#![forbid(unsafe_code)]

pub mod bandwidth;
pub mod bridge;
pub mod dhcp;
pub mod dummy;
pub mod firewall;
pub mod host_device;
pub mod host_local;
pub mod ipvlan;
pub mod loopback;
pub mod macvlan;
pub mod portmap;
pub mod ptp;
pub mod sbr;
pub mod static_ips;
pub mod tap;
pub mod tuning;
pub mod vlan;
pub mod vrf;

pub mod schema;

mod cleanup;
mod common_config;
mod container_link;
mod container_netns;
mod failure;
mod interface;
mod owner;
mod parent_link;
mod prev_result;
mod runtime_args;
mod veth;
mod wait_for_removal;

use netloom_plugin::{Delegates, Plugin};

/// Lists every plugin, in the order in which a reader meets them.
pub const ALL: [&dyn Plugin; 18] = [
    &loopback::Loopback,
    &bridge::Bridge,
    &ptp::Ptp,
    &macvlan::Macvlan,
    &ipvlan::Ipvlan,
    &vlan::Vlan,
    &dummy::Dummy,
    &tap::Tap,
    &host_device::HostDevice,
    &host_local::HostLocal,
    &static_ips::Static,
    &dhcp::Dhcp,
    &portmap::Portmap,
    &firewall::Firewall,
    &tuning::Tuning,
    &bandwidth::Bandwidth,
    &sbr::Sbr,
    &vrf::Vrf,
];

/// Finds a plugin by its type.
pub fn by_name(name: &str) -> Option<&'static dyn Plugin> {
    ALL.into_iter().find(|plugin| plugin.name() == name)
}

/// Has every plugin here called in process when another delegates to it.
pub const LINKED: Delegates = Delegates { linked: by_name };

pub use owner::Owner;
pub use wait_for_removal::WaitForRemoval;
