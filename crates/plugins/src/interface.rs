//! An interface as results list it, and as CHECK finds it by that.

use kernel::link::{self, Link, Mac};
use netloom_plugin::{
    Error, Sandbox,
    result::v100::{Interface, Success},
};

use crate::{
    container_netns::ContainerNetns,
    failure::{Explain, differs},
};

/// Describes a link of the host for a result.
pub(crate) fn on_host(link: &Link) -> Interface {
    listed(&link.name, link.mac)
}

/// Describes a link of the host of which no more is known than name and hardware address.
pub(crate) fn listed(name: &str, mac: Option<Mac>) -> Interface {
    Interface { name: name.to_owned(), mac: text_of(mac), ..Interface::default() }
}

/// Describes a link of the container for a result.
pub(crate) fn in_container(link: &Link, sandbox: &Sandbox) -> Interface {
    Interface { sandbox: sandbox.netns_text(), ..on_host(link) }
}

/// Finds the container's interface as a result lists it (CHECK). `kind` is what it must be; none for hardware.
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
        .ok_or_else(|| differs(format!("prevResult has no interface `{}` in {netns}", sandbox.ifname)))?;
    let inside = link::find(&container.socket, sandbox.ifname.as_str())
        .explain()?
        .ok_or_else(|| differs(format!("CNI created interface in container {} not found", sandbox.ifname)))?;
    if let Some(kind) = kind.filter(|kind| inside.kind.as_deref() != Some(kind)) {
        return Err(differs(format!("ContainerNetns interface {} not of type {kind}", inside.name)));
    }
    let mac = text_of(inside.mac);
    if !expected.mac.is_empty() && expected.mac != mac {
        return Err(differs(format!(
            "Interface {} Mac {} doesn't match container Mac: {mac}",
            inside.name, expected.mac
        )));
    }
    Ok(inside)
}

fn text_of(mac: Option<Mac>) -> String {
    mac.map(|mac| mac.to_string()).unwrap_or_default()
}
