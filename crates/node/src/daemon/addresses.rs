//! This node's addresses, as its uplinks have them.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::state::Daemon;
use crate::desired::Uplinks;

/// How long an address stays in this node's record after the host has lost it, if no tunnel over the other family can replace it. Most
/// are back soon, after a link's flap or a restart of the host's network service. Then no peer has removed its routes.
const LINGER: Duration = Duration::from_secs(5);

impl Daemon {
    /// Remembers how this host is connected.
    pub(super) fn follow_uplinks(&mut self, uplinks: &Uplinks) {
        if self.uplinks == *uplinks {
            return;
        }
        self.uplinks.clone_from(uplinks);
        for (last, now) in
            [(&mut self.last_uplinks.v4, &uplinks.v4), (&mut self.last_uplinks.v6, &uplinks.v6)]
        {
            if now.is_some() {
                last.clone_from(now);
            }
        }
        // The kernel refuses routes over a link that is down, or via a gateway that is not on the link. They are tried again at once.
        self.known.refusals.clear();
        self.compared = None;
    }

    /// Brings the record's addresses in line with the uplinks.
    pub(super) fn follow_addresses(&mut self) {
        let mut addresses: Vec<IpAddr> = self.uplinks.all().map(|uplink| uplink.address).collect();
        let has_family = |ip: &IpAddr| addresses.iter().any(|other| other.is_ipv4() == ip.is_ipv4());
        for lost in self.own.addresses.iter().filter(|ip| !has_family(ip)) {
            self.vanished.entry(*lost).or_insert_with(Instant::now);
        }
        // Another address of the family is published at once.
        let linger = if self.config.tunnels() { Duration::ZERO } else { LINGER };
        self.vanished.retain(|ip, since| !has_family(ip) && since.elapsed() < linger);
        addresses.extend(self.vanished.keys());
        addresses.sort_unstable();
        self.own.addresses = addresses;
    }

    /// Returns the families in which the others know an address of this node.
    pub(super) fn known_families(&self) -> (bool, bool) {
        let known = self.view.nodes.get(&self.own.name).filter(|known| known.instance == self.own.instance);
        let has = |v4: bool| known.is_none_or(|known| known.address(v4).is_some());
        (has(true), has(false))
    }

    /// Returns what the operator should know if a default route is gone that led to an uplink which is in use still.
    pub(super) fn lost_default_route(&self) -> Option<String> {
        let lacks = |v4: bool| self.uplinks.of(v4).filter(|uplink| !uplink.leads_out);
        let lacking: Vec<String> = [true, false]
            .into_iter()
            .filter_map(lacks)
            .filter(|uplink| !self.config.addresses.contains(&uplink.address))
            .map(|uplink| uplink.address.to_string())
            .collect();
        (!lacking.is_empty()).then(|| {
            format!(
                "there is no default route any more for {}: other hosts of the segment are reached, and nothing outside it",
                lacking.join(" and ")
            )
        })
    }
}
