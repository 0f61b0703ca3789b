//! One thread of the storm, and the end of the storm.

use std::sync::MutexGuard;

use serde_json::Value;
use testkit::Random;

use super::{
    Storm,
    call::{Answer, Ended, Fault, Verb, call},
    oracle,
    place::{NETWORKS, port_mappings},
};
use crate::Outcome;

/// What is known of an attachment.
#[derive(Default)]
pub(super) enum State {
    /// Nothing of it exists.
    #[default]
    Detached,
    /// Its ADD returned this result, and nobody has deleted it.
    Attached(Value),
    /// The last ADD or DEL was killed or failed.
    Unknown,
}

/// One thread of the storm. It runs in the host's network namespace.
pub(super) struct Worker<'a> {
    storm: &'a Storm,
    random: Random,
}

/// The choices of one step. Each step draws all of them, so that what happens does not change the later choices.
struct Step {
    action: u64,
    attachment: usize,
    fault: u64,
    moment: u64,
    bytes: u64,
    look: u64,
}

impl<'a> Worker<'a> {
    pub(super) fn new(storm: &'a Storm, number: usize) -> Self {
        Self { storm, random: Random::of_thread(storm.options.seed, number as u64) }
    }

    /// Does one step after the other until the storm is over.
    pub(super) fn work(mut self) -> Outcome {
        while !self.storm.is_over() {
            let step = self.draw();
            match step.action {
                0..4 => self.gc(&step)?,
                4..8 if self.storm.options.faults => self.lose_container(step.attachment / 2)?,
                _ => self.attachment(&step)?,
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> Step {
        let random = &mut self.random;
        Step {
            action: random.below(1000),
            attachment: usize::try_from(random.below(self.storm.attachments.len() as u64))
                .unwrap_or_default(),
            fault: random.below(100),
            moment: random.below(1200),
            bytes: (200 + random.below(1200)) * 1024,
            look: random.below(100),
        }
    }

    fn fault(&self, verb: Verb, step: &Step) -> Fault {
        match step.fault {
            _ if !self.storm.options.faults => Fault::None,
            0..4 => Fault::Kill { after: self.storm.tally.part_of(verb, step.moment) },
            4..8 => Fault::KillRuntime { after: self.storm.tally.part_of(verb, step.moment) },
            8..12 => Fault::Memory { bytes: step.bytes },
            _ => Fault::None,
        }
    }

    fn gc(&self, step: &Step) -> Outcome {
        let network = NETWORKS[step.attachment % 2];
        let arguments: &[&str] = if step.look < 50 { &["gc", network] } else { &["gc"] };
        run(self.storm, Verb::Gc, arguments, self.fault(Verb::Gc, step)).map(drop)
    }

    /// A container disappears without DEL and comes back empty.
    fn lose_container(&self, container: usize) -> Outcome {
        let _first = self.lost(2 * container)?;
        let _second = self.lost(2 * container + 1)?;
        self.storm.tally.count("containers that disappeared without DEL");
        self.storm.place.remove_container(container)?;
        self.storm.place.create_container(container)
    }

    fn lost(&self, attachment: usize) -> Result<MutexGuard<'a, State>, String> {
        let mut state = lock(self.storm, attachment)?;
        self.storm.given.forget(attachment);
        *state = State::Unknown;
        Ok(state)
    }

    fn attachment(&self, step: &Step) -> Outcome {
        let mut state = lock(self.storm, step.attachment)?;
        let verb = match &*state {
            State::Detached => Verb::Add,
            State::Attached(result) => {
                if step.look < 25 && self.storm.options.faults {
                    look(self.storm, step.attachment, result)?;
                }
                let checked = if self.storm.options.faults { 60 } else { 90 };
                if step.look < checked { Verb::Check } else { Verb::Del }
            }
            State::Unknown if step.look < 60 => Verb::Del,
            State::Unknown if step.look < 80 => Verb::Add,
            State::Unknown => return Ok(()),
        };
        let fault = self.fault(verb, step);
        match verb {
            Verb::Add => add(self.storm, step.attachment, &mut state, fault),
            Verb::Check => check(self.storm, step.attachment, fault),
            _ => del(self.storm, step.attachment, &mut state, fault),
        }
    }
}

fn lock(storm: &Storm, attachment: usize) -> Result<MutexGuard<'_, State>, String> {
    storm.attachments[attachment].lock().map_err(|error| error.to_string())
}

/// Looks whether a living attachment has all that its ADD returned.
fn look(storm: &Storm, attachment: usize, result: &Value) -> Outcome {
    storm
        .tally
        .count("looks at living attachments (link, addresses, routes, reservations, 4 published ports)");
    for missing in oracle::missing(&storm.place, attachment, result)? {
        storm.tally.violation(&format!("{} lacks {missing}", oracle::name(attachment)));
    }
    Ok(())
}

fn add(storm: &Storm, attachment: usize, state: &mut State, fault: Fault) -> Outcome {
    let mappings = port_mappings(attachment);
    let may_fail = matches!(state, State::Unknown);
    let (answer, undisturbed) = verb(storm, Verb::Add, attachment, &["--cap-args", &mappings], fault)?;
    *state = State::Unknown;
    if answer.ended != Ended::Succeeded {
        if undisturbed && !may_fail {
            refused(storm, Verb::Add, attachment, &answer);
        }
        return Ok(());
    }
    let Ok(result) = serde_json::from_str::<Value>(&answer.stdout) else {
        storm.tally.violation(&format!("the result of {} is no JSON", oracle::name(attachment)));
        return Ok(());
    };
    for twice in storm.given.record(attachment, &result) {
        storm.tally.violation(&twice);
    }
    *state = State::Attached(result);
    Ok(())
}

fn check(storm: &Storm, attachment: usize, fault: Fault) -> Outcome {
    let (answer, undisturbed) = verb(storm, Verb::Check, attachment, &[], fault)?;
    if undisturbed {
        storm.tally.count(&format!("undisturbed checks on {}", NETWORKS[attachment % 2]));
    }
    if undisturbed && answer.ended != Ended::Succeeded {
        refused(storm, Verb::Check, attachment, &answer);
    }
    Ok(())
}

fn del(storm: &Storm, attachment: usize, state: &mut State, fault: Fault) -> Outcome {
    storm.given.forget(attachment);
    *state = State::Unknown;
    let (answer, undisturbed) = verb(storm, Verb::Del, attachment, &[], fault)?;
    if answer.ended == Ended::Succeeded {
        *state = State::Detached;
    } else if undisturbed {
        refused(storm, Verb::Del, attachment, &answer);
    }
    Ok(())
}

fn refused(storm: &Storm, verb: Verb, attachment: usize, answer: &Answer) {
    storm.tally.count(&format!("{} FAILED FALSELY", verb.name()));
    storm.tally.violation(&format!(
        "{} of {} failed: {}",
        verb.name(),
        oracle::name(attachment),
        answer.stderr.trim()
    ));
}

fn verb(
    storm: &Storm,
    verb: Verb,
    attachment: usize,
    more: &[&str],
    fault: Fault,
) -> Result<(Answer, bool), String> {
    let netns = format!("/run/netns/c{}", attachment / 2);
    let (network, ifname) = (NETWORKS[attachment % 2], ["eth0", "eth1"][attachment % 2]);
    let arguments = [&[verb.name(), network, &netns, "--ifname", ifname], more].concat();
    run(storm, verb, &arguments, fault)
}

/// Calls `netloom`. Returns its answer, and whether nothing disturbed the call, so that it must not have failed.
fn run(storm: &Storm, verb: Verb, arguments: &[&str], fault: Fault) -> Result<(Answer, bool), String> {
    let moment = storm.disk.now();
    let answer = call(&storm.place, &storm.groups, arguments, fault)?;
    let was_full = storm.disk.was_full_since(moment);
    storm.tally.call(verb, fault, answer.ended, was_full);
    let undisturbed = matches!(fault, Fault::None) && !was_full;
    if undisturbed && answer.ended == Ended::Succeeded {
        storm.tally.learn(verb, answer.took);
    }
    if answer.stderr.contains("panicked")
        || (answer.ended == Ended::Failed && answer.stderr.trim().is_empty())
    {
        storm.tally.violation(&format!("netloom {}: no clean error: {}", arguments.join(" "), answer.stderr));
    }
    if undisturbed && verb == Verb::Gc && answer.ended != Ended::Succeeded {
        storm.tally.violation(&format!("netloom {}: {}", arguments.join(" "), answer.stderr.trim()));
    }
    Ok((answer, undisturbed))
}

/// Looks at everything that lives, deletes everything, and collects once.
pub(super) fn end(storm: &Storm) -> Outcome {
    storm.place.host.inside(|| {
        for attachment in 0..storm.attachments.len() {
            if let State::Attached(result) = &*lock(storm, attachment)? {
                look(storm, attachment, result)?;
                check(storm, attachment, Fault::None)?;
                storm.tally.count("attachments that lived at the end");
            }
        }
        for attachment in 0..storm.attachments.len() {
            del(storm, attachment, &mut *lock(storm, attachment)?, Fault::None)?;
        }
        for network in NETWORKS {
            run(storm, Verb::Gc, &["gc", network], Fault::None)?;
        }
        Ok(())
    })?
}
