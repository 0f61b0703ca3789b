//! The bridge itself: created by the first ADD, joined by the uplink, listed in the result.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use kernel::{
    Kind, Socket, bridge,
    link::{self, Change, Mac, QuickLink},
    sysctl::{self, Setting},
};
use netloom_plugin::{Error, Undo, result::v100::Interface};

use super::conf::Conf;
use crate::{
    error::{Explain, invalid},
    interface,
};

pub(super) fn ensure_bridge(host: &Socket, conf: &Conf, undo: &mut Undo) -> Result<QuickLink, Error> {
    let name = conf.bridge.as_str();
    let there = link::find_quick(host, name).explain()?;
    let mut created = false;
    if there.is_none() {
        // An uplink's address becomes the bridge's.
        let mac = conf.uplink.is_none().then(random_mac);
        let wanted = bridge::New { name, mac, mtu: conf.mtu, vlan_filtering: conf.vlans.is_some() };
        match bridge::create(host, &wanted) {
            Ok(()) => {
                created = true;
                let (socket, name) = (host.clone(), name.to_owned());
                undo.push(format!("remove bridge `{name}`"), move || remove_if_empty(&socket, &name))?;
                sysctl::set(Setting::Ipv6(wanted.name, "accept_ra"), "0").explain()?;
                // Until duplicate address detection of its link-local address ends, after 1 to 2 s, a bridge does not
                // resolve neighbours for forwarded packets. Its address is random, so there is no duplicate.
                if conf.uplink.is_none() {
                    sysctl::set(Setting::Ipv6(wanted.name, "accept_dad"), "0").explain()?;
                }
            }
            Err(error) if error.kind() == Kind::Exists => {}
            Err(error) => return Err(error).explain(),
        }
    }
    let bridge = match there {
        Some(bridge) => bridge,
        None => look(host, name)?,
    };
    require_bridge(Some(&bridge))?;
    if !bridge.up || (conf.promiscuous && !bridge.promiscuous) {
        let promiscuous = conf.promiscuous.then_some(true);
        link::change(host, &bridge, &Change { up: Some(true), promiscuous, ..Change::default() })
            .explain()?;
    }
    if let Some(uplink) = &conf.uplink {
        connect_uplink(host, &bridge, uplink.as_str(), created)?;
    }
    Ok(bridge)
}

/// Creates a link of the host a permanent port of the bridge. A bridge that this ADD created takes the uplink's hardware address;
/// one that existed keeps its own.
fn connect_uplink(host: &Socket, bridge: &QuickLink, name: &str, created: bool) -> Result<(), Error> {
    let uplink = link::require(host, name).explain()?;
    match uplink.master {
        Some(master) if master == bridge.index => Ok(()),
        Some(_) => Err(invalid(format!("`uplinkInterface` {name:?} belongs to another bridge or bond"))
            .details("remove the link from that bridge, or name another link")),
        None => {
            let mac = link::mac(host, &bridge.name).explain()?;
            let change = Change { up: Some(true), master: Some(bridge.index), ..Change::default() };
            link::change(host, &uplink, &change).explain()?;
            if created || mac == Mac([0; 6]) || link::mac(host, &bridge.name).explain()? == mac {
                return Ok(());
            }
            link::change(host, bridge, &Change { mac: Some(mac), ..Change::default() }).explain()
        }
    }
}

/// Returns a random address for a bridge: unicast, locally administered, and lower than that of any container's port.
pub(super) fn random_mac() -> Mac {
    let [a, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
    Mac([a & 0x7c | 0x02, b, c, d, e, f])
}

pub(super) fn require_bridge(there: Option<&QuickLink>) -> Result<(), Error> {
    match there {
        Some(link) if link.driver != "bridge" => {
            Err(invalid(format!("{:?} already exists but is not a bridge", link.name))
                .details("set `bridge` to another name"))
        }
        _ => Ok(()),
    }
}

/// Removes a bridge that this ADD created, unless it has a port by now.
fn remove_if_empty(host: &Socket, name: &str) -> Result<(), Error> {
    let Some(bridge) = link::find(host, name).explain()? else { return Ok(()) };
    let joined = link::list(host).explain()?.iter().any(|link| link.master == Some(bridge.index));
    if joined { Ok(()) } else { link::remove(host, &bridge).explain() }
}

/// Returns a link of the host that must exist.
pub(super) fn look(host: &Socket, name: &str) -> Result<QuickLink, Error> {
    link::find_quick(host, name).explain()?.ok_or_else(|| {
        Error::new(netloom_plugin::Code::Internal, format!("link {name:?} disappeared during the ADD"))
            .details("another program removed it: see which one with `ip monitor link`, then try again")
    })
}

/// Returns a link of the host as the result lists it, once its hardware address is final and it can transmit.
pub(super) fn listed(host: &Socket, link: &QuickLink) -> Result<Interface, Error> {
    let mac = if link::is_running(host, &link.name).explain()? {
        Some(link::mac(host, &link.name).explain()?)
    } else {
        // RTM_GETLINK makes the kernel process a pending carrier event. Until then the link transmits nothing.
        link::require(host, &link.name).explain()?.mac
    };
    Ok(interface::listed(&link.name, mac))
}
