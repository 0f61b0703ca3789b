//! The tables of iptables-legacy. The kernel reads and replaces them as a whole.
//!
//! Only for hosts that use them: a container's packets pass their chains whatever nftables says, so what has to be
//! let through must be let through there too. Source: the kernel's `include/uapi/linux/netfilter/x_tables.h`,
//! `netfilter_ipv4/ip_tables.h` and `netfilter_ipv6/ip6_tables.h`.

mod entry;

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with},
};

pub use entry::{Rule, Target};

use crate::{
    error::{Error, Result, checked},
    inject,
    waiting::{self, Lock},
};

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4: iptables-legacy.
    V4,
    /// IPv6: ip6tables-legacy.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn names_file(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    fn level(self) -> i32 {
        match self {
            Self::V4 => libc::IPPROTO_IP,
            Self::V6 => libc::IPPROTO_IPV6,
        }
    }
}

/// A table with its chains.
#[derive(Debug, Clone)]
pub struct Table {
    family: Family,
    name: &'static str,
    valid_hooks: u32,
    /// The number of the kernel's entries, and their size in bytes.
    entries: (u32, u32),
    chains: Vec<Chain>,
}

#[derive(Debug, Clone)]
struct Chain {
    name: String,
    /// The hook of a built-in chain.
    hook: Option<usize>,
    rules: Vec<Rule>,
    /// The entry after the rules: the policy, or the return.
    end: Rule,
}

/// The names of the built-in chains.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Returns whether a table is in use in the calling thread's namespace. Does not load the table.
pub fn is_used(family: Family, table: &str) -> bool {
    fs::read_to_string(family.names_file()).is_ok_and(|names| names.lines().any(|name| name == table))
}

/// Reads a table, or returns `None` if it is not in use.
///
/// # Errors
/// If the kernel refuses the request.
pub fn read(family: Family, table: &'static str) -> Result<Option<Table>> {
    if !is_used(family, table) {
        return Ok(None);
    }
    let socket = open(family, table)?;
    Table::read(&socket, family, table).map(Some)
}

/// Reads a table, applies `change`, and replaces the table if `change` returns true. Does nothing if the table is not in use.
/// Holds the lock of iptables-legacy meanwhile.
///
/// # Errors
/// If the kernel refuses the request.
pub fn edit(family: Family, table: &'static str, change: impl Fn(&mut Table) -> bool) -> Result<()> {
    if !is_used(family, table) {
        return Ok(());
    }
    const ATTEMPTS: usize = 8;
    let socket = open(family, table)?;
    let _lock = lock()?;
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        let mut edited = Table::read(&socket, family, table)?;
        if !change(&mut edited) {
            return Ok(());
        }
        inject::point("replace iptables-legacy table", table)?;
        outcome = edited.write(&socket);
        // Another process changed the table without the lock.
        if !matches!(&outcome, Err(error) if error.errno == Errno::AGAIN) {
            break;
        }
    }
    outcome
}

impl Table {
    /// Returns whether there is a chain of that name.
    pub fn has_chain(&self, chain: &str) -> bool {
        self.chains.iter().any(|it| it.name == chain)
    }

    /// Creates a chain unless it exists, and returns whether it was created.
    pub fn ensure_chain(&mut self, chain: &str) -> bool {
        if self.has_chain(chain) {
            return false;
        }
        self.chains.push(Chain {
            name: chain.to_owned(),
            hook: None,
            rules: Vec::new(),
            end: Rule::of(self.family, Target::Return),
        });
        true
    }

    /// Lists the rules of a chain.
    pub fn rules(&self, chain: &str) -> &[Rule] {
        self.chains.iter().find(|it| it.name == chain).map_or(&[], |it| &it.rules)
    }

    /// Lists the rules of all chains in order, each with its chain's name and its number from 1. The rule after the last of a
    /// built-in chain, which is the chain's policy, has number 0.
    pub fn all_rules(&self) -> impl Iterator<Item = (&str, usize, &Rule)> {
        self.chains.iter().flat_map(|chain| {
            let rules = chain.rules.iter().enumerate().map(|(index, rule)| (index + 1, rule));
            let policy = chain.hook.is_some().then_some((0, &chain.end));
            rules.chain(policy).map(|(number, rule)| (chain.name.as_str(), number, rule))
        })
    }

    /// Inserts a rule before all others of a chain.
    pub fn insert(&mut self, chain: &str, rule: Rule) {
        self.chain(chain, |it| it.rules.insert(0, rule));
    }

    /// Appends a rule after all others of a chain.
    pub fn append(&mut self, chain: &str, rule: Rule) {
        self.chain(chain, |it| it.rules.push(rule));
    }

    fn chain(&mut self, chain: &str, change: impl FnOnce(&mut Chain)) {
        if let Some(found) = self.chains.iter_mut().find(|it| it.name == chain) {
            change(found);
        }
    }

