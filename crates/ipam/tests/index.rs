//! The table that says where a container's reservations are: never wrong, whoever changed the folder, and never
//! needed.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use ipam::{Owner, Range, RangeSet, Store};
use proptest::prelude::*;

const INDEX: &str = ".netloom-index";

fn owner(container: &str) -> Owner<'_> {
    Owner { container, ifname: "eth0" }
}

fn address(low: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 2, low).into()
}

/// What may happen to a folder, with the number of an address and of a container.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// This plugin reserves.
    Reserve(u8, u8),
    /// This plugin releases all of a container.
    Release(u8),
    /// This plugin is killed when it has made the file, and nothing else.
    KilledReserving(u8, u8),
    /// Another plugin reserves.
    Foreign(u8, u8),
    /// Another plugin, or somebody by hand, takes a file away.
    ForeignRelease(u8),
    /// Everything but the given containers goes.
    Collect(u8),
    /// Somebody writes into the table.
    Damage(u16, u8),
    /// The table goes.
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    let (ip, container) = (2u8..20, 0u8..6);
    prop_oneof![
        4 => (ip.clone(), container.clone()).prop_map(|(ip, of)| Step::Reserve(ip, of)),
        3 => container.clone().prop_map(Step::Release),
        1 => (ip.clone(), container.clone()).prop_map(|(ip, of)| Step::KilledReserving(ip, of)),
        2 => (ip.clone(), container.clone()).prop_map(|(ip, of)| Step::Foreign(ip, of)),
        2 => ip.prop_map(Step::ForeignRelease),
        1 => container.prop_map(Step::Collect),
        1 => (0u16..9000, any::<u8>()).prop_map(|(at, byte)| Step::Damage(at, byte)),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens, and whoever does it: what the store says is what the files say.
    #[test]
    fn the_files_are_the_truth(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let (store, lab) = (Store::new(dir.path(), "lab"), dir.path().join("lab"));
        drop(store.lock().unwrap());
        let mut model: BTreeMap<u8, u8> = BTreeMap::new();
        let name = |of: u8| format!("container-{of}");
        for step in steps {
            match step {
                Step::Reserve(ip, of) => {
                    let done = store.lock().unwrap().reserve(address(ip), owner(&name(of)), 0).unwrap();
                    prop_assert_eq!(done, !model.contains_key(&ip));
                    model.entry(ip).or_insert(of);
                }
                Step::Release(of) => {
                    store.lock().unwrap().release(owner(&name(of))).unwrap();
                    model.retain(|_, there| *there != of);
                }
                Step::KilledReserving(ip, of) | Step::Foreign(ip, of) => {
                    if let std::collections::btree_map::Entry::Vacant(free) = model.entry(ip) {
                        fs::write(lab.join(address(ip).to_string()), format!("{}\r\neth0", name(of))).unwrap();
                        free.insert(of);
                    }
                }
                Step::ForeignRelease(ip) => {
                    if model.remove(&ip).is_some() {
                        fs::remove_file(lab.join(address(ip).to_string())).unwrap();
                    }
                }
                Step::Collect(of) => {
                    store.lock().unwrap().retain(|container, _| container == name(of)).unwrap();
                    model.retain(|_, there| *there == of);
                }
                // What is damaged is told from what is not where it says of what it is; of the slots, a wrong one is
                // an address whose file says otherwise. One that is missing is for the next rebuilding.
                Step::Damage(at, byte) => {
                    let file = fs::OpenOptions::new().write(true).open(lab.join(INDEX));
                    if let (Ok(file), true) = (file, at < 100) {
                        file.write_all_at(&[byte], u64::from(at)).unwrap();
                    }
                }
                Step::Lose => drop(fs::remove_file(lab.join(INDEX))),
            }
            let mut locked = store.lock().unwrap();
            for of in 0..6 {
                let expected: BTreeSet<IpAddr> =
                    model.iter().filter(|(_, there)| **there == of).map(|(ip, _)| address(*ip)).collect();
                let found: BTreeSet<IpAddr> = locked.owned(owner(&name(of))).unwrap().into_iter().collect();
                prop_assert_eq!(found, expected, "after {:?}", step);
            }
        }
    }
}

