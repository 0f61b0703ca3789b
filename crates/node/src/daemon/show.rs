//! What the daemon says of itself: to the log what is new, to those who ask everything.

use std::{collections::BTreeSet, path::PathBuf};

use super::Daemon;
use crate::{conflist, status};

impl Daemon {
    /// Says what is in nobody's way, and may not be meant.
    fn notes(&self) -> Vec<String> {
        let before = conflist::before(&self.config).unwrap_or_default();
        let note = |path: &PathBuf| {
            format!(
                "{} comes before this cluster's network: a runtime that takes the first one starts pods there. Move it away, or give it a later name",
                path.display()
            )
        };
        let done = match self.config.checksum_offload {
            Some(false) => "this host makes them itself",
            _ => "set `checksum-offload` to false",
        };
        let checksums = self.wrong_checksums.iter().map(|node| {
            format!(
                "checksums of what is tunnelled to {node} come out wrong where they are left to the network card: {done}"
            )
        });
        before.iter().map(note).chain(checksums).collect()
    }

    /// Logs what is new, and shows everything to those who ask.
    pub(super) fn show(&mut self, problems: Vec<String>, log: &mut dyn FnMut(&str)) {
        let ready = self.view.whole && problems.is_empty();
        if ready != self.status.ready || problems != self.status.problems {
            if ready {
                log("ready");
            }
            problems.iter().filter(|it| !self.status.problems.contains(it)).for_each(|problem| log(problem));
        }
        if let Err(error) = conflist::tell_ready(&self.config, &problems) {
            log(&format!("cannot say whether the networks are ready: {error}"));
        }
        let notes = self.notes();
        notes.iter().filter(|it| !self.status.notes.contains(it)).for_each(|note| log(note));
        let blocks = self.config.networks.iter().flat_map(|network| self.filled(network)).collect();
        let status = &mut self.status;
        status.ready = ready;
        status.problems = problems;
        status.notes = notes;
        status.addresses.clone_from(&self.own.addresses);
        status.blocks = blocks;
        status.store = status::Store {
            kind: self.config.store.kind().into(),
            connected: self.view.live && self.view.lost.is_none(),
            problem: self.view.lost.clone(),
            refused: self.view.refused.iter().map(|(name, why)| format!("{name}: {why}")).collect(),
        };
        if let Some(desired) = &self.last {
            let networks = self.config.networks.iter().zip(&desired.attach);
            status.networks = networks
                .map(|(network, attach)| status::Network {
                    name: network.name.clone(),
                    mode: network.mode.as_str().into(),
                    mtu: attach.as_ref().map_or(0, |attach| attach.mtu),
                })
                .collect();
            let peers = desired.peers.iter().filter_map(|(name, peer)| {
                let node = self.view.nodes.get(name)?;
                let ways: BTreeSet<&str> = peer.ways.values().map(|way| way.as_str()).collect();
                let ways: Vec<&str> = ways.into_iter().collect();
                Some(status::Peer {
                    name: name.clone(),
                    addresses: node.addresses.clone(),
                    blocks: node.blocks.clone(),
                    way: Some(ways.join(" ")).filter(|ways| !ways.is_empty()),
                    problem: peer.problem.clone(),
                    // Filled in when it is looked at.
                    answers: None,
                    rtt_us: None,
                })
            });
            status.peers = peers.collect();
        }
        if let Ok(mut shown) = self.shown.lock() {
            shown.clone_from(status);
        }
    }
}
