//! Whose things are: names and marks that follow from network, container and interface, so that DEL and GC find
//! everything again without a list.

use hmac_sha512::Hash as Sha512;
use netloom_plugin::{Attachment, Request, Sandbox};

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

    /// Returns the mark that objects carry: two hashes to compare, and the names for a person to read.
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

    /// Returns the mark of what belongs to the whole network, and goes when none of its attachments is left.
    pub(crate) fn network_mark(&self) -> String {
        let mut mark = format!("{}-{OF_NETWORK} {}", network_hash(self.network), self.network);
        mark.truncate(MARK_LENGTH);
        mark
    }

    /// Returns the group of links of the network that have no mark yet: in the upper half of the numbers, where people
    /// put none.
    pub(crate) fn unmarked_group(&self) -> u32 {
        (hash(&[self.network]) >> 32) as u32 | 1 << 31
    }

    /// Returns the name of a chain that the reference plugins make for a container in iptables.
    pub(crate) fn reference_chain(network: &str, container: &str, prefix: &str) -> String {
        const LENGTH: usize = 28;
        let mut name = format!("CNI-{prefix}");
        name.push_str(&reference_hash(&[network, container].concat()));
        name.truncate(LENGTH);
        name
    }

    /// Returns what the reference plugins' masquerade rules in nftables say of an attachment.
    pub(crate) fn reference_mark(&self) -> String {
        let attachment = reference_hash(&format!("{}:{}", self.ifname, self.container));
        format!("{}-{}", network_hash(self.network), &attachment[..16])
    }

    /// Returns the names of the link by which what a container sends is limited: the reference plugins', which is one
    /// for a container in a network, and one for another interface of the same.
    pub(crate) fn limiting_links(&self) -> [String; 2] {
        let name = |parts: &[&str]| format!("bwp{}", &reference_hash(&parts.concat())[..12]);
        [name(&[self.network, self.container]), name(&[self.network, self.container, "/", self.ifname])]
    }

    /// Returns the name of the host's end of a veth pair, `veth` and eight digits, which NetworkManager leaves
    /// alone. Another attempt gives another name, for when the first is somebody else's.
    pub fn host_link(&self, attempt: u32) -> String {
        let hash = hash(&[self.network, self.container, self.ifname, &attempt.to_string()]);
        format!("veth{:08x}", hash >> 32)
    }
}

/// Returns whether a mark is of this network and of none of its valid attachments.
pub(crate) fn is_stale(mark: &str, network: &str, valid: &[Attachment]) -> bool {
    let Some(of_network) = mark.strip_prefix(&network_hash(network)).and_then(|rest| rest.strip_prefix('-'))
    else {
        return false;
    };
    if of_network.starts_with(OF_NETWORK) {
        return valid.is_empty();
    }
    !valid.iter().any(|a| of_network.starts_with(&attachment_hash(&a.container_id, &a.ifname)))
}

/// Stands in the place of an attachment's hash.
const OF_NETWORK: &str = "network";

/// Hashes as the reference plugins do: SHA-512 of the text, in hexadecimal.
fn reference_hash(text: &str) -> String {
    Sha512::hash(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn network_hash(network: &str) -> String {
    format!("{:016x}", hash(&[network]))
}

fn attachment_hash(container: &str, ifname: &str) -> String {
    format!("{:016x}", hash(&[container, ifname]))
}

/// Returns the first 8 bytes of the SHA-512 of some names.
fn hash(parts: &[&str]) -> u64 {
    let digest = Sha512::hash(parts.join("\0"));
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}
