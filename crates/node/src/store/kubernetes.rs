//! The Kubernetes API as a store: a `NetloomNode` is a node's record, an `AddressBlock` has the name of who owns it.
//!
//! Both are cluster-scoped, small, and belong to the `Node`, with which they go; they are written when something changes and at
//! no other time, so that a cluster of thousands of nodes is quiet. Of `Node`s a daemon reads its own, and that when it writes:
//! others' heartbeats reach nobody here.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    pin::pin,
    sync::mpsc::Sender,
    time::Duration,
};

use futures::{Stream, StreamExt};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config, Error,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    },
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use serde_json::{Value, json};

use super::{
    Contents, Store, StoreError, Update,
    remote::{LIMIT, Remote},
};
use crate::{config, daemon::Event, record::Record};

pub(super) struct Kubernetes {
    remote: Remote<Client>,
    config: config::Kubernetes,
    /// What was last written.
    published: Option<Record>,
}

const GROUP: &str = "netloom.dev";
const VERSION: &str = "v1alpha1";
/// Who writes, for the API server's book of who owns which field.
const MANAGER: &str = "netloomd";
/// How soon a server that was not heard of is asked again whether it is there.
const PAUSE: Duration = Duration::from_secs(1);

/// A watch that broke is begun again after at most half as long again: thousands of daemons do not ask at once.
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// The two kinds, with the name of each in paths.
const NODE: (&str, &str) = ("NetloomNode", "netloomnodes");
const BLOCK: (&str, &str) = ("AddressBlock", "addressblocks");

fn api(client: &Client, (kind, plural): (&str, &str)) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: GROUP.into(),
        version: VERSION.into(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: kind.into(),
        plural: plural.into(),
    };
    Api::all_with(client.clone(), &resource)
}

impl Kubernetes {
    pub(super) fn open(config: &config::Kubernetes, updates: Sender<Event>) -> Result<Self, StoreError> {
        let remote = Remote::new("Kubernetes")?;
        remote.spawn(watch(config.clone(), updates));
        Ok(Self { remote, config: config.clone(), published: None })
    }

    fn with<T>(
        &mut self,
        doing: &str,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let config = &self.config;
        let work = async |client: &mut Client| work(client).await.map_err(|error| explain(&error));
        self.remote.with(doing, async || connect(config).await, work)
    }
}

/// Says what an error is of, for people.
fn explain(error: &Error) -> String {
    let mut text = match error {
        Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(deeper) = source {
        let more = deeper.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = deeper.source();
    }
    text
}

async fn connect(how: &config::Kubernetes) -> Result<Client, String> {
    let mut config = match &how.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| error.to_string())?
        }
        None => Config::incluster().map_err(|error| {
            format!("this is no pod of Kubernetes, and there is no `kubeconfig`: {error}")
        })?,
    };
    if let Some(server) = &how.server {
        config.cluster_url = server.parse().map_err(|error| format!("{server}: {error}"))?;
    }
    config.connect_timeout = Some(LIMIT);
    Client::try_from(config).map_err(|error| explain(&error))
}

/// Has an object belong to a node, with which it goes.
fn owner(node: &Node) -> Value {
    json!([{
        "apiVersion": "v1", "kind": "Node",
        "name": node.metadata.name, "uid": node.metadata.uid,
    }])
}

async fn own_node(client: &Client, name: &str) -> Result<Node, Error> {
    Api::<Node>::all(client.clone()).get(name).await
}

impl Store for Kubernetes {
    fn publish(&mut self, node: &Record, again: bool) -> Result<(), StoreError> {
        if self.published.as_ref() == Some(node) && !again {
            return Ok(());
        }
        let mut spec = serde_json::to_value(node).unwrap_or_default();
        spec.as_object_mut().map(|fields| fields.remove("name"));
        let name = node.name.clone();
        self.with("publish this node", async move |client| {
            let owner = owner(&own_node(client, &name).await?);
            let object = json!({
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": NODE.0,
                "metadata": {"name": name, "ownerReferences": owner}, "spec": spec,
            });
            let by = PatchParams::apply(MANAGER).force();
            api(client, NODE).patch(&name, &by, &Patch::Apply(object)).await.map(drop)
        })?;
        self.published = Some(node.clone());
        Ok(())
    }

    fn assigned(&mut self, node: &str) -> Result<Vec<IpNet>, StoreError> {
        self.with(&format!("read node {node}"), async |client| {
            let node = own_node(client, node).await?;
            let cidrs = node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
            Ok(cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect())
        })
    }

