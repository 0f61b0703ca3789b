//! etcd v3 as a store: `PREFIX/nodes/NAME` is a node's record, `PREFIX/blocks/ADDRESS-LENGTH` has the name of who owns it.
//!
//! A record stands under a lease that its daemon keeps, and goes when that is gone for the configured time; a block stays
//! until it is given back. One task watches, from the revision on that the first reading had; where etcd has compacted
//! that away, everything is read anew and the difference is all that happens.

use std::{sync::mpsc::Sender, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, PutOptions,
    TlsOptions, Txn, TxnOp, WatchOptions,
};
use ipnet::IpNet;

use super::{
    Contents, Store, StoreError, Update, block_name, parse_block,
    remote::{LIMIT, Remote},
};
use crate::{config, daemon::Event, record::Record};

pub(super) struct Etcd {
    remote: Remote<Client>,
    config: config::Etcd,
    lease: Lease,
}

/// The lease that this node's record stands under.
struct Lease {
    seconds: i64,
    id: Option<i64>,
    record: Option<(String, Vec<u8>)>,
}

/// How long to wait before trying again what failed.
const PAUSE: Duration = Duration::from_secs(1);

impl Etcd {
    pub(super) fn open(
        config: &config::Etcd,
        lease: u32,
        updates: Sender<Event>,
    ) -> Result<Self, StoreError> {
        let remote = Remote::new("etcd")?;
        remote.spawn(watch(config.clone(), updates));
        let lease = Lease { seconds: lease.into(), id: None, record: None };
        Ok(Self { remote, config: config.clone(), lease })
    }

    fn with<T>(
        &mut self,
        doing: &str,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, StoreError> {
        let config = &self.config;
        self.remote.with(doing, async || connect(config).await, work)
    }

    fn node_key(&self, name: &str) -> String {
        format!("{}/nodes/{name}", self.config.prefix)
    }

    fn block_key(&self, block: IpNet) -> String {
        format!("{}/blocks/{}", self.config.prefix, block_name(block))
    }
}

impl Store for Etcd {
    fn publish(&mut self, node: &Record, again: bool) -> Result<(), StoreError> {
        let (key, text) = (self.node_key(&node.name), serde_json::to_vec(node).unwrap_or_default());
        let (seconds, known) = (self.lease.seconds, self.lease.id);
        let same =
            !again && self.lease.record.as_ref().is_some_and(|record| *record == (key.clone(), text.clone()));
        let id = self.with("publish this node", async move |client| {
            if let Some(id) = known {
                // A lease that has ended is answered with an error too: another is taken.
                let alive = keep_alive(client, id).await.unwrap_or(false);
                if alive && same {
                    return Ok(id);
                }
                if alive {
                    client.put(key, text, Some(PutOptions::new().with_lease(id))).await?;
                    return Ok(id);
                }
            }
            let id = client.lease_grant(seconds, None).await?.id();
            client.put(key, text, Some(PutOptions::new().with_lease(id))).await?;
            Ok(id)
        });
        let key = (self.node_key(&node.name), serde_json::to_vec(node).unwrap_or_default());
        self.lease.record = id.is_ok().then_some(key);
        self.lease.id = Some(id?);
        Ok(())
    }

    fn claim(&mut self, block: IpNet, node: &str) -> Result<bool, StoreError> {
        let (key, node) = (self.block_key(block), node.to_owned());
        self.with(&format!("claim block {block}"), async move |client| {
            let absent = Compare::version(key.clone(), CompareOp::Equal, 0);
            let put = TxnOp::put(key.clone(), node.clone(), None);
            let txn = Txn::new().when([absent]).and_then([put]).or_else([TxnOp::get(key, None)]);
            let answer = client.txn(txn).await?;
            if answer.succeeded() {
                return Ok(true);
            }
            let mine = answer.op_responses().into_iter().any(|response| match response {
                etcd_client::TxnOpResponse::Get(got) => {
                    got.kvs().iter().any(|kv| kv.value() == node.as_bytes())
                }
                _ => false,
            });
            Ok(mine)
        })
    }

