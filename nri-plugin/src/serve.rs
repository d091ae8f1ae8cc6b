// SPDX-License-Identifier: Apache-2.0
//! Answers `/healthz` and `/metrics` over HTTP, on a unix socket or on a port of this host.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::config::Metrics as Place;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, info, warn};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::metrics::{Metrics, make_way};

/// The format of the figures. Source: OpenMetrics 1.0, "Protocol Negotiation".
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers for ever.
pub(crate) async fn serve(place: &Place, metrics: &Arc<Metrics>) {
    let Err(error) = accept(place, metrics).await;
    warn!(place:?; "nobody can ask for /healthz and /metrics: {error}");
    std::future::pending::<()>().await;
}

async fn accept(place: &Place, metrics: &Arc<Metrics>) -> io::Result<Infallible> {
    match place {
        Place::Socket(path) => {
            make_way(path)?;
            let listener = UnixListener::bind(path)?;
            info!(place:?; "answers /healthz and /metrics");
            loop {
                if let Some((stream, _)) = taken(listener.accept().await).await {
                    tokio::spawn(answer(stream, metrics.clone()));
                }
            }
        }
        Place::Port(address) => {
            let listener = TcpListener::bind(address).await?;
            info!(place:?; "answers /healthz and /metrics");
            loop {
                if let Some((stream, _)) = taken(listener.accept().await).await {
                    tokio::spawn(answer(stream, metrics.clone()));
                }
            }
        }
    }
}

/// A process that has too many descriptors for now goes on when it has fewer.
async fn taken<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            warn!("cannot answer a request for /healthz or /metrics: {error}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, metrics: Arc<Metrics>) {
    let service = service_fn(move |request| respond(request, metrics.clone()));
    // With a timer, one who says nothing is not waited for for ever.
    let mut server = http1::Builder::new();
    let connection = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!("a request ended early: {error}");
    }
}

async fn respond(
    request: Request<Incoming>,
    metrics: Arc<Metrics>,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let plain = |status, text: &str| {
        Response::builder().status(status).body(Full::new(Bytes::from(format!("{text}\n"))))
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") if metrics.is_registered() => plain(StatusCode::OK, "ok"),
        (&Method::GET, "/healthz") => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "waiting for the container runtime")
        }
        (&Method::GET, "/metrics") => {
            let text = tokio::task::spawn_blocking(move || metrics.text()).await.unwrap_or_default();
            Response::builder().header("content-type", OPEN_METRICS).body(Full::new(Bytes::from(text)))
        }
        (&Method::GET, _) => plain(StatusCode::NOT_FOUND, "there are /healthz and /metrics"),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "only GET"),
    }
}
