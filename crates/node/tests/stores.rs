//! Stores compared with a model: whatever nodes request at the same time, each block has one owner.
#![expect(clippy::unwrap_used, reason = "a test fails if this fails")]

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, mpsc::channel},
    time::{Duration, Instant},
};

use etcd_client::{Client, Txn, TxnOp};
use ipnet::IpNet;
use node::{
    config::Written,
    store::{self, Update},
};
use testkit::Random;

const NODES: u64 = 8;

fn open(written: &str, node: &str) -> Box<dyn store::Store> {
    let config = Written::parse(&format!("node = \"{node}\"\n{written}")).unwrap().meant().unwrap();
    // Its reports are not wanted.
    store::open(&config, Box::new(|_| false)).unwrap()
}

/// The blocks that the nodes contend for.
fn blocks() -> Vec<IpNet> {
    (0..12).map(|number| format!("10.0.{number}.0/24").parse().unwrap()).collect()
}

#[test]
fn a_directory_has_one_owner_of_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let owners = model(&format!("store-dir = {:?}", dir.path().display().to_string()), 300);
    // The directory and the model agree.
    for block in blocks() {
        let file = dir.path().join("blocks").join(block.to_string().replace('/', "-"));
        assert_eq!(fs::read_to_string(file).ok().as_ref(), owners.get(&block), "{block}");
    }
}

/// An etcd on loopback. It ends with the value.
struct Etcd {
    process: Child,
    flags: Vec<String>,
    endpoint: String,
}

