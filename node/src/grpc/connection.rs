//! Connections of the gRPC server: a bounded number of them, encrypted before the server sees them, each a task that keeps little: most say
//! a few bytes a second, and there are tens of thousands.

#[cfg(test)]
mod tests;

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metaflow_tls::{AcceptError, Server, ServerStream};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::services::Services;
use crate::{
    metrics::{Connections, Listener},
    plain,
};

/// After an error of `accept` (no file descriptors left), which does not go away by asking at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Streams of one connection; an agent needs two.
const STREAMS_MAX: u32 = 8;
/// What a stream may send before it is read; it lies in memory that nobody was asked for. Enough for 6 MB/s at 10 ms.
const WINDOW_BYTES: u32 = 64 << 10;
/// More than all streams together: one that has to wait must not stop the heartbeats beside it.
const CONNECTION_WINDOW_BYTES: u32 = 2 * STREAMS_MAX * WINDOW_BYTES;
/// What waits in a stream to be sent, beside the message that is being sent.
const SEND_BYTES_MAX: usize = 64 << 10;
/// Largest head of a request.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// A connection that is dead without a word is noticed after these two.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at one time; more wait for their turn. Each has its own time limit.
const HANDSHAKES_MAX: usize = 512;

/// A connection that counts until it ends.
pub(super) struct Connection {
    stream: Transport,
    _permit: OwnedSemaphorePermit,
}

enum Transport {
    Plain(TcpStream),
    /// Boxed, because it is many times as large.
    Encrypted(Box<ServerStream>),
}

/// How connections are made ready for the server.
#[derive(Clone)]
pub(crate) struct Door {
    /// None: plain text.
    pub(crate) tls: Option<Server>,
    pub(crate) connections_max: usize,
    pub(crate) metrics: Connections,
}

/// Serves until `stop`, then until every stream has ended. Connections above the bound wait in the kernel's queue.
pub(super) async fn serve(listener: TcpListener, services: Services, door: Door, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(door.connections_max));
    let opening = Arc::new(Opening { door, handshakes: Semaphore::new(HANDSHAKES_MAX) });
    let http = Arc::new(http());
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &room) => accepted,
            () = stop.cancelled() => break,
        };
        let Some((stream, permit)) = accepted else { break };
        let (opening, http) = (Arc::clone(&opening), Arc::clone(&http));
        let (services, stop) = (services.clone(), stop.clone());
        connections.spawn(async move {
            // Boxed: what it takes is given back before the connection is served, which is for hours.
            let connection = Box::pin(opening.open(stream, permit)).await;
            drop(opening);
            if let Some(connection) = connection {
                serve_one(connection, services, &http, stop).await;
            }
        });
    }
    // Who comes now is refused, and not left waiting.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// HTTP/2 with bounds for whoever may connect.
fn http() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        // Heads come twice in a connection's life: tables for them would be memory for nothing.
        .header_table_size(0)
        .auto_date_header(false)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    http
}

async fn serve_one(
    connection: Connection,
    services: Services,
    http: &http2::Builder<TokioExecutor>,
    stop: CancellationToken,
) {
    let mut connection = pin!(http.serve_connection(TokioIo::new(connection), services));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a gRPC connection ended");
    }
}

/// The next connection, when there may be one more; none when the node ends.
async fn next(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    if room.available_permits() == 0 {
        tracing::warn!(
            "as many agents are connected as may be: more wait until others leave (grpc.connections_max)"
        );
    }
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    // Whatever else there is to do: agents whose node died come faster than the kernel's queue is long, and what it drops comes again a
    // second later, twice.
    let stream = tokio::task::unconstrained(accept(listener)).await;
    Some((stream, permit))
}

/// What connections are made ready with.
struct Opening {
    door: Door,
    handshakes: Semaphore,
}

impl Opening {
    /// Makes a connection secret; none when that is refused, or nobody waits for it any more: a node that has more to do than it can does
    /// not work for agents that have gone on to another one.
    async fn open(&self, stream: TcpStream, permit: OwnedSemaphorePermit) -> Option<Connection> {
        let Some(tls) = &self.door.tls else {
            if self.has_left(&stream) {
                return None;
            }
            return Some(Connection { stream: Transport::Plain(stream), _permit: permit });
        };
        let _turn = self.handshakes.acquire().await.ok()?;
        if self.has_left(&stream) {
            return None;
        }
        match tls.accept(stream).await {
            Ok(stream) => {
                Some(Connection { stream: Transport::Encrypted(Box::new(stream)), _permit: permit })
            }
            Err(error) => {
                self.door.metrics.refuse(Listener::Grpc, error.reason());
                tracing::debug!(error = &error as &dyn std::error::Error, "a gRPC connection was refused");
                if let AcceptError::PlainText(stream) = error {
                    plain::answer_grpc(stream).await;
                }
                None
            }
        }
    }

    /// Whether the other side has closed, which what it sent before hides from who reads.
    fn has_left(&self, stream: &TcpStream) -> bool {
        let mut state = [PollFd::new(stream, PollFlags::RDHUP)];
        let has_left =
            rustix::event::poll(&mut state, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        if has_left {
            self.door.metrics.refuse(Listener::Grpc, "gave_up");
        }
        has_left
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Acks are small and waited for: they must not wait for more to fill a segment.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "a gRPC connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_read(ctx, buffer),
            Transport::Encrypted(stream) => Pin::new(stream).poll_read(ctx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, ctx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(ctx, bytes),
            Transport::Encrypted(stream) => Pin::new(stream).poll_write(ctx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(ctx),
            Transport::Encrypted(stream) => Pin::new(stream).poll_flush(ctx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(ctx),
            Transport::Encrypted(stream) => Pin::new(stream).poll_shutdown(ctx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(ctx, buffers),
            Transport::Encrypted(stream) => Pin::new(stream).poll_write_vectored(ctx, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Encrypted(stream) => stream.is_write_vectored(),
        }
    }
}
