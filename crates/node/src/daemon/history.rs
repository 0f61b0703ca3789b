//! The last repairs and faults, for an operator who looks afterwards. Both lists have a limit.

use std::time::SystemTime;

use crate::status::{Changes, Fault, Repair};

/// The number of entries of each list.
const KEPT: usize = 20;

/// Adds a repair to the list.
pub(super) fn note_repair(repairs: &mut Vec<Repair>, changes: Changes) {
    if repairs.len() >= KEPT {
        repairs.remove(0);
    }
    repairs.push(Repair { at: now(), changes });
}

/// Adds new problems to the list, and notes when others are gone. What begins and ends within one second is left
/// out, such as that the store has not answered yet when the daemon starts.
pub(super) fn note_faults<'a>(faults: &mut Vec<Fault>, current: impl Iterator<Item = &'a String>) {
    let now = now();
    let current: Vec<&String> = current.collect();
    for fault in faults.iter_mut().filter(|fault| fault.until.is_none()) {
        if !current.contains(&&fault.problem) {
            fault.until = Some(now);
        }
    }
    faults.retain(|fault| fault.until.is_none_or(|until| until > fault.since));
    for problem in current {
        if faults.iter().any(|fault| fault.until.is_none() && fault.problem == *problem) {
            continue;
        }
        if faults.len() >= KEPT {
            // A fault that continues stays: it would be added again with a later time.
            let Some(ended) = faults.iter().position(|fault| fault.until.is_some()) else { return };
            faults.remove(ended);
        }
        faults.push(Fault { problem: problem.clone(), since: now, until: None });
    }
}

#[expect(clippy::disallowed_methods, reason = "it is shown, and decides nothing")]
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
