//! The plugins, one module each, and the table that lists them.
//!
//! Each module holds a plugin's configuration as written (`Written`, whose field comments are the documentation of its
//! keys), the validated configuration (`Conf`), and the verbs. Shared by several plugins are:
//!
//! | module | what it holds |
//! |---|---|
//! | `container_link` | the verbs of plugins whose work is one link in the container |
//! | `parent_link` | links created on a parent link: macvlan, ipvlan, vlan |
//! | `veth` | veth pairs between the host and a container |
//! | `container_netns` | an open container namespace, and the configuration of interfaces in it |
//! | `interface` | interfaces as results list them |
//! | `prev_result` | what a chained plugin reads from the previous result |
//! | `common_config` | keys that several configurations share |
//! | `runtime_args` | what a runtime passes beside the configuration: `runtimeConfig`, `args`, `CNI_ARGS` |
//! | `owner` | names and marks that identify the attachment a kernel object belongs to |
//! | `cleanup` | removal of an attachment's objects (DEL) and of stale ones (GC) |
//! | `stale` | the list of what GC removes, which changes nothing |
//! | `wait_for_removal` | the key `waitForRemoval`, which every plugin accepts |
//! | `error` | lower layers' errors as CNI errors |
//! | `schema` | JSON Schemas of the configurations |
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
pub mod stale;

mod cleanup;
mod common_config;
mod container_link;
mod container_netns;
mod error;
mod interface;
mod owner;
mod parent_link;
mod prev_result;
mod runtime_args;
mod veth;
mod wait_for_removal;

use container_link::LinkPlugin;
use netloom_plugin::{Delegates, Plugin};

/// Every plugin, in the order of the documentation.
pub const ALL: [&dyn Plugin; 18] = [
    &loopback::Loopback,
    &bridge::Bridge,
    &ptp::Ptp,
    &LinkPlugin(macvlan::Macvlan),
    &LinkPlugin(ipvlan::Ipvlan),
    &LinkPlugin(vlan::Vlan),
    &LinkPlugin(dummy::Dummy),
    &LinkPlugin(tap::Tap),
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

/// Runs delegated plugins in this process if they are plugins of this crate.
pub const LINKED: Delegates = Delegates { linked: by_name };

pub use owner::Owner;
pub use wait_for_removal::WaitForRemoval;
