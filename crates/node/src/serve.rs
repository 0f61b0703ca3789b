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
    status::Status,
};

/// Serves from a thread of its own from now on.
pub(crate) fn start(config: &Config, shown: &Shown) -> Result<(), StartError> {
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
        .with_state(Arc::clone(shown));
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

fn look(shown: &Shown) -> Status {
    shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn status(State(shown): State<Shown>) -> Json<Status> {
    Json(look(&shown))
}

async fn scrape(State(shown): State<Shown>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render(&look(&shown)))
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, String) {
    let status = look(&shown);
    if status.ready {
        (StatusCode::OK, "ready".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, status.problems.join("\n"))
    }
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}
