//! The types of plugins that are known, and names that are almost one.

/// Plugins that create the container's interface.
pub(crate) const INTERFACE: [&str; 8] =
    ["bridge", "ptp", "macvlan", "ipvlan", "vlan", "dummy", "tap", "host-device"];

/// Plugins that change what an earlier plugin returned.
pub(crate) const CHAINED: [&str; 6] = ["portmap", "firewall", "tuning", "bandwidth", "sbr", "vrf"];

/// Plugins that assign addresses.
pub(crate) const IPAM: [&str; 3] = ["host-local", "static", "dhcp"];

/// Plugins of other projects. Names like these are no misspelling of another plugin.
const FOREIGN: [&str; 46] = [
    "accelerated-bridge",
    "antrea",
    "aws-cni",
    "azure-vnet",
    "azure-vnet-ipam",
    "bond",
    "calico",
    "calico-ipam",
    "cilium-cni",
    "cnv-bridge",
    "cnv-tuning",
    "consul-cni",
    "coordinator",
    "danm",
    "debug",
    "dnsname",
    "egress-cni",
    "flannel",
    "galaxy",
    "genie",
    "ib-sriov",
    "istio-cni",
    "kindnet",
    "kube-ovn",
    "linkerd-cni",
    "macvtap",
    "multus",
    "multus-shim",
    "nat",
    "noop",
    "openshift-sdn",
    "ovn-k8s-cni-overlay",
    "ovs",
    "rdma",
    "route-override",
    "sdnoverlay",
    "spiderpool",
    "sriov",
    "tc-redirect-tap",
    "terway",
    "userspace",
    "weave-ipam",
    "weave-net",
    "whereabouts",
    "win-bridge",
    "win-overlay",
];

/// Returns whether the keys of a plugin are known.
pub(crate) fn is_known(kind: &str) -> bool {
    kind == "loopback" || [&INTERFACE[..], &CHAINED, &IPAM].iter().any(|kinds| kinds.contains(&kind))
}

/// Finds the known plugin that an unknown type was probably meant to be.
pub(crate) fn meant(kind: &str) -> Option<&'static str> {
    // Short names are near to many, such as `vxlan` to `vlan`.
    if kind.len() < 6
        || is_known(kind)
        || FOREIGN.contains(&kind)
        || kind.ends_with(|last: char| last.is_ascii_digit())
    {
        return None;
    }
    let all = INTERFACE.iter().chain(&CHAINED).chain(&IPAM).chain(&FOREIGN).chain(&["loopback"]).copied();
    nearest(kind, all)
}

/// Finds the nearest of some names: equal but for capitals and separators, or with few letters changed.
pub(crate) fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let wanted = plain(written);
    let distance = |name: &str| {
        let name = plain(name);
        let longest = name.len().max(wanted.len());
        let allowed = match longest {
            0..=3 => 0,
            4..=7 => 1,
            8.. => 2,
        };
        if name.len().abs_diff(wanted.len()) > allowed {
            return None;
        }
        Some(strsim::damerau_levenshtein(&wanted, &name)).filter(|distance| *distance <= allowed)
    };
    names.filter_map(|name| Some((distance(name)?, name))).min().map(|(_, name)| name)
}
