//! Names and marks that identify the attachment a kernel object belongs to.
//!
//! They are derived from network, container and interface, so that DEL and GC find every object without a stored list.

use hmac_sha512::Hash as Sha512;
use kernel::link::{Link, Mac};
use netloom_plugin::{Attachment, Request, Sandbox};

/// The attachment that a kernel object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Name of the network.
    pub network: &'a str,
    /// ID of the container.
    pub container: &'a str,
    /// Name of the interface in the container.
    pub ifname: &'a str,
}

/// Longest mark in bytes that both the kernel (as an alias) and nft (as a comment) keep.
const MARK_LENGTH: usize = 127;

impl<'a> Owner<'a> {
    /// Returns the attachment of a request.
    pub fn of(request: &'a Request, sandbox: &'a Sandbox) -> Self {
        Self {
            network: request.config.name.as_str(),
            container: sandbox.container_id.as_str(),
            ifname: sandbox.ifname.as_str(),
        }
    }

    /// Returns the mark that objects carry: two hashes to compare, followed by the names for people to read.
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

    /// Returns the mark of objects that belong to the whole network. GC removes them when the network has no attachment left.
    pub(crate) fn network_mark(&self) -> String {
        let mut mark = format!("{}-{WHOLE_NETWORK} {}", network_hash(self.network), self.network);
        mark.truncate(MARK_LENGTH);
        mark
    }

    /// Returns the link group of the network's links that have no mark yet. It is in the upper half of the numbers, which
    /// administrators do not use.
    pub(crate) fn unmarked_group(&self) -> u32 {
        (hash(&[self.network]) >> 32) as u32 | 1 << 31
    }

    /// Returns whether a link is one of the network's that an ADD has created and not marked yet.
    pub(crate) fn is_unmarked(&self, link: &Link) -> bool {
        link.alias.is_none()
            && link.group == self.unmarked_group()
            && matches!(link.kind.as_deref(), Some("veth" | "ifb"))
    }

    /// Returns the name of a chain that the reference plugins create for a container in iptables.
    pub(crate) fn reference_chain(network: &str, container: &str, prefix: &str) -> String {
        const LENGTH: usize = 28;
        let mut name = format!("CNI-{prefix}");
        name.push_str(&reference_hash(&[network, container].concat()));
        name.truncate(LENGTH);
        name
    }

    /// Returns the beginning of the comment by which the reference plugins' nftables masquerade rules name an attachment.
    pub(crate) fn reference_mark(&self) -> String {
        let attachment = reference_hash(&format!("{}:{}", self.ifname, self.container));
        format!("{}-{}", network_hash(self.network), &attachment[..16])
    }

    /// Returns the possible names of the ifb link that limits a container's egress: the reference plugins' name, which is
    /// the same for all interfaces of a container in a network, and a name for a second interface.
    pub(crate) fn limiting_links(&self) -> [String; 2] {
        let name = |parts: &[&str]| format!("bwp{}", &reference_hash(&parts.concat())[..12]);
        [name(&[self.network, self.container]), name(&[self.network, self.container, "/", self.ifname])]
    }

    /// Returns the name of a veth pair's host end: `veth` and eight hexadecimal digits, which NetworkManager does not manage.
    /// Each attempt has another name, in case an unrelated link has the first.
    pub fn host_link(&self, attempt: u32) -> String {
        let hash = hash(&[self.network, self.container, self.ifname, &attempt.to_string()]);
        format!("veth{:08x}", hash >> 32)
    }

    /// Returns the hardware address of a veth end that becomes a bridge port.
    ///
    /// A bridge whose address nobody set takes the lowest one of its ports. This address is higher than that of any network
    /// card and of any random address (`fe` is the last locally administered prefix), so a port of ours does not change the
    /// address of a bridge that has others.
    pub(crate) fn port_mac(&self, attempt: u32) -> Mac {
        let hash = hash(&[self.network, self.container, self.ifname, &attempt.to_string(), "port"]);
        let [.., a, b, c, d, e] = hash.to_be_bytes();
        Mac([Self::PORT_PREFIX, a, b, c, d, e])
    }

    /// Returns whether an address is one that [`Self::port_mac`] returns.
    pub(crate) fn is_port_mac(mac: Mac) -> bool {
        mac.0[0] == Self::PORT_PREFIX
    }

    const PORT_PREFIX: u8 = 0xfe;
}

/// Returns whether a mark is of this network but of none of its valid attachments.
pub(crate) fn is_stale(mark: &str, network: &str, valid: &[Attachment]) -> bool {
    let Some(attachment) = mark.strip_prefix(&network_hash(network)).and_then(|rest| rest.strip_prefix('-'))
    else {
        return false;
    };
    if attachment.starts_with(WHOLE_NETWORK) {
        return valid.is_empty();
    }
    !valid.iter().any(|a| attachment.starts_with(&attachment_hash(&a.container_id, &a.ifname)))
}

/// Returns the test whether a comment of the reference plugins is of this network but of none of its valid attachments.
pub(crate) fn stale_references(network: &str, valid: &[Attachment]) -> impl Fn(&str) -> bool {
    let mark =
        |a: &Attachment| Owner { network, container: &a.container_id, ifname: &a.ifname }.reference_mark();
    let marks: Vec<String> = valid.iter().map(mark).collect();
    let of_network = format!("{}-", network_hash(network));
    move |comment| comment.starts_with(&of_network) && !marks.iter().any(|mark| comment.starts_with(mark))
}

/// Returns the attachment that a mark names for people to read. A long name may be cut.
pub(crate) fn named_in(mark: &str) -> String {
    let mut words = mark.splitn(4, ' ').skip(1);
    match (words.next(), words.next(), words.next()) {
        (Some(ifname), Some(container), Some(_)) => format!("{ifname} of container {container}"),
        (Some(_), None, None) => "the whole network".to_owned(),
        _ => "an unknown attachment".to_owned(),
    }
}

/// Takes the place of the attachment's hash in the mark of a whole network.
const WHOLE_NETWORK: &str = "network";

/// Returns the hash that the reference plugins use: SHA-512 in hexadecimal.
fn reference_hash(text: &str) -> String {
    Sha512::hash(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn network_hash(network: &str) -> String {
    format!("{:016x}", hash(&[network]))
}

fn attachment_hash(container: &str, ifname: &str) -> String {
    format!("{:016x}", hash(&[container, ifname]))
}

/// Returns the first 8 bytes of the SHA-512 of the names, separated by NUL.
fn hash(parts: &[&str]) -> u64 {
    let digest = Sha512::hash(parts.join("\0"));
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}
