//! Conditions that a packet to a published port must meet, parsed from the syntax of iptables or nft.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{
    IpFamily,
    hash::fnv1a,
    nft::{Expr, Reg},
};

use crate::{chains, octets, port_name};

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    what: What,
    /// Whether the condition is met by packets that do not match.
    inverted: bool,
    /// The bytes to compare with, and the mask of the bits that count.
    value: Vec<u8>,
    mask: Vec<u8>,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Source(IpFamily),
    Destination(IpFamily),
    In,
    Mark,
}

impl What {
    /// Returns the text that stands for it in the hash that names a chain. Changing it would orphan existing chains.
    fn key(self) -> &'static str {
        match self {
            Self::Source(IpFamily::V4) => "Source { v4: true }",
            Self::Source(IpFamily::V6) => "Source { v4: false }",
            Self::Destination(IpFamily::V4) => "Destination { v4: true }",
            Self::Destination(IpFamily::V6) => "Destination { v4: false }",
            Self::In => "In",
            Self::Mark => "Mark",
        }
    }
}

impl Condition {
    /// Parses the words of a network's `conditionsV4` or `conditionsV6`.
    ///
    /// # Errors
    /// The words that were not understood.
    pub fn parse(words: &[String], family: IpFamily) -> Result<Vec<Self>, String> {
        // The list has one word an entry, or several words in one entry.
        let mut text = words.join(" ");
        if text.contains('{') {
            text = text.replace('{', " { ").replace('}', " } ").replace(',', " ");
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut rest = &words[..];
        let mut conditions = Vec::new();
        while !rest.is_empty() {
            let (found, after) =
                of_iptables(rest, family).or_else(|| of_nft(rest, family)).ok_or_else(|| rest.join(" "))?;
            conditions.extend(found);
            rest = after;
        }
        Ok(conditions)
    }

    /// Returns the condition as a rule's expressions.
    pub(crate) fn expressions(&self) -> Vec<Expr<'_>> {
        let load = match self.what {
            What::Source(IpFamily::V4) => Expr::Payload { base: 1, offset: 12, length: 4, to: Reg(0) },
            What::Source(IpFamily::V6) => Expr::Payload { base: 1, offset: 8, length: 16, to: Reg(0) },
            What::Destination(IpFamily::V4) => Expr::Payload { base: 1, offset: 16, length: 4, to: Reg(0) },
            What::Destination(IpFamily::V6) => Expr::Payload { base: 1, offset: 24, length: 16, to: Reg(0) },
            What::In => Expr::InName(Reg(0)),
            What::Mark => Expr::Mark(Reg(0)),
        };
        let mut expressions = vec![load];
        if self.mask.iter().any(|byte| *byte != 0xff) {
            expressions.push(Expr::Mask { reg: Reg(0), mask: &self.mask });
        }
        expressions.push(if self.inverted {
            Expr::NotEqual(Reg(0), &self.value)
        } else {
            Expr::Equal(Reg(0), &self.value)
        });
        expressions
    }
}

/// Returns the name of the chain of conditions: a hash of their text.
pub(crate) fn chain(conditions: &[Condition]) -> String {
    let hash = fnv1a(conditions.iter().flat_map(|condition| condition.text.bytes().chain([0])));
    format!("{}{hash:016x}", chains::CONDITION)
}

type Parsed<'a, 'b> = Option<(Vec<Condition>, &'a [&'b str])>;

/// `! -s 10.0.0.0/8`, `-i eth0`, `-m mark --mark 0x1/0x1`; the older `-s ! 10.0.0.0/8` too.
fn of_iptables<'a, 'b>(words: &'a [&'b str], family: IpFamily) -> Parsed<'a, 'b> {
    let (before, words) = match words {
        ["!", rest @ ..] => (true, rest),
        _ => (false, words),
    };
    let (option, within, value, rest) = match words {
        // The name of a match, or a comment: neither restricts the packet.
        ["-m" | "--match", "mark" | "comment", rest @ ..] if !before => return Some((Vec::new(), rest)),
        ["--comment", _, rest @ ..] if !before => return Some((Vec::new(), rest)),
        [option, "!", value, rest @ ..] if !before => (*option, true, *value, rest),
        [option, value, rest @ ..] => (*option, before, *value, rest),
        _ => return None,
    };
    let what = match option {
        "-s" | "--source" | "--src" => What::Source(family),
        "-d" | "--destination" | "--dst" => What::Destination(family),
        "-i" | "--in-interface" => What::In,
        "--mark" => What::Mark,
        _ => return None,
    };
    Some((vec![condition(what, within, value)?], rest))
}