/// A thousand containers: the table grows and shrinks, and reads nothing but the files of the one that is asked for.
#[test]
fn many_containers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "lab");
    let set =
        RangeSet::new(vec![Range::new("10.0.0.0/16".parse().unwrap(), None, None, None).unwrap()]).unwrap();
    let name = |of: usize| format!("{of:064x}");
    for of in 0..3000 {
        let mut locked = store.lock().unwrap();
        assert_eq!(locked.owned(owner(&name(of))).unwrap(), [] as [IpAddr; 0]);
        assert!(locked.reserve_next(&set, owner(&name(of)), 0).unwrap().is_some());
    }
    // A file that says otherwise, with the folder's time put back: only who reads every file would know of it.
    let folder = dir.path().join("lab");
    let before = fs::metadata(&folder).unwrap();
    fs::write(folder.join("10.0.255.254"), "somebody\r\neth0").unwrap();
    fs::File::open(&folder).unwrap().set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().mtime_nsec(), before.mtime_nsec());
    assert!(store.lock().unwrap().owned(owner("somebody")).unwrap().is_empty(), "every file was read");
    for of in 0..3000 {
        let mut locked = store.lock().unwrap();
        assert_eq!(locked.owned(owner(&name(of))).unwrap().len(), 1, "{of}");
        locked.release(owner(&name(of))).unwrap();
    }
    assert_eq!(store.lock().unwrap().reserved().unwrap().len(), 1);
}

/// Changes one line of the table's head, as another host or an earlier boot would have written it.
fn rewrite(folder: &Path, key: &str, value: &str) {
    let path = folder.join(INDEX);
    let table = fs::read(&path).unwrap();
    let head = String::from_utf8_lossy(&table[..4096]).into_owned();
    let lines = head.lines().take_while(|line| !line.starts_with("sum "));
    let line =
        |line: &str| if line.starts_with(key) { format!("{key} {value}\n") } else { format!("{line}\n") };
    let head: String = lines.map(line).collect();
    let sum = kernel::hash::fnv1a(head.trim().bytes());
    let mut head = format!("{head}sum {sum:016x}\n").into_bytes();
    head.resize(4096, 0);
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&head, 0).unwrap();
}

/// After a reboot, what this plugin reserved before it is free; what others reserved, or a person, is not.
#[test]
fn after_a_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let (store, lab) = (Store::new(dir.path(), "lab"), dir.path().join("lab"));
    assert!(store.lock().unwrap().reserve(address(2), owner("one"), 0).unwrap());
    assert!(store.lock().unwrap().reserve(address(3), owner("two"), 0).unwrap());
    fs::write(lab.join("10.1.2.4"), "kept by hand").unwrap();
    // Known to the table as somebody else's, and as this plugin's after a rebuilding.
    assert!(store.lock().unwrap().reserve(address(5), owner("three"), 0).unwrap());
    let reserved = || -> BTreeSet<IpAddr> { store.lock().unwrap().reserved().unwrap().into_iter().collect() };
    assert_eq!(reserved(), [address(2), address(3), address(4), address(5)].into());
    rewrite(&lab, "boot", "00000000-0000-0000-0000-000000000000");
    // The reference plugin was there first after the boot, and one of the containers has its address again.
    fs::remove_file(lab.join("10.1.2.3")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(lab.join("10.1.2.3"), "two\r\neth0").unwrap();
    let table = fs::metadata(lab.join(INDEX)).unwrap().modified().unwrap();
    let file = fs::OpenOptions::new().write(true).open(lab.join("10.1.2.3")).unwrap();
    file.set_modified(table + std::time::Duration::from_millis(10)).unwrap();
    assert_eq!(reserved(), [address(3), address(4)].into());
    assert_eq!(store.lock().unwrap().owned(owner("two")).unwrap(), [address(3)]);
    // On another host that shares the folder, nothing is known of what runs here.
    assert!(store.lock().unwrap().reserve(address(6), owner("four"), 0).unwrap());
    rewrite(&lab, "boot", "00000000-0000-0000-0000-000000000000");
    rewrite(&lab, "host", "elsewhere");
    assert_eq!(reserved(), [address(3), address(4), address(6)].into());
}
