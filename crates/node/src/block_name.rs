//! Blocks as parts of file names, etcd keys and Kubernetes object names.

use std::net::IpAddr;

use ipnet::IpNet;

/// Returns a block's name in files and keys: `10.244.1.0-24`, `fd44:0:0:1::-64`.
pub(crate) fn key(block: IpNet) -> String {
    format!("{}-{}", block.network(), block.prefix_len())
}

/// Returns a block's name without colons, as Kubernetes requires: `10.244.1.0-24`, `fd44.0.0.1.0.0.0.0-64`.
pub(crate) fn without_colons(block: IpNet) -> String {
    match block.network() {
        IpAddr::V4(_) => key(block),
        IpAddr::V6(ip) => {
            let address = ip.segments().map(|segment| format!("{segment:x}")).join(".");
            format!("{address}-{}", block.prefix_len())
        }
    }
}

/// Parses the result of [`key`].
pub(crate) fn parse(name: &str) -> Option<IpNet> {
    let (ip, length) = name.rsplit_once('-')?;
    IpNet::new(ip.parse().ok()?, length.parse().ok()?).ok().filter(|net| net.addr() == net.network())
}

/// Parses the result of [`without_colons`].
pub(crate) fn parse_without_colons(name: &str) -> Option<IpNet> {
    let (address, length) = name.rsplit_once('-')?;
    let address =
        if address.split('.').count() == 8 { address.replace('.', ":") } else { address.to_owned() };
    IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()
}
