//! Between a container's interface and the host's IP layer: host end, bridge port, VLANs, forwarding database, parent link.

use kernel::{
    bridge::{self, FORWARDING},
    link::{Driver, Link, MacvlanMode},
    sysctl::Setting,
};

use super::{
    super::Outcome,
    cause::Cause,
    place::{Place, Side},
};

/// Returns what is wrong with the host's side of an attachment.
pub(crate) fn host_side(host: &Side, place: &Place) -> Outcome<Option<Cause>> {
    if let Some(parent) = &place.parent {
        return Ok((!parent.up || !parent.carrier).then(|| parent_is_off(place, parent)));
    }
    if place.kind() != "veth" {
        return Ok(None);
    }
    let Some(end) = &place.host_end else {
        return Ok(Some(Cause::new(
            format!("the other end of interface `{}` is not in the host's namespace", place.ifname),
            place.add_again(),
        )));
    };
    if !end.up {
        return Ok(Some(end_is_down(place, end)));
    }
    let expected = expected_bridge(host, place);
    match (&place.bridge, expected) {
        (None, Some(name)) => Ok(Some(Cause::new(
            format!("the host end `{}` is no port of bridge `{name}` any more", end.name),
            format!("make it one: `ip link set {} master {name}`", end.name),
        ))),
        (Some(bridge), Some(name)) if bridge.name != name => Ok(Some(Cause::new(
            format!("the host end `{}` is a port of `{}`, and not of bridge `{name}`", end.name, bridge.name),
            format!("move it: `ip link set {} master {name}`", end.name),
        ))),
        (Some(bridge), _) => on_bridge(host, place, end, bridge),
        (None, None) => Ok(None),
    }
}

/// Explains that the other end of a veth pair is down.
pub(super) fn end_is_down(place: &Place, end: &Link) -> Cause {
    Cause::new(
        format!("the host end `{}` of interface `{}` is down", end.name, place.ifname),
        format!("set it up: `ip link set {} up`", end.name),
    )
}

/// Explains that a parent link is down or has no carrier.
pub(super) fn parent_is_off(place: &Place, parent: &Link) -> Cause {
    if parent.up {
        Cause::new(
            format!("the parent link `{}` of interface `{}` has no carrier", parent.name, place.ifname),
            format!("check the cable and the switch port of `{}`, or the link it is on", parent.name),
        )
    } else {
        Cause::new(
            format!("the parent link `{}` of interface `{}` is down", parent.name, place.ifname),
            format!("set it up: `ip link set {} up`", parent.name),
        )
    }
}

/// Returns the name of the bridge that ADD made the host end a port of: the first interface of the host in its result.
fn expected_bridge(host: &Side, place: &Place) -> Option<String> {
    let result = place.result.as_ref()?;
    let configured =
        place.list.iter().flat_map(|list| &list.plugins).filter(|plugin| plugin.kind() == "bridge");
    let mut names = configured.filter_map(|plugin| plugin.object().get("bridge")?.as_str());
    let of_result = result.interfaces.iter().filter(|it| it.sandbox.is_empty());
    let of_result =
        of_result.filter_map(|it| host.named(&it.name)).find(|link| link.kind.as_deref() == Some("bridge"));
    of_result.map(|link| link.name.clone()).or_else(|| names.next().map(str::to_owned))
}

fn on_bridge(host: &Side, place: &Place, end: &Link, bridge: &Link) -> Outcome<Option<Cause>> {
    if bridge.kind.as_deref() != Some("bridge") {
        return Ok(None);
    }
    if !bridge.up {
        return Ok(Some(Cause::new(
            format!("bridge `{}` is down", bridge.name),
            format!("set it up: `ip link set {} up`", bridge.name),
        )));
    }
    let name = &end.name;
    let port = |what: &str, setting: &str| {
        Cause::new(
            format!("bridge port `{name}` {what}"),
            format!("change it: `bridge link set dev {name} {setting}`"),
        )
    };
    if let Some(state) = bridge::port_state(&host.socket, end)? {
        if state.state != FORWARDING {
            let names = ["disabled", "listening", "learning", "forwarding", "blocking"];
            let word = names.get(usize::from(state.state)).copied().unwrap_or("not forwarding");
            let sentence = format!("bridge port `{name}` is in state {word}, and forwards no frames");
            return Ok(Some(Cause::new(
                sentence,
                format!(
                    "wait for the spanning tree protocol, or turn it off: `ip link set {} type bridge stp_state 0`, `bridge link set dev {name} state 3`",
                    bridge.name
                ),
            )));
        }
        let is_known = || -> Outcome<bool> {
            Ok(bridge::entries(&host.socket)?.iter().any(|it| {
                it.fixed
                    && it.link == end.index
                    && place.link.as_ref().is_some_and(|link| link.mac == Some(it.mac))
            }))
        };
        if state.locked && !is_known()? {
            return Ok(Some(port(
                "is locked: it accepts only hardware addresses of static entries",
                "locked off",
            )));
        }
        if !state.broadcast {
            return Ok(Some(port(
                "gets no broadcasts: nobody can resolve the container's address",
                "bcast_flood on",
            )));
        }
        if !state.multicast {
            return Ok(Some(port(
                "gets no multicast: nobody can resolve the container's IPv6 address",
                "mcast_flood on",
            )));
        }
        if !state.learning && !state.unknown && !is_known()? {
            return Ok(Some(port("neither learns nor gets frames to unknown addresses", "learning on")));
        }
    }
    let own = place.link.as_ref().and_then(|link| link.mac);
    let elsewhere = bridge::entries(&host.socket)?
        .into_iter()
        .find(|it| it.fixed && Some(it.mac) == own && it.link != end.index)
        .and_then(|it| Some((it, host.link(it.link).filter(|link| link.master == Some(bridge.index))?)));
    if let Some((entry, wrong)) = elsewhere {
        return Ok(Some(Cause::new(
            format!(
                "a static entry of bridge `{}` sends the container's frames to port `{}` instead of `{name}`",
                bridge.name, wrong.name
            ),
            format!("delete it: `bridge fdb del {} dev {} master`", entry.mac, wrong.name),
        )));
    }
    vlans(host, end, bridge)
}

