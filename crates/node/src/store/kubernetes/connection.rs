//! The connection to the Kubernetes API, and the two kinds of objects.

use kube::{
    Api, Client, Error,
    api::{ApiResource, DynamicObject},
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{config, store::remote::LIMIT};

pub(super) const GROUP: &str = "netloom.dev";
pub(super) const VERSION: &str = "v1alpha1";
/// The two kinds, each with its name in paths.
pub(super) const NODE: (&str, &str) = ("NetloomNode", "netloomnodes");
pub(super) const BLOCK: (&str, &str) = ("AddressBlock", "addressblocks");

/// Returns the API of a kind.
pub(super) fn api(client: &Client, (kind, plural): (&str, &str)) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: GROUP.into(),
        version: VERSION.into(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: kind.into(),
        plural: plural.into(),
    };
    Api::all_with(client.clone(), &resource)
}

/// Returns an error's text with those of its sources.
pub(super) fn explain(error: &Error) -> String {
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

/// Connects to the API server.
pub(super) async fn connect(how: &config::Kubernetes) -> Result<Client, String> {
    let mut config = match &how.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| error.to_string())?
        }
        None => kube::Config::incluster()
            .map_err(|error| format!("not running in a pod, and `kubeconfig` is not set: {error}"))?,
    };
    if let Some(server) = &how.server {
        config.cluster_url = server.parse().map_err(|error| format!("{server}: {error}"))?;
    }
    config.connect_timeout = Some(LIMIT);
    Client::try_from(config).map_err(|error| explain(&error))
}