    fn claim(&mut self, block: IpNet, node: &str) -> Result<bool, StoreError> {
        self.with(&format!("claim block {block}"), async |client| {
            let owner = owner(&own_node(client, node).await?);
            let name = block_name(block);
            let object = json!({
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": BLOCK.0,
                "metadata": {"name": name, "ownerReferences": owner},
                "spec": {"prefix": block, "node": node},
            });
            let object: DynamicObject = serde_json::from_value(object).map_err(Error::SerdeError)?;
            match api(client, BLOCK).create(&PostParams::default(), &object).await {
                Ok(_) => Ok(true),
                Err(Error::Api(status)) if status.code == 409 => {
                    let there = api(client, BLOCK).get_opt(&name).await?;
                    Ok(there.is_some_and(|there| there.data["spec"]["node"] == node))
                }
                Err(error) => Err(error),
            }
        })
    }

    fn take(&mut self, block: IpNet, from: &str, node: &str) -> Result<bool, StoreError> {
        self.with(&format!("take block {block}"), async |client| {
            let (api, name) = (api(client, BLOCK), block_name(block));
            let Some(mut there) = api.get_opt(&name).await? else { return Ok(false) };
            if there.data["spec"]["node"] != from {
                return Ok(false);
            }
            let owner = owner(&own_node(client, node).await?);
            there.metadata.owner_references = serde_json::from_value(owner).map_err(Error::SerdeError)?;
            there.data["spec"]["node"] = node.into();
            // With the version that was read: whoever changed it meanwhile was faster.
            match api.replace(&name, &PostParams::default(), &there).await {
                Ok(_) => Ok(true),
                Err(Error::Api(status)) if [404, 409].contains(&status.code) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn release(&mut self, block: IpNet, node: &str) -> Result<(), StoreError> {
        self.with(&format!("give back block {block}"), async |client| {
            let (api, name) = (api(client, BLOCK), block_name(block));
            let Some(there) = api.get_opt(&name).await? else { return Ok(()) };
            if there.data["spec"]["node"] != node {
                return Ok(());
            }
            // That very object as it was read: another's of the same name stays, and what somebody took meanwhile.
            let (uid, resource_version) = (there.metadata.uid, there.metadata.resource_version);
            let preconditions = Some(Preconditions { uid, resource_version });
            let outcome = api.delete(&name, &DeleteParams { preconditions, ..Default::default() }).await;
            absent_is_fine(outcome.map(drop))
        })
    }

    fn withdraw(&mut self, node: &str) -> Result<(), StoreError> {
        self.published = None;
        self.with("withdraw this node", async |client| {
            absent_is_fine(api(client, NODE).delete(node, &DeleteParams::default()).await.map(drop))
        })
    }
}

fn absent_is_fine(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        other => other,
    }
}

/// Names of objects have no colons: `10.244.1.0-24`, `fd44.0.0.1.0.0.0.0-64`.
fn block_name(block: IpNet) -> String {
    let address = match block.network() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.segments().map(|segment| format!("{segment:x}")).join("."),
    };
    format!("{address}-{}", block.prefix_len())
}

/// Tells of everything, then of what changes, for as long as somebody listens.
async fn watch(config: config::Kubernetes, updates: Sender<Event>) {
    loop {
        let Err(why) = watch_once(&config, &updates).await else { return };
        if updates.send(Event::Store(Update::Lost(why))).is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How long a watch that broke waits: twice as long each time, and some of that by chance.
struct Patience(Duration);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let chance = RandomState::new().hash_one(()) % 1000;
        let pause = self.0 / 2 + self.0 * u32::try_from(chance).unwrap_or_default() / 1000;
        self.0 = (self.0 * 2).min(MOST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = PAUSE / 2;
    }
}

/// What has been heard of one kind: none until all of it was.
type Heard = Option<BTreeMap<String, Value>>;

/// Ends well when nobody listens any more.
async fn watch_once(how: &config::Kubernetes, updates: &Sender<Event>) -> Result<(), String> {
    let client = connect(how).await?;
    let objects = |kind| watcher(api(&client, kind), watcher::Config::default()).backoff(Patience(PAUSE / 2));
    let (mut nodes, mut blocks) = (pin!(objects(NODE)), pin!(objects(BLOCK)));
    let (mut all_nodes, mut all_blocks): (Heard, Heard) = (None, None);
    let (mut new_nodes, mut new_blocks) = (BTreeMap::new(), BTreeMap::new());
    let mut lost = false;
    loop {
        let outcome = tokio::select! {
            // In a quiet cluster nothing else tells that the server is there again.
            () = tokio::time::sleep(PAUSE), if lost && all_nodes.is_some() && all_blocks.is_some() => {
                let (api, one) = (api(&client, NODE), ListParams::default().limit(1));
                match tokio::time::timeout(LIMIT, api.list(&one)).await {
                    Ok(Ok(_)) => {
                        lost = false;
                        Ok(Some(whole(all_nodes.as_ref(), all_blocks.as_ref())))
                    }
                    _ => Ok(None),
                }
            }
            changed = hear(nodes.as_mut(), &mut all_nodes, &mut new_nodes) => {
                changed.map(|changed| match changed {
                    Changed::Nothing => None,
                    Changed::Everything => Some(whole(all_nodes.as_ref(), all_blocks.as_ref())),
                    Changed::One(name, value) => Some(Some(Update::Node(name.clone(), value.map(|value| record(&name, value))))),
                })
            }
            changed = hear(blocks.as_mut(), &mut all_blocks, &mut new_blocks) => {
                changed.map(|changed| match changed {
                    Changed::Nothing => None,
                    Changed::Everything => Some(whole(all_nodes.as_ref(), all_blocks.as_ref())),
                    Changed::One(name, value) => Some(block(&name, value)),
                })
            }
        };
        let update = match outcome {
            Ok(update) => update.flatten().filter(|_| all_nodes.is_some() && all_blocks.is_some()),
            Err(why) => {
                lost = true;
                Some(Update::Lost(why))
            }
        };
        if let Some(update) = update
            && updates.send(Event::Store(update)).is_err()
        {
            return Ok(());
        }
    }
}

enum Changed {
    Nothing,
    Everything,
    /// Of this name; none when it is gone.
    One(String, Option<Value>),
}

/// Hears the next of what happens to one kind of objects.
async fn hear(
    mut stream: std::pin::Pin<&mut impl Stream<Item = Result<watcher::Event<DynamicObject>, watcher::Error>>>,
    all: &mut Heard,
    new: &mut BTreeMap<String, Value>,
) -> Result<Changed, String> {
    let name = |object: &DynamicObject| object.metadata.name.clone().unwrap_or_default();
    let spec = |mut object: DynamicObject| object.data["spec"].take();
    Ok(match stream.next().await {
        None => return Err("the watch has ended".into()),
        Some(Err(error)) => {
            let mut text = error.to_string();
            if let watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) = &error
            {
                text = explain(error);
            }
            return Err(text);
        }
        Some(Ok(watcher::Event::Init)) => {
            new.clear();
            Changed::Nothing
        }
        Some(Ok(watcher::Event::InitApply(object))) => {
            new.insert(name(&object), spec(object));
            Changed::Nothing
        }
        Some(Ok(watcher::Event::InitDone)) => {
            *all = Some(std::mem::take(new));
            Changed::Everything
        }
        Some(Ok(watcher::Event::Apply(object))) => {
            let (name, spec) = (name(&object), spec(object));
            if let Some(all) = all {
                all.insert(name.clone(), spec.clone());
            }
            Changed::One(name, Some(spec))
        }
        Some(Ok(watcher::Event::Delete(object))) => {
            let name = name(&object);
            if let Some(all) = all {
                all.remove(&name);
            }
            Changed::One(name, None)
        }
    })
}

/// Gives everything, once it is known.
fn whole(
    nodes: Option<&BTreeMap<String, Value>>,
    blocks: Option<&BTreeMap<String, Value>>,
) -> Option<Update> {
    let (nodes, blocks) = (nodes?, blocks?);
    let owned = |(name, spec): (&String, &Value)| match block(name, Some(spec.clone())) {
        Some(Update::Block(block, Some(owner))) => Some((block, owner)),
        _ => None,
    };
    Some(Update::All(Contents {
        nodes: nodes.iter().map(|(name, spec)| (name.clone(), record(name, spec.clone()))).collect(),
        blocks: blocks.iter().filter_map(owned).collect(),
    }))
}

/// Writes a record as other stores have it.
fn record(name: &str, mut spec: Value) -> Vec<u8> {
    spec.as_object_mut().map(|fields| fields.insert("name".into(), name.into()));
    spec.to_string().into_bytes()
}

/// Reads a block; none when the object is not called as its prefix is, and so may not be the only one of that.
fn block(name: &str, spec: Option<Value>) -> Option<Update> {
    let Some(spec) = spec else {
        let (address, length) = name.rsplit_once('-')?;
        let address =
            if address.split('.').count() == 8 { address.replace('.', ":") } else { address.into() };
        let block = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
        return Some(Update::Block(block, None));
    };
    let prefix: IpNet = spec["prefix"].as_str()?.parse().ok()?;
    (block_name(prefix) == name).then(|| Update::Block(prefix, spec["node"].as_str().map(Into::into)))
}
