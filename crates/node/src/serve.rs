//! Serves the status: as JSON to `netloom cluster` over a Unix socket, and over TCP as metrics, health and a web page.

use std::{
    collections::VecDeque,
    os::unix::fs::PermissionsExt,
    sync::{Arc, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse},
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
    metrics,
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
        .route("/", get(page))
        .route("/status", get(show))
        .route("/metrics", get(scrape))
        .route("/livez", get(|| async { "alive" }))
        .route("/readyz", get(ready))
        .with_state(Sources { shared: Arc::clone(shared), probes: probes.clone() });
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
    shared: status::Shared,
    probes: Probes,
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
}

async fn show(State(sources): State<Sources>) -> Json<Status> {
    Json(sources.status())
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

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}
