//! etcd v3 as a store: `PREFIX/nodes/NAME` is a node's record, `PREFIX/blocks/ADDRESS-LENGTH` holds the owner's name,
//! and `PREFIX/alive/NAME` exists as long as the node's daemon renews its lease.
//!
//! Records and blocks stay until they are removed: peers keep the routes to a node whose lease has ended.
//! One task watches from the revision of the first read. If etcd has compacted that revision, the task reads everything again.

mod list;

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, KeyValue,
    PutOptions, TlsOptions, Txn, TxnOp, WatchOptions,
};
use ipnet::IpNet;
use tracing::warn;

use self::list::{LARGEST_MESSAGE, count, list};
use super::{
    api::{Store, StoreError},
    remote::{LIMIT, Remote},
    update::{Contents, OnUpdate, Update},
};
use crate::{
    block_name,
    config::{self, Config, Flannel},
    flannel::{self, keys},
    record::Record,
};

pub(super) struct Etcd {
    remote: Remote<Client>,
    config: config::Etcd,
    flannel: Option<Flannel>,
    lease: Lease,
}

/// This node's lease.
struct Lease {
    seconds: i64,
    id: Option<i64>,
    record: Option<(String, Vec<u8>)>,
}

/// The pause before a failed watch is started again.
const PAUSE: Duration = Duration::from_secs(1);

impl Etcd {
    pub(super) fn open(how: &config::Etcd, config: &Config, on_update: OnUpdate) -> Result<Self, StoreError> {
        let remote = Remote::new("etcd")?;
        let flannel = config.flannel.clone();
        remote.spawn(watch(how.clone(), flannel.clone(), on_update));
        let lease = Lease {
            seconds: i64::try_from(config.lease.as_secs()).unwrap_or(i64::MAX),
            id: None,
            record: None,
        };
        Ok(Self { remote, config: how.clone(), flannel, lease })
    }