impl Etcd {
    /// Starts etcd, with TLS if there are certificates. Returns `None` if etcd is not installed.
    fn start(dir: &Path, tls: &[&str]) -> Option<Self> {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("etcd").is_file()));
        let scheme = if tls.is_empty() { "http" } else { "https" };
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = format!("{scheme}://127.0.0.1:{}", port());
        let peers = format!("http://127.0.0.1:{}", port());
        let data = dir.join("data").display().to_string();
        let cluster = format!("default={peers}");
        let flags = [
            ["--data-dir", &data],
            ["--listen-client-urls", &endpoint],
            ["--advertise-client-urls", &endpoint],
            ["--listen-peer-urls", &peers],
            ["--initial-advertise-peer-urls", &peers],
            ["--initial-cluster", &cluster],
        ];
        let flags = flags.as_flattened().iter().chain(tls).map(|flag| (*flag).to_owned()).collect();
        found.then(|| Self { process: Self::run(&flags), flags, endpoint })
    }

    fn run(flags: &Vec<String>) -> Child {
        let mut command = Command::new("etcd");
        command.args(flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::run(&self.flags);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The lists of 20,000 nodes, and a neighbour's large keys under the same prefix, take more than one message of gRPC.
#[test]
fn etcd_lists_of_any_size_are_read() {
    const NODES: usize = 20_000;
    /// etcd's limit of a transaction.
    const OPERATIONS: usize = 128;
    let dir = tempfile::tempdir().unwrap();
    let Some(etcd) = Etcd::start(dir.path(), &[]) else { return };
    let mut puts: Vec<TxnOp> = (0..NODES)
        .flat_map(|number| {
            let [name, block] =
                [format!("n{number:05}"), format!("10.{}.{}.0/24", number / 256, number % 256)];
            let record =
                format!(r#"{{"name":"{name}","blocks":["{block}"],"padding":"{}"}}"#, "x".repeat(300));
            let key = format!("/netloom/blocks/{}", block.replace('/', "-"));
            [TxnOp::put(format!("/netloom/nodes/{name}"), record, None), TxnOp::put(key, name, None)]
        })
        .collect();
    // Among the records, and beside them.
    let large: Vec<TxnOp> = ["nodes", "other"]
        .iter()
        .flat_map(|part| (0..8).map(move |number| format!("/netloom/{part}/n09{number}x")))
        .map(|key| TxnOp::put(key, vec![b'x'; 1 << 20], None))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect(&etcd.endpoint).await;
        while !puts.is_empty() {
            let some: Vec<TxnOp> = puts.drain(..puts.len().min(OPERATIONS)).collect();
            client.txn(Txn::new().and_then(some)).await.unwrap();
        }
        for put in large {
            client.txn(Txn::new().and_then([put])).await.unwrap();
        }
    });
    let written = format!("store = \"etcd\"\netcd-endpoints = [\"{}\"]", etcd.endpoint);
    let config = Written::parse(&format!("node = \"n00000\"\n{written}")).unwrap().meant().unwrap();
    let (sender, updates) = channel();
    let store = store::open(&config, Box::new(move |update| sender.send(update).is_ok())).unwrap();
    let first = updates.recv_timeout(Duration::from_mins(1)).unwrap();
    let Update::All(contents) = first else { panic!("{first:?}") };
    assert_eq!((contents.nodes.len(), contents.blocks.len()), (NODES + 8, NODES));
    // A text that cannot be a record is not kept whole.
    assert!(contents.nodes["n090x"].len() < 1 << 18);
    // Changes arrive although a large one is among them.
    runtime.block_on(async {
        let mut client = connect(&etcd.endpoint).await;
        client.put("/netloom/other/large", vec![b'x'; 1 << 20], None).await.unwrap();
        client.put("/netloom/alive/n00007", "x", None).await.unwrap();
    });
    let change = updates.recv_timeout(Duration::from_mins(1)).unwrap();
    assert!(matches!(&change, Update::Alive(name, true) if name == "n00007"), "{change:?}");
    drop(store);
}

/// Connects as soon as etcd listens.
async fn connect(endpoint: &str) -> Client {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Ok(mut client) = Client::connect([endpoint], None).await
            && client.status().await.is_ok()
        {
            return client;
        }
        assert!(Instant::now() < deadline, "etcd does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn etcd_has_one_owner_of_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let Some(etcd) = Etcd::start(dir.path(), &[]) else { return };
    let written = format!("store = \"etcd\"\netcd-endpoints = [\"{}\"]", etcd.endpoint);
    assert!(!model(&written, 60).is_empty());
}

/// The daemon presents a certificate and a password to an etcd that requires both, also after etcd was restarted. With a wrong
/// certificate authority, no certificate or a wrong password, the error says which.
#[test]
fn etcd_is_asked_by_tls_and_with_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let sh = |script: &str| {
        let output = Command::new("sh").args(["-euc", script]).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    };
    sh("key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        for ca in ca other; do openssl req -x509 $key -days 2 -subj /CN=$ca -keyout $ca.key -out $ca.pem; done
        for name in server node; do
            openssl req $key -subj /CN=$name -addext subjectAltName=IP:127.0.0.1 -keyout $name.key -out $name.csr
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out $name.pem
        done
        echo secret >password; echo wrong >other-password");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let tls = ["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
    // All ask for the password at once, and at its usual cost that is seconds of a busy machine.
    let flags = [&tls[..], &["--bcrypt-cost", "4"]].concat();
    let Some(mut etcd) = Etcd::start(dir.path(), &flags) else { return };
    sh(&format!(
        "export ETCDCTL_API=3
         ctl() {{ etcdctl --endpoints {} --cacert ca.pem --cert node.pem --key node.key \"$@\"; }}
         until ctl endpoint health; do :; done
         ctl role add netloom; ctl role grant-permission netloom --prefix=true readwrite /netloom/
         ctl user add netloom:secret; ctl user grant-role netloom netloom
         ctl user add root:root; ctl role add root || true; ctl user grant-role root root; ctl auth enable",
        etcd.endpoint
    ));
    let written = |ca: &str, identity: &str, password: &str| {
        let place =
            format!("store = \"etcd\"\netcd-endpoints = [{:?}]\netcd-ca = {:?}", etcd.endpoint, file(ca));
        format!("{place}\n{identity}\netcd-user = \"netloom\"\netcd-password-file = {:?}", file(password))
    };
    let identity = format!("etcd-cert = {:?}\netcd-key = {:?}", file("node.pem"), file("node.key"));
    let right = written("ca.pem", &identity, "password");
    model(&right, 10);
    let block = "10.1.0.0/24".parse().unwrap();
    for (wrong, says) in [
        (written("other.pem", &identity, "password"), "invalid peer certificate"),
        (written("ca.pem", "", "password"), "set `etcd-cert` and `etcd-key`"),
        (written("ca.pem", &identity, "other-password"), "authentication failed"),
    ] {
        let error = open(&wrong, "stranger").claim(block, "stranger").unwrap_err();
        assert!(error.why.contains(says), "{error:?}");
    }
    // After a restart, etcd has forgotten the session's token.
    let mut store = open(&right, "node");
    assert!(store.claim(block, "node").unwrap());
    etcd.restart();
    let started = Instant::now();
    while !store.claim(block, "node").is_ok_and(|is_own| is_own) {
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", store.claim(block, "node"));
    }
}

/// Eight nodes claim and release a dozen blocks, and take those of a dead node, all at the same time. A node that is told that it owns
/// a block is the only owner.
fn model(written: &str, steps: u64) -> BTreeMap<IpNet, String> {
    let blocks = blocks();
    // The owners by the model. No node releases the dead node's blocks.
    let owners: Mutex<BTreeMap<IpNet, String>> = Mutex::default();
    let mut dead = open(written, "dead");
    let started = Instant::now();
    for block in &blocks[..4] {
        // A server that has just started needs a moment to answer.
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
                    let (mut store, mut numbers) = (open(written, &name), Random::new(seed));
                    let (mut claims, mut taken) = (0, 0);
                    for _ in 0..steps {
                        let block = blocks[usize::try_from(numbers.below(12)).unwrap()];
                        match numbers.below(3) {
                            0 if store.claim(block, &name).unwrap() => {
                                let before = owners.lock().unwrap().insert(block, name.clone());
                                assert!(before.is_none_or(|before| before == name), "{block} has two owners");
                                claims += 1;
                            }
                            1 if store.take(block, "dead", &name).unwrap() => {
                                let before = owners.lock().unwrap().insert(block, name.clone());
                                assert_eq!(
                                    before.as_deref(),
                                    Some("dead"),
                                    "{block} did not belong to the dead node"
                                );
                                taken += 1;
                            }
                            2 => {
                                // The model forgets first: another node may own the block as soon as it is released.
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
    assert_eq!(taken, 4, "each block of the dead node is taken once");
    assert!(claims > steps / 10, "{claims}");
    owners.into_inner().unwrap()
}
