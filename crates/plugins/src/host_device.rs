//! `host-device`: a link of the host goes into the container, and comes back under its old name.

use std::path::{Path, PathBuf};

use kernel::{
    Kind, Protocol, Socket,
    link::{self, Change, Link, Mac},
};
use netloom_plugin::{
    Attachment, Error, Plugin, Request, Sandbox, Undo,
    result::{
        Dns,
        v100::{Interface, Success},
    },
};
use netloom_types::name::IfName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    container::{Container, Duplicates},
    failure::{Errors, Explain, invalid},
    owned,
    single::{self, Addressing},
    written::Ipam,
};

/// The plugin.
#[derive(Debug)]
pub struct HostDevice;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// The link by its name; one of the four is required, and the first of them counts
    #[schemars(example = &"eth1")]
    device: String,
    /// The link by its hardware address
    #[schemars(example = &"c2:11:22:33:44:55")]
    hwaddr: String,
    /// The link by the path of its device in sysfs
    #[schemars(example = &"/sys/devices/pci0000:00/0000:00:1f.6")]
    kernelpath: String,
    /// The link by the PCI address of its device; one that a program drives (`vfio-pci`) is named in the result, and not touched
    #[schemars(example = &"0000:00:1f.6")]
    #[serde(rename = "pciBusID")]
    pci_bus_id: String,
    /// IPv6 duplicate address detection: the ADD waits for the full second that an answer may take. Without it, a hundredth
    enabledad: bool,
    ipam: Ipam,
    /// What the result says of DNS, where the IPAM plugin says nothing
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
    runtime_config: RuntimeDevice,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct RuntimeDevice {
    /// Capability `deviceID`: the device that a device plugin chose, by its PCI or auxiliary address; it counts more than `pciBusID`
    #[schemars(example = &"0000:04:00.5")]
    #[serde(rename = "deviceID")]
    device_id: String,
}

/// Says which link it is.
#[derive(Debug, Clone)]
enum Device {
    Named(String),
    WithMac(Mac),
    /// The one in a folder `net` of the device's folder in sysfs.
    At(PathBuf),
}

/// The configuration as meant.
struct Conf {
    device: Device,
    /// A program drives the device (DPDK), so there is no link to move.
    without_link: bool,
    addressing: Addressing,
}

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
/// Drivers that hand a PCI device to programs.
const USER_SPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

impl Conf {
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let (mut pci, mut auxiliary) = (written.pci_bus_id.as_str(), "");
        let asked = written.runtime_config.device_id.as_str();
        if !asked.is_empty() {
            let is_on = |bus: &str| Ok::<_, Error>(below(bus, "runtimeConfig.deviceID", asked)?.exists());
            (pci, auxiliary) = match (is_on(PCI)?, is_on(AUXILIARY)?) {
                (true, _) => (asked, ""),
                (_, true) => ("", asked),
                _ => {
                    return Err(invalid(format!(
                        "runtime config DeviceID {asked} not found or unsupported in `runtimeConfig.deviceID`"
                    )));
                }
            };
        }
        let device = if !written.device.is_empty() {
            let name = IfName::parse(&written.device);
            let name = name.map_err(|error| invalid(format!("`device` {:?}: {error}", written.device)))?;
            Device::Named(name.as_str().to_owned())
        } else if !written.hwaddr.is_empty() {
            let mac = written.hwaddr.parse();
            Device::WithMac(mac.map_err(|error| invalid(format!("`hwaddr` {:?}: {error}", written.hwaddr)))?)
        } else if !written.kernelpath.is_empty() {
            let path = Path::new(&written.kernelpath);
            let is_plain = path.components().all(|part| part != std::path::Component::ParentDir);
            if !path.starts_with("/sys/devices") || !is_plain {
                return Err(invalid(format!(
                    "`kernelpath` {:?} must be absolute and begin with /sys/devices/",
                    written.kernelpath
                )));
            }
            Device::At(path.to_owned())
        } else if !pci.is_empty() {
            Device::At(below(PCI, "pciBusID", pci)?)
        } else if !auxiliary.is_empty() {
            Device::At(below(AUXILIARY, "runtimeConfig.deviceID", auxiliary)?)
        } else {
            return Err(invalid("specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\""));
        };
        let driver = |pci: &str| std::fs::canonicalize(Path::new(PCI).join(pci).join("driver")).ok();
        let driver = Some(pci).filter(|pci| !pci.is_empty()).and_then(driver);
        let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        Ok(Self {
            device,
            without_link: driver.is_some_and(|driver| USER_SPACE_DRIVERS.contains(&driver)),
            addressing: Addressing {
                ipam: written.ipam.kind(),
                dns: written.dns,
                duplicates: Duplicates::of(written.enabledad),
                announce: true,
            },
        })
    }
}

