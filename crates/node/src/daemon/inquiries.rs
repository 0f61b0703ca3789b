//! Asks the hosts of owners that may be dead, while a node needs their blocks.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use ipnet::IpNet;
use tracing::info;

use super::{event::Event, state::Daemon};
use crate::{
    desired::Uplinks,
    record::Record,
    takeover::{self, Facts, VALID},
};

/// The number of hosts that are asked at the same time.
const AT_ONCE: usize = 4;

impl Daemon {
    /// Starts to ask the hosts of suspects, and publishes which of them do not answer. Asks none while no node is short of addresses.
    pub(super) fn inquire(&mut self, uplinks: &Uplinks) {
        let is_short = |node: &Record| !node.short.is_empty() && !self.view.silent.contains_key(&node.name);
        let needed = !self.own.short.is_empty() || self.view.nodes.values().any(is_short);
        let owners: BTreeSet<&String> = self.view.blocks.values().filter(|_| needed).collect();
        let suspects = owners.into_iter().filter(|owner| {
            **owner != self.own.name
                && self.view.silent_for(owner).is_some()
                && takeover::is_suspect(&self.facts(owner))
        });
        let suspects: BTreeSet<String> = suspects.cloned().collect();
        self.inquiries
            .retain(|name, inquiry| inquiry.running || suspects.contains(name) || *name == self.own.name);
        for name in &suspects {
            let running = self.inquiries.values().filter(|inquiry| inquiry.running).count();
            let inquiry = self.inquiries.entry(name.clone()).or_default();
            let is_fresh = inquiry.last.is_some_and(|(at, _)| at.elapsed() < VALID / 2);
            if inquiry.running || is_fresh || running >= AT_ONCE {
                continue;
            }
            inquiry.running = true;
            self.ask(name.clone(), uplinks);
        }
        self.own.unreachable =
            suspects.into_iter().filter(|name| self.facts(name).answered == Some(false)).collect();
    }

    fn ask(&self, name: String, uplinks: &Uplinks) {
        let record = self.view.nodes.get(&name).or_else(|| self.view.former.get(&name));
        let addresses = record.map(|node| node.addresses.clone()).unwrap_or_default();
        let owned = self.view.blocks.iter().filter(|(_, owner)| **owner == name).map(|(block, _)| *block);
        let blocks: Vec<IpNet> = owned.collect();
        let segment = self.config.networks.iter().filter(|network| !network.mode.routes());
        let segment =
            segment.filter_map(|network| uplinks.of_network(network)).map(|uplink| uplink.link).next();
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            let answered = takeover::ask(&addresses, &blocks, segment);
            drop(sender.send(Event::Asked(name, answered)));
        });
    }

    /// Returns whether a host answers at addresses that this node had before and that no other node has, or `None` until that is known.
    pub(super) fn answers_elsewhere(&mut self, addresses: &[IpAddr]) -> Option<bool> {
        let others = || self.view.nodes.values().filter(|node| node.name != self.own.name);
        let is_explained = |ip: &IpAddr| others().any(|node| node.addresses.contains(ip));
        let addresses: Vec<IpAddr> = addresses.iter().copied().filter(|ip| !is_explained(ip)).collect();
        if addresses.is_empty() {
            return Some(false);
        }
        let inquiry = self.inquiries.entry(self.own.name.clone()).or_default();
        if !inquiry.running && inquiry.answered().is_none() {
            inquiry.running = true;
            let (name, sender) = (self.own.name.clone(), self.sender.clone());
            std::thread::spawn(move || {
                drop(sender.send(Event::Asked(name, takeover::ask(&addresses, &[], None))));
            });
        }
        inquiry.last.map(|(_, answered)| answered)
    }

    /// Applies the result of an inquiry.
    pub(super) fn asked(&mut self, name: &str, answered: bool) {
        let Some(inquiry) = self.inquiries.get_mut(name) else { return };
        inquiry.running = false;
        if inquiry.answered() != Some(answered) && name != self.own.name {
            let what = if answered { "answers: its blocks stay" } else { "does not answer" };
            info!("the host of `{name}`, whose lease ended long ago, {what}");
        }
        inquiry.last = Some((Instant::now(), answered));
    }

    /// Collects what is known of a block's owner.
    pub(super) fn facts(&self, owner: &str) -> Facts {
        let daemon_answers = self.probes.seen(owner).is_some_and(|seen| seen.answered);
        let inquiry = self.inquiries.get(owner).and_then(takeover::Inquiry::answered);
        let is_living_other = |node: &&Record| {
            node.name != self.own.name && node.name != owner && !self.view.silent.contains_key(&node.name)
        };
        let living: Vec<&Record> = self.view.nodes.values().filter(is_living_other).collect();
        Facts {
            connected: self.view.live && self.view.lost.is_none(),
            silent: self.view.silent_for(owner),
            lease: self.config.lease,
            answered: if daemon_answers { Some(true) } else { inquiry },
            witnesses: living.iter().filter(|node| node.unreachable.contains(owner)).count(),
            living: living.len(),
        }
    }
}
