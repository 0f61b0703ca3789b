//! The Kubernetes store, tested with a server of three kinds of objects that answers kube-rs as the API's conventions require: lists with a
//! version, watches from a version and their ends, conflicts, preconditions, and server-side apply as far as one manager needs it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use serde_json::{Value, json};
use testkit::Host;
use tokio::sync::{mpsc, watch};

use crate::lab::{Kind, LEASE, Lab, Plan, SERVER};

/// All objects, and all events since the server started.
struct Api {
    objects: BTreeMap<(String, String), Value>,
    /// Version, kind, and the event.
    log: Vec<(u64, String, Value)>,
    /// Watches from earlier versions are refused as expired.
    oldest: u64,
    version: u64,
    requests: BTreeMap<String, u64>,
    changed: watch::Sender<u64>,
}

type Shared = Arc<Mutex<Api>>;

impl Api {
    fn put(&mut self, kind: &str, name: &str, mut object: Value) -> Value {
        self.version += 1;
        let key = (kind.to_owned(), name.to_owned());
        let event = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        self.objects.insert(key, object.clone());
        self.tell(kind, event, &object);
        object
    }

    fn remove(&mut self, kind: &str, name: &str) -> Option<Value> {
        let mut object = self.objects.remove(&(kind.to_owned(), name.to_owned()))?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.tell(kind, "DELETED", &object);
        // Owned objects are deleted with their owner.
        let uid = object["metadata"]["uid"].clone();
        let owned = |(_, object): &(&(String, String), &Value)| {
            object["metadata"]["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|owner| owner["uid"] == uid)
        };
        let owned: Vec<(String, String)> =
            self.objects.iter().filter(owned).map(|(key, _)| key.clone()).collect();
        for (kind, name) in owned {
            self.remove(&kind, &name);
        }
        Some(object)
    }

    /// Returns the events of a kind after a version, and whether the watch ends.
    fn after(&self, version: u64, kind: &str) -> (Vec<(u64, Value)>, bool) {
        if version < self.oldest || version > self.version {
            let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
                "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410}});
            return (vec![(version, gone)], true);
        }
        let of_kind = self.log.iter().filter(|(at, of, _)| *at > version && of == kind);
        (of_kind.map(|(at, _, event)| (*at, event.clone())).collect(), false)
    }

    fn tell(&mut self, kind: &str, event: &str, object: &Value) {
        self.log.push((self.version, kind.to_owned(), json!({"type": event, "object": object})));
        self.changed.send_replace(self.version);
    }
}

fn status(code: StatusCode, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(status)).into_response()
}

async fn collection(
    State(api): State<Shared>,
    Path(kind): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    method: Method,
    body: Bytes,
) -> Response {
    let watches = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    *api.lock()
        .unwrap()
        .requests
        .entry(format!("{method} {kind}{}", if watches { " watch" } else { "" }))
        .or_default() += 1;
    if method == Method::POST {
        let object: Value = serde_json::from_slice(&body).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut api = api.lock().unwrap();
        if api.objects.contains_key(&(kind.clone(), name.clone())) {
            return status(StatusCode::CONFLICT, "AlreadyExists");
        }
        return (StatusCode::CREATED, Json(api.put(&kind, &name, object))).into_response();
    }
    if watches {
        return follow(api, kind, query.get("resourceVersion").and_then(|it| it.parse().ok()).unwrap_or(0));
    }
    let api = api.lock().unwrap();
    let items: Vec<&Value> =
        api.objects.iter().filter(|(key, _)| key.0 == kind).map(|(_, object)| object).collect();
    let list = json!({"kind": "List", "apiVersion": "netloom.dev/v1alpha1",
        "metadata": {"resourceVersion": api.version.to_string()}, "items": items});
    Json(list).into_response()
}

/// Streams the events after a version, then new ones.
fn follow(api: Shared, kind: String, mut from: u64) -> Response {
    let (lines, told) = mpsc::channel(16);
    let mut changes = api.lock().unwrap().changed.subscribe();
    tokio::spawn(async move {
        loop {
            changes.borrow_and_update();
            let (next, is_last) = api.lock().unwrap().after(from, &kind);
            for (version, event) in next {
                from = version;
                if lines.send(format!("{event}\n")).await.is_err() {
                    return;
                }
            }
            if is_last || changes.changed().await.is_err() {
                return;
            }
        }
    });
    let lines = futures::stream::unfold(told, |mut told| async {
        told.recv().await.map(|line| (Ok::<_, Infallible>(line), told))
    });
    Body::from_stream(lines).into_response()
}

