//! Ports of the bridge: the host end of a container's veth pair joins it and forwards.

use std::time::Duration;

use kernel::{
    Socket,
    bridge::{self, Side},
    events::Events,
    link::{self, Change, Handle, Link, Mac, Named, QuickLink},
    sysctl::{self, Setting},
};
use netloom_plugin::{Error, Undo};

use super::{
    conf::{Conf, Vlans},
    device,
};
use crate::{error::Explain, owner::Owner, veth};

/// Time limit for a new bridge port to reach the forwarding state, which takes well under a millisecond.
const PORT_LIMIT: Duration = Duration::from_secs(5);

/// Makes the host end a port of the bridge.
pub(super) fn connect(
    host: &Socket,
    mut bridge: QuickLink,
    outside: &Handle,
    conf: &Conf,
    owner: &Owner<'_>,
    undo: &mut Undo,
) -> Result<QuickLink, Error> {
    const ATTEMPTS: u32 = 4;
    let mark = owner.mark();
    for attempt in 0.. {
        let change = Change { master: Some(bridge.index), ..veth::up_and_marked(&mark) };
        let joined =
            link::mac(host, &bridge.name).and_then(|mac| link::change(host, outside, &change).map(|()| mac));
        let error = match joined {
            Ok(before) => {
                keep_mac(host, &bridge, before)?;
                break;
            }
            Err(error) => error,
        };
        // Another ADD created the bridge, failed and removed it; a third one may have created the next.
        let there = link::find_quick(host, &bridge.name).explain()?;
        if attempt == ATTEMPTS || there.is_some_and(|there| there.index == bridge.index) {
            return Err(error).explain();
        }
        bridge = device::ensure_bridge(host, conf, undo)?;
    }
    sysctl::set(Setting::Ipv6(&outside.name, "accept_ra"), "0").explain()?;
    if conf.port.hairpin || conf.port.isolated {
        bridge::set_port(host, outside, conf.port).explain()?;
    }
    if let Some(vlans) = &conf.vlans {
        set_vlans(host, outside, vlans)?;
    }
    Ok(bridge)
}

/// Restores the hardware address that a bridge had before a port joined.
///
/// A bridge whose address was not set takes the lowest one of its ports. Ports of containers have higher addresses than any
/// other link, so only a bridge without other ports loses the address that it had before.
fn keep_mac(host: &Socket, bridge: &QuickLink, before: Mac) -> Result<(), Error> {
    let now = link::mac(host, &bridge.name).explain()?;
    if !Owner::is_port_mac(now) || now == before {
        return Ok(());
    }
    // With two ADDs at once the second one reads the first one's port address, which is not the bridge's own.
    let is_port = |link: &Link| link.mac == Some(before) && link.index != bridge.index;
    if Owner::is_port_mac(before) && link::list(host).explain()?.iter().any(is_port) {
        return Ok(());
    }
    // The kernel clears the address of a bridge that loses its last port before its address was set.
    let mac = if before == Mac([0; 6]) { device::random_mac() } else { before };
    link::change(host, bridge, &Change { mac: Some(mac), ..Change::default() }).explain()
}

pub(super) fn set_vlans(host: &Socket, port: &dyn Named, vlans: &Vlans) -> Result<(), Error> {
    if !vlans.of_port.is_empty() && !vlans.keep_default {
        let there = bridge::vlans(host, port).explain()?;
        bridge::remove_vlans(host, port, Side::Port, &there).explain()?;
    }
    bridge::add_vlans(host, port, Side::Port, &vlans.of_port).explain()
}

/// Waits until the port forwards, which it usually does by now.
pub(super) fn wait_until_operational(host: &Socket, port: &Handle) -> Result<(), Error> {
    let is_up = || link::find_index(host, port.index).map(|link| link.is_some_and(|l| l.is_operational()));
    if is_up().explain()? {
        return Ok(());
    }
    // The socket is open before the next look, so no event is missed.
    let events = Events::of_links().explain()?;
    let deadline = std::time::Instant::now() + PORT_LIMIT;
    while !is_up().explain()? {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        events
            .wait_for_link(left, &format!("`{}` to come up", port.name), |link| {
                link.index == port.index && link.is_operational()
            })
            .explain()?;
    }
    Ok(())
}