    /// Removes rules wherever they are, and returns whether there were any.
    pub fn remove_rules(&mut self, stale: impl Fn(&str, &Rule) -> bool) -> bool {
        let mut removed = false;
        for chain in &mut self.chains {
            let before = chain.rules.len();
            chain.rules.retain(|rule| !stale(&chain.name, rule));
            removed |= chain.rules.len() < before;
        }
        removed
    }

    /// Removes chains with their rules and the rules that lead to them, and returns whether there were any.
    pub fn remove_chains(&mut self, stale: impl Fn(&str) -> bool) -> bool {
        let before = self.chains.len();
        self.chains.retain(|chain| chain.hook.is_some() || !stale(&chain.name));
        let removed = self.chains.len() < before;
        let left: Vec<String> = self.chains.iter().map(|chain| chain.name.clone()).collect();
        removed | self.remove_rules(|_, rule| matches!(rule.target(), Target::Jump(to) if !left.contains(to)))
    }

    /// Lists the chains that are not built in.
    pub fn chains(&self) -> impl Iterator<Item = &str> {
        self.chains.iter().filter(|chain| chain.hook.is_none()).map(|chain| chain.name.as_str())
    }

    fn read(socket: &OwnedFd, family: Family, table: &'static str) -> Result<Self> {
        let error = |errno| Error::new("read iptables-legacy table", table, errno);
        let mut info = [0; INFO];
        info[..table.len()].copy_from_slice(table.as_bytes());
        get(socket, family, GET_INFO, &mut info).map_err(error)?;
        let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        let (valid_hooks, count, size) = (word(32), word(76), word(80));
        let mut answer = vec![0; ENTRIES + size as usize];
        answer[..table.len()].copy_from_slice(table.as_bytes());
        answer[32..36].copy_from_slice(&size.to_ne_bytes());
        get(socket, family, GET_ENTRIES, &mut answer).map_err(error)?;
        let hooks: Vec<(usize, usize)> = (0..5)
            .filter(|hook| valid_hooks & 1 << hook != 0)
            .map(|hook| (word(36 + 4 * hook) as usize, hook))
            .collect();
        let chains = split(family, &answer[ENTRIES..], &hooks).ok_or_else(|| error(Errno::PROTO))?;
        Ok(Self { family, name: table, valid_hooks, entries: (count, size), chains })
    }

