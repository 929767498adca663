//! Connections of the gRPC server: a bounded number of them, encrypted before the server sees them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use metaflow_tls::{AcceptError, Server, ServerStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::Connected;

use crate::{
    metrics::{Connections, Listener},
    plain,
};

/// After an error of `accept` (no file descriptors left), which does not go away by asking at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Handshakes at one time; more wait in the kernel's queue. Each has its own time limit.
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

/// Accepts connections; above the bound they wait in the kernel's queue.
pub(super) fn incoming(listener: TcpListener, door: Door) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(door.connections_max));
    futures::stream::unfold((listener, room), async |(listener, room)| {
        if room.available_permits() == 0 {
            tracing::warn!(
                "as many agents are connected as may be: more wait until others leave (grpc.connections_max)"
            );
        }
        let permit = Arc::clone(&room).acquire_owned().await.ok()?;
        // Whatever else there is to do: agents whose node died come faster than the kernel's queue is long, and what it drops comes again a
        // second later, twice.
        let stream = tokio::task::unconstrained(accept(&listener)).await;
        Some(((stream, permit), (listener, room)))
    })
    .map(move |(stream, permit)| open(door.clone(), stream, permit))
    .buffer_unordered(HANDSHAKES_MAX)
    .filter_map(async |connection| connection.map(Ok))
}

/// Makes a connection secret. The work is a task's, so that many handshakes use all processors.
async fn open(door: Door, stream: TcpStream, permit: OwnedSemaphorePermit) -> Option<Connection> {
    let Some(tls) = door.tls else {
        return Some(Connection { stream: Transport::Plain(stream), _permit: permit });
    };
    let handshake = async move {
        match tls.accept(stream).await {
            Ok(stream) => {
                Some(Connection { stream: Transport::Encrypted(Box::new(stream)), _permit: permit })
            }
            Err(error) => {
                door.metrics.refuse(Listener::Grpc, error.reason());
                tracing::debug!(error = &error as &dyn std::error::Error, "a gRPC connection was refused");
                if let AcceptError::PlainText(stream) = error {
                    plain::answer_grpc(stream).await;
                }
                None
            }
        }
    };
    tokio::spawn(handshake).await.ok().flatten()
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

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
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