/// Names the folder of a device on a bus; the name leads nowhere else.
fn below(bus: &str, key: &str, name: &str) -> Result<PathBuf, Error> {
    if name.contains('/') || name.starts_with('.') {
        return Err(invalid(format!("`{key}` {name:?} is no name of a device")));
    }
    Ok(Path::new(bus).join(name))
}

impl Plugin for HostDevice {
    fn name(&self) -> &'static str {
        "host-device"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        let container = Container::open(sandbox.require_netns()?).explain()?;
        if conf.without_link {
            let interface = Interface {
                name: sandbox.ifname.as_str().to_owned(),
                sandbox: sandbox.netns_text(),
                ..Interface::default()
            };
            let mut result = match &conf.addressing.ipam {
                Some(ipam) => single::addresses_of(request, ipam, sandbox, undo)?,
                None => Success::default(),
            };
            result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
            result.interfaces = vec![interface];
            return Ok(result);
        }
        single::require_free(&container, sandbox)?;
        let host = Socket::open(Protocol::Route).explain()?;
        // It may be back from a container that nobody deleted.
        come_to_rest(&host, &conf.device)?;
        let outside = conf.device.find(&host)?;
        let outside = outside.ok_or_else(|| {
            invalid(format!("failed to find host device: there is no {}", conf.device))
                .details("`ip link` lists what there is; it may be in another container")
        })?;
        let inside = move_in(&host, &container, &conf.device, outside, sandbox, undo)?;
        single::configure(request, sandbox, undo, &container, &inside, &conf.addressing)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        owned::remove_link_and_addresses(request, sandbox, || {
            let conf = Conf::of(request)?;
            if conf.without_link {
                return Ok(());
            }
            let host = Socket::open(Protocol::Route).explain()?;
            let container = Container::open_if_there(sandbox.netns.as_deref())?;
            bring_back(&host, container.as_ref(), &conf.device, sandbox.ifname.as_str())
        })
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let ipam = conf.addressing.ipam.as_deref();
        if conf.without_link {
            request.require_prev_result()?;
            return ipam.map_or(Ok(()), |ipam| request.delegate_check(ipam, sandbox));
        }
        single::check(request, sandbox, ipam, None).map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        single::status(request, Conf::of(request)?.addressing.ipam.as_deref())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let mut errors = Errors::default();
        errors.note(single::gc(request, valid));
        let conf = Conf::of(request)?;
        let host = Socket::open(Protocol::Route).explain()?;
        errors.note(come_to_rest(&host, &conf.device));
        errors.into_result()
    }
}

impl Device {
    /// Finds it among the host's links.
    fn find(&self, host: &Socket) -> Result<Option<Link>, Error> {
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
    fn find_inside(&self, container: &Container, ifname: &str) -> Result<Option<Link>, Error> {
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
fn move_in(
    host: &Socket,
    container: &Container,
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
            let container = Container::open(&path).explain()?;
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
fn bring_back(
    host: &Socket,
    container: Option<&Container>,
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

/// Gives a device its name back that came to the host without a DEL, as the kernel brings hardware back from a namespace
/// that ends: under the container's name for it, or if that was taken another.
fn come_to_rest(host: &Socket, device: &Device) -> Result<(), Error> {
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