async fn one(
    State(api): State<Shared>,
    Path((kind, name)): Path<(String, String)>,
    method: Method,
    body: Bytes,
) -> Response {
    let mut api = api.lock().unwrap();
    *api.requests.entry(format!("{method} {kind}")).or_default() += 1;
    let there = api.objects.get(&(kind.clone(), name.clone())).cloned();
    let given: Value = serde_json::from_slice(&body).unwrap_or_default();
    match (method, there) {
        (Method::PATCH, there) => {
            // One manager owns all fields: the fields that it leaves out are removed.
            let mut object = given;
            if let Some(there) = there {
                if there["spec"] == object["spec"]
                    && there["metadata"]["ownerReferences"] == object["metadata"]["ownerReferences"]
                {
                    return Json(there).into_response();
                }
                object["metadata"]["uid"] = there["metadata"]["uid"].clone();
            }
            Json(api.put(&kind, &name, object)).into_response()
        }
        (Method::PUT, Some(there)) => {
            if given["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"] {
                return status(StatusCode::CONFLICT, "Conflict");
            }
            Json(api.put(&kind, &name, given)).into_response()
        }
        (Method::GET, Some(there)) => Json(there).into_response(),
        (Method::DELETE, Some(there)) => {
            for key in ["uid", "resourceVersion"] {
                let wanted = &given["preconditions"][key];
                if !wanted.is_null() && *wanted != there["metadata"][key] {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
            }
            api.remove(&kind, &name);
            Json(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200})).into_response()
        }
        (_, None) => status(StatusCode::NOT_FOUND, "NotFound"),
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

/// Merges into an object's annotations through its status (RFC 7396).
async fn annotate(
    State(api): State<Shared>,
    Path((kind, name)): Path<(String, String)>,
    method: Method,
    body: Bytes,
) -> Response {
    let mut api = api.lock().unwrap();
    let there = api.objects.get(&(kind.clone(), name.clone())).cloned();
    let (Some(mut object), Method::PATCH) = (there, method) else {
        return status(StatusCode::NOT_FOUND, "NotFound");
    };
    let patch: Value = serde_json::from_slice(&body).unwrap();
    for (name, value) in patch["metadata"]["annotations"].as_object().unwrap() {
        let there = &mut object["metadata"]["annotations"];
        if value.is_null() {
            there.as_object_mut().map(|there| there.remove(name));
        } else {
            there[name] = value.clone();
        }
    }
    Json(api.put(&kind, &name, object)).into_response()
}

/// Endpoints for the tests: the request log, the oldest remembered version, and foreign writes.
async fn by_test(
    State(api): State<Shared>,
    Path((what, kind, name)): Path<(String, String, String)>,
    body: Bytes,
) -> Response {
    let mut api = api.lock().unwrap();
    match what.as_str() {
        "requests" => Json(&api.requests).into_response(),
        "forget" => {
            api.oldest = api.version + 1;
            api.version += 2;
            let version = api.version;
            api.changed.send_replace(version);
            "".into_response()
        }
        "put" => Json(api.put(&kind, &name, serde_json::from_slice(&body).unwrap())).into_response(),
        _ => status(StatusCode::NOT_FOUND, "NotFound"),
    }
}

/// The server, in a process of its own that [`start`] starts.
#[test]
fn api_server() {
    let Ok(address) = std::env::var("NETLOOM_API_SERVER") else { return };
    let mut api = Api {
        objects: BTreeMap::new(),
        log: Vec::new(),
        oldest: 0,
        // Versions continue where the previous server ended.
        version: u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap(),
        requests: BTreeMap::new(),
        changed: watch::channel(0).0,
    };
    api.oldest = api.version;
    for number in 1..=3 {
        let cidrs = if number == 1 { json!(["10.244.77.0/24", "fd44:0:0:77::/64"]) } else { Value::Null };
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("host{number}"), "uid": format!("node-{number}")},
            "spec": {"podCIDRs": cidrs}});
        api.put("nodes", &format!("host{number}"), node);
    }
    let router = Router::new()
        .route("/api/v1/{kind}", any(collection))
        .route("/api/v1/{kind}/{name}", any(one))
        .route("/api/v1/{kind}/{name}/status", any(annotate))
        .route("/apis/netloom.dev/v1alpha1/{kind}", any(collection))
        .route("/apis/netloom.dev/v1alpha1/{kind}/{name}", any(one))
        .route("/test/{what}/{kind}/{name}", any(by_test))
        .with_state(Arc::new(Mutex::new(api)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        axum::serve(listener, router).await.unwrap();
    });
}

pub(crate) fn kubeconfig(server: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "lab", "user": {}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    })
    .to_string()
}

/// Starts the server on a host.
pub(crate) fn start(host: &Host, address: &str) -> Child {
    let mut command = host.command(std::env::current_exe().unwrap());
    command.args(["--exact", "kubernetes::api_server", "--nocapture"]).env("NETLOOM_API_SERVER", address);
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let (ip, port) = address.split_once(':').unwrap();
    let started = std::time::Instant::now();
    while !host.succeeds(&format!("bash -c 'exec 3<>/dev/tcp/{ip}/{port}'")) {
        assert!(started.elapsed() < Duration::from_secs(20), "no API server");
    }
    child
}

