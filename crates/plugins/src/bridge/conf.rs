//! The configuration of `bridge`: as written, and as meant.

use kernel::{
    bridge::{Port, Vlan},
    link::Mac,
};
use netloom_plugin::{Error, Request, result::Dns};
use netloom_types::name::IfName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    common_config::{Ipam, mtu, require_masquerade_backend},
    error::invalid,
    runtime_args::{Args, RuntimeMac, requested_mac, require_known_args},
};

/// The configuration as written. Numbers are wide, so that what does not fit is refused by name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Written {
    /// Name of the bridge; it is made if it is not there
    #[schemars(example = &"br0", extend("default" = DEFAULT_BRIDGE))]
    bridge: Option<String>,
    /// The bridge gets the gateway's address, and the host forwards
    is_gateway: bool,
    /// The same, and the container's default route leads there
    is_default_gateway: bool,
    /// An address that the bridge has of another gateway in the same subnet is replaced, not an error
    force_address: bool,
    /// What leaves the network gets the host's address (masquerade)
    ip_masq: bool,
    /// Either name is taken; rules are nftables' either way
    #[schemars(extend("enum" = ["nftables", "iptables"]))]
    ip_masq_backend: Option<String>,
    /// MTU of the link, 68 to 65535; 0 is the kernel's 1500
    #[schemars(example = 1450)]
    mtu: i64,
    /// The port sends frames back to where they came from, for a container that calls itself by a published port
    hairpin_mode: bool,
    /// The bridge itself takes every frame; not with `hairpinMode`
    promisc_mode: bool,
    /// VLAN of the container's untagged frames, 1 to 4094; 0 is none. The bridge tells VLANs apart, and the gateway is on a port of its own
    #[schemars(example = 100, range(min = 0, max = 4094))]
    vlan: i64,
    /// VLANs whose tagged frames the container sends and receives
    #[schemars(example = serde_json::json!([{"id": 42}, {"minID": 100, "maxID": 110}]))]
    vlan_trunk: Option<Vec<Trunk>>,
    /// With `vlan`: the port stays in the bridge's own VLAN 1 too
    preserve_default_vlan: bool,
    /// Frames whose sender is not the container's hardware address are dropped
    macspoofchk: bool,
    /// Packets, and claims in ARP and neighbour discovery, of other addresses than the container's are dropped; needs `ipam`
    ipspoofchk: bool,
    /// IPv6 duplicate address detection: the ADD waits until the kernel has found the address to be unique
    enabledad: bool,
    /// The container's end stays down, without addresses; not with `ipam`
    disable_container_interface: bool,
    /// Containers of this bridge do not reach each other, only the host and beyond
    port_isolation: bool,
    /// A link of the host that becomes a port of the bridge, so that containers are on its segment
    #[schemars(example = &"eth1")]
    uplink_interface: String,
    ipam: Ipam,
    /// What the result says of DNS, where the IPAM plugin says nothing
    #[schemars(example = serde_json::json!({"nameservers": ["10.1.0.1"]}))]
    dns: Dns,
    args: Args,
    runtime_config: RuntimeMac,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Trunk {
    /// First of several, with `maxID`
    #[schemars(example = 100, range(min = 1, max = 4094))]
    #[serde(rename = "minID", default)]
    min_id: Option<i64>,
    /// Last of several
    #[schemars(example = 110, range(min = 1, max = 4094))]
    #[serde(rename = "maxID", default)]
    max_id: Option<i64>,
    /// One
    #[schemars(example = 42, range(min = 1, max = 4094))]
    #[serde(default)]
    id: Option<i64>,
}

/// The configuration as meant.
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
    /// The VLANs of the port; none when the bridge does not tell VLANs apart.
    pub(super) vlans: Option<Vlans>,
    pub(super) mac_spoof_check: bool,
    pub(super) ip_spoof_check: bool,
    pub(super) detect_duplicates: bool,
    /// The container's end stays down, without addresses.
    pub(super) leave_down: bool,
    pub(super) uplink: Option<IfName>,
    /// The IPAM plugin; none for a network without addresses.
    pub(super) ipam: Option<String>,
    pub(super) dns: Dns,
    pub(super) mac: Option<Mac>,
}

#[derive(Debug)]
pub(super) struct Vlans {
    /// The VLAN of untagged frames, on whose interface the gateway is too.
    pub(super) access: Option<u16>,
    pub(super) of_port: Vec<Vlan>,
    pub(super) keep_default: bool,
}

const DEFAULT_BRIDGE: &str = "cni0";

impl Conf {
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let written: Written = request.read()?;
        require_known_args(request)?;
        let named = |key: &str, name: &str| {
            IfName::parse(name).map_err(|error| invalid(format!("`{key}` {name:?}: {error}")))
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
            return Err(invalid("`ipspoofchk` without `ipam`: there are no addresses to go by")
                .details("set `ipam`, or leave `ipspoofchk` out; `macspoofchk` needs no addresses"));
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
                .map(|name| named("uplinkInterface", &name))
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
        return Err(invalid(format!("invalid VLAN ID {access} (must be between 0 and 4094)")));
    }
    let access = u16::try_from(access).ok().filter(|id| *id != 0);
    if access.is_none() && trunk.is_none() {
        return Ok(None);
    }
    let mut tagged = std::collections::BTreeSet::new();
    for (index, item) in trunk.unwrap_or_default().iter().enumerate() {
        let id = |key: &str, id: i64| match u16::try_from(id) {
            Ok(id @ 1..=4094) => Ok(id),
            _ => Err(invalid(format!("`vlanTrunk[{index}].{key}` {id} must be between 1 and 4094"))),
        };
        match (item.min_id, item.max_id) {
            (Some(min), Some(max)) => {
                let (min, max) = (id("minID", min)?, id("maxID", max)?);
                if min > max {
                    return Err(invalid(format!("`vlanTrunk[{index}]`: minID is greater than maxID")));
                }
                tagged.extend(min..=max);
            }
            (None, None) => {}
            (min, _) => {
                let missing = if min.is_none() { "minID" } else { "maxID" };
                return Err(invalid(format!(
                    "`vlanTrunk[{index}]`: minID and maxID should be configured simultaneously, {missing} is missing"
                )));
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
        // A trunk without `vlan` carries its untagged frames in VLAN 1, as it did before `vlan` could be left out.
        of_port.push(untagged(1));
    }
    Ok(Some(Vlans { access, of_port, keep_default }))
}
