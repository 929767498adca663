//! Connections of the HTTP server: how many, how long they may dawdle, and how they end when the node stops.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use metaflow_tls::{AcceptError, Server};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Connections, Listener},
    plain,
};

/// Time from a connection's opening, or from its last answer, to the end of the next request's head. It also ends idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// After an error of `accept` (no file descriptors left), which does not go away by asking at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How connections are made ready for requests.
#[derive(Clone)]
pub(crate) struct Door {
    /// None: plain text.
    pub(crate) tls: Option<Server>,
    pub(crate) connections_max: usize,
    pub(crate) metrics: Connections,
}

/// Serves until `stop`, then lets running requests end.
pub(crate) async fn serve(listener: TcpListener, router: Router, door: Door, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(door.connections_max));
    let mut connections = JoinSet::new();
    while let Some((stream, permit)) = next(&listener, &room, &stop).await {
        // What ended is forgotten, so that the set stays as small as the number of connections.
        while connections.try_join_next().is_some() {}
        let (router, door, stop) = (router.clone(), door.clone(), stop.clone());
        connections.spawn(async move {
            open(stream, router, door, stop).await;
            drop(permit);
        });
    }
    while connections.join_next().await.is_some() {}
}

async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let accepted = async {
        let permit = Arc::clone(room).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, permit)),
                Err(error) => {
                    tracing::warn!(%error, "an HTTP connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        accepted = accepted => accepted,
        () = stop.cancelled() => None,
    }
}

/// Makes a connection secret where that is asked for, and serves it.
async fn open(stream: TcpStream, router: Router, door: Door, stop: CancellationToken) {
    // Answers are whole when they are written: waiting to fill a segment only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let Some(tls) = door.tls else { return serve_connection(stream, router, stop).await };
    let accepted = tokio::select! {
        accepted = tls.accept(stream) => accepted,
        () = stop.cancelled() => return,
    };
    match accepted {
        Ok(stream) => serve_connection(stream, router, stop).await,
        Err(error) => {
            door.metrics.refuse(Listener::Http, error.reason());
            tracing::debug!(error = &error as &dyn std::error::Error, "an HTTP connection was refused");
            if let AcceptError::PlainText(stream) = error {
                plain::answer_http(stream).await;
            }
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    stop: CancellationToken,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}