    fn write(&self, socket: &OwnedFd) -> Result<()> {
        let error = |errno| Error::new("replace iptables-legacy table", self.name, errno);
        let Built { bytes, origins, hooks, underflows } = self.build();
        let old = self.entries.0 as usize;
        let mut counters = vec![[0_u8; COUNTER]; old];
        let mut replace = vec![0; REPLACE];
        replace[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let count = u32::try_from(origins.len()).unwrap_or(u32::MAX);
        let words = [self.valid_hooks, count, u32::try_from(bytes.len()).unwrap_or(u32::MAX)];
        let words = words.into_iter().chain(hooks).chain(underflows).chain([self.entries.0]);
        for (index, word) in words.enumerate() {
            replace[32 + 4 * index..36 + 4 * index].copy_from_slice(&word.to_ne_bytes());
        }
        // The kernel writes the counters of the old entries there.
        replace[88..96].copy_from_slice(&counters.as_mut_ptr().expose_provenance().to_ne_bytes());
        replace.extend_from_slice(&bytes);
        set(socket, self.family, SET_REPLACE, &replace).map_err(error)?;
        let mut add = vec![0; ADD_COUNTERS];
        add[..self.name.len()].copy_from_slice(self.name.as_bytes());
        add[32..36].copy_from_slice(&count.to_ne_bytes());
        for origin in origins {
            add.extend(origin.and_then(|index| counters.get(index)).unwrap_or(&[0; COUNTER]));
        }
        // A failure loses only the counters: the rules are in place.
        let _ = set(socket, self.family, SET_ADD_COUNTERS, &add);
        Ok(())
    }

    /// Encodes the chains in the kernel's layout, with the offset of each jump.
    fn build(&self) -> Built {
        let mut starts = BTreeMap::new();
        let mut offset = 0;
        for chain in self.in_order() {
            if chain.hook.is_none() {
                offset += entry::error_length(self.family);
            }
            starts.insert(chain.name.as_str(), offset);
            offset += chain.rules.iter().chain([&chain.end]).map(Rule::length).sum::<usize>();
        }
        let mut built = Built { bytes: Vec::new(), origins: Vec::new(), hooks: [0; 5], underflows: [0; 5] };
        for chain in self.in_order() {
            if chain.hook.is_none() {
                built.bytes.extend(entry::error(self.family, &chain.name));
                built.origins.push(None);
            }
            let first = u32::try_from(built.bytes.len()).unwrap_or(u32::MAX);
            for rule in &chain.rules {
                rule.write(&mut built.bytes, &starts);
                built.origins.push(rule.origin);
            }
            if let Some(hook) = chain.hook {
                built.hooks[hook] = first;
                built.underflows[hook] = u32::try_from(built.bytes.len()).unwrap_or(u32::MAX);
            }
            chain.end.write(&mut built.bytes, &starts);
            built.origins.push(chain.end.origin);
        }
        built.bytes.extend(entry::error(self.family, "ERROR"));
        built.origins.push(None);
        built
    }

    /// Returns the chains, built-in ones first in the order of their hooks.
    fn in_order(&self) -> impl Iterator<Item = &Chain> {
        let mut chains: Vec<&Chain> = self.chains.iter().collect();
        chains.sort_by_key(|chain| chain.hook.unwrap_or(usize::MAX));
        chains.into_iter()
    }
}

struct Built {
    bytes: Vec<u8>,
    /// The index of each entry among the old ones, for its counters.
    origins: Vec<Option<usize>>,
    hooks: [u32; 5],
    underflows: [u32; 5],
}

/// Splits the kernel's entries into chains, or returns `None` if they are malformed.
fn split(family: Family, bytes: &[u8], hooks: &[(usize, usize)]) -> Option<Vec<Chain>> {
    let mut entries = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        let rule = Rule::read(family, bytes, offset, entries.len())?;
        let next = offset + rule.length();
        entries.push((offset, rule));
        offset = next;
    }
    // The offset of each chain's first rule, which is the target of jumps.
    let mut names = BTreeMap::new();
    for (index, (offset, rule)) in entries.iter().enumerate() {
        if let Some((_, hook)) = hooks.iter().find(|(start, _)| start == offset) {
            names.insert(*offset, BUILT_IN[*hook].to_owned());
        }
        if let Some(name) = rule.chain_name()
            && let Some((start, _)) = entries.get(index + 1)
        {
            names.insert(*start, name);
        }
    }
    let mut chains: Vec<Chain> = Vec::new();
    let mut rules: Vec<Rule> = Vec::new();
    let mut current: Option<(String, Option<usize>)> = None;
    let mut close = |current: &mut Option<(String, Option<usize>)>, rules: &mut Vec<Rule>| {
        if let Some((name, hook)) = current.take() {
            let end = rules.pop()?;
            chains.push(Chain { name, hook, rules: std::mem::take(rules), end });
        }
        Some(())
    };
    for (offset, mut rule) in entries {
        if rule.chain_name().is_some() {
            close(&mut current, &mut rules)?;
            continue;
        }
        if let Some(name) = names.get(&offset) {
            close(&mut current, &mut rules)?;
            let hook = hooks.iter().find(|(start, _)| *start == offset).map(|(_, hook)| *hook);
            current = Some((name.clone(), hook));
        }
        rule.resolve(offset, &names)?;
        rules.push(rule);
    }
    close(&mut current, &mut rules)?;
    Some(chains)
}

fn open(family: Family, table: &str) -> Result<OwnedFd> {
    let domain = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let raw = rustix::net::RawProtocol::new(libc::IPPROTO_RAW.cast_unsigned()).map(Protocol::from_raw);
    socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, raw)
        .map_err(|errno| Error::new("open a socket for iptables-legacy table", table, errno))
}

/// Acquires the lock of iptables-legacy until the guard is dropped.
fn lock() -> Result<fs::File> {
    const LOCK: &str = "/run/xtables.lock";
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(LOCK);
    let file = file.map_err(|error| Error::from_io("open", LOCK, &error))?;
    rustix::io::retry_on_intr(|| waiting::lock(&file, Path::new(LOCK), Lock::Exclusive))
        .map_err(|errno| Error::new("lock", LOCK, errno))?;
    Ok(file)
}

fn get(socket: &OwnedFd, family: Family, option: i32, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::MSGSIZE)?;
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which is that long.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            family.level(),
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    checked(done).map(drop)
}

fn set(socket: &OwnedFd, family: Family, option: i32, buffer: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::MSGSIZE)?;
    // SAFETY: the kernel reads `length` bytes of the buffer, which is that long. What a replacement points to is
    // alive in the caller, as long as the counters of the old entries.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), family.level(), option, buffer.as_ptr().cast(), length)
    };
    checked(done).map(drop)
}

const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const SET_REPLACE: i32 = 64;
const SET_ADD_COUNTERS: i32 = 65;
/// Lengths of the fixed parts of `struct ipt_getinfo`, `ipt_get_entries`, `ipt_replace`, `xt_counters_info`.
const INFO: usize = 84;
const ENTRIES: usize = 40;
const REPLACE: usize = 96;
const ADD_COUNTERS: usize = 40;
const COUNTER: usize = 16;
