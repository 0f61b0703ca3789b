//! As much of the kubelet's side of the CRI (runtime.v1) as starts and stops pods. The messages are written down
//! here, with the numbers of `api.proto`, so that building the tests needs no protoc.

use std::path::Path;

use prost::Message;
use tokio::runtime::Runtime;
use tonic::{
    Request, Status,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

pub(super) struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    pub(super) fn connect(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Self { runtime, channel }
    }

    /// Runs a pod, with a port if one is to be published, and gives its ID.
    pub(super) fn run_pod(&self, name: &str, port: Option<(i32, i32)>) -> Result<String, Status> {
        let metadata = Metadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        };
        let ports = port.into_iter().map(|(host_port, container_port)| Port {
            protocol: 0,
            container_port,
            host_port,
        });
        let config = PodConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: "/run/c/pods".into(),
            port_mappings: ports.collect(),
        };
        self.call("RunPodSandbox", RunPod { config: Some(config) }).map(|answer: PodId| answer.id)
    }

    /// Returns the addresses of a pod, the first one first.
    pub(super) fn addresses(&self, id: &str) -> Vec<String> {
        let answer: PodStatusAnswer = self.call("PodSandboxStatus", PodId { id: id.into() }).unwrap();
        let network = answer.status.unwrap().network.unwrap();
        std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
    }

    pub(super) fn stop_pod(&self, id: &str) {
        let _: Nothing = self.call("StopPodSandbox", PodId { id: id.into() }).unwrap();
    }

    pub(super) fn remove_pod(&self, id: &str) {
        let _: Nothing = self.call("RemovePodSandbox", PodId { id: id.into() }).unwrap();
    }

    fn call<I, O>(&self, method: &str, message: I) -> Result<O, Status>
    where
        I: Message + 'static,
        O: Message + Default + 'static,
    {
        self.runtime.block_on(async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}")).unwrap();
            grpc.unary(Request::new(message), path, ProstCodec::<I, O>::default())
                .await
                .map(tonic::Response::into_inner)
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, repeated, tag = "5")]
    port_mappings: Vec<Port>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Port {
    #[prost(int32, tag = "1")]
    protocol: i32,
    #[prost(int32, tag = "2")]
    container_port: i32,
    #[prost(int32, tag = "3")]
    host_port: i32,
}

/// The request of three calls and the answer of one have this alone.
#[derive(Clone, PartialEq, Message)]
struct PodId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodNetwork>,
}

#[derive(Clone, PartialEq, Message)]
struct PodNetwork {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}
