//! The files for the container runtime, and for flannel's plugin.

use kernel::{
    Socket, link,
    sysctl::{self, Setting},
};
use tracing::info;

use super::state::Daemon;
use crate::{conflist, desired::Desired, flannel::subnet_file};

impl Daemon {
    /// Writes the configuration of each network that can give addresses to pods. Returns what is wrong with the others.
    pub(super) fn write_network_files(&self, wanted: &Desired) -> Vec<String> {
        let mut problems = Vec::new();
        for (network, attach) in self.config.networks.iter().zip(&wanted.attach) {
            let attach = match attach {
                Ok(attach) => attach,
                Err(why) => {
                    problems.push(why.clone());
                    continue;
                }
            };
            let offered = self.offered(network, attach);
            if network.families().any(|v4| !offered.keys().any(|block| block.addr().is_ipv4() == v4)) {
                // A missing block has been reported already.
                if network.families().all(|v4| {
                    self.own.blocks.iter().any(|own| network.has(own) && own.addr().is_ipv4() == v4)
                }) {
                    problems.push(format!(
                        "network {}: waiting until it is known which addresses other hosts use",
                        network.name
                    ));
                }
                continue;
            }
            let path = conflist::path(&self.config, &network.name);
            match conflist::write(&self.config, attach, &offered) {
                Ok(true) => info!("wrote {}", path.display()),
                Ok(false) => {}
                Err(error) => problems.push(format!("cannot write {}: {error}", path.display())),
            }
        }
        problems
    }

    /// Keeps working what flannel's plugin created on this host before. Returns what is wrong.
    pub(super) fn replace_flannel(&self, socket: &Socket, wanted: &Desired) -> Option<String> {
        /// The bridge of flannel's own configuration.
        const BRIDGE: &str = "cni0";
        let flannel = self.config.flannel.as_ref()?;
        let mtu = wanted.attach.first()?.as_ref().ok()?.mtu;
        if let Err(error) = subnet_file::write(flannel, &self.config, &self.own.blocks, mtu) {
            return Some(format!("cannot write {}: {error}", flannel.subnet_file.display()));
        }
        // Pods on the bridge resolve addresses of the whole subnet there: the host answers for newer pods, which are not on it.
        let is_bridge = match link::find(socket, BRIDGE) {
            Ok(link) => link.is_some_and(|link| link.kind.as_deref() == Some("bridge")),
            Err(error) => return Some(error.to_string()),
        };
        let answer = || sysctl::ensure(Setting::Ipv4(BRIDGE, "proxy_arp"), "1");
        if is_bridge { answer().err().map(|error| error.to_string()) } else { None }
    }
}
