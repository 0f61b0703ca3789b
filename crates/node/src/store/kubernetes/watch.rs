//! Watches the objects in the Kubernetes API.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams},
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use serde_json::Value;

use super::connection::{BLOCK, NODE, api, connect, explain};
use crate::{
    block_name,
    config::{self, Flannel},
    flannel::annotations,
    store::{
        remote::LIMIT,
        update::{Contents, OnUpdate, Update},
    },
};

/// The pause before a lost API server is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a broken watch is started again, before jitter: thousands of daemons must not reconnect at once.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Reports everything, then each change, for as long as reports are wanted.
pub(super) async fn run(how: config::Kubernetes, own: String, flannel: Option<Flannel>, on_update: OnUpdate) {
    loop {
        let Err(why) = watch_once(&how, &own, flannel.as_ref(), &on_update).await else { return };
        if !on_update(Update::Lost(why)) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The pauses of a broken watch: exponential, with jitter.
struct Jittered(Duration);

impl Iterator for Jittered {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let jitter = RandomState::new().hash_one(()) % 1000;
        let pause = self.0 / 2 + self.0 * u32::try_from(jitter).unwrap_or_default() / 1000;
        self.0 = (self.0 * 2).min(MAX_PAUSE);
        Some(pause)
    }
}

impl Backoff for Jittered {
    fn reset(&mut self) {
        self.0 = PAUSE / 2;
    }
}

/// The objects of one kind, as watched.
struct Watched<'a> {
    stream: BoxStream<'a, Result<watcher::Event<DynamicObject>, watcher::Error>>,
    /// Extracts the relevant part of an object, if there is one.
    read: Box<dyn Fn(DynamicObject) -> Option<Value> + Send + 'a>,
    /// The objects by name, or `None` until the first list is complete.
    all: Option<BTreeMap<String, Value>>,
    /// The objects of a list in progress.
    new: BTreeMap<String, Value>,
}

/// Watches until an error; succeeds when no further reports are wanted.
async fn watch_once(
    how: &config::Kubernetes,
    own: &str,
    flannel: Option<&Flannel>,
    on_update: &OnUpdate,
) -> Result<(), String> {
    let client = connect(how).await?;
    let spec = |mut object: DynamicObject| Some(object.data["spec"].take());
    let mut nodes = Watched::new(api(&client, NODE), spec);
    let mut blocks = Watched::new(api(&client, BLOCK), spec);
    let mut flannels = match flannel {
        None => Watched::nothing(),
        Some(flannel) => {
            let api = Api::all_with(client.clone(), &ApiResource::erase::<Node>(&()));
            Watched::new(api, move |node| read_flannel(flannel, own, &node))
        }
    };
    let mut lost = false;
    loop {
        let outcome = tokio::select! {
            // In a quiet cluster, no event shows that the server is back.
            () = tokio::time::sleep(PAUSE), if lost && whole(&nodes, &flannels, &blocks).is_some() => {
                let (api, one) = (api(&client, NODE), ListParams::default().limit(1));
                match tokio::time::timeout(LIMIT, api.list(&one)).await {
                    Ok(Ok(_)) => {
                        lost = false;
                        Ok(whole(&nodes, &flannels, &blocks))
                    }
                    _ => Ok(None),
                }
            }
            changed = nodes.next() => changed.map(|changed| match changed {
                Changed::Nothing => None,
                Changed::Everything => whole(&nodes, &flannels, &blocks),
                Changed::One(name) => Some(node(&nodes, &flannels, name)),
            }),
            changed = flannels.next() => changed.map(|changed| match changed {
                Changed::Nothing => None,
                Changed::Everything => whole(&nodes, &flannels, &blocks),
                Changed::One(name) => Some(node(&nodes, &flannels, name)),
            }),
            changed = blocks.next() => changed.map(|changed| match changed {
                Changed::Nothing => None,
                Changed::Everything => whole(&nodes, &flannels, &blocks),
                Changed::One(name) => block(&name, blocks.get(&name)),
            }),
        };
        let update = match outcome {
            // Nothing is reported before every kind's first list is complete.
            Ok(update) => {
                update.filter(|_| [&nodes, &flannels, &blocks].iter().all(|watched| watched.all.is_some()))
            }
            Err(why) => {
                lost = true;
                Some(Update::Lost(why))
            }
        };
        if let Some(update) = update
            && !on_update(update)
        {
            return Ok(());
        }
    }
}

