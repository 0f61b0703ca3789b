//! Blocks on the hosts' segment: which of their addresses other hosts use, and which blocks are offered to pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use kernel::neigh;
use tracing::warn;

use super::{event::Event, state::Daemon};
use crate::{
    blocks::{self, Pieces},
    config::Network,
    conflist,
    desired::{Attach, Uplinks},
};

/// Time limit for answers; on one segment they take a thousandth of it.
const ANSWER: Duration = Duration::from_secs(1);
/// How long an answer is valid for addresses that no pod has.
const VALID: Duration = Duration::from_mins(5);

impl Daemon {
    /// Starts to probe the addresses of this node's blocks on the hosts' segment, unless there is a valid answer.
    pub(super) fn probe_segment(&mut self, uplinks: &Uplinks) {
        for network in self.config.networks.iter().filter(|network| !network.mode.routes()) {
            // Without the reservations, this node's own pods would appear as other hosts.
            let Ok(in_use) = conflist::reserved(&self.config, &network.name) else { continue };
            for block in self.own.blocks.iter().copied().filter(|block| network.has(block)) {
                let probed = self.probed.entry(block).or_default();
                if probed.probing || probed.at.is_some_and(|at| at.elapsed() < VALID) {
                    continue;
                }
                let Some(uplink) = uplinks.of(block.addr().is_ipv4()) else { continue };
                probed.probing = true;
                let mut ips: BTreeSet<IpAddr> = blocks::addresses(block).collect();
                // Addresses of pods, of this host and of its gateway are known to be in use.
                in_use.iter().chain([&uplink.address]).chain(&uplink.gateway).for_each(|ip| {
                    ips.remove(ip);
                });
                let (link, sender) = (uplink.link, self.sender.clone());
                std::thread::spawn(move || {
                    drop(sender.send(Event::Probed(block, neigh::who_has(link, &ips, ANSWER))));
                });
            }
        }
    }

    /// Applies the result of a probe.
    pub(super) fn probed(&mut self, block: IpNet, answer: kernel::Result<BTreeSet<IpAddr>>) {
        let Some(probed) = self.probed.get_mut(&block) else { return };
        probed.probing = false;
        match answer {
            Ok(others) => {
                for ip in others.difference(&probed.others) {
                    warn!("{ip} of block {block} is in use by another host: no pod gets it");
                }
                probed.others = others;
                probed.at = Some(Instant::now());
            }
            Err(error) => warn!("cannot probe block {block}: {error}"),
        }
    }

    /// Returns the blocks from which pods of a network get addresses now: those that do not rest and, on the hosts' segment, that
    /// have been probed.
    pub(super) fn offered(&self, network: &Network, attach: &Attach) -> BTreeMap<IpNet, Pieces> {
        let is_known = |block: &IpNet| self.probed.get(block).is_some_and(|probed| probed.at.is_some());
        self.own
            .blocks
            .iter()
            .copied()
            .filter(|block| network.has(block) && !self.resting.contains_key(block))
            .filter(|block| attach.segment.is_none() || is_known(block))
            .map(|block| (block, self.pieces(network, block)))
            .filter(|(_, pieces)| !pieces.is_empty())
            .collect()
    }
}
