//! `host-device`: moves a link of the host into the container, and back under its old name.

mod device;

use std::path::{Path, PathBuf};

use kernel::{Protocol, Socket};
use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, Undo,
    result::v100::{Interface, Success},
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleanup,
    common_config::{Ipam, LinkName, OwnDns},
    container_link::{self, Addressing},
    container_netns::ContainerNetns,
    error::{Errors, Explain, invalid},
};

use device::{Device, move_to_container, move_to_host, restore_returned};

/// The plugin.
#[derive(Debug)]
pub struct HostDevice;

/// The configuration as written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Name of the link. One of `device`, `hwaddr`, `kernelpath` and `pciBusID` is required; the first that is set, in this order, is used
    #[schemars(example = &"eth1")]
    device: String,
    /// Hardware address of the link
    #[schemars(example = &"c2:11:22:33:44:55")]
    hwaddr: String,
    /// Path of the link's device in sysfs
    #[schemars(example = &"/sys/devices/pci0000:00/0000:00:1f.6")]
    kernelpath: String,
    /// PCI address of the link's device. A device with a user-space driver such as `vfio-pci` has no link: it is listed in the result and not moved
    #[schemars(example = &"0000:00:1f.6")]
    #[serde(rename = "pciBusID")]
    pci_bus_id: String,
    /// IPv6 duplicate address detection waits a full second for an answer. Without it, a hundredth of a second
    enabledad: bool,
    ipam: Ipam,
    /// DNS settings of the result. They replace those of the IPAM plugin, even if they are an empty list
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: OwnDns,
    // A key of the reference plugin 1.10.0.
    #[schemars(skip)]
    use_interface_network: bool,
    runtime_config: RuntimeDevice,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct RuntimeDevice {
    /// Capability `deviceID`: PCI or auxiliary-bus address of the device that a device plugin allocated. It takes precedence over `pciBusID`
    #[schemars(example = &"0000:04:00.5")]
    #[serde(rename = "deviceID")]
    device_id: String,
}

/// The validated configuration.
struct Conf {
    device: Device,
    /// Whether the device has a user-space driver (DPDK), so that there is no link to move.
    without_link: bool,
    /// Whether the container shall get the device's addresses and routes of the host.
    use_interface_network: bool,
    addressing: Addressing,
}

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
/// Kernel drivers that make a PCI device available to user space.
const USER_SPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

impl Conf {
    /// Reads and validates the configuration.
    fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        let (mut pci, mut auxiliary) = (written.pci_bus_id.as_str(), "");
        let requested = written.runtime_config.device_id.as_str();
        if !requested.is_empty() {
            let is_on =
                |bus: &str| Ok::<_, Error>(device_dir(bus, "runtimeConfig.deviceID", requested)?.exists());
            (pci, auxiliary) = match (is_on(PCI)?, is_on(AUXILIARY)?) {
                (true, _) => (requested, ""),
                (_, true) => ("", requested),
                _ => {
                    return Err(invalid(format!(
                        "runtime config DeviceID {requested} not found or unsupported in `runtimeConfig.deviceID`"
                    ))
                    .details("pass the address of a device in /sys/bus/pci/devices or /sys/bus/auxiliary/devices"));
                }
            };
        }
        let device = if !written.device.is_empty() {
            let name = LinkName::parse("device", &written.device)?;
            Device::Named(name.as_str().to_owned())
        } else if !written.hwaddr.is_empty() {
            let mac = written.hwaddr.parse();
            Device::WithMac(mac.map_err(|error| {
                invalid(format!("`hwaddr` {:?}: {error}", written.hwaddr))
                    .details("write it as c2:11:22:33:44:55")
            })?)
        } else if !written.kernelpath.is_empty() {
            let path = Path::new(&written.kernelpath);
            let is_plain = path.components().all(|part| part != std::path::Component::ParentDir);
            if !path.starts_with("/sys/devices") || !is_plain {
                return Err(invalid(format!(
                    "`kernelpath` {:?} must be absolute and begin with /sys/devices/",
                    written.kernelpath
                ))
                .details("use the path that `readlink -f /sys/class/net/LINK/device` prints"));
            }
            Device::At(path.to_owned())
        } else if !pci.is_empty() {
            Device::At(device_dir(PCI, "pciBusID", pci)?)
        } else if !auxiliary.is_empty() {
            Device::At(device_dir(AUXILIARY, "runtimeConfig.deviceID", auxiliary)?)
        } else {
            return Err(invalid("specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\"")
                .details("set one of these keys, for example `device` to a name that `ip link` lists"));
        };
        let driver = |pci: &str| std::fs::canonicalize(Path::new(PCI).join(pci).join("driver")).ok();
        let driver = Some(pci).filter(|pci| !pci.is_empty()).and_then(driver);
        let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        Ok(Self {
            device,
            without_link: driver.is_some_and(|driver| USER_SPACE_DRIVERS.contains(&driver)),
            use_interface_network: written.use_interface_network,
            addressing: Addressing::on_segment(written.ipam.kind(), written.dns, written.enabledad),
        })
    }
}

