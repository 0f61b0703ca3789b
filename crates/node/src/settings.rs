//! The host's settings in `/proc/sys/net` that the daemon needs, and who else changes them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use kernel::sysctl::{self, Setting};

use crate::{
    config::Underlay,
    desired::{Desired, Device, Kind, Uplinks},
};

/// The number of times within [`PERIOD`] that a setting is restored. After that, another program wants it otherwise.
const TIMES: usize = 3;
/// The time after which a restored setting is forgotten.
const PERIOD: Duration = Duration::from_mins(1);

/// The settings that this daemon has set, each with the times at which it was restored.
#[derive(Debug, Default)]
pub(crate) struct Settings(BTreeMap<PathBuf, Vec<Instant>>);

impl Settings {
    /// Brings the settings of the host and of the devices that exist to the desired state. Returns the number of changed ones, and the
    /// problems.
    pub(crate) fn keep(
        &mut self,
        desired: &Desired,
        exists: impl Fn(&str) -> bool,
        uplinks: &Uplinks,
    ) -> (usize, Vec<String>) {
        let (mut changes, mut problems) = (0, Vec::new());
        let existing = desired.devices.iter().filter(|device| exists(device.name));
        let of_devices = existing.flat_map(of_device);
        let wanted =
            of_devices.map(Ok).chain(forwarding(desired, uplinks)).chain(loose_filter(desired, uplinks));
        for setting in wanted {
            match setting
                .map_err(|error| error.to_string())
                .and_then(|(setting, value)| self.ensure(setting, value))
            {
                Ok(changed) => changes += usize::from(changed),
                Err(problem) => problems.push(problem),
            }
        }
        (changes, problems)
    }

    /// Sets a setting. Returns whether it had another value.
    fn ensure(&mut self, setting: Setting<'_>, value: &str) -> Result<bool, String> {
        let path = setting.path();
        let is_first = !self.0.contains_key(&path);
        let restored = self.0.entry(path.clone()).or_default();
        restored.retain(|at| at.elapsed() < PERIOD);
        if restored.len() >= TIMES {
            let current = sysctl::read(setting).map_err(|error| error.to_string())?;
            return match current.filter(|current| current != value) {
                None => Ok(false),
                Some(current) => Err(format!(
                    "another program keeps setting {} to {current}, which must be {value}: look in /etc/sysctl.d, and for tuned, \
                     NetworkManager and security agents",
                    path.display()
                )),
            };
        }
        let changed = sysctl::ensure(setting, value).map_err(|error| error.to_string())?;
        if changed && !is_first {
            restored.push(Instant::now());
        }
        Ok(changed)
    }
}

/// Returns the settings of a device. They are written before a new one is set up, and kept.
pub(crate) fn of_device(device: &Device) -> Vec<(Setting<'_>, &'static str)> {
    let name = device.name;
    let mut settings =
        vec![(Setting::Ipv6(name, "disable_ipv6"), "0"), (Setting::Ipv6(name, "accept_ra"), "0")];
    settings.extend(match device.kind {
        // Replies to pods' packets may take another path, so the reverse-path filter is loose. No other host is on the link that
        // could have the same address, so duplicate detection is off.
        Kind::Tunnel { .. } => {
            vec![(Setting::Ipv4(name, "rp_filter"), "2"), (Setting::Ipv6(name, "accept_dad"), "0")]
        }
        // There are no neighbours, so the device needs no link-local address.
        Kind::Gpe { .. } => {
            vec![(Setting::Ipv4(name, "rp_filter"), "2"), (Setting::Ipv6(name, "addr_gen_mode"), "1")]
        }
        // The device answers ARP for the host's addresses only to this host's pods, to which its routes lead (`arp_filter`); others
        // get answers from the uplink. A macvlan's link-local address is derived from its hardware address, whatever the host's
        // default; an ipvlan has a configured one, and sends ARP requests from its own address, because it does not receive
        // replies to the host's.
        Kind::Beside { underlay, .. } => {
            let (announce, generated) = match underlay {
                Underlay::Macvlan => ("0", "0"),
                Underlay::Ipvlan => ("2", "1"),
            };
            vec![
                (Setting::Ipv4(name, "arp_filter"), "1"),
                (Setting::Ipv4(name, "arp_announce"), announce),
                (Setting::Ipv6(name, "addr_gen_mode"), generated),
                (Setting::Ipv6(name, "accept_dad"), "0"),
            ]
        }
    });
    settings
}

/// A setting and the value that it must have.
type Wanted<'a> = kernel::Result<(Setting<'a>, &'static str)>;

/// Returns the settings that enable forwarding, while keeping a default route from router advertisements.
fn forwarding<'a>(desired: &Desired, uplinks: &'a Uplinks) -> Vec<Wanted<'a>> {
    let has = |v4: bool| {
        desired.ruleset.iter().flat_map(|ruleset| &ruleset.pods).any(|net| net.addr().is_ipv4() == v4)
    };
    let mut wanted = Vec::new();
    if has(true) {
        wanted.push(Ok((Setting::Ipv4Forward, "1")));
    }
    if has(false) {
        if let Some(uplink) = &uplinks.v6 {
            let accept = Setting::Ipv6(&uplink.name, "accept_ra");
            match sysctl::read(accept) {
                Ok(Some(value)) if ["1", "2"].contains(&value.as_str()) => wanted.push(Ok((accept, "2"))),
                Ok(_) => {}
                Err(error) => wanted.push(Err(error)),
            }
        }
        wanted.push(Ok((Setting::Ipv6Forward, "1")));
    }
    wanted
}

/// Returns the setting that makes the uplink's strict reverse-path filter loose (`rp_filter`, RFC 3704) if the host's pods are ipvlans:
/// their packets to the host arrive on the uplink, but the route back is via another link.
fn loose_filter<'a>(desired: &Desired, uplinks: &'a Uplinks) -> Option<Wanted<'a>> {
    let is_ipvlan = |device: &Device| matches!(device.kind, Kind::Beside { underlay: Underlay::Ipvlan, .. });
    let uplink = uplinks.v4.as_ref().filter(|_| desired.devices.iter().any(is_ipvlan))?;
    // The kernel applies the greater of the two: 0 is no filter, 1 a strict one, 2 a loose one.
    let of = |link| sysctl::read(Setting::Ipv4(link, "rp_filter"));
    match of("all").and_then(|all| Ok(all.max(of(&uplink.name)?))) {
        Ok(greater) if greater.as_deref() == Some("1") => {
            Some(Ok((Setting::Ipv4(&uplink.name, "rp_filter"), "2")))
        }
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    }
}
