//! The group of the host ends of pods' links, by which the ruleset knows what pods send. The plugin sets it; the daemon repairs it.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kernel::{
    IpFamily, Kind, Socket,
    link::{self, Change, Link},
    route,
};
use ruleset::cluster::POD_GROUP;

/// The origin of the plugin's routes (`RTPROT_BOOT`).
const PROTOCOL: u8 = 3;

/// Sets the group of pods' links that have none, as those of pods that an earlier version has started. A pod's link is a veth link to which
/// the host routes an address of its own `blocks`. Links in another group are an operator's. Returns the number of links.
///
/// # Errors
/// If a netlink request fails.
pub(crate) fn group(socket: &Socket, links: &[Link], blocks: &[IpNet]) -> kernel::Result<usize> {
    let is_candidate = |link: &&Link| {
        link.kind.as_deref() == Some("veth") && link.group == 0 && link.master.is_none() && link.up
    };
    let candidates: Vec<&Link> = links.iter().filter(is_candidate).collect();
    if candidates.is_empty() {
        return Ok(0);
    }
    let is_pod =
        |ip: IpNet| ip.prefix_len() == ip.max_prefix_len() && blocks.iter().any(|block| block.contains(&ip));
    let mut routed = BTreeSet::new();
    for family in IpFamily::ALL {
        let routes = route::list_of(socket, family.unspecified(), PROTOCOL)?;
        routed.extend(routes.iter().filter(|route| is_pod(route.dst)).map(|route| route.link));
    }
    let change = Change { group: Some(POD_GROUP), ..Change::default() };
    let mut changed = 0;
    for pod in candidates.into_iter().filter(|link| routed.contains(&link.index)) {
        match link::change(socket, pod, &change) {
            Ok(()) => changed += 1,
            // The pod has ended meanwhile.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(changed)
}