/// Returns the sysfs folder of a device on a bus. Fails if the name would lead to another folder.
fn device_dir(bus: &str, key: &str, name: &str) -> Result<PathBuf, Error> {
    if name.contains('/') || name.starts_with('.') {
        return Err(invalid(format!("`{key}` {name:?} is not a device address"))
            .details("write it as in /sys/bus/pci/devices, for example 0000:00:1f.6"));
    }
    Ok(Path::new(bus).join(name))
}

impl Plugin for HostDevice {
    fn name(&self) -> &'static str {
        "host-device"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf = Conf::of(request)?;
        if conf.use_interface_network {
            // Without it the interface would have no addresses, and ADD would succeed.
            return Err(Error::new(Code::UnsupportedField, "`useInterfaceNetwork` is not supported")
                .details("set `ipam`, for example to `static` with the addresses and routes of the device"));
        }
        let container = ContainerNetns::open(sandbox.require_netns()?).explain()?;
        if conf.without_link {
            let interface = Interface {
                name: sandbox.ifname.as_str().to_owned(),
                sandbox: sandbox.netns_text(),
                ..Interface::default()
            };
            let mut result = match &conf.addressing.ipam {
                Some(ipam) => container_link::addresses_of(request, ipam, sandbox, undo)?,
                None => Success::default(),
            };
            result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
            result.interfaces = vec![interface];
            conf.addressing.dns.replace_in(&mut result);
            return Ok(result);
        }
        container_link::require_free(&container, sandbox)?;
        let host = Socket::open(Protocol::Route).explain()?;
        // The device may have returned from a namespace that ended without a DEL.
        restore_returned(&host, &conf.device)?;
        let outside = conf.device.find(&host)?;
        let outside = outside.ok_or_else(|| {
            invalid(format!("failed to find host device: there is no {}", conf.device)).details(
                "set it to a link of the host; `ip link` lists them. Another container may have the device",
            )
        })?;
        let inside = move_to_container(&host, &container, &conf.device, outside, sandbox, undo)?;
        container_link::configure(request, sandbox, undo, &container, &inside, &conf.addressing)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        cleanup::remove_link_and_addresses(request, sandbox, || {
            let conf = Conf::of(request)?;
            if conf.without_link {
                return Ok(());
            }
            let host = Socket::open(Protocol::Route).explain()?;
            let container = ContainerNetns::open_if_exists(sandbox.netns.as_deref())?;
            move_to_host(&host, container.as_ref(), &conf.device, sandbox.ifname.as_str())
        })
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let ipam = conf.addressing.ipam.as_deref();
        if conf.without_link {
            request.require_prev_result()?;
            return ipam.map_or(Ok(()), |ipam| request.delegate_check(ipam, sandbox));
        }
        container_link::check(request, sandbox, ipam, None).map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        container_link::status(request, Conf::of(request)?.addressing.ipam.as_deref())
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let mut errors = Errors::default();
        errors.note(container_link::gc(request, valid));
        let conf = Conf::of(request)?;
        let host = Socket::open(Protocol::Route).explain()?;
        errors.note(restore_returned(&host, &conf.device));
        errors.into_result()
    }
}
