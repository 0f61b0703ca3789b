//! Serves the status: as JSON to `netloom cluster` over a Unix socket, and over TCP as metrics, health and a web page.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{Arc, PoisonError},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse},
    routing::get,
};
use tokio::net::{TcpListener, UnixListener};

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
            let local = axum::serve(socket, router.clone());
            match tcp {
                None => drop(local.await),
                Some(tcp) => drop(tokio::join!(local, axum::serve(tcp, router))),
            }
        });
    });
    Ok(())
}

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
    ([(header::CONTENT_TYPE, kind)], metrics::render(&sources.status()))
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
