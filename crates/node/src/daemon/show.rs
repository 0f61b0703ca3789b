//! Logs what has changed, and updates the status.

use std::{collections::BTreeSet, path::PathBuf};

use tracing::{error, info, warn};

use super::{history, state::Daemon};
use crate::{
    conflist,
    desired::Desired,
    status::{self, Status},
};

impl Daemon {
    /// Returns the conditions that an operator should know although the node is ready.
    fn notes(&mut self, problems: &[String]) -> Vec<String> {
        let before = conflist::before(&self.config).unwrap_or_default();
        let note = |path: &PathBuf| {
            format!(
                "{} sorts before this cluster's network: a runtime that takes the first file starts pods there. Move the file away, or rename it",
                path.display()
            )
        };
        let done = if self.checksum_offload() {
            "set `checksum-offload` to false"
        } else {
            "this host computes them itself"
        };
        let checksums = self.wrong_checksums.iter().map(|node| {
            format!(
                "checksums of packets that are tunnelled to {node} are wrong if the network card computes them: {done}"
            )
        });
        let mut notes: Vec<String> = before.iter().map(note).chain(checksums).collect();
        notes.extend(self.lost_blocks());
        // If no family has one, the node is not ready, for the same reason.
        notes.extend(self.lost_default_route().filter(|text| !problems.contains(text)));
        notes
    }

    /// Returns what is wrong with a peer: its record, the path to it, or its lease.
    fn problem_of(&self, name: &str, of_path: Option<&String>) -> Option<String> {
        let of_record = [&self.view.problems, &self.refused_changes];
        let of_record = of_record.into_iter().filter_map(|problems| problems.get(name)).flatten();
        let problems: Vec<&str> = of_record.chain(of_path).map(String::as_str).collect();
        if !problems.is_empty() {
            return Some(problems.join("; "));
        }
        self.view.silent.contains_key(name).then(|| {
            "its daemon does not renew its lease: it is down, or cut off from the store; its routes stay"
                .to_owned()
        })
    }

    /// Returns the peers for the status.
    fn peers(&self, desired: &Desired) -> Vec<status::Peer> {
        let peers = desired.peers.iter().filter_map(|(name, peer)| {
            let node = self.view.nodes.get(name)?;
            let paths: BTreeSet<&str> = peer.paths.values().map(|path| path.as_str()).collect();
            let paths: Vec<&str> = paths.into_iter().collect();
            Some(status::Peer {
                name: name.clone(),
                addresses: node.addresses.clone(),
                blocks: node.blocks.clone(),
                path: Some(paths.join(" ")).filter(|paths| !paths.is_empty()),
                silent_seconds: self.view.silent.get(name).map(|since| since.elapsed().as_secs()),
                problem: self.problem_of(name, peer.problem.as_ref()),
                // Filled in when the status is read.
                answers: None,
                rtt_us: None,
            })
        });
        peers.collect()
    }

    /// Logs what has changed, and updates the status.
    pub(super) fn show(&mut self, problems: Vec<String>) {
        let ready = self.view.whole && problems.is_empty();
        if ready != self.status.ready || problems != self.status.problems {
            if ready {
                info!("ready");
            }
            problems
                .iter()
                .filter(|it| !self.status.problems.contains(it))
                .for_each(|problem| warn!("{problem}"));
        }
        if let Err(error) = conflist::publish_readiness(&self.config, &problems) {
            error!("cannot publish whether the networks are ready: {error}");
        }
        let notes = self.notes(&problems);
        notes.iter().filter(|it| !self.status.notes.contains(it)).for_each(|note| warn!("{note}"));
        let blocks = self.config.networks.iter().flat_map(|network| self.filled(network)).collect();
        // How long a peer has been silent changes all the time.
        let is_outdated = std::mem::take(&mut self.peers_changed) || !self.view.silent.is_empty();
        let peers = self.last.as_ref().filter(|_| is_outdated).map(|desired| self.peers(desired));
        let status = &mut self.status;
        history::note_faults(&mut status.faults, problems.iter().chain(&notes));
        status.ready = ready;
        status.problems = problems;
        status.notes = notes;
        status.addresses.clone_from(&self.own.addresses);
        status.blocks = blocks;
        status.store = status::Store {
            kind: self.config.store.kind().into(),
            connected: self.view.live && self.view.lost.is_none(),
            problem: self.view.lost.clone(),
            refused_claims: self.view.refused_claims(),
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
        }
        if let Ok(mut shown) = self.shared.lock() {
            // The peers are in the shared status alone.
            let peers = peers.unwrap_or_else(|| std::mem::take(&mut shown.peers));
            *shown = Status { peers, ..status.clone() };
        }
    }
}
