//! Serves the status: as JSON to `netloom cluster` over a Unix socket, and over TCP as metrics, health and a web page.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    os::unix::fs::PermissionsExt,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::AbortHandle,
};

use crate::{
    config::Config,
    conflist, metrics,
    probe::Probes,
    start_error::StartError,
    status::{self, Status},
};

/// Starts the server in a thread of its own.
pub(crate) fn start(config: &Config, shared: &status::Shared, probes: &Probes) -> Result<(), StartError> {
    let error = |doing: String| move |error: std::io::Error| StartError::new(doing, error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error("start the HTTP server".into()))?;
    let socket = {
        let _guard = runtime.enter();
        bind(config).map_err(error(format!("listen on {}", config.socket.display())))?
    };
    let tcp = match config.listen {
        None => None,
        Some(address) => Some(
            runtime.block_on(TcpListener::bind(address)).map_err(error(format!("listen on {address}")))?,
        ),
    };
    let router = Router::new()
        .route("/", get(|| async { file("text/html", include_str!("page/page.html")) }))
        .route("/page.css", get(|| async { file("text/css", include_str!("page/page.css")) }))
        .route("/page.js", get(|| async { file("text/javascript", include_str!("page/page.js")) }))
        .route("/status", get(show))
        .route("/pods", get(pods))
        .route("/metrics", get(scrape))
        .route("/livez", get(|| async { "alive" }))
        .route("/readyz", get(ready))
        .with_state(Sources {
            config: Arc::new(config.clone()),
            shared: Arc::clone(shared),
            probes: probes.clone(),
            seed: RandomState::new(),
            started: Instant::now(),
        });
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let local = answer(socket, router.clone());
            match tcp {
                None => local.await,
                Some(tcp) => drop(tokio::join!(local, answer(tcp, router))),
            }
        });
    });
    Ok(())
}

/// Answers requests. A client that opens connections and sends or reads nothing takes no descriptors or time from others: each
/// connection has time limits, and the oldest of too many is closed.
async fn answer<L>(mut listener: L, router: Router)
where
    L: Listener,
{
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        // Waits and tries again if no descriptor is free.
        let (stream, _) = listener.accept().await;
        if open.len() >= MOST_CONNECTIONS {
            open.retain(|connection| !connection.is_finished());
        }
        if open.len() >= MOST_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_LIMIT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        open.push_back(tokio::spawn(tokio::time::timeout(CONNECTION_LIMIT, connection)).abort_handle());
    }
}

/// The most connections of one listener.
const MOST_CONNECTIONS: usize = 128;
/// Time limit for the head of a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for a connection.
const CONNECTION_LIMIT: Duration = Duration::from_mins(5);

fn bind(config: &Config) -> std::io::Result<UnixListener> {
    if let Some(dir) = config.socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // This process holds the daemon's lock: a socket that exists is of a daemon that has ended.
    drop(std::fs::remove_file(&config.socket));
    let listener = UnixListener::bind(&config.socket)?;
    std::fs::set_permissions(&config.socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The data behind every answer.
#[derive(Debug, Clone)]
struct Sources {
    config: Arc<Config>,
    shared: status::Shared,
    probes: Probes,
    seed: RandomState,
    started: Instant,
}

impl Sources {
    fn status(&self) -> Status {
        let mut status = self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for peer in &mut status.peers {
            let seen = self.probes.seen(&peer.name);
            peer.answers = seen.map(|seen| seen.answered);
            let rtt = seen.and_then(|seen| seen.rtt);
            peer.rtt_us = rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
        }
        status
    }

    /// Returns the tag of the status, which changes with it. It is weak (RFC 9110, 8.8.1): what changes all the time does not count
    /// (counters without meaning to an operator, and for how long a peer is silent), and round-trip times count once per round of probes.
    fn tag(&self) -> String {
        let status = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hasher = self.seed.build_hasher();
        (&status.node, status.ready, &status.problems, &status.notes, &status.store).hash(&mut hasher);
        (&status.networks, &status.addresses, &status.blocks).hash(&mut hasher);
        (&status.repairs, &status.faults, status.counters.repairs, status.counters.refusals)
            .hash(&mut hasher);
        for peer in &status.peers {
            let answers = self.probes.seen(&peer.name).map(|seen| seen.answered);
            (&peer.name, &peer.addresses, &peer.blocks, &peer.path, &peer.problem).hash(&mut hasher);
            (peer.silent_seconds.is_some(), answers).hash(&mut hasher);
        }
        let round = Probes::round(status.peers.len().max(1));
        (self.started.elapsed().as_millis() / round.as_millis()).hash(&mut hasher);
        format!("W/\"{:016x}\"", hasher.finish())
    }
}

/// Answers with the status, or says that it has not changed since the one that the client knows (`If-None-Match`).
async fn show(State(sources): State<Sources>, headers: HeaderMap) -> Response {
    // The tag comes first: it may be older than the status that is sent with it, but not newer.
    let tag = sources.tag();
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
    let is_known = known.split(',').any(|known| known.trim() == tag);
    let tag = [(header::ETAG, tag)];
    if is_known {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    (tag, Json(sources.status())).into_response()
}

/// Answers with the pods of this host, as the reservations say.
async fn pods(State(sources): State<Sources>) -> Response {
    let read = move || conflist::pods(&sources.config);
    match tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other).flatten() {
        Ok(pods) => Json(pods).into_response(),
        Err(error) => {
            let text = format!("cannot read the reservations: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn scrape(State(sources): State<Sources>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render(&sources.status(), &sources.probes.round_trips))
}

async fn ready(State(sources): State<Sources>) -> (StatusCode, String) {
    let status = sources.status();
    if status.ready {
        (StatusCode::OK, "ready".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, status.problems.join("\n"))
    }
}

/// Answers with a file of the page. The page uses nothing but what this server sends.
fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, format!("{kind}; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.into()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".into()),
        (header::CACHE_CONTROL, "no-cache".into()),
    ];
    (headers, text)
}

/// What a browser may load and run for the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";
