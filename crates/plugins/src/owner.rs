//! Whose things are: names and marks that follow from network, container and interface, so that DEL and GC find
//! everything again without a list.

use netloom_plugin::{Attachment, Request, Sandbox};
use sha2::{Digest, Sha512};

/// Names an attachment of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The network.
    pub network: &'a str,
    /// The container.
    pub container: &'a str,
    /// The interface in it.
    pub ifname: &'a str,
}

/// The kernel and nft keep at most this much of a mark.
const MARK_LENGTH: usize = 127;

impl<'a> Owner<'a> {
    /// Takes the owner from a request.
    pub fn of(request: &'a Request, sandbox: &'a Sandbox) -> Self {
        Self {
            network: request.config.name.as_str(),
            container: sandbox.container_id.as_str(),
            ifname: sandbox.ifname.as_str(),
        }
    }

    /// Gives the mark that objects carry: two hashes to compare, and the names for a person to read.
    pub fn mark(&self) -> String {
        let mut mark = format!(
            "{}-{} {} {} {}",
            network_hash(self.network),
            attachment_hash(self.container, self.ifname),
            self.ifname,
            self.container,
            self.network,
        );
        mark.truncate(MARK_LENGTH);
        mark
    }

    /// Gives the name of the host's end of a veth pair, `veth` and eight digits, which NetworkManager leaves
    /// alone. Another attempt gives another name, for when the first is somebody else's.
    pub fn host_link(&self, attempt: u32) -> String {
        let hash = hash(&[self.network, self.container, self.ifname, &attempt.to_string()]);
        format!("veth{}", &hash[..8])
    }
}

/// Tells whether a mark is of this network and of none of its valid attachments.
pub(crate) fn is_stale(mark: &str, network: &str, valid: &[Attachment]) -> bool {
    let Some(of_network) = mark.strip_prefix(&network_hash(network)).and_then(|rest| rest.strip_prefix('-'))
    else {
        return false;
    };
    !valid.iter().any(|a| of_network.starts_with(&attachment_hash(&a.container_id, &a.ifname)))
}

fn network_hash(network: &str) -> String {
    hash(&[network])[..16].to_owned()
}

fn attachment_hash(container: &str, ifname: &str) -> String {
    hash(&[container, ifname])[..16].to_owned()
}

fn hash(parts: &[&str]) -> String {
    let digest = Sha512::digest(parts.join("\0"));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
