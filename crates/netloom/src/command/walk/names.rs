//! The name servers of a container, and what they say of a name (RFC 1035).

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use kernel::IpFamily;
use netloom_invoke::FileId;

use super::{
    super::Outcome,
    cause::Cause,
    path::Path,
    place::Place,
    shot::Kind,
    single::{self, Step},
};

/// Time limit for the answer of a name server.
const PATIENCE: Duration = Duration::from_millis(400);

/// What a container's `resolv.conf` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
}

impl Resolver {
    /// Reads the file of a process in the container that has its own file system. Returns `None` without such a process.
    pub(crate) fn of(place: &Place) -> Option<Self> {
        let own = FileId::of(FilePath::new("/proc/self/ns/mnt"));
        let netns = FileId::of(&place.path)?;
        let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
        let is_inside = |path: &PathBuf| {
            FileId::of(&path.join("ns/net")) == Some(netns) && FileId::of(&path.join("ns/mnt")) != own
        };
        let text = processes
            .filter(is_inside)
            .find_map(|path| fs::read_to_string(path.join("root/etc/resolv.conf")).ok())?;
        Some(Self::parse(&text)).filter(|resolver| !resolver.servers.is_empty())
    }

    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver
    }

    /// Probes the name servers. The step works if one of them answers.
    pub(crate) fn step(&self, base: &Path<'_>) -> Outcome<(String, Step)> {
        let mut broken = None;
        for server in &self.servers {
            let source =
                base.from.and_then(|place| place.address_for(*server)).filter(|_| !server.is_loopback());
            let path =
                Path { to: *server, source, kind: Kind::Udp(53), target: None, published: None, ..*base };
            let what = format!("name server {server}");
            match single::one(&path)? {
                Step::Broken(cause) if server.is_loopback() => {
                    let remedy =
                        "name a server that the container reaches: its loopback address is not the host's";
                    broken.get_or_insert((what, Cause::new(cause.sentence, remedy)));
                }
                Step::Broken(cause) => {
                    broken.get_or_insert((what, cause));
                }
                other => return Ok((what, other)),
            }
        }
        let (what, cause) = broken.unwrap_or_else(|| {
            (
                "name server".into(),
                Cause::new("the container has no name server", "set `dns` in the network's configuration"),
            )
        });
        let sentence = format!("{what} of the container does not answer: {}", cause.sentence);
        Ok((what, Step::Broken(Cause { sentence, ..cause })))
    }

    /// Returns the address of a name, or why there is none.
    pub(crate) fn look_up(&self, base: &Path<'_>, name: &str) -> Outcome<Result<IpAddr, Cause>> {
        let with_search = self.search.iter().map(|domain| format!("{name}.{domain}"));
        let names: Vec<String> = std::iter::once(name.to_owned()).chain(with_search).take(4).collect();
        let mut said = None;
        for server in &self.servers {
            for (name, kind) in names.iter().flat_map(|name| [(name, A), (name, AAAA)]) {
                let Some(query) = query(name, kind) else { continue };
                let answer = base.netns().run(|| ask(*server, &query))?;
                match answer.ok().as_deref().and_then(|answer| addresses(answer, kind)) {
                    Some(found) if !found.is_empty() => return Ok(Ok(found[0])),
                    Some(_) => said = Some(server),
                    None => break,
                }
            }
            if let Some(server) = said {
                return Ok(Err(Cause::new(
                    format!("name server {server} knows no address of `{name}`"),
                    "correct the name, or the search domains and name servers of the container",
                )));
            }
        }
        Ok(Err(match self.step(base)? {
            (_, Step::Broken(cause)) => cause,
            (what, _) => Cause::new(format!("{what} does not answer for `{name}`"), "check the name server"),
        }))
    }
}

const A: u16 = 1;
const AAAA: u16 = 28;
const ID: [u8; 2] = [0x4e, 0x6c];

fn ask(server: IpAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((IpFamily::of(server).unspecified(), 0))?;
    socket.connect(SocketAddr::new(server, 53))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(query)?;
    let mut answer = vec![0; 1500];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Encodes a query for one kind of record, or returns `None` if the text is no domain name.
fn query(name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut bytes = [&ID[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        bytes.push(length);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    (bytes.len() <= 12 + 255 + 4).then_some(bytes)
}

/// Returns the addresses in an answer, or `None` if it is none.
fn addresses(answer: &[u8], wanted: u16) -> Option<Vec<IpAddr>> {
    let word = |at: usize| Some(u16::from_be_bytes(*answer.get(at..)?.first_chunk()?));
    if answer.get(..2)? != ID {
        return None;
    }
    let (questions, count) = (word(4)?, word(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(answer, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..count {
        at = after_name(answer, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        match (kind, data.len()) {
            (A, 4) if wanted == A => found.push(IpAddr::from(*data.first_chunk::<4>()?)),
            (AAAA, 16) if wanted == AAAA => found.push(IpAddr::from(*data.first_chunk::<16>()?)),
            _ => {}
        }
        at += 10 + length;
    }
    Some(found)
}

/// Returns the offset after a name, which ends with an empty label or with a pointer.
fn after_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_garbage_is_not() {
        let mut answer = query("web.example", A).unwrap();
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 203, 0, 113, 7]);
        assert_eq!(addresses(&answer, A), Some(vec![[203, 0, 113, 7].into()]));
        assert_eq!(addresses(&answer, AAAA), Some(Vec::new()));
        for end in 0..answer.len() {
            assert_eq!(addresses(&answer[..end], A), None, "{end}");
        }
        assert_eq!(query("a..b", A), None);
        assert_eq!(query(&"x".repeat(64), A), None);
    }

    #[test]
    fn a_file_is_read() {
        let text =
            "# by hand\nnameserver 10.0.0.1\nnameserver fd00::1 \nnameserver x\nsearch a.example b.example\n";
        let resolver = Resolver::parse(text);
        assert_eq!(resolver.servers, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(resolver.search, ["a.example", "b.example"]);
    }
}