    fn with<T>(
        &mut self,
        doing: &str,
        call: impl AsyncFnOnce(&mut Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, StoreError> {
        let config = &self.config;
        let explain = |error| explain(config, &error);
        let call = async |client: &mut Client| call(client).await.map_err(explain);
        self.remote.with(doing, async || connect(config).await.map_err(explain), call)
    }

    fn node_key(&self, name: &str) -> String {
        format!("{}/nodes/{name}", self.config.prefix)
    }

    fn alive_key(&self, name: &str) -> String {
        format!("{}/alive/{name}", self.config.prefix)
    }

    fn block_key(&self, block: IpNet) -> String {
        format!("{}/blocks/{}", self.config.prefix, block_name::key(block))
    }
}

impl Store for Etcd {
    fn publish(&mut self, node: &Record, rewrite: bool) -> Result<(), StoreError> {
        let written = (self.node_key(&node.name), serde_json::to_vec(node).unwrap_or_default());
        let (seconds, known) = (self.lease.seconds, self.lease.id);
        let same = !rewrite && self.lease.record.as_ref() == Some(&written);
        let (key, text) = written.clone();
        let alive_key = self.alive_key(&node.name);
        let (record, how) = (node.clone(), self.flannel.clone());
        let id = self.with("publish this node", async move |client| {
            // If the lease has ended, a new one is granted.
            let alive = match known {
                Some(id) if keep_alive(client, id).await.is_ok() => Some(id),
                _ => None,
            };
            if let Some(id) = alive.filter(|_| same) {
                return Ok(id);
            }
            let id = match alive {
                Some(id) => id,
                None => client.lease_grant(seconds, None).await?.id(),
            };
            // A put without a lease detaches a record of an earlier version from its lease.
            let alive =
                TxnOp::put(alive_key, record.incarnation.clone(), Some(PutOptions::new().with_lease(id)));
            client.txn(Txn::new().and_then([TxnOp::put(key, text, None), alive])).await?;
            if let Some(how) = how {
                publish_to_flannel(client, &how, &record, id).await?;
            }
            Ok(id)
        });
        // If a renewal fails, the record stays as it was.
        if id.is_ok() || !same {
            self.lease.record = id.is_ok().then_some(written);
        }
        self.lease.id = Some(id?);
        Ok(())
    }

    fn assigned(&mut self, _node: &str) -> Result<Vec<IpNet>, StoreError> {
        Ok(self.flannel.as_ref().map(flannel::subnet_file::read).unwrap_or_default())
    }

    fn claim(&mut self, block: IpNet, node: &str) -> Result<bool, StoreError> {
        let (key, node, how) = (self.block_key(block), node.to_owned(), self.flannel.clone());
        self.with(&format!("claim block {block}"), async move |client| {
            let mut absent = vec![Compare::version(key.clone(), CompareOp::Equal, 0)];
            if let Some(how) = how {
                match free_in_flannel(client, &how, block, &node).await? {
                    Some(unchanged) => absent.push(unchanged),
                    None => return Ok(false),
                }
            }
            let put = TxnOp::put(key.clone(), node.clone(), None);
            let txn = Txn::new().when(absent).and_then([put]).or_else([TxnOp::get(key, None)]);
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
            let still_owner = Compare::value(key.clone(), CompareOp::Equal, from);
            let answer =
                client.txn(Txn::new().when([still_owner]).and_then([TxnOp::put(key, node, None)])).await?;
            Ok(answer.succeeded())
        })
    }

    fn release(&mut self, block: IpNet, node: &str) -> Result<(), StoreError> {
        let (key, node) = (self.block_key(block), node.to_owned());
        self.with(&format!("release block {block}"), async move |client| {
            let mine = Compare::value(key.clone(), CompareOp::Equal, node);
            client.txn(Txn::new().when([mine]).and_then([TxnOp::delete(key, None)])).await.map(drop)
        })
    }

    fn withdraw(&mut self, node: &str) -> Result<(), StoreError> {
        let keys = [self.node_key(node), self.alive_key(node)];
        let (how, node) = (self.flannel.clone(), node.to_owned());
        self.lease.record = None;
        self.with("withdraw this node", async move |client| {
            if let Some(how) = how {
                withdraw_from_flannel(client, &how, &node, &[]).await?;
            }
            client.txn(Txn::new().and_then(keys.map(|key| TxnOp::delete(key, None)))).await.map(drop)
        })
    }
}

/// Checks that no node but this one has a block in flannel. Returns the condition that it is still so, or `None` if it is not.
async fn free_in_flannel(
    client: &mut Client,
    how: &Flannel,
    block: IpNet,
    node: &str,
) -> Result<Option<Compare>, etcd_client::Error> {
    let (first, end) = keys::around(how, block);
    let current = client.get(first.clone(), Some(GetOptions::new().with_range(end.clone()))).await?;
    let is_other = |kv: &KeyValue| {
        let name = kv.key_str().ok().and_then(|key| key.strip_prefix(&keys::prefix(how)));
        name.is_some_and(|name| keys::has(name, block))
            && !flannel::Lease::parse(kv.value()).is_some_and(|lease| lease.is_of(node))
    };
    let revision = current.header().map_or(0, etcd_client::ResponseHeader::revision);
    let unchanged = || Compare::mod_revision(first, CompareOp::Less, revision + 1).with_range(end);
    Ok((!current.kvs().iter().any(is_other)).then(unchanged))
}

/// Publishes a node's blocks to flannel's nodes. Keys of other hosts stay as they are.
async fn publish_to_flannel(
    client: &mut Client,
    how: &Flannel,
    node: &Record,
    lease: i64,
) -> Result<(), etcd_client::Error> {
    let value = serde_json::to_vec(&flannel::Lease::of(node)).unwrap_or_default();
    let wanted = keys::of(how, node);
    for key in &wanted {
        let current = client.get(key.clone(), None).await?;
        let (version, is_own) = match current.kvs().first() {
            None => (0, true),
            Some(kv) => {
                let lease = flannel::Lease::parse(kv.value());
                (kv.mod_revision(), lease.is_some_and(|lease| lease.is_own(node)))
            }
        };
        if is_own {
            let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, version);
            let put = TxnOp::put(key.clone(), value.clone(), Some(PutOptions::new().with_lease(lease)));
            client.txn(Txn::new().when([unchanged]).and_then([put])).await?;
        }
    }
    withdraw_from_flannel(client, how, &node.name, &wanted).await
}

/// Removes the flannel keys that a node wrote, except for some.
async fn withdraw_from_flannel(
    client: &mut Client,
    how: &Flannel,
    node: &str,
    except: &[String],
) -> Result<(), etcd_client::Error> {
    let mut left = Vec::new();
    list(client, &keys::prefix(how), 0, |kv| {
        let is_of = flannel::Lease::parse(kv.value()).is_some_and(|lease| lease.is_of(node));
        if is_of && !except.iter().any(|key| key.as_bytes() == kv.key()) {
            left.push(kv.key().to_vec());
        }
    })
    .await?;
    for key in left {
        client.delete(key, None).await?;
    }
    Ok(())
}

/// Renews a lease. Fails if it has ended.
async fn keep_alive(client: &mut Client, lease: i64) -> Result<(), etcd_client::Error> {
    // The call sends the request, and reads the answer.
    client.lease_keep_alive(lease).await.map(drop)
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

/// Returns an error's text with a hint. With TLS 1.3, a server that requires a client certificate refuses the client only after the
/// client considers the connection established, so the client may see no more than a closed connection.
fn explain(config: &config::Etcd, error: &etcd_client::Error) -> String {
    let is_transport = match error {
        etcd_client::Error::TransportError(_) => true,
        etcd_client::Error::GRpcStatus(status) => status.message() == "transport error",
        _ => false,
    };
    let hint = match (is_transport, &config.ca, &config.identity) {
        (true, Some(_), None) => "; if etcd requires a client certificate, set `etcd-cert` and `etcd-key`",
        _ => "",
    };
    format!("{error}{hint}")
}

/// Reports everything, then each change, for as long as reports are wanted.
async fn watch(config: config::Etcd, flannel: Option<Flannel>, on_update: OnUpdate) {
    let mut read = Counts::default();
    loop {
        let Err(why) = watch_once(&config, flannel.as_ref(), &mut read, &on_update).await else { return };
        if !on_update(Update::Lost(why)) {
            return;
        }
        tokio::time::sleep(PAUSE + jitter(read.nodes, RandomState::new().hash_one(()))).await;
    }
}

/// What the last complete read has found.
#[derive(Default)]
struct Counts {
    nodes: usize,
    /// Keys under the prefix that are not a daemon's.
    unknown: i64,
}

/// Returns how much longer to wait before everything is read again, from a random number. Every daemon that has lost etcd reads the
/// records of all nodes, as many as the square of their number, and etcd sends about a million a second.
fn jitter(nodes: usize, random: u64) -> Duration {
    const LONGEST: Duration = Duration::from_mins(1);
    let nodes = u64::try_from(nodes).unwrap_or(u64::MAX);
    let longest = Duration::from_micros(nodes.saturating_mul(nodes)).min(LONGEST);
    longest * u32::try_from(random % 1000).unwrap_or_default() / 1000
}

/// Watches until an error; succeeds when no further reports are wanted.
async fn watch_once(
    config: &config::Etcd,
    flannel: Option<&Flannel>,
    counts: &mut Counts,
    on_update: &OnUpdate,
) -> Result<(), String> {
    let text = |error| explain(config, &error);
    let prefix = format!("{}/", config.prefix);
    let limited = async |config| tokio::time::timeout(LIMIT, connect(config)).await;
    let mut client = limited(config).await.map_err(|_| "no answer from etcd".to_owned())?.map_err(text)?;
    // Without flannel, the prefix is one that holds no keys.
    let flannel_prefix = flannel.map_or_else(|| format!("{prefix}no-flannel/"), keys::prefix);
    let read = |key: &[u8], value: Option<&[u8]>| match flannel {
        Some(how) if key.starts_with(flannel_prefix.as_bytes()) => {
            let name = std::str::from_utf8(&key[flannel_prefix.len()..]).ok()?;
            keys::read(how, name, value).map(|(name, record)| Update::Node(name, record))
        }
        _ => read(&prefix, key, value),
    };
    let mut contents = Contents { alive: Some(BTreeSet::new()), ..Contents::default() };
    // Whether it is a daemon's key.
    let mut add = |kv: &KeyValue| {
        match read(kv.key(), Some(kv.value())) {
            Some(Update::Node(name, Some(text))) => {
                // flannel's nodes, and nodes of earlier versions, attach their records to their leases.
                contents.alive.iter_mut().filter(|_| kv.lease() != 0).for_each(|alive| {
                    alive.insert(name.clone());
                });
                contents.nodes.insert(name, text);
            }
            Some(Update::Alive(name, _)) => contents.alive.iter_mut().for_each(|alive| {
                alive.insert(name.clone());
            }),
            Some(Update::Block(block, Some(owner))) => drop(contents.blocks.insert(block, owner)),
            _ => return false,
        }
        true
    };
    // All lists are of the revision of the first one.
    let (mut revision, mut known) = (0, 0);
    for part in ["nodes", "alive", "blocks"] {
        let add = |kv: &KeyValue| known += i64::from(add(kv));
        revision = list(&mut client, &format!("{prefix}{part}/"), revision, add).await.map_err(text)?;
    }
    let others = count(&mut client, &prefix, revision).await.map_err(text)? - known;
    if others > 0 && others != counts.unknown {
        warn!(
            "{others} keys under {prefix} in etcd are not a daemon's, and are ignored: `etcdctl get --prefix --keys-only {prefix}` lists them"
        );
    }
    counts.unknown = others;
    list(&mut client, &flannel_prefix, revision, |kv| _ = add(kv)).await.map_err(text)?;
    counts.nodes = contents.nodes.len();
    if !on_update(Update::All(contents)) {
        return Ok(());
    }
    // etcd divides changes that exceed its own limit of a message.
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(revision + 1)
        .with_progress_notify()
        .with_fragment();
    let mut watches = client.watch_client().max_decoding_message_size(LARGEST_MESSAGE);
    let mut stream = watches.watch(prefix.clone(), Some(options.clone())).await.map_err(text)?;
    let mut flannel_stream = watches.watch(flannel_prefix.clone(), Some(options)).await.map_err(text)?;
    loop {
        let answer = tokio::select! {
            answer = stream.message() => answer,
            answer = flannel_stream.message() => answer,
        };
        let Some(answer) = answer.map_err(text)? else { break };
        if answer.canceled() {
            // The revision was compacted, or the watch refused: everything is read again.
            return Err(format!("etcd ended the watch: {}", answer.cancel_reason()));
        }
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            let Some(update) = read(kv.key(), value) else { continue };
            // As above, records with a lease belong to nodes that have no other sign of life.
            let alive = match &update {
                Update::Node(name, Some(_)) if kv.lease() != 0 => Some(Update::Alive(name.clone(), true)),
                _ => None,
            };
            if !on_update(update) || alive.is_some_and(|alive| !on_update(alive)) {
                return Ok(());
            }
        }
    }
    Err("etcd closed the connection".into())
}

fn read(prefix: &str, key: &[u8], value: Option<&[u8]>) -> Option<Update> {
    let key = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    match key.split_once('/')? {
        ("nodes", name) => {
            // Of a text that is no record because of its length, no more is kept than shows it.
            let text = value.map(|text| text[..text.len().min(Record::LONGEST + 1)].to_vec());
            Some(Update::Node(name.to_owned(), text))
        }
        ("alive", name) => Some(Update::Alive(name.to_owned(), value.is_some())),
        ("blocks", name) => {
            let owner = value.map(|owner| String::from_utf8_lossy(owner).into_owned());
            Some(Update::Block(block_name::parse(name)?, owner))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few nodes read everything again at once; the reads of thousands are spread over a minute.
    #[test]
    fn reads_are_spread_according_to_the_number_of_nodes() {
        assert!(jitter(10, 999) < Duration::from_millis(1));
        assert_eq!(jitter(1_000, 500), Duration::from_millis(500));
        assert_eq!(jitter(20_000, 0), Duration::ZERO);
        assert_eq!(jitter(20_000, 500), Duration::from_secs(30));
        assert!(jitter(usize::MAX, u64::MAX) < Duration::from_mins(1));
    }
}
