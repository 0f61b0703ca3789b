//! Does the steps of a fault.

use std::path::Path;

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    process::Signal,
};

use super::{
    fault::{Act, Members},
    place::Place,
    servers::{self, MEMBERS},
};
use crate::Outcome;

/// What a fault is applied to.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// The index of the host.
    pub(super) host: usize,
    /// The index of another host.
    pub(super) other: usize,
    /// A member of etcd.
    pub(super) member: usize,
    /// The tunnel device.
    pub(super) device: &'static str,
}

/// Does steps one after the other. Returns the scripts that failed: another fault may have removed what they change.
pub(super) fn act(place: &Place, target: Target, steps: &[Act]) -> Result<Vec<String>, String> {
    let mut failed = Vec::new();
    for step in steps {
        if let Some(script) = one(place, target, step)? {
            failed.push(script);
        }
    }
    Ok(failed)
}

fn one(place: &Place, target: Target, step: &Act) -> Result<Option<String>, String> {
    let node = &place.nodes[target.host];
    let filled = |script| node.script(script, &place.nodes[target.other], target.device);
    match step {
        Act::Host(script) => {
            let script = filled(script);
            return Ok((!node.host.succeeds(&script)).then_some(script));
        }
        Act::Wire(script) => {
            let script = filled(script);
            return Ok((!place.wire.succeeds(&servers::script(&script))).then_some(script));
        }
        Act::Exchange(one, other) => exchange(&node.host.path(one), &node.host.path(other))?,
        Act::Kill => node.kill(),
        Act::Terminate => node.terminate()?,
        Act::Freeze => node.signal(Signal::STOP),
        Act::Thaw => node.signal(Signal::CONT),
        Act::Start => place.start_usual(target.host)?,
        Act::StartAs(mode) => place.start_as(target.host, mode)?,
        Act::StartOther => place.start_other(target.host)?,
        Act::KillAll => place.nodes[..place.count()].iter().for_each(super::place::Node::kill),
        Act::StartAll => (0..place.count()).try_for_each(|index| place.start_usual(index))?,
        Act::KillStore(members) => place.servers.kill(&some(*members, target.member)),
        Act::StartStore => place.start_servers()?,
        Act::FreezeStore(members) => place.servers.signal(&some(*members, target.member), Signal::STOP),
        Act::ThawStore => place.servers.signal(&some(Members::All, 0), Signal::CONT),
        // The duration is a part of the fault.
        Act::Pause(milliseconds) => std::thread::sleep(std::time::Duration::from_millis(*milliseconds)),
        Act::StartCopy => start_copy(place, target.host)?,
        Act::RemoveCopy => return remove_copy(place),
    }
    Ok(None)
}

fn exchange(one: &Path, other: &Path) -> Outcome {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|error| format!("exchange {} and {}: {error}", one.display(), other.display()))
}

fn some(members: Members, first: usize) -> Vec<usize> {
    let count = match members {
        Members::One => 1,
        Members::Two => 2,
        Members::All => MEMBERS,
    };
    (0..count).map(|number| (first + number) % MEMBERS).collect()
}

fn start_copy(place: &Place, of: usize) -> Outcome {
    let read = "cd /var/lib/netloom/node && for f in incarnation blocks.json; do echo \"printf %s '$(cat $f)' >$f\"; done";
    let files = place.nodes[of].host.output(read)?;
    place.spare().host.sh(&format!("mkdir -p /var/lib/netloom/node; cd /var/lib/netloom/node; {files}"))?;
    place.start_usual(place.count())
}

/// Removes the copy of a host. It must have changed nothing.
fn remove_copy(place: &Place) -> Result<Option<String>, String> {
    let spare = place.spare();
    spare.kill();
    let made = spare.host.output(
        "ip -o link show type vxlan; ip route show proto 95; nft list tables | grep cluster; ls /run/net.d",
    )?;
    spare.host.sh("rm -rf /var/lib/netloom/node /run/netloom")?;
    if made.trim().is_empty() { Ok(None) } else { Ok(Some(format!("the copy of a host has made {made}"))) }
}
