//! Stores against a model: whatever nodes ask for at the same time, a block is one node's.
#![expect(clippy::unwrap_used, reason = "a test is to fail where this fails")]

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    process::{Command, Stdio},
    sync::{Mutex, mpsc::channel},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use node::{config::Written, store};

const NODES: u64 = 8;

/// Numbers that follow from a seed (Knuth's constants).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn open(written: &str, node: &str) -> Box<dyn store::Store> {
    let config = Written::parse(&format!("node = \"{node}\"\n{written}")).unwrap().meant().unwrap();
    // Nobody listens to what it tells.
    store::open(&config, channel().0).unwrap()
}

/// The blocks that are asked for.
fn blocks() -> Vec<IpNet> {
    (0..12).map(|number| format!("10.0.{number}.0/24").parse().unwrap()).collect()
}

#[test]
fn a_folder_has_one_owner_of_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let owners = model(&format!("store-dir = {:?}", dir.path().display().to_string()), 300);
    // What the folder says is what the model does.
    for block in blocks() {
        let file = dir.path().join("blocks").join(block.to_string().replace('/', "-"));
        assert_eq!(fs::read_to_string(file).ok().as_ref(), owners.get(&block), "{block}");
    }
}

#[test]
fn etcd_has_one_owner_of_a_block() {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("etcd").is_file()));
    if !found {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (clients, peers) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir.path()).args([
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
    ]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("default={peers}")]);
    let mut etcd = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let written = format!("store = \"etcd\"\netcd-endpoints = [\"{clients}\"]");
    let outcome = std::panic::catch_unwind(|| model(&written, 60));
    etcd.kill().unwrap();
    etcd.wait().unwrap();
    assert!(!outcome.unwrap().is_empty());
}

/// Eight nodes claim, give back, and take what a dead one had, all at once, of a dozen blocks. Who is told that a block is its own is
/// the only one.
fn model(written: &str, steps: u64) -> BTreeMap<IpNet, String> {
    let blocks = blocks();
    // Who has which by the model; what the dead one has is nobody's to give back.
    let owners: Mutex<BTreeMap<IpNet, String>> = Mutex::default();
    let mut dead = open(written, "dead");
    let started = Instant::now();
    for block in &blocks[..4] {
        // A server that has just been started answers in a moment.
        while !dead.claim(*block, "dead").is_ok_and(|claimed| claimed) {
            assert!(started.elapsed() < Duration::from_secs(20), "the store does not answer");
        }
        owners.lock().unwrap().insert(*block, "dead".into());
    }
    let (mut claims, mut taken) = (0, 0);
    std::thread::scope(|scope| {
        let (blocks, owners) = (&blocks, &owners);
        let threads: Vec<_> = (0..NODES)
            .map(|seed| {
                scope.spawn(move || {
                    let name = format!("node{seed}");
                    let (mut store, mut numbers) = (open(written, &name), Numbers(seed));
                    let (mut claims, mut taken) = (0, 0);
                    for _ in 0..steps {
                        let block = blocks[usize::try_from(numbers.below(12)).unwrap()];
                        match numbers.below(3) {
                            0 if store.claim(block, &name).unwrap() => {
                                let before = owners.lock().unwrap().insert(block, name.clone());
                                assert!(before.is_none_or(|before| before == name), "{block} is two nodes'");
                                claims += 1;
                            }
                            1 if store.take(block, "dead", &name).unwrap() => {
                                let before = owners.lock().unwrap().insert(block, name.clone());
                                assert_eq!(
                                    before.as_deref(),
                                    Some("dead"),
                                    "{block} was not the dead node's"
                                );
                                taken += 1;
                            }
                            2 => {
                                // The model forgets first: another may have it as soon as it is given back.
                                let mut owners = owners.lock().unwrap();
                                if owners.get(&block) == Some(&name) {
                                    owners.remove(&block);
                                    drop(owners);
                                    store.release(block, &name).unwrap();
                                }
                            }
                            _ => {}
                        }
                    }
                    (claims, taken)
                })
            })
            .collect();
        for thread in threads {
            let (more, others) = thread.join().unwrap();
            claims += more;
            taken += others;
        }
    });
    assert_eq!(taken, 4, "each of the dead node's blocks is taken once");
    assert!(claims > steps / 10, "{claims}");
    owners.into_inner().unwrap()
}
