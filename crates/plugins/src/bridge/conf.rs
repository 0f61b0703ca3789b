//! The configuration of `bridge`, as written and validated.

use kernel::{
    bridge::{Port, Vlan},
    link::Mac,
};
use netloom_plugin::{Error, Request};
use netloom_types::name::IfName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, LinkName, OwnDns, mtu, require_masquerade_backend},
    error::invalid,
    runtime_args::{Args, RuntimeMac, requested_mac, require_known_args},
};

/// The configuration as written. Numbers are wider than needed, so that the error for one out of range names its key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Name of the bridge. The plugin creates it if it does not exist
    #[schemars(example = &"br0", extend("default" = DEFAULT_BRIDGE))]
    bridge: Option<String>,
    /// The bridge gets the gateway's address, and the plugin enables forwarding on the host
    is_gateway: bool,
    /// Like `isGateway`, and the container's default route leads to the gateway
    is_default_gateway: bool,
    /// Replace a different address that the bridge has in the gateway's subnet, instead of failing
    force_address: bool,
    /// Masquerade: packets that leave the network get the host's address
    ip_masq: bool,
    /// Accepted for compatibility. Masquerade uses nftables with either name
    #[schemars(extend("enum" = ["nftables", "iptables"]))]
    ip_masq_backend: Option<String>,
    /// MTU of the link, 68 to 65535. 0 is the kernel's default, 1500
    #[schemars(example = 1450)]
    mtu: i64,
    /// Hairpin mode of the port, for a container that connects to itself via a published port
    hairpin_mode: bool,
    /// Promiscuous mode of the bridge. Not with `hairpinMode`
    promisc_mode: bool,
    /// VLAN of the container's untagged frames, 1 to 4094. Enables VLAN filtering on the bridge; the gateway is then a VLAN interface of its own. 0 is no VLAN
    #[schemars(example = 100, range(min = 0, max = 4094))]
    vlan: i64,
    /// VLANs of the tagged frames that the container sends and receives
    #[schemars(example = serde_json::json!([{"id": 42}, {"minID": 100, "maxID": 110}]))]
    vlan_trunk: Option<Vec<Trunk>>,
    /// With `vlan`: the port is also in the bridge's default VLAN 1
    preserve_default_vlan: bool,
    /// Drop frames whose source is not the container's hardware address
    macspoofchk: bool,
    /// Drop packets from other addresses than the container's, and ARP and neighbour discovery messages that claim such addresses. Requires `ipam`
    ipspoofchk: bool,
    /// IPv6 duplicate address detection: ADD waits until the kernel has found the address to be unique
    enabledad: bool,
    /// The container's interface stays down and without addresses. Not with `ipam`
    disable_container_interface: bool,
    /// Isolate the port: containers of this bridge reach the host and other networks, but not each other
    port_isolation: bool,
    /// Host link that becomes a port of the bridge, which connects the containers to its segment
    #[schemars(example = &"eth1")]
    uplink_interface: String,
    ipam: Ipam,
    /// DNS settings of the result. They replace those of the IPAM plugin, even if they are an empty list
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: OwnDns,
    args: Args,
    runtime_config: RuntimeMac,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Trunk {
    /// First VLAN of a range, with `maxID`
    #[schemars(example = 100, range(min = 1, max = 4094))]
    #[serde(rename = "minID", default)]
    min_id: Option<i64>,
    /// Last VLAN of the range
    #[schemars(example = 110, range(min = 1, max = 4094))]
    #[serde(rename = "maxID", default)]
    max_id: Option<i64>,
    /// A single VLAN
    #[schemars(example = 42, range(min = 1, max = 4094))]
    #[serde(default)]
    id: Option<i64>,
}

/// The validated configuration.
#[derive(Debug)]
pub(super) struct Conf {
    pub(super) bridge: IfName,
    pub(super) gateway: bool,
    pub(super) default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) masquerade: bool,
    pub(super) mtu: Option<u32>,
    pub(super) port: Port,
    pub(super) promiscuous: bool,
    /// VLANs of the port, or `None` for a bridge without VLAN filtering.
    pub(super) vlans: Option<Vlans>,
    pub(super) mac_spoof_check: bool,
    pub(super) ip_spoof_check: bool,
    pub(super) detect_duplicates: bool,
    /// Whether the container's interface stays down and without addresses.
    pub(super) leave_down: bool,
    pub(super) uplink: Option<LinkName>,
    /// The IPAM plugin, or `None` for a network without addresses.
    pub(super) ipam: Option<String>,
    pub(super) dns: OwnDns,
    pub(super) mac: Option<Mac>,
}

/// VLANs of the container's port.
#[derive(Debug)]
pub(super) struct Vlans {
    /// VLAN of untagged frames. The gateway's address is on the bridge's interface in this VLAN.
    pub(super) access: Option<u16>,
    pub(super) of_port: Vec<Vlan>,
    pub(super) keep_default: bool,
}

