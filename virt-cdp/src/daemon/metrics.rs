//! The metrics endpoint: `GET /metrics` over HTTP, for Prometheus.
//!
//! How: one task takes connections, a task for each answers one request. An address that cannot be had is tried again,
//! since protection must not depend on it. Whoever can connect can read; that is why it is off unless an address is given,
//! and on loopback unless that says otherwise.
//! Invariant: what clients do is bounded: so many at a time, a head of so many bytes, so long for all of it.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use crate::api::Engine;

/// Connections that are served at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may take from its first byte to its last.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// The longest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// Pause before an address is tried again.
const BIND_PAUSE: Duration = Duration::from_secs(5);
/// Pause when no connection can be taken, as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves an engine's figures at `address` until `stop` changes.
pub async fn serve(address: SocketAddr, engine: Arc<dyn Engine>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        _ = stop.changed() => {}
        () = answer_all(address, engine) => {}
    }
}

async fn answer_all(address: SocketAddr, engine: Arc<dyn Engine>) {
    let listener = bind(address).await;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "no connection to the metrics can be taken");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let answered = timeout(CONNECTION_DEADLINE, answer(stream, engine)).await;
            if answered.is_err() {
                tracing::debug!("a client of the metrics took too long");
            }
            drop(place);
        });
    }
}

/// Listens, as soon as the address can be had.
async fn bind(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "metrics are served");
                if !address.ip().is_loopback() {
                    tracing::warn!(%address, "whoever can connect there can read the metrics");
                }
                return listener;
            }
            Err(error) if !told => {
                told = true;
                tracing::error!(%address, %error, "metrics cannot be served yet; it is tried again and again");
            }
            Err(_) => {}
        }
        sleep(BIND_PAUSE).await;
    }
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, engine: Arc<dyn Engine>) {
    let service = service_fn(move |request| respond(request, Arc::clone(&engine)));
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client of the metrics was not answered");
    }
}

async fn respond(
    request: Request<Incoming>,
    engine: Arc<dyn Engine>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(plain(
            StatusCode::NOT_FOUND,
            "the figures are at /metrics\n",
        ));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return Ok(refused);
    }
    // It waits for nothing, but many machines make a long text.
    match tokio::task::spawn_blocking(move || engine.metrics()).await {
        Ok(text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            let kind = HeaderValue::from_static(prometheus::TEXT_FORMAT);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            Ok(response)
        }
        Err(failure) => {
            tracing::error!(%failure, "the metrics failed by a defect of virtcdpd");
            let what = "failed by a defect; the log has the place\n";
            Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, what))
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
