//! The device: how it is identified, moved into a container, and moved back even if the container is gone or renamed it.

use std::path::{Path, PathBuf};

use kernel::{
    Kind, Socket,
    link::{self, Change, Link, Mac},
};
use netloom_plugin::{Error, Sandbox, Undo};
use netloom_types::name::IfName;

use crate::{
    container_netns::ContainerNetns,
    error::{Explain, invalid},
};

/// How the configuration identifies the device.
#[derive(Debug, Clone)]
pub(super) enum Device {
    /// By the name of its link.
    Named(String),
    /// By hardware address.
    WithMac(Mac),
    /// By its folder in sysfs, which has the link in its subfolder `net`.
    At(PathBuf),
}

impl Device {
    /// Finds the device among the host's links.
    pub(super) fn find(&self, host: &Socket) -> Result<Option<Link>, Error> {
        match self {
            Self::Named(name) => link::find(host, name).explain(),
            Self::WithMac(mac) => {
                Ok(link::list(host).explain()?.into_iter().find(|link| link.mac == Some(*mac)))
            }
            Self::At(folder) => match name_in(folder) {
                Some(name) => link::find(host, &name).explain(),
                None => Ok(None),
            },
        }
    }

    /// Finds the device in the container: by its interface name, or if the container's root has renamed it, by its properties.
    fn find_inside(&self, container: &ContainerNetns, ifname: &str) -> Result<Option<Link>, Error> {
        let matches = |link: &Link| match self {
            Self::Named(name) => {
                let is_other_name = link.other_names.iter().any(|other| other == name);
                link.alias.as_deref() == Some(name) || (is_other_name && was_moved(link))
            }
            Self::WithMac(mac) => link.mac == Some(*mac) && was_moved(link),
            // The device's folder is visible only in the container's sysfs.
            Self::At(_) => was_moved(link),
        };
        if let Some(inside) = link::find(&container.socket, ifname).explain()?
            && (matches(&inside) || inside.alias.is_some())
        {
            return Ok(Some(inside));
        }
        Ok(link::list(&container.socket).explain()?.into_iter().find(matches))
    }
}

/// Returns whether a link is a moved device: its alias is its name on the host, as the reference plugin sets it.
fn was_moved(link: &Link) -> bool {
    link.alias.as_ref().is_some_and(|alias| *alias != link.name && IfName::parse(alias).is_ok())
}

impl std::fmt::Display for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name) => write!(out, "link {name:?}"),
            Self::WithMac(mac) => write!(out, "link with hardware address {mac}"),
            Self::At(folder) => write!(out, "link of the device at {}", folder.display()),
        }
    }
}

/// Reads the name of a device's link from sysfs. A virtio device has it one folder deeper.
fn name_in(folder: &Path) -> Option<String> {
    let first = |folder: PathBuf| -> Option<String> {
        std::fs::read_dir(folder).ok()?.next()?.ok()?.file_name().into_string().ok()
    };
    first(folder.join("net")).or_else(|| {
        let inner = std::fs::read_dir(folder).ok()?.flatten();
        let mut virtio =
            inner.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("virtio")));
        first(virtio.next()?.path().join("net"))
    })
}

/// Returns the alternative names that mark a moved device, each with whether the link was up. The alias is not available for
/// this: the reference plugin uses it.
fn marks(name: &str) -> [(String, bool); 2] {
    [(format!("{name}-was-up"), true), (format!("{name}-was-down"), false)]
}

/// Returns whether a link has one of these marks.
fn has_mark(link: &Link, name: &str) -> bool {
    marks(name).iter().any(|(mark, _)| link.other_names.contains(mark))
}

/// Moves the device into the container under its interface name.
pub(super) fn move_to_container(
    host: &Socket,
    container: &ContainerNetns,
    device: &Device,
    outside: Link,
    sandbox: &Sandbox,
    undo: &mut Undo,
) -> Result<Link, Error> {
    let ifname = sandbox.ifname.as_str();
    undo.push(format!("move `{}` back to the host", outside.name), {
        let (host, device, ifname) = (host.clone(), device.clone(), ifname.to_owned());
        let (path, outside) = (container.netns.path().to_owned(), outside.clone());
        move || {
            let container = ContainerNetns::open(&path).explain()?;
            move_to_host(&host, Some(&container), &device, &ifname)?;
            // The device may not have been moved yet.
            let Some(link) = link::find(&host, &outside.name).explain()? else { return Ok(()) };
            restore_state(&host, &link, &outside.name)
        }
    })?;
    for (mark, _) in marks(&outside.name).iter().filter(|(_, up)| *up == outside.up) {
        link::set_other_name(host, &outside, mark, true).explain()?;
    }
    // One message moves, renames and marks the link, so that the container never has it without the alias.
    let change = Change {
        netns: Some(&container.netns),
        name: Some(ifname),
        alias: Some(&outside.name),
        ..Change::default()
    };
    link::change(host, &outside, &change).explain()?;
    link::require(&container.socket, ifname).explain()
}