fn vlans(host: &Side, end: &Link, bridge: &Link) -> Outcome<Option<Cause>> {
    if !bridge::filters_vlans(&host.socket, bridge)? {
        return Ok(None);
    }
    let own = bridge::vlans(&host.socket, end)?;
    let Some(vlan) = own.iter().find(|vlan| vlan.pvid) else {
        return Ok(Some(Cause::new(
            format!(
                "bridge port `{}` has no VLAN for untagged frames, so bridge `{}` drops them",
                end.name, bridge.name
            ),
            format!("add it to its VLAN: `bridge vlan add dev {} vid ID pvid untagged`", end.name),
        )));
    };
    Ok((!vlan.untagged).then(|| {
        Cause::new(
            format!(
                "frames of VLAN {} leave port `{}` with a tag, which the container does not expect",
                vlan.id, end.name
            ),
            format!("remove it: `bridge vlan add dev {} vid {} pvid untagged`", end.name, vlan.id),
        )
    }))
}

/// Returns what separates a container from the host's IP layer although its port is in order.
pub(crate) fn to_host(host: &Side, place: &Place) -> Outcome<Option<Cause>> {
    let (Some(end), Some(bridge)) = (&place.host_end, &place.bridge) else { return Ok(None) };
    if bridge.kind.as_deref() != Some("bridge") || !bridge::filters_vlans(&host.socket, bridge)? {
        return Ok(None);
    }
    let Some(vlan) = bridge::vlans(&host.socket, end)?.into_iter().find(|vlan| vlan.pvid) else {
        return Ok(None);
    };
    let of_bridge = bridge::vlans(&host.socket, bridge)?;
    Ok((!of_bridge.iter().any(|it| it.id == vlan.id)).then(|| {
        Cause::new(
            format!(
                "port `{}` is in VLAN {}, and bridge `{}` itself is not: its frames do not reach the host",
                end.name, vlan.id, bridge.name
            ),
            format!("add the bridge to the VLAN: `bridge vlan add dev {} vid {} self`", bridge.name, vlan.id),
        )
    }))
}

/// Returns what separates two containers that share a bridge or a parent link.
pub(crate) fn between(host: &Side, a: &Place, b: &Place) -> Outcome<Option<Cause>> {
    if let (Some(parent), Some(other)) = (&a.parent, &b.parent) {
        let mode = |place: &Place| match place.link.as_ref().and_then(|link| link.driver) {
            Some(Driver::Macvlan { mode, .. }) => Some(mode),
            _ => None,
        };
        let separate = [mode(a), mode(b)]
            .into_iter()
            .flatten()
            .find(|mode| [MacvlanMode::Private, MacvlanMode::Vepa].contains(mode));
        return Ok(separate.filter(|_| parent.index == other.index).map(|mode| {
            let name = if mode == MacvlanMode::Private { "private" } else { "vepa" };
            Cause::new(
                format!("macvlans of mode {name} on `{}` do not reach each other", parent.name),
                "set `\"mode\": \"bridge\"` in the network's configuration and attach the containers again",
            )
        }));
    }
    let (Some(one), Some(two)) = (&a.host_end, &b.host_end) else { return Ok(None) };
    let (Some(bridge), Some(other)) = (&a.bridge, &b.bridge) else { return Ok(None) };
    if bridge.index != other.index || bridge.kind.as_deref() != Some("bridge") {
        return Ok(None);
    }
    let is_isolated = |end| -> Outcome<bool> {
        Ok(bridge::port_state(&host.socket, end)?.is_some_and(|it| it.port.isolated))
    };
    if is_isolated(one)? && is_isolated(two)? {
        return Ok(Some(Cause::new(
            format!("the ports `{}` and `{}` are isolated from each other", one.name, two.name),
            format!(
                "end the isolation of one: `bridge link set dev {} isolated off`, or remove `portIsolation` from the network",
                two.name
            ),
        )));
    }
    if bridge::filters_vlans(&host.socket, bridge)? {
        let (of_one, of_two) = (bridge::vlans(&host.socket, one)?, bridge::vlans(&host.socket, two)?);
        let pvid = |list: &[bridge::Vlan]| list.iter().find(|vlan| vlan.pvid).map(|vlan| vlan.id);
        if let (Some(id), Some(back)) = (pvid(&of_one), pvid(&of_two))
            && !(of_two.iter().any(|vlan| vlan.id == id && vlan.untagged)
                && of_one.iter().any(|vlan| vlan.id == back && vlan.untagged))
        {
            return Ok(Some(Cause::new(
                format!("port `{}` is in VLAN {id} and port `{}` in VLAN {back}", one.name, two.name),
                "put both containers into the same VLAN, or connect the VLANs with a router",
            )));
        }
    }
    Ok(None)
}

/// Explains that bridged packets meet the rules of iptables, if they do.
pub(crate) fn bridged_rules(host: &Side, v4: bool) -> Option<&'static str> {
    let name = if v4 { "net.bridge.bridge-nf-call-iptables" } else { "net.bridge.bridge-nf-call-ip6tables" };
    let file = if v4 { "bridge/bridge-nf-call-iptables" } else { "bridge/bridge-nf-call-ip6tables" };
    (host.setting(Setting::Net(file)).as_deref() == Some("1")).then_some(name)
}
