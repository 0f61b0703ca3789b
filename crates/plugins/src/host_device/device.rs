//! The device itself: which it is, how it goes into a container, and how it comes back whatever happened to that.

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

/// Says which link it is.
#[derive(Debug, Clone)]
pub(super) enum Device {
    /// The one with this name.
    Named(String),
    /// The one with this hardware address.
    WithMac(Mac),
    /// The one in a folder `net` of the device's folder in sysfs.
    At(PathBuf),
}

impl Device {
    /// Finds it among the host's links.
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

    /// Finds it in the container: by the name that it got, or (who is root there can rename it) by what is known of it.
    fn find_inside(&self, container: &ContainerNetns, ifname: &str) -> Result<Option<Link>, Error> {
        let is_it = |link: &Link| match self {
            Self::Named(name) => link.alias.as_deref() == Some(name),
            Self::WithMac(mac) => link.mac == Some(*mac) && has_left(link),
            // Its folder shows in the container's sysfs alone.
            Self::At(_) => has_left(link),
        };
        if let Some(inside) = link::find(&container.socket, ifname).explain()?
            && (is_it(&inside) || inside.alias.is_some())
        {
            return Ok(Some(inside));
        }
        Ok(link::list(&container.socket).explain()?.into_iter().find(is_it))
    }
}

/// A device that was moved has the name of before as its alias, as the reference plugin leaves it.
fn has_left(link: &Link) -> bool {
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

/// Reads which link a device has; a virtual one has it a folder deeper.
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

/// The other names by which a device says that it is away, and how it was: the alias is the reference's, and as it has it.
fn marks(name: &str) -> [(String, bool); 2] {
    [(format!("{name}-was-up"), true), (format!("{name}-was-down"), false)]
}

fn has_mark(link: &Link, name: &str) -> bool {
    marks(name).iter().any(|(mark, _)| link.other_names.contains(mark))
}

/// Moves the device into the container, under its name there, up.
pub(super) fn move_in(
    host: &Socket,
    container: &ContainerNetns,
    device: &Device,
    outside: Link,
    sandbox: &Sandbox,
    undo: &mut Undo,
) -> Result<Link, Error> {
    let ifname = sandbox.ifname.as_str();
    undo.push(format!("bring `{}` back", outside.name), {
        let (host, device, ifname) = (host.clone(), device.clone(), ifname.to_owned());
        let (path, outside) = (container.netns.path().to_owned(), outside.clone());
        move || {
            let container = ContainerNetns::open(&path).explain()?;
            bring_back(&host, Some(&container), &device, &ifname)?;
            // It had not gone yet.
            let Some(there) = link::find(&host, &outside.name).explain()? else { return Ok(()) };
            settle(&host, &there, &outside.name)
        }
    })?;
    for (mark, _) in marks(&outside.name).iter().filter(|(_, up)| *up == outside.up) {
        link::set_other_name(host, &outside, mark, true).explain()?;
    }
    // One message moves, renames and marks it: it is never there without its mark.
    let change = Change {
        netns: Some(&container.netns),
        name: Some(ifname),
        alias: Some(&outside.name),
        ..Change::default()
    };
    link::change(host, &outside, &change).explain()?;
    link::require(&container.socket, ifname).explain()
}

/// Brings the device back to the host, wherever it is.
pub(super) fn bring_back(
    host: &Socket,
    container: Option<&ContainerNetns>,
    device: &Device,
    ifname: &str,
) -> Result<(), Error> {
    let Some(container) = container else { return come_to_rest(host, device) };
    let Some(inside) = device.find_inside(container, ifname)? else { return come_to_rest(host, device) };
    // What stands in the configuration is believed before what the container's root could write.
    let name = match device {
        Device::Named(name) => name.clone(),
        Device::WithMac(_) | Device::At(_) => inside.alias.clone().unwrap_or_default(),
    };
    IfName::parse(&name).map_err(|error| {
        invalid(format!("failed to find original ifname for {ifname:?}: {name:?}: {error}"))
            .details("its alias, which says it, was changed: move it back with `ip link set netns`")
    })?;
    let socket = &container.socket;
    link::change(socket, &inside, &Change { up: Some(false), ..Change::default() }).explain()?;
    // Already here, so that whoever watches the host's links does not see it come under a strange name.
    let renamed = link::change(socket, &inside, &Change { name: Some(&name), ..Change::default() });
    match renamed {
        Err(error) if error.kind() == Kind::Exists => {}
        other => other.explain()?,
    }
    let home = |name| Change { netns: Some(&container.host), name: Some(name), ..Change::default() };
    match link::change(socket, &inside, &home(&name)) {
        // Somebody on the host has its name. It is not left here, where it may be lost.
        Err(error) if error.kind() == Kind::Exists => {
            link::change(socket, &inside, &home(ANY_NAME)).explain()?;
            return Err(invalid(format!("another link of the host has the name {name:?} of the device"))
                .details("rename or remove that link, then run DEL again: the device is back on the host"));
        }
        other => other.explain()?,
    }
    let outside = link::require(host, &name).explain()?;
    settle(host, &outside, &name)
}

/// Returns a device its name back that came to the host without a DEL, as the kernel brings hardware back from a namespace
/// that ends: under the container's name for it, or if that was taken another.
pub(super) fn come_to_rest(host: &Socket, device: &Device) -> Result<(), Error> {
    let (found, name) = match device {
        Device::Named(name) => {
            let found = match link::find(host, name).explain()? {
                Some(there) => Some(there).filter(|link| has_mark(link, name)),
                None => {
                    link::list(host).explain()?.into_iter().find(|link| link.alias.as_deref() == Some(name))
                }
            };
            (found, name.clone())
        }
        // One that was marked and has not left has no alias yet, or no more.
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
    settle(host, &found, &name)
}

/// Takes our marks from a device that is on the host under its name, and sets it up if it was.
fn settle(host: &Socket, link: &Link, name: &str) -> Result<(), Error> {
    let up = marks(name).iter().any(|(mark, up)| *up && link.other_names.contains(mark));
    let change = Change { alias: Some(""), up: up.then_some(true), ..Change::default() };
    link::change(host, link, &change).explain()?;
    for (mark, _) in marks(name) {
        link::set_other_name(host, link, &mark, false).explain()?;
    }
    Ok(())
}

/// The kernel's pattern for a name that is free.
const ANY_NAME: &str = "dev%d";