/// Moves the device back to the host, or restores it there if it has already returned.
pub(super) fn move_to_host(
    host: &Socket,
    container: Option<&ContainerNetns>,
    device: &Device,
    ifname: &str,
) -> Result<(), Error> {
    let Some(container) = container else { return restore_returned(host, device) };
    let Some(inside) = device.find_inside(container, ifname)? else { return restore_returned(host, device) };
    // The configuration takes precedence over the alias, which the container's root can change. An alternative name stays one.
    let name = match device {
        Device::Named(name) if !inside.other_names.contains(name) => name.clone(),
        _ => inside.alias.clone().unwrap_or_default(),
    };
    IfName::parse(&name).map_err(|error| {
        invalid(format!("failed to find original ifname for {ifname:?}: {name:?}: {error}")).details(
            "move it back with `ip link set LINK netns PID`: its alias, which holds the name, was changed",
        )
    })?;
    let socket = &container.socket;
    link::change(socket, &inside, &Change { up: Some(false), ..Change::default() }).explain()?;
    // Renamed in the container, so that programs that watch the host's links never see it under the container's name.
    let renamed = link::change(socket, &inside, &Change { name: Some(&name), ..Change::default() });
    match renamed {
        Err(error) if error.kind() == Kind::Exists => {}
        other => other.explain()?,
    }
    let to_host = |name| Change { netns: Some(&container.host), name: Some(name), ..Change::default() };
    match link::change(socket, &inside, &to_host(&name)) {
        // Another link of the host has its name. The device is moved all the same: it could be lost in the container.
        Err(error) if error.kind() == Kind::Exists => {
            link::change(socket, &inside, &to_host(ANY_NAME)).explain()?;
            return Err(invalid(format!("another link of the host has the name {name:?} of the device"))
                .details("rename or remove that link, then run DEL again: the device is back on the host"));
        }
        other => other.explain()?,
    }
    let outside = link::require(host, &name).explain()?;
    restore_state(host, &outside, &name)
}

/// Restores name and state of a device that returned to the host without a DEL.
///
/// The kernel moves hardware back from a namespace that ends, under its interface name in the container or, if that is taken,
/// under a generated one.
pub(super) fn restore_returned(host: &Socket, device: &Device) -> Result<(), Error> {
    let (found, name) = match device {
        Device::Named(name) => {
            let found = match link::find(host, name).explain()? {
                Some(link) => Some(link).filter(|link| has_mark(link, name)),
                None => {
                    link::list(host).explain()?.into_iter().find(|link| link.alias.as_deref() == Some(name))
                }
            };
            (found, name.clone())
        }
        // A device that was marked but not moved has no alias, or no longer has one.
        other => {
            let found = other.find(host)?;
            let names = found.iter().flat_map(|link| [link.alias.clone(), Some(link.name.clone())]).flatten();
            let name = names.into_iter().find(|name| found.as_ref().is_some_and(|link| has_mark(link, name)));
            (found.filter(|_| name.is_some()), name.unwrap_or_default())
        }
    };
    let Some(found) = found else { return Ok(()) };
    if found.name != name {
        link::change(host, &found, &Change { up: Some(false), ..Change::default() }).explain()?;
        link::change(host, &found, &Change { name: Some(&name), ..Change::default() }).explain()?;
    }
    restore_state(host, &found, &name)
}

/// Removes the marks from a device on the host, and sets it up if it was up.
fn restore_state(host: &Socket, link: &Link, name: &str) -> Result<(), Error> {
    let up = marks(name).iter().any(|(mark, up)| *up && link.other_names.contains(mark));
    let change = Change { alias: Some(""), up: up.then_some(true), ..Change::default() };
    link::change(host, link, &change).explain()?;
    for (mark, _) in marks(name) {
        link::set_other_name(host, link, &mark, false).explain()?;
    }
    Ok(())
}

/// A pattern that the kernel completes to a free name.
const ANY_NAME: &str = "dev%d";
