//! One entry of a table: its matches and its target.

use std::{collections::BTreeMap, net::IpAddr};

use super::Family;
use crate::message::{read_ip, read_text, read_u16};

/// The target of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The packet passes.
    Accept,
    /// Drops the packet.
    Drop,
    /// Returns to the calling chain.
    Return,
    /// Jumps to a chain.
    Jump(String),
    /// Continues with the next rule.
    Next,
    /// Another target, kept unchanged.
    Other,
}

/// A rule: the kernel's bytes without its target's, and the target.
#[derive(Debug, Clone)]
pub struct Rule {
    family: Family,
    /// The entry and its matches.
    head: Vec<u8>,
    /// The target in the kernel's encoding; rewritten if it is a jump.
    tail: Vec<u8>,
    target: Target,
    /// Its index among the kernel's entries, if the kernel has it.
    pub(super) origin: Option<usize>,
}

struct Layout {
    entry: usize,
    target_offset: usize,
    next_offset: usize,
    address: usize,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::V4 => Layout { entry: 112, target_offset: 88, next_offset: 90, address: 4 },
        Family::V6 => Layout { entry: 168, target_offset: 140, next_offset: 142, address: 16 },
    }
}

impl Rule {
    /// Creates a rule for all packets.
    pub fn of(family: Family, target: Target) -> Self {
        Self { family, head: vec![0; layout(family).entry], tail: standard(&target), target, origin: None }
    }

    /// Adds a comment to the rule.
    #[must_use]
    pub fn with_comment(mut self, comment: &str) -> Self {
        let mut data = vec![0; 256];
        let end = comment.len().min(255);
        data[..end].copy_from_slice(&comment.as_bytes()[..end]);
        self.add_match("comment", 0, &data);
        self
    }

    /// Limits the rule to packets that have all bits of a mark.
    #[must_use]
    pub fn with_mark(mut self, bits: u32) -> Self {
        // struct xt_mark_mtinfo1: mark, mask, inverted.
        let mut data = vec![0; 16];
        data[..4].copy_from_slice(&bits.to_ne_bytes());
        data[4..8].copy_from_slice(&bits.to_ne_bytes());
        self.add_match("mark", 1, &data);
        self
    }

