//! Interfaces as results list them, and how CHECK finds the container's interface from such a list.

use kernel::link::{self, Link, Mac};
use netloom_plugin::{
    Error, Sandbox,
    result::v100::{Interface, Success},
};

use crate::{
    container_netns::ContainerNetns,
    error::{Explain, check_failed},
};

/// A host link for a result.
pub(crate) fn on_host(link: &Link) -> Interface {
    listed(&link.name, link.mac)
}

/// A host link of which only the name and the hardware address are known.
pub(crate) fn listed(name: &str, mac: Option<Mac>) -> Interface {
    Interface { name: name.to_owned(), mac: mac_text(mac), ..Interface::default() }
}

/// A link of the container for a result.
pub(crate) fn in_container(link: &Link, sandbox: &Sandbox) -> Interface {
    Interface { sandbox: sandbox.netns_text(), ..on_host(link) }
}

/// Finds the container's interface and compares it with the previous result's entry (CHECK).
///
/// `kind` is the link kind it must have, or `None` for hardware.
pub(crate) fn require_listed(
    container: &ContainerNetns,
    sandbox: &Sandbox,
    prev: &Success,
    kind: Option<&str>,
) -> Result<Link, Error> {
    let netns = sandbox.netns_text();
    let expected = prev
        .interfaces
        .iter()
        .find(|interface| interface.name == sandbox.ifname.as_str() && interface.sandbox == netns)
        .ok_or_else(|| {
            check_failed(format!("prevResult has no interface `{}` in {netns}", sandbox.ifname))
        })?;
    let inside = link::find(&container.socket, sandbox.ifname.as_str()).explain()?.ok_or_else(|| {
        check_failed(format!("CNI created interface in container {} not found", sandbox.ifname))
    })?;
    if let Some(kind) = kind.filter(|kind| inside.kind.as_deref() != Some(kind)) {
        return Err(check_failed(format!("Container interface {} not of type {kind}", inside.name)));
    }
    let mac = mac_text(inside.mac);
    if !expected.mac.is_empty() && expected.mac != mac {
        return Err(check_failed(format!(
            "Interface {} Mac {} doesn't match container Mac: {mac}",
            inside.name, expected.mac
        )));
    }
    Ok(inside)
}

fn mac_text(mac: Option<Mac>) -> String {
    mac.map(|mac| mac.to_string()).unwrap_or_default()
}