/// Sends a request to the server.
pub(crate) fn ask(lab: &Lab, method: &str, path: &str, body: &str) -> Value {
    let (ip, port) = SERVER.split_once(':').unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/{ip}/{port}
         printf '{method} {path} HTTP/1.0\\r\\nContent-Length: {}\\r\\n\\r\\n%s' \"$BODY\" >&3; cat <&3",
        body.len()
    );
    let output = lab.wire.command("bash").args(["-c", &script]).env("BODY", body).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap_or_default()
}

/// Writes an object as a foreign client.
pub(crate) fn put(lab: &Lab, kind: &str, name: &str, object: &Value) {
    ask(lab, "POST", &format!("/test/put/{kind}/{name}"), &object.to_string());
}

fn all(lab: &Lab, kind: &str) -> BTreeMap<String, Value> {
    let list = ask(lab, "GET", &format!("/apis/netloom.dev/v1alpha1/{kind}"), "");
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), item.clone())).collect()
}

/// Nodes learn of each other through their objects, use the podCIDRs that Kubernetes assigns, and claim blocks if there are none. They
/// survive a server that is down, one that has lost its objects, and a deleted Node. An idle cluster sends no requests.
#[test]
fn nodes_learn_of_each_other_by_kubernetes() {
    if !testkit::is_root() {
        return;
    }
    let mut lab = Lab::of(Plan {
        store: Kind::Kubernetes,
        mode: "auto",
        flags: &["--plugins", "/run/plugins"],
        ..Plan::default()
    });
    // The daemon has installed the plugins itself.
    lab.hosts[0].sh(
        "test -x /run/plugins/ptp && echo '{\"cniVersion\":\"1.1.0\"}' | CNI_COMMAND=VERSION /run/plugins/host-local | grep -q 1.1.0",
    );
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    assert!(pods[0].2[0].starts_with("10.244.77."), "host1 has what Kubernetes assigned: {pods:?}");
    let blocks = all(&lab, "addressblocks");
    assert_eq!(blocks.len(), 4, "of the two that are assigned none, one of each family: {blocks:?}");
    let owner = |object: &Value| object["metadata"]["ownerReferences"][0]["uid"].clone();
    for (name, block) in &blocks {
        let node = block["spec"]["node"].as_str().unwrap();
        assert_eq!(owner(block), node.replace("host", "node-"), "{name}");
    }
    let nodes = all(&lab, "netloomnodes");
    assert!(nodes.len() == 3 && nodes.values().all(|node| node.to_string().len() < 700), "{nodes:?}");
    crate::manifests::objects_fit(nodes.values().chain(blocks.values()));
    // An idle daemon sends no requests for the time of a lease, in which it would renew that of another store three times.
    let requests = |lab: &Lab| ask(lab, "GET", "/test/requests/x/x", "");
    let before = requests(&lab);
    std::thread::sleep(LEASE);
    assert_eq!(requests(&lab), before);
    // Deleted objects are written again.
    ask(&lab, "DELETE", "/apis/netloom.dev/v1alpha1/netloomnodes/host2", "");
    lab.until(0, "ip route show proto 95 | grep -q 192.0.2.2");
    let started = std::time::Instant::now();
    while all(&lab, "netloomnodes").len() < 3 {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    // After the server has forgotten a watch's version, everything is listed again.
    ask(&lab, "GET", "/test/forget/x/x", "");
    put(&lab, "netloomnodes", "garbage", &json!({"metadata": {"name": "garbage"}, "spec": {"addresses": 7}}));
    lab.wait(0, "told of garbage", |status| {
        status["store"]["refused"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it.as_str().unwrap().starts_with("garbage"))
    });
    // The server is down and comes back with nothing but the nodes: pods keep their traffic, and all objects are written again.
    let routes = lab.hosts[0].sh("ip route show proto 95 | sort; ip -6 route show proto 95 | sort");
    lab.stop_store();
    lab.wait(0, "without a store", |status| status["store"]["connected"] == false);
    lab.all_reach_all(&pods);
    lab.start_store();
    for index in 0..3 {
        lab.wait(index, "connected again", |status| status["store"]["connected"] == true);
    }
    let started = std::time::Instant::now();
    while all(&lab, "netloomnodes").len() < 3 || all(&lab, "addressblocks").len() < 4 {
        assert!(started.elapsed() < Duration::from_secs(40), "{:?}", all(&lab, "addressblocks"));
    }
    assert_eq!(lab.hosts[0].sh("ip route show proto 95 | sort; ip -6 route show proto 95 | sort"), routes);
    // A deleted node: its objects are deleted with it, and so are the routes to it.
    lab.kill(2);
    ask(&lab, "DELETE", "/api/v1/nodes/host3", "");
    lab.until(0, "! ip route show proto 95 | grep -q 192.0.2.3");
    assert!(all(&lab, "addressblocks").values().all(|block| block["spec"]["node"] == "host2"));
}
