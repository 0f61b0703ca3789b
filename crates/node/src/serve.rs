//! Showing the status: as JSON to `netloom cluster` by a socket, and by HTTP as metrics, health and a page for people.

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
    daemon::{Shown, StartError},
    metrics,
    probe::Probes,
    status::Status,
};

/// Serves from a thread of its own from now on.
pub(crate) fn start(config: &Config, shown: &Shown, probes: &Probes) -> Result<(), StartError> {
    let error = |doing: String| move |error: std::io::Error| StartError::new(doing, error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error("start a thread for HTTP".into()))?;
    let socket = {
        let _inside = runtime.enter();
        bind(config).map_err(error(format!("listen at {}", config.socket.display())))?
    };
    let tcp = match config.listen {
        None => None,
        Some(at) => Some(runtime.block_on(TcpListener::bind(at)).map_err(error(format!("listen at {at}")))?),
    };
    let router = Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/metrics", get(scrape))
        .route("/livez", get(|| async { "alive" }))
        .route("/readyz", get(ready))
        .with_state(Seen { shown: Arc::clone(shown), probes: probes.clone() });
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let by_socket = axum::serve(socket, router.clone());
            match tcp {
                None => drop(by_socket.await),
                Some(tcp) => drop(tokio::join!(by_socket, axum::serve(tcp, router))),
            }
        });
    });
    Ok(())
}

fn bind(config: &Config) -> std::io::Result<UnixListener> {
    if let Some(dir) = config.socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // The lock is held: whoever made it before is no more.
    drop(std::fs::remove_file(&config.socket));
    let listener = UnixListener::bind(&config.socket)?;
    std::fs::set_permissions(&config.socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What is looked at when somebody asks.
#[derive(Debug, Clone)]
struct Seen {
    shown: Shown,
    probes: Probes,
}

impl Seen {
    fn status(&self) -> Status {
        let mut status = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for peer in &mut status.peers {
            let seen = self.probes.seen(&peer.name);
            peer.answers = seen.map(|seen| seen.answered);
            let rtt = seen.and_then(|seen| seen.rtt);
            peer.rtt_us = rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
        }
        status
    }
}

async fn status(State(seen): State<Seen>) -> Json<Status> {
    Json(seen.status())
}

async fn scrape(State(seen): State<Seen>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render(&seen.status()))
}

async fn ready(State(seen): State<Seen>) -> (StatusCode, String) {
    let status = seen.status();
    if status.ready {
        (StatusCode::OK, "ready".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, status.problems.join("\n"))
    }
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}
