//! The Kubernetes API as a store: a `NetloomNode` is a node's record, an `AddressBlock` names its owner.
//!
//! Both are cluster-scoped, small, and owned by the `Node`, with which they are deleted. They are written only when something
//! changes, so that a cluster of thousands of nodes is quiet. A daemon reads only its own `Node`, and only when it writes: it does not
//! receive other nodes' heartbeats. With flannel configured, it watches all `Node`s.

mod connection;
mod watch;

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Error,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};

use self::connection::{BLOCK, GROUP, NODE, VERSION, api, connect, explain};
use super::{
    api::{Store, StoreError},
    remote::Remote,
    update::OnUpdate,
};
use crate::{
    block_name,
    config::{self, Config, Flannel},
    flannel::annotations,
    record::{Record, mac_of},
};

pub(super) struct Kubernetes {
    remote: Remote<Client>,
    config: config::Kubernetes,
    flannel: Option<Flannel>,
    /// The record as last written.
    published: Option<Record>,
}

/// The field manager of server-side apply.
const MANAGER: &str = "netloomd";

impl Kubernetes {
    pub(super) fn open(
        how: &config::Kubernetes,
        config: &Config,
        on_update: OnUpdate,
    ) -> Result<Self, StoreError> {
        let remote = Remote::new("Kubernetes")?;
        let flannel = config.flannel.clone();
        remote.spawn(watch::run(how.clone(), config.node.clone(), flannel.clone(), on_update));
        Ok(Self { remote, config: how.clone(), flannel, published: None })
    }

    fn with<T>(
        &mut self,
        doing: &str,
        call: impl AsyncFnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let config = &self.config;
        let call = async |client: &mut Client| call(client).await.map_err(|error| explain(&error));
        self.remote.with(doing, async || connect(config).await, call)
    }
}

/// Returns owner references to a node, with which the object is then deleted.
fn owner(node: &Node) -> Value {
    json!([{
        "apiVersion": "v1", "kind": "Node",
        "name": node.metadata.name, "uid": node.metadata.uid,
    }])
}

/// Sets annotations of a node; `None` removes one.
async fn annotate(
    client: &Client,
    name: &str,
    annotations: &BTreeMap<String, Option<String>>,
) -> Result<(), Error> {
    if annotations.is_empty() {
        return Ok(());
    }
    // Through the status subresource, as flannel does: the daemon needs no other right to change nodes.
    let patch = json!({"metadata": {"annotations": annotations}});
    let api = Api::<Node>::all(client.clone());
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

async fn own_node(client: &Client, name: &str) -> Result<Node, Error> {
    Api::<Node>::all(client.clone()).get(name).await
}

impl Store for Kubernetes {
    fn publish(&mut self, node: &Record, rewrite: bool) -> Result<(), StoreError> {
        if self.published.as_ref() == Some(node) && !rewrite {
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
                let current = own.metadata.annotations.unwrap_or_default();
                annotate(client, &name, &annotations::missing(&how, &record, &current)).await?;
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
            let name = block_name::without_colons(block);
            let object = json!({
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": BLOCK.0,
                "metadata": {"name": name, "ownerReferences": owner},
                "spec": {"prefix": block, "node": node},
            });
            let object: DynamicObject = serde_json::from_value(object).map_err(Error::SerdeError)?;
            match api(client, BLOCK).create(&PostParams::default(), &object).await {
                Ok(_) => Ok(true),
                Err(Error::Api(status)) if status.code == 409 => {
                    let current = api(client, BLOCK).get_opt(&name).await?;
                    Ok(current.is_some_and(|current| current.data["spec"]["node"] == node))
                }
                Err(error) => Err(error),
            }
        })
    }

    fn take(&mut self, block: IpNet, from: &str, node: &str) -> Result<bool, StoreError> {
        self.with(&format!("take block {block}"), async |client| {
            let (api, name) = (api(client, BLOCK), block_name::without_colons(block));
            let Some(mut current) = api.get_opt(&name).await? else { return Ok(false) };
            if current.data["spec"]["node"] != from {
                return Ok(false);
            }
            let owner = owner(&own_node(client, node).await?);
            current.metadata.owner_references = serde_json::from_value(owner).map_err(Error::SerdeError)?;
            current.data["spec"]["node"] = node.into();
            // The request carries the version that was read, so it fails if another node was faster.
            match api.replace(&name, &PostParams::default(), &current).await {
                Ok(_) => Ok(true),
                Err(Error::Api(status)) if [404, 409].contains(&status.code) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn release(&mut self, block: IpNet, node: &str) -> Result<(), StoreError> {
        self.with(&format!("release block {block}"), async |client| {
            let (api, name) = (api(client, BLOCK), block_name::without_colons(block));
            let Some(current) = api.get_opt(&name).await? else { return Ok(()) };
            if current.data["spec"]["node"] != node {
                return Ok(());
            }
            // Deletes only the object that was read, in the version that was read: another node may own the block by now.
            let (uid, resource_version) = (current.metadata.uid, current.metadata.resource_version);
            let preconditions = Some(Preconditions { uid, resource_version });
            let outcome = api.delete(&name, &DeleteParams { preconditions, ..Default::default() }).await;
            ignore_absent(outcome.map(drop))
        })
    }

    fn withdraw(&mut self, node: &str) -> Result<(), StoreError> {
        self.published = None;
        let flannel = self.flannel.clone();
        self.with("withdraw this node", async |client| {
            if let Some(how) = flannel
                && let Some(own) = Api::<Node>::all(client.clone()).get_opt(node).await?
            {
                let current = own.metadata.annotations.unwrap_or_default();
                annotate(client, node, &annotations::own(&how, &mac_of(node).to_string(), &current)).await?;
            }
            ignore_absent(api(client, NODE).delete(node, &DeleteParams::default()).await.map(drop))
        })
    }
}

/// Treats an object that does not exist, or has changed, as deleted.
fn ignore_absent(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        other => other,
    }
}