enum Changed {
    Nothing,
    Everything,
    /// The object with this name.
    One(String),
}

impl<'a> Watched<'a> {
    fn new(api: Api<DynamicObject>, read: impl Fn(DynamicObject) -> Option<Value> + Send + 'a) -> Self {
        let stream = watcher(api, watcher::Config::default()).backoff(Jittered(PAUSE / 2)).boxed();
        Self { stream, read: Box::new(read), all: None, new: BTreeMap::new() }
    }

    /// Watches nothing.
    fn nothing() -> Self {
        let (stream, all) = (futures::stream::pending().boxed(), Some(BTreeMap::new()));
        Self { stream, read: Box::new(|_| None), all, new: BTreeMap::new() }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.all.as_ref()?.get(name)
    }

    /// Returns the next change.
    async fn next(&mut self) -> Result<Changed, String> {
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
                self.update(name, now)
            }
            Some(Ok(watcher::Event::Delete(object))) => self.update(name(&object), None),
        })
    }

    /// Stores an object's relevant part. A heartbeat does not change it.
    fn update(&mut self, name: String, now: Option<Value>) -> Changed {
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

/// Returns flannel's description of another node.
fn read_flannel(flannel: &Flannel, own: &str, node: &DynamicObject) -> Option<Value> {
    if node.metadata.name.as_deref() == Some(own) {
        return None;
    }
    let cidrs = node.data["spec"]["podCIDRs"].as_array();
    let blocks: Vec<IpNet> =
        cidrs.into_iter().flatten().filter_map(|cidr| cidr.as_str()?.parse().ok()).collect();
    annotations::read(flannel, node.metadata.annotations.as_ref()?, &blocks)
}

/// Returns a node's record: its own, or else flannel's description.
fn node(nodes: &Watched<'_>, flannels: &Watched<'_>, name: String) -> Update {
    let now = nodes.get(&name).or_else(|| flannels.get(&name)).map(|now| record(&name, now.clone()));
    Update::Node(name, now)
}

/// Returns everything, once it is complete.
fn whole(nodes: &Watched<'_>, flannels: &Watched<'_>, blocks: &Watched<'_>) -> Option<Update> {
    let (nodes, flannels, blocks) = (nodes.all.as_ref()?, flannels.all.as_ref()?, blocks.all.as_ref()?);
    let owned = |(name, spec): (&String, &Value)| match block(name, Some(spec)) {
        Some(Update::Block(block, Some(owner))) => Some((block, owner)),
        _ => None,
    };
    // A node's own record replaces flannel's description.
    let nodes = flannels.iter().chain(nodes);
    Some(Update::All(Contents {
        alive: None,
        nodes: nodes.map(|(name, spec)| (name.clone(), record(name, spec.clone()))).collect(),
        blocks: blocks.iter().filter_map(owned).collect(),
    }))
}

/// Returns a record in the form that other stores use.
fn record(name: &str, mut spec: Value) -> Vec<u8> {
    spec.as_object_mut().map(|fields| fields.insert("name".into(), name.into()));
    spec.to_string().into_bytes()
}

/// Reads a block, or returns `None` if the object's name is not its prefix: then it may not be the only object of that prefix.
fn block(name: &str, spec: Option<&Value>) -> Option<Update> {
    let Some(spec) = spec else {
        return Some(Update::Block(block_name::parse_without_colons(name)?, None));
    };
    let prefix: IpNet = spec["prefix"].as_str()?.parse().ok()?;
    (block_name::without_colons(prefix) == name)
        .then(|| Update::Block(prefix, spec["node"].as_str().map(Into::into)))
}