/// `ip saddr != 10.0.0.0/8`, `ip daddr != { 127.0.0.0/8, 192.0.2.1 }`, `iifname "eth0"`, `meta mark 0x1`.
fn of_nft<'a, 'b>(words: &'a [&'b str], family: IpFamily) -> Parsed<'a, 'b> {
    let (what, rest) = match words {
        ["ip", "saddr", rest @ ..] if family == IpFamily::V4 => (What::Source(family), rest),
        ["ip6", "saddr", rest @ ..] if family == IpFamily::V6 => (What::Source(family), rest),
        ["ip", "daddr", rest @ ..] if family == IpFamily::V4 => (What::Destination(family), rest),
        ["ip6", "daddr", rest @ ..] if family == IpFamily::V6 => (What::Destination(family), rest),
        ["meta", "iifname", rest @ ..] | ["iifname", rest @ ..] => (What::In, rest),
        ["meta", "mark", rest @ ..] | ["mark", rest @ ..] => (What::Mark, rest),
        _ => return None,
    };
    let (inverted, rest) = match rest {
        ["!=", rest @ ..] => (true, rest),
        ["==", rest @ ..] => (false, rest),
        _ => (false, rest),
    };
    let (values, rest) = match rest {
        // A packet must differ from each element, so each is a condition. Without `!=` one of them would have to be met.
        ["{", set @ ..] if inverted => {
            let end = set.iter().position(|word| *word == "}").filter(|end| *end > 0)?;
            (&set[..end], &set[end + 1..])
        }
        _ => rest.split_at_checked(1)?,
    };
    let conditions: Option<Vec<Condition>> =
        values.iter().map(|value| condition(what, inverted, value.trim_matches('"'))).collect();
    Some((conditions?, rest))
}

fn condition(what: What, inverted: bool, text: &str) -> Option<Condition> {
    let (value, mask) = match what {
        What::Source(family) | What::Destination(family) => {
            let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            let net = net.filter(|net| family.has(net.addr()))?;
            (octets(net.network()), octets(net.netmask()))
        }
        // A `+` or `*` at the end stands for any rest.
        What::In => match text.strip_suffix(['+', '*']) {
            Some(start) => (start.as_bytes().to_vec(), vec![0xff; start.len()]),
            None => (port_name(text), vec![0xff; 16]),
        },
        What::Mark => {
            let (mark, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
            (number(mark)?.to_ne_bytes().to_vec(), number(mask)?.to_ne_bytes().to_vec())
        }
    };
    if value.is_empty() || value.len() > 16 {
        return None;
    }
    let text = format!("{} {inverted} {text}", what.key());
    Some(Condition { what, inverted, value, mask, text })
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use kernel::IpFamily;

    use super::{Condition, chain};

    fn parse(words: &[&str]) -> Result<Vec<Condition>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Condition::parse(&words, IpFamily::V4)
    }

    /// A negated set is one condition for each element, however it is divided into words. Other sets are not understood.
    #[test]
    fn negated_sets() {
        let one_by_one = parse(&["ip daddr != 127.0.0.0/8 ip daddr != 192.0.2.1 iifname up0"]).unwrap();
        for words in [
            &["ip", "daddr", "!=", "{ 127.0.0.0/8, 192.0.2.1 }", "iifname", "up0"][..],
            &["ip daddr != {127.0.0.0/8,192.0.2.1} iifname up0"],
        ] {
            assert_eq!(parse(words).unwrap(), one_by_one, "{words:?}");
        }
        for words in [
            "ip daddr { 192.0.2.1 }",
            "ip daddr != { }",
            "ip daddr != { 192.0.2.1",
            "ip daddr != 192.0.2.1 }",
        ] {
            assert!(parse(&[words]).is_err(), "{words}");
        }
    }

    /// Conditions keep the chain names of earlier versions, whose chains may still be in the kernel.
    #[test]
    fn chain_names_do_not_change() {
        let hash = kernel::hash::fnv1a("Source { v4: true } true 10.0.0.0/8\0Mark false 0x1\0".bytes());
        let words = ["!".into(), "-s".into(), "10.0.0.0/8".into(), "--mark".into(), "0x1".into()];
        let conditions = Condition::parse(&words, IpFamily::V4).unwrap();
        assert!(chain(&conditions).ends_with(&format!("{hash:016x}")), "{}", chain(&conditions));
    }
}
