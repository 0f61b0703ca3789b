//! Which addresses are tried, in which order, and what is written down of them.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipam::{Candidates, Cooldown, Owner, Range, RangeSet, Store};
use proptest::prelude::*;

fn set(subnets: &[&str]) -> RangeSet {
    RangeSet::new(subnets.iter().map(|s| Range::new(s.parse().unwrap(), None, None, None).unwrap()).collect())
        .unwrap()
}

fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
    let last = last.map(|text| text.parse().unwrap());
    Candidates::new(set, last).unwrap().map(|(_, ip)| ip.to_string()).collect()
}

#[test]
fn the_walk_begins_behind_the_last_one_and_comes_round() {
    let two = set(&["10.1.2.0/29", "10.1.3.0/30"]);
    let all = ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.3.2"];
    assert_eq!(order(&two, None), all);
    assert_eq!(
        order(&two, Some("10.1.2.4")),
        ["10.1.2.5", "10.1.2.6", "10.1.3.2", "10.1.2.2", "10.1.2.3", "10.1.2.4"]
    );
    assert_eq!(order(&two, Some("10.1.3.2")), all);
    // The ranges may have changed since: then it begins anew.
    assert_eq!(order(&two, Some("192.168.0.1")), all);
    // The last of all addresses has no next.
    let top =
        Range::new("255.255.255.0/24".parse().unwrap(), Some("255.255.255.253".parse().unwrap()), None, None);
    assert_eq!(
        order(&RangeSet::new(vec![top.unwrap()]).unwrap(), None),
        ["255.255.255.253", "255.255.255.254"]
    );
}

proptest! {
    /// Wherever it begins, every address of every range is tried once, and no gateway.
    #[test]
    fn every_address_is_tried_once(lengths in prop::collection::vec(24u8..=30, 1..4), begin in any::<u16>()) {
        let subnets: Vec<String> = lengths.iter().enumerate().map(|(i, length)| format!("10.{i}.0.0/{length}")).collect();
        let set = set(&subnets.iter().map(String::as_str).collect::<Vec<_>>());
        let expected: BTreeSet<String> = order(&set, None).into_iter().collect();
        let size: usize = lengths.iter().map(|length| (1 << (32 - length)) - 3).sum();
        prop_assert_eq!(expected.len(), size);
        let last: Vec<&String> = expected.iter().collect();
        let walked = order(&set, Some(last[usize::from(begin) % last.len()]));
        prop_assert_eq!(walked.len(), size);
        prop_assert_eq!(walked.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn reservations_are_the_reference_plugins_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "lab");
    assert!(store.lock_existing().unwrap().is_none());
    let mut locked = store.lock().unwrap();
    let (one, two) = (Owner { container: "c1", ifname: "eth0" }, Owner { container: "c1", ifname: "net1" });
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(locked.reserve(ip("10.1.2.2"), one, 0).unwrap());
    assert!(!locked.reserve(ip("10.1.2.2"), two, 0).unwrap());
    assert!(locked.reserve(ip("fd00::2"), one, 1).unwrap());
    assert!(locked.reserve(ip("10.1.2.3"), two, 0).unwrap());
    let read = |name: &str| fs::read_to_string(dir.path().join("lab").join(name)).unwrap();
    assert_eq!((read("10.1.2.2").as_str(), read("last_reserved_ip.0").as_str()), ("c1\r\neth0", "10.1.2.3"));
    assert_eq!(locked.last_reserved(1), Some(ip("fd00::2")));
    // Files of the oldest plugins have the container alone, and others may end in a newline.
    drop(locked);
    fs::write(dir.path().join("lab/10.1.2.9"), "old\n").unwrap();
    let mut locked = store.lock().unwrap();
    assert_eq!(locked.owned(Owner { container: "old", ifname: "eth0" }).unwrap(), [ip("10.1.2.9")]);
    assert_eq!(locked.owned(one).unwrap().len(), 2);
    locked.release_one(ip("10.1.2.3"), one).unwrap();
    assert_eq!(locked.reserved().unwrap().len(), 4);
    locked.release(one).unwrap();
    locked.release(one).unwrap();
    assert_eq!(locked.reserved().unwrap(), [ip("10.1.2.3"), ip("10.1.2.9")].into());
    locked.retain(|container, ifname| container == "old" && ifname.is_none()).unwrap();
    assert_eq!(locked.reserved().unwrap(), [ip("10.1.2.9")].into());
    // Nothing but the files of the layout is in the folder.
    let mut names: Vec<_> =
        fs::read_dir(dir.path().join("lab")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".netloom-index", "10.1.2.9", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
}

/// What was given back just now is given again only where nothing else is left, or when it has rested; a clock that was wrong keeps
/// nothing back.
#[test]
fn what_is_given_back_rests() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(&["10.1.2.0/29"]);
    let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let at = |seconds: u64| {
        let rest = Cooldown { cooldown: Duration::from_mins(1), now: began + Duration::from_secs(seconds) };
        Store::new(dir.path(), "lab").with_rest(Some(rest))
    };
    let owner = |container| Owner { container, ifname: "eth0" };
    let add = |seconds, container| {
        let store = at(seconds);
        let given = store.lock().unwrap().reserve_next(&set, owner(container), 0).unwrap();
        given.map(|(_, ip)| ip.to_string())
    };
    let give = |seconds, container| at(seconds).lock().unwrap().release(owner(container)).unwrap();
    let is = |ip: &str| Some(ip.to_owned());
    assert_eq!(add(0, "a"), is("10.1.2.2"));
    assert_eq!(add(0, "b"), is("10.1.2.3"));
    assert_eq!(add(0, "c"), is("10.1.2.4"));
    give(1, "c");
    // By turns it would be the next but one, and then the next.
    assert_eq!(add(2, "d"), is("10.1.2.5"));
    give(3, "d");
    assert_eq!(add(4, "e"), is("10.1.2.6"));
    give(5, "e");
    give(6, "a");
    // Nothing but what rests is left: by turns.
    assert_eq!(add(7, "f"), is("10.1.2.2"));
    assert_eq!(add(8, "g"), is("10.1.2.4"));
    give(9, "b");
    // The two that still rest at this time come after the one that does not any more.
    give(10, "f");
    assert_eq!(add(64, "h"), is("10.1.2.5"));
    assert_eq!(add(64, "i"), is("10.1.2.6"));
    // The clock went back, by more than anything rests.
    assert_eq!(Store::new(dir.path(), "lab").lock().unwrap().reserved().unwrap().len(), 3);
    let store =
        at(0).with_rest(Some(Cooldown { cooldown: Duration::from_mins(1), now: SystemTime::UNIX_EPOCH }));
    let given = store.lock().unwrap().reserve_next(&set, owner("j"), 0).unwrap();
    assert_eq!(given.map(|(_, ip)| ip.to_string()), is("10.1.2.2"));
    // Whoever asks for none has none.
    give(2_000, "j");
    let plain = Store::new(dir.path(), "lab");
    let last = dir.path().join("lab/last_reserved_ip.0");
    fs::write(last, "10.1.2.6").unwrap();
    let given = plain.lock().unwrap().reserve_next(&set, owner("k"), 0).unwrap();
    assert_eq!(given.map(|(_, ip)| ip.to_string()), is("10.1.2.2"));
}