    fn add_match(&mut self, name: &str, revision: u8, data: &[u8]) {
        let size = u16::try_from(HEADER + data.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![0; HEADER];
        bytes[..2].copy_from_slice(&size.to_ne_bytes());
        bytes[2..2 + name.len()].copy_from_slice(name.as_bytes());
        bytes[HEADER - 1] = revision;
        self.head.extend(bytes);
        self.head.extend_from_slice(data);
    }

    /// Returns its target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the name of a target that is neither a verdict nor a chain, such as `REJECT`.
    pub fn target_name(&self) -> Option<String> {
        target_name(&self.tail).filter(|name| !name.is_empty())
    }

    /// Returns the number of packets that matched the rule, at the time the table was read.
    pub fn packets(&self) -> u64 {
        // `struct xt_counters`, packets and bytes, ends the entry.
        let at = layout(self.family).entry - 16;
        let count = self.head.get(at..).and_then(|bytes| bytes.first_chunk());
        count.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// Returns its comment.
    pub fn comment(&self) -> Option<String> {
        self.matches().find(|(name, _)| name == "comment").map(|(_, data)| read_text(data))
    }

    /// Returns whether it compares with a mark that has these bits and no others.
    pub fn has_mark(&self, bits: u32) -> bool {
        self.matches().any(|(name, data)| {
            name == "mark" && data.get(..4) == Some(&bits.to_ne_bytes()) && data.get(8) == Some(&0)
        })
    }

    /// Returns the single source address that it matches.
    pub fn source(&self) -> Option<IpAddr> {
        self.whole_address(0)
    }

    /// Returns the single destination address that it matches.
    pub fn destination(&self) -> Option<IpAddr> {
        self.whole_address(1)
    }

    fn whole_address(&self, place: usize) -> Option<IpAddr> {
        let length = layout(self.family).address;
        let part = |index: usize| self.head.get(index * length..(index + 1) * length);
        let mask = part(place + 2)?;
        if mask.iter().all(|byte| *byte == 0xff) { read_ip(part(place)?) } else { None }
    }

    fn matches(&self) -> impl Iterator<Item = (String, &[u8])> {
        let mut rest = self.head.get(layout(self.family).entry..).unwrap_or_default();
        std::iter::from_fn(move || {
            let size = usize::from(read_u16(rest)?);
            let (one, others) = rest.split_at_checked(size)?;
            rest = others;
            Some((read_text(one.get(2..HEADER - 1)?), one.get(HEADER..)?))
        })
    }

    pub(super) fn length(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Reads the entry at an offset.
    pub(super) fn read(family: Family, bytes: &[u8], offset: usize, index: usize) -> Option<Self> {
        let layout = layout(family);
        let entry = bytes.get(offset..)?;
        let number = |at| read_u16(entry.get(at..)?).map(usize::from);
        let (target, next) = (number(layout.target_offset)?, number(layout.next_offset)?);
        if target < layout.entry || next < target + HEADER {
            return None;
        }
        let (head, tail) = entry.get(..next)?.split_at(target);
        Some(Self {
            family,
            head: head.to_vec(),
            tail: tail.to_vec(),
            target: Target::Other,
            origin: Some(index),
        })
    }

    /// Returns the name of the chain that begins after this entry, if it is a chain's head.
    pub(super) fn chain_name(&self) -> Option<String> {
        (target_name(&self.tail)? == ERROR).then(|| self.tail.get(HEADER..).map(read_text)).flatten()
    }

    /// Resolves the target to a chain, from the chains' offsets.
    pub(super) fn resolve(&mut self, offset: usize, chains: &BTreeMap<usize, String>) -> Option<()> {
        if !target_name(&self.tail)?.is_empty() {
            return Some(());
        }
        let verdict = i32::from_ne_bytes(*self.tail.get(HEADER..)?.first_chunk()?);
        self.target = match verdict {
            ACCEPT => Target::Accept,
            DROP => Target::Drop,
            RETURN => Target::Return,
            other if other < 0 => Target::Other,
            other if usize::try_from(other).ok()? == offset + self.length() => Target::Next,
            other => Target::Jump(chains.get(&usize::try_from(other).ok()?)?.clone()),
        };
        Some(())
    }

    /// Writes the entry, with the offset of its target.
    pub(super) fn write(&self, into: &mut Vec<u8>, starts: &BTreeMap<&str, usize>) {
        let offset = into.len();
        let layout = layout(self.family);
        let mut head = self.head.clone();
        let sizes = [(layout.target_offset, head.len()), (layout.next_offset, self.length())];
        for (at, value) in sizes {
            head[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_ne_bytes());
        }
        let mut tail = self.tail.clone();
        let leads_to = match &self.target {
            Target::Jump(chain) => starts.get(chain.as_str()).copied(),
            Target::Next => Some(offset + self.length()),
            Target::Accept | Target::Drop | Target::Return | Target::Other => None,
        };
        if let Some(to) = leads_to {
            let to = i32::try_from(to).unwrap_or(i32::MAX);
            tail[HEADER..HEADER + 4].copy_from_slice(&to.to_ne_bytes());
        }
        into.extend(head);
        into.extend(tail);
    }
}

/// Returns the entry that begins a chain, or ends the table.
pub(super) fn error(family: Family, name: &str) -> Vec<u8> {
    let layout = layout(family);
    let mut bytes = vec![0; error_length(family)];
    let sizes = [(layout.target_offset, layout.entry), (layout.next_offset, bytes.len())];
    for (at, value) in sizes {
        bytes[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_ne_bytes());
    }
    let target = &mut bytes[layout.entry..];
    target[..2].copy_from_slice(&ERROR_TARGET_U16.to_ne_bytes());
    target[2..2 + ERROR.len()].copy_from_slice(ERROR.as_bytes());
    let end = name.len().min(29);
    target[HEADER..HEADER + end].copy_from_slice(&name.as_bytes()[..end]);
    bytes
}

pub(super) fn error_length(family: Family) -> usize {
    layout(family).entry + usize::from(ERROR_TARGET_U16)
}

fn standard(target: &Target) -> Vec<u8> {
    let verdict = match target {
        Target::Accept => ACCEPT,
        Target::Drop => DROP,
        Target::Return | Target::Jump(_) | Target::Next | Target::Other => RETURN,
    };
    let mut bytes = vec![0; STANDARD_TARGET];
    bytes[..2].copy_from_slice(&(STANDARD_TARGET as u16).to_ne_bytes());
    bytes[HEADER..HEADER + 4].copy_from_slice(&verdict.to_ne_bytes());
    bytes
}

fn target_name(tail: &[u8]) -> Option<String> {
    tail.get(2..HEADER - 1).map(read_text)
}

/// `struct xt_entry_match` and `xt_entry_target`: size, name of 29 bytes, revision.
const HEADER: usize = 32;
const STANDARD_TARGET: usize = 40;
const ERROR_TARGET_U16: u16 = 64;
const ERROR: &str = "ERROR";
const ACCEPT: i32 = -2;
const DROP: i32 = -1;
const RETURN: i32 = -5;
