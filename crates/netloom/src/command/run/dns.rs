//! The resolv.conf(5) of the command: name servers that it can reach from its namespace.

use std::fs;

use netloom_runtime::types::{CniResult, address::parse_ip};

use super::super::note;

/// Returns the text for the command's `/etc/resolv.conf`, or `None` if the host's serves. `named` are the servers of `--dns`.
pub(crate) fn resolv_conf(named: &[String], result: &CniResult) -> Option<String> {
    let dns = result.clone().into_current().dns;
    let servers = if named.is_empty() { &dns.nameservers[..] } else { named };
    if servers.is_empty() {
        return match reachable(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()) {
            Reachable::All => None,
            Reachable::Some(text) => Some(text),
            Reachable::None => {
                // systemd-resolved listens on the host's loopback and keeps the servers that it asks in this file.
                let upstream = fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or_default();
                match reachable(&upstream) {
                    Reachable::All if !upstream.is_empty() => Some(upstream),
                    Reachable::Some(text) => Some(text),
                    _ => {
                        note(
                            "netloom: the host's name servers are on its loopback, which the command cannot reach: \
                             name one with --dns",
                        );
                        None
                    }
                }
            }
        };
    }
    let mut lines: Vec<String> = servers.iter().map(|server| format!("nameserver {server}")).collect();
    if !dns.search.is_empty() {
        lines.push(format!("search {}", dns.search.join(" ")));
    }
    if !dns.options.is_empty() {
        lines.push(format!("options {}", dns.options.join(" ")));
    }
    Some(lines.join("\n") + "\n")
}

/// The name servers of a resolv.conf(5) that another network namespace can reach.
#[derive(Debug, PartialEq, Eq)]
enum Reachable {
    /// All of them, or the file names none.
    All,
    /// Some of them: the file without the others.
    Some(String),
    None,
}

/// Leaves out name servers on the host's loopback, and those whose IPv6 scope is a link of the host.
fn reachable(text: &str) -> Reachable {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().unwrap_or_default().to_owned())
    };
    let is_local = |server: &str| server.contains('%') || parse_ip(server).is_ok_and(|ip| ip.is_loopback());
    let servers: Vec<String> = text.lines().filter_map(server).collect();
    let local = servers.iter().filter(|server| is_local(server)).count();
    match local {
        0 => Reachable::All,
        _ if local == servers.len() => Reachable::None,
        _ => {
            let kept = text.lines().filter(|line| !server(line).is_some_and(|server| is_local(&server)));
            Reachable::Some(kept.map(|line| format!("{line}\n")).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_the_loopback_are_left_out() {
        assert_eq!(reachable("nameserver 192.0.2.1\nsearch a b\n"), Reachable::All);
        assert_eq!(reachable(""), Reachable::All);
        assert_eq!(reachable("nameserver 127.0.0.53\nnameserver ::1\noptions edns0\n"), Reachable::None);
        assert_eq!(
            reachable("nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nsearch a\n"),
            Reachable::Some("nameserver 2001:db8::1\nsearch a\n".into())
        );
    }
}
