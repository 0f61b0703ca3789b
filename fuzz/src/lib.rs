//! What Netloom does with bytes that others choose: a function for each door, which must not panic on any.
//!
//! `cargo +nightly fuzz run NAME` looks for bytes that break one; `cargo test` replays what is in `corpus/NAME`.
#![forbid(unsafe_code)]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::Duration,
};

use dhcp::{lease::Patience, v4, v6};
use ipam::{Owner, Range, RangeSet, Store};
use netloom_invoke::{Outcome, error_of};
use netloom_runtime::{Container, cache};
use netloom_types::{
    CniArgs, CniError, CniResult, NetworkList, PluginConfig, RequestConfig, SpecVersion, VersionInfo,
};

/// Does with bytes what is done with them in earnest.
pub type Target = fn(&[u8]);

/// Every door, by the name of its corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("configuration", configuration),
    ("result", result),
    ("args", args),
    ("cache", cached),
    ("plugin_output", plugin_output),
    ("netlink", netlink),
    ("host_local", host_local),
    ("dhcp", leases),
    ("lint", linted),
];

const VERSIONS: [SpecVersion; 7] = [
    SpecVersion::V0_1_0,
    SpecVersion::V0_2_0,
    SpecVersion::V0_3_0,
    SpecVersion::V0_3_1,
    SpecVersion::V0_4_0,
    SpecVersion::V1_0_0,
    SpecVersion::V1_1_0,
];

/// A file of `/etc/cni/net.d`, and standard input of a plugin.
pub fn configuration(bytes: &[u8]) {
    drop(NetworkList::parse_single(bytes));
    drop(PluginConfig::parse(bytes));
    if let Ok(list) = NetworkList::parse(bytes) {
        drop(list.semver());
    }
    if let Ok(request) = RequestConfig::parse(bytes) {
        drop(request.prev_result());
        drop(request.valid_attachments());
    }
}

/// A file that `netloom lint` checks: every place is in the text, and what is fixed can be checked again.
pub fn linted(bytes: &[u8]) {
    for name in ["a.conflist", "a.conf"] {
        let mut source =
            lint::Source { path: name.to_owned(), bytes: bytes.to_vec(), ..lint::Source::default() };
        for _ in 0..3 {
            let findings = lint::check(std::slice::from_ref(&source), None);
            for finding in &findings {
                assert!(
                    finding.span.start <= finding.span.end && finding.span.end <= source.bytes.len(),
                    "{finding:?}"
                );
            }
            let (fixed, _) = lint::fixed(&source.bytes, &findings);
            source.bytes = fixed;
        }
    }
}

/// A plugin's result: read as each version, what was read is written in each version that can say it, and reads the same.
pub fn result(bytes: &[u8]) {
    for assumed in VERSIONS {
        let Ok(read) = CniResult::parse(bytes, assumed) else { continue };
        for version in VERSIONS {
            let Ok(converted) = read.clone().convert(version) else { continue };
            let text = converted.to_json();
            match CniResult::parse(text.as_bytes(), version) {
                Ok(again) => assert_eq!(again.to_json(), text, "{version}"),
                Err(error) => panic!("{version}: {text} was written and cannot be read: {error}"),
            }
        }
    }
}

/// `CNI_ARGS`.
pub fn args(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(args) = CniArgs::parse(text) {
        drop(args.require_known(&["IgnoreUnknown", "IP"]));
        assert_eq!(CniArgs::parse(&args.render()).ok().as_ref(), Some(&args), "{text:?}");
    }
}

/// A file of libcni's cache.
pub fn cached(bytes: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else { return };
    let path = dir.path().join("net-c1-eth0");
    if fs::write(&path, bytes).is_err() {
        return;
    }
    let found = cache::read(&path, "net", &Container::new("c1", "/run/netns/c1"));
    for version in VERSIONS {
        drop(found.result(version));
    }
}

/// What a delegated or chained plugin prints, whether it says that it failed or not.
pub fn plugin_output(bytes: &[u8]) {
    drop(VersionInfo::parse(bytes));
    drop(CniError::parse(bytes));
    let outcome = Outcome {
        status: ExitStatus::from_raw(1 << 8),
        stdout: bytes.to_vec(),
        stderr: String::from_utf8_lossy(bytes).into_owned(),
    };
    let error = error_of(&outcome);
    assert!(CniError::parse(error.to_json().as_bytes()).is_ok(), "{error:?}");
}

/// What the kernel sends.
pub fn netlink(bytes: &[u8]) {
    kernel::decode::datagram(bytes);
}

/// Files in a folder of host-local's: a reservation, the round robin's memory, the table, each of these bytes.
pub fn host_local(bytes: &[u8]) {
    let Ok(data) = tempfile::tempdir() else { return };
    let store = Store::new(data.path(), "net");
    let Ok(subnet) = "10.0.0.0/29".parse() else { return };
    let Ok(range) = Range::new(subnet, None, None, None) else { return };
    let Ok(set) = RangeSet::new(vec![range]) else { return };
    let owner = Owner { container: "c1", ifname: "eth0" };
    let third = bytes.len() / 3;
    let (reservation, rest) = bytes.split_at(third);
    let (last, index) = rest.split_at(third);
    let files = [("10.0.0.2", reservation), ("last_reserved_ip.0", last), (".netloom-index", index)];
    if fs::create_dir(store.dir()).is_err()
        || files.iter().any(|(name, content)| fs::write(store.dir().join(name), content).is_err())
    {
        return;
    }
    let Ok(mut locked) = store.lock() else { return };
    let _: Option<IpAddr> = locked.last_reserved(0);
    drop(locked.owned(owner));
    let mut given = Vec::new();
    while let Ok(Some((_, ip))) = locked.reserve_next(&set, owner, 0) {
        assert!(!given.contains(&ip), "{ip} was given twice");
        given.push(ip);
    }
    let taken = IpAddr::from(Ipv4Addr::new(10, 0, 0, 2));
    assert!(!given.contains(&taken), "{taken} is reserved, and was given");
    drop(locked.release(owner));
    drop(locked.retain(|_, _| false));
}

/// Packets of DHCP servers of both families, and of anybody who can send: each part of the bytes is one.
pub fn leases(bytes: &[u8]) {
    // The fuzzer ends at every panic by its hook; this door's own answer to those of the crate that reads packets counts
    // too. One that gets through ends it all the same.
    #[cfg(fuzzing)]
    std::panic::set_hook(Box::new(|_| ()));
    const PATIENCE: Patience = Patience { answer: Duration::from_secs(10), most: Duration::from_secs(62) };
    let now = Duration::from_secs(1);
    let mut random = || 0x0102_0304;
    let wishes = v4::Wishes {
        client_id: vec![0, 1],
        provide: Vec::new(),
        request: v4::DEFAULT_REQUEST.to_vec(),
        broadcast: false,
    };
    let mut four = v4::Client::new([2, 0, 0, 0, 0, 1], wishes, PATIENCE, now);
    let wishes = v6::Wishes { duid: vec![0, 3, 0, 1], iaid: 1, provide: Vec::new() };
    let mut six = v6::Client::new(wishes, PATIENCE, now);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for packet in [bytes, first, second, dhcp::udp_payload(bytes).unwrap_or_default()] {
        for at in [now, now * 100, now * 10_000] {
            drop(four.tick(at, &mut random));
            drop(four.receive(at, packet, &mut random));
            drop(six.tick(at, &mut random));
            drop(six.receive(at, packet, &mut random));
        }
    }
    drop(four.release(now, 1));
    drop(six.release(now, 1));
}
