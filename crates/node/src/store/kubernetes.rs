//! The Kubernetes API as a store: a `NetloomNode` is a node's record, an `AddressBlock` has the name of who owns it.
//!
//! Both are cluster-scoped, small, and belong to the `Node`, with which they go; they are written when something changes and at
//! no other time, so that a cluster of thousands of nodes is quiet. Of `Node`s a daemon reads its own, and that when it writes:
//! others' heartbeats reach nobody here. Where flannel is beside, it watches all of them for as long as that is so.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::mpsc::Sender,
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Error,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    },
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use serde_json::{Value, json};

use super::{
    Contents, Store, StoreError, Update, plain_name,
    remote::{LIMIT, Remote},
};
use crate::{
    config::{self, Config, Flannel},
    daemon::Event,
    flannel::annotations,
    record::{Record, mac_of},
};

pub(super) struct Kubernetes {
    remote: Remote<Client>,
    config: config::Kubernetes,
    flannel: Option<Flannel>,
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
    pub(super) fn open(
        how: &config::Kubernetes,
        config: &Config,
        updates: Sender<Event>,
    ) -> Result<Self, StoreError> {
        let remote = Remote::new("Kubernetes")?;
        let flannel = config.flannel.clone();
        remote.spawn(watch(how.clone(), config.node.clone(), flannel.clone(), updates));
        Ok(Self { remote, config: how.clone(), flannel, published: None })
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
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| error.to_string())?
        }
        None => kube::Config::incluster().map_err(|error| {
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

/// Sets annotations of a node, or takes away those that are to be none.
async fn annotate(
    client: &Client,
    name: &str,
    annotations: &BTreeMap<String, Option<String>>,
) -> Result<(), Error> {
    if annotations.is_empty() {
        return Ok(());
    }
    // By way of the status, as flannel does it: nothing else of a node need be allowed.
    let patch = json!({"metadata": {"annotations": annotations}});
    let api = Api::<Node>::all(client.clone());
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
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
        let (name, record, flannel) = (node.name.clone(), node.clone(), self.flannel.clone());
        self.with("publish this node", async move |client| {
            let own = own_node(client, &name).await?;
            let owner = owner(&own);
            let object = json!({
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": NODE.0,
                "metadata": {"name": name, "ownerReferences": owner}, "spec": spec,
            });
            let by = PatchParams::apply(MANAGER).force();
            api(client, NODE).patch(&name, &by, &Patch::Apply(object)).await?;
            if let Some(how) = flannel {
                let there = own.metadata.annotations.unwrap_or_default();
                annotate(client, &name, &annotations::missing(&how, &record, &there)).await?;
            }
            Ok(())
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
            let name = plain_name(block);
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
            let (api, name) = (api(client, BLOCK), plain_name(block));
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
            let (api, name) = (api(client, BLOCK), plain_name(block));
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
        let flannel = self.flannel.clone();
        self.with("withdraw this node", async |client| {
            if let Some(how) = flannel
                && let Some(own) = Api::<Node>::all(client.clone()).get_opt(node).await?
            {
                let there = own.metadata.annotations.unwrap_or_default();
                annotate(client, node, &annotations::own(&how, &mac_of(node).to_string(), &there)).await?;
            }
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

/// Tells of everything, then of what changes, for as long as somebody listens.
async fn watch(how: config::Kubernetes, own: String, flannel: Option<Flannel>, updates: Sender<Event>) {
    loop {
        let Err(why) = watch_once(&how, &own, flannel.as_ref(), &updates).await else { return };
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

/// What has been heard of one kind.
struct Heard<'a> {
    stream: BoxStream<'a, Result<watcher::Event<DynamicObject>, watcher::Error>>,
    /// Reads what matters of an object; nothing where it does not.
    read: Box<dyn Fn(DynamicObject) -> Option<Value> + Send + 'a>,
    /// What there is, by name; none until all of it was heard.
    all: Option<BTreeMap<String, Value>>,
    new: BTreeMap<String, Value>,
}

/// Ends well when nobody listens any more.
async fn watch_once(
    how: &config::Kubernetes,
    own: &str,
    flannel: Option<&Flannel>,
    updates: &Sender<Event>,
) -> Result<(), String> {
    let client = connect(how).await?;
    let spec = |mut object: DynamicObject| Some(object.data["spec"].take());
    let mut nodes = Heard::of(api(&client, NODE), spec);
    let mut blocks = Heard::of(api(&client, BLOCK), spec);
    let mut theirs = match flannel {
        None => Heard::nothing(),
        Some(flannel) => {
            let api = Api::all_with(client.clone(), &ApiResource::erase::<Node>(&()));
            Heard::of(api, move |node| read_flannel(flannel, own, &node))
        }
    };
    let mut lost = false;
    loop {
        let outcome = tokio::select! {
            // In a quiet cluster nothing else tells that the server is there again.
            () = tokio::time::sleep(PAUSE), if lost && whole(&nodes, &theirs, &blocks).is_some() => {
                let (api, one) = (api(&client, NODE), ListParams::default().limit(1));
                match tokio::time::timeout(LIMIT, api.list(&one)).await {
                    Ok(Ok(_)) => {
                        lost = false;
                        Ok(whole(&nodes, &theirs, &blocks))
                    }
                    _ => Ok(None),
                }
            }
            changed = nodes.hear() => changed.map(|changed| match changed {
                Changed::Nothing => None,
                Changed::Everything => whole(&nodes, &theirs, &blocks),
                Changed::One(name) => Some(node(&nodes, &theirs, name)),
            }),
            changed = theirs.hear() => changed.map(|changed| match changed {
                Changed::Nothing => None,
                Changed::Everything => whole(&nodes, &theirs, &blocks),
                Changed::One(name) => Some(node(&nodes, &theirs, name)),
            }),
            changed = blocks.hear() => changed.map(|changed| match changed {
                Changed::Nothing => None,
                Changed::Everything => whole(&nodes, &theirs, &blocks),
                Changed::One(name) => block(&name, blocks.get(&name)),
            }),
        };
        let update = match outcome {
            // Until everything is known of each there is nothing to tell.
            Ok(update) => {
                update.filter(|_| [&nodes, &theirs, &blocks].iter().all(|heard| heard.all.is_some()))
            }
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
    /// What has this name.
    One(String),
}

impl<'a> Heard<'a> {
    fn of(api: Api<DynamicObject>, read: impl Fn(DynamicObject) -> Option<Value> + Send + 'a) -> Self {
        let stream = watcher(api, watcher::Config::default()).backoff(Patience(PAUSE / 2)).boxed();
        Self { stream, read: Box::new(read), all: None, new: BTreeMap::new() }
    }

    /// Where there is nothing to hear of.
    fn nothing() -> Self {
        let (stream, all) = (futures::stream::pending().boxed(), Some(BTreeMap::new()));
        Self { stream, read: Box::new(|_| None), all, new: BTreeMap::new() }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.all.as_ref()?.get(name)
    }

    /// Hears the next of what happens.
    async fn hear(&mut self) -> Result<Changed, String> {
        let name = |object: &DynamicObject| object.metadata.name.clone().unwrap_or_default();
        Ok(match self.stream.next().await {
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
                self.new.clear();
                Changed::Nothing
            }
            Some(Ok(watcher::Event::InitApply(object))) => {
                let name = name(&object);
                self.new.extend((self.read)(object).map(|it| (name, it)));
                Changed::Nothing
            }
            Some(Ok(watcher::Event::InitDone)) => {
                self.all = Some(std::mem::take(&mut self.new));
                Changed::Everything
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                let name = name(&object);
                let now = (self.read)(object);
                self.becomes(name, now)
            }
            Some(Ok(watcher::Event::Delete(object))) => self.becomes(name(&object), None),
        })
    }

    /// A heartbeat changes nothing that matters.
    fn becomes(&mut self, name: String, now: Option<Value>) -> Changed {
        let Some(all) = &mut self.all else { return Changed::Nothing };
        if all.get(&name) == now.as_ref() {
            return Changed::Nothing;
        }
        match now {
            Some(now) => drop(all.insert(name.clone(), now)),
            None => drop(all.remove(&name)),
        }
        Changed::One(name)
    }
}

/// Reads what flannel says of another node.
fn read_flannel(flannel: &Flannel, own: &str, node: &DynamicObject) -> Option<Value> {
    if node.metadata.name.as_deref() == Some(own) {
        return None;
    }
    let cidrs = node.data["spec"]["podCIDRs"].as_array();
    let blocks: Vec<IpNet> =
        cidrs.into_iter().flatten().filter_map(|cidr| cidr.as_str()?.parse().ok()).collect();
    annotations::read(flannel, node.metadata.annotations.as_ref()?, &blocks)
}

/// Returns what a node is: what it says of itself, or else what flannel says of it.
fn node(nodes: &Heard<'_>, theirs: &Heard<'_>, name: String) -> Update {
    let now = nodes.get(&name).or_else(|| theirs.get(&name)).map(|now| record(&name, now.clone()));
    Update::Node(name, now)
}

/// Returns everything, once it is known.
fn whole(nodes: &Heard<'_>, theirs: &Heard<'_>, blocks: &Heard<'_>) -> Option<Update> {
    let (nodes, theirs, blocks) = (nodes.all.as_ref()?, theirs.all.as_ref()?, blocks.all.as_ref()?);
    let owned = |(name, spec): (&String, &Value)| match block(name, Some(spec)) {
        Some(Update::Block(block, Some(owner))) => Some((block, owner)),
        _ => None,
    };
    // What a node says of itself counts before what flannel says of it.
    let nodes = theirs.iter().chain(nodes);
    Some(Update::All(Contents {
        nodes: nodes.map(|(name, spec)| (name.clone(), record(name, spec.clone()))).collect(),
        blocks: blocks.iter().filter_map(owned).collect(),
    }))
}

/// Writes a record as other stores have it.
fn record(name: &str, mut spec: Value) -> Vec<u8> {
    spec.as_object_mut().map(|fields| fields.insert("name".into(), name.into()));
    spec.to_string().into_bytes()
}

/// Reads a block; none when the object is not called as its prefix is, and so may not be the only one of that.
fn block(name: &str, spec: Option<&Value>) -> Option<Update> {
    let Some(spec) = spec else {
        let (address, length) = name.rsplit_once('-')?;
        let address =
            if address.split('.').count() == 8 { address.replace('.', ":") } else { address.into() };
        let block = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
        return Some(Update::Block(block, None));
    };
    let prefix: IpNet = spec["prefix"].as_str()?.parse().ok()?;
    (plain_name(prefix) == name).then(|| Update::Block(prefix, spec["node"].as_str().map(Into::into)))
}