const DEFAULT_BRIDGE: &str = "cni0";

impl Conf {
    /// Reads and validates the configuration.
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let named = |key: &str, name: &str| {
            IfName::parse(name).map_err(|error| {
                invalid(format!("`{key}` {name:?}: {error}"))
                    .details(format!("set `{key}` to the name of a link"))
            })
        };
        let bridge = match written.bridge.as_deref() {
            None => DEFAULT_BRIDGE,
            Some(name) => name,
        };
        if written.hairpin_mode && written.promisc_mode {
            return Err(invalid("cannot set hairpin mode and promiscuous mode at the same time")
                .details("use one of `hairpinMode` and `promiscMode`"));
        }
        let ipam = written.ipam.kind();
        if ipam.is_some() && written.disable_container_interface {
            return Err(invalid("cannot use IPAM when DisableContainerInterface flag is set")
                .details("remove `ipam`, or `disableContainerInterface`"));
        }
        if written.ipspoofchk && ipam.is_none() {
            return Err(invalid("`ipspoofchk` needs `ipam`: without addresses there is nothing to check")
                .details("set `ipam`, or use `macspoofchk` instead"));
        }
        require_masquerade_backend(written.ip_masq_backend.as_deref())?;
        let mtu = mtu(written.mtu)?;
        Ok(Self {
            bridge: named("bridge", bridge)?,
            gateway: written.is_gateway || written.is_default_gateway,
            default_gateway: written.is_default_gateway,
            force_address: written.force_address,
            masquerade: written.ip_masq,
            mtu,
            port: Port { hairpin: written.hairpin_mode, isolated: written.port_isolation },
            promiscuous: written.promisc_mode,
            vlans: vlans(written.vlan, written.vlan_trunk.as_deref(), written.preserve_default_vlan)?,
            mac_spoof_check: written.macspoofchk,
            ip_spoof_check: written.ipspoofchk,
            detect_duplicates: written.enabledad,
            leave_down: written.disable_container_interface,
            uplink: Some(written.uplink_interface)
                .filter(|name| !name.is_empty())
                .map(|name| LinkName::parse("uplinkInterface", &name))
                .transpose()?,
            ipam,
            dns: written.dns,
            mac: requested_mac(
                request,
                &[
                    ("runtimeConfig.mac", &written.runtime_config.mac),
                    ("args.cni.mac", &written.args.cni.mac),
                ],
                "",
            )?,
        })
    }
}

fn vlans(access: i64, trunk: Option<&[Trunk]>, keep_default: bool) -> Result<Option<Vlans>, Error> {
    if !(0..=4094).contains(&access) {
        return Err(invalid(format!("invalid VLAN ID {access} (must be between 0 and 4094)"))
            .details("set `vlan` to such a number, or leave it out"));
    }
    let access = u16::try_from(access).ok().filter(|id| *id != 0);
    if access.is_none() && trunk.is_none() {
        return Ok(None);
    }
    let mut tagged = std::collections::BTreeSet::new();
    for (index, item) in trunk.unwrap_or_default().iter().enumerate() {
        let id = |key: &str, id: i64| match u16::try_from(id) {
            Ok(id @ 1..=4094) => Ok(id),
            _ => Err(invalid(format!("`vlanTrunk[{index}].{key}` {id} must be between 1 and 4094"))
                .details("use the ID of a VLAN")),
        };
        match (item.min_id, item.max_id) {
            (Some(min), Some(max)) => {
                let (min, max) = (id("minID", min)?, id("maxID", max)?);
                if min > max {
                    return Err(invalid(format!("`vlanTrunk[{index}]`: minID is greater than maxID"))
                        .details("swap `minID` and `maxID`"));
                }
                tagged.extend(min..=max);
            }
            (None, None) => {}
            (min, _) => {
                let missing = if min.is_none() { "minID" } else { "maxID" };
                return Err(invalid(format!(
                    "`vlanTrunk[{index}]`: minID and maxID should be configured simultaneously, {missing} is missing"
                ))
                .details(format!("add `{missing}`, or use `id` for a single VLAN")));
            }
        }
        if let Some(single) = item.id {
            tagged.insert(id("id", single)?);
        }
    }
    let mut of_port = Vec::new();
    let untagged = |id| Vlan { id, pvid: true, untagged: true };
    of_port.extend(access.map(untagged));
    of_port.extend(tagged.iter().map(|id| Vlan { id: *id, pvid: false, untagged: false }));
    if access.is_none() && !tagged.is_empty() {
        // Without `vlan` a trunk has its untagged frames in VLAN 1, as before `vlan` became optional.
        of_port.push(untagged(1));
    }
    Ok(Some(Vlans { access, of_port, keep_default }))
}