    fn take(&mut self, block: IpNet, from: &str, node: &str) -> Result<bool, StoreError> {
        let (key, from, node) = (self.block_key(block), from.to_owned(), node.to_owned());
        self.with(&format!("take block {block}"), async move |client| {
            let theirs = Compare::value(key.clone(), CompareOp::Equal, from);
            let answer =
                client.txn(Txn::new().when([theirs]).and_then([TxnOp::put(key, node, None)])).await?;
            Ok(answer.succeeded())
        })
    }

    fn release(&mut self, block: IpNet, node: &str) -> Result<(), StoreError> {
        let (key, node) = (self.block_key(block), node.to_owned());
        self.with(&format!("give back block {block}"), async move |client| {
            let mine = Compare::value(key.clone(), CompareOp::Equal, node);
            client.txn(Txn::new().when([mine]).and_then([TxnOp::delete(key, None)])).await.map(drop)
        })
    }

    fn withdraw(&mut self, node: &str) -> Result<(), StoreError> {
        let key = self.node_key(node);
        self.lease.record = None;
        self.with("withdraw this node", async move |client| client.delete(key, None).await.map(drop))
    }
}

async fn keep_alive(client: &mut Client, lease: i64) -> Result<bool, etcd_client::Error> {
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    Ok(answers.message().await?.is_some_and(|answer| answer.ttl() > 0))
}

async fn connect(config: &config::Etcd) -> Result<Client, etcd_client::Error> {
    let mut options = ConnectOptions::new().with_connect_timeout(LIMIT).with_keep_alive(LIMIT, LIMIT);
    if let Some((user, password)) = &config.user {
        options = options.with_user(user, password);
    }
    if config.ca.is_some() || config.identity.is_some() {
        let mut tls = TlsOptions::new();
        if let Some(ca) = &config.ca {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        if let Some((cert, key)) = &config.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        options = options.with_tls(tls);
    }
    Client::connect(&config.endpoints, Some(options)).await
}

/// Tells of everything, then of what changes, for as long as somebody listens.
async fn watch(config: config::Etcd, updates: Sender<Event>) {
    loop {
        let Err(why) = watch_once(&config, &updates).await else { return };
        if updates.send(Event::Store(Update::Lost(why))).is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Ends well when nobody listens any more.
async fn watch_once(config: &config::Etcd, updates: &Sender<Event>) -> Result<(), String> {
    let text = |error: etcd_client::Error| error.to_string();
    let prefix = format!("{}/", config.prefix);
    let limited = async |config| tokio::time::timeout(LIMIT, connect(config)).await;
    let mut client = limited(config).await.map_err(|_| "no answer from etcd".to_owned())?.map_err(text)?;
    let all = client.get(prefix.clone(), Some(GetOptions::new().with_prefix())).await.map_err(text)?;
    let revision = all.header().map_or(0, etcd_client::ResponseHeader::revision);
    let mut contents = Contents::default();
    for kv in all.kvs() {
        match read(&prefix, kv.key(), Some(kv.value())) {
            Some(Update::Node(name, Some(text))) => drop(contents.nodes.insert(name, text)),
            Some(Update::Block(block, Some(owner))) => drop(contents.blocks.insert(block, owner)),
            _ => {}
        }
    }
    if updates.send(Event::Store(Update::All(contents))).is_err() {
        return Ok(());
    }
    let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1).with_progress_notify();
    let mut stream = client.watch(prefix.clone(), Some(options)).await.map_err(text)?;
    while let Some(answer) = stream.message().await.map_err(text)? {
        if answer.canceled() {
            // Compacted away, or refused: everything is read anew.
            return Err(format!("etcd ended the watch: {}", answer.cancel_reason()));
        }
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            if let Some(update) = read(&prefix, kv.key(), value)
                && updates.send(Event::Store(update)).is_err()
            {
                return Ok(());
            }
        }
    }
    Err("etcd closed the connection".into())
}

fn read(prefix: &str, key: &[u8], value: Option<&[u8]>) -> Option<Update> {
    let key = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    match key.split_once('/')? {
        ("nodes", name) => Some(Update::Node(name.to_owned(), value.map(<[u8]>::to_vec))),
        ("blocks", name) => {
            let owner = value.map(|owner| String::from_utf8_lossy(owner).into_owned());
            Some(Update::Block(parse_block(name)?, owner))
        }
        _ => None,
    }
}
