//! The other end of a door: a call of another node becomes a connection to the own engine, as its reader.

use std::{sync::Arc, time::Duration};

use metaflow_actors::store::embedded::Native;
use metaflow_wire::StoreBytes;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    hello::{self, Read},
    pump,
};

/// Connections that other nodes have to the own engine.
const CONNECTIONS_MAX: usize = 256;
/// Time for the first bytes to come.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// What goes back.
pub(crate) type Chunks = ReceiverStream<Result<StoreBytes, Status>>;

/// The own engine, as other nodes reach it.
#[derive(Clone)]
pub(crate) struct Engine {
    native: watch::Receiver<Native>,
    room: Arc<Semaphore>,
}

impl Engine {
    pub(crate) fn new(native: watch::Receiver<Native>) -> Self {
        Self { native, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }

    /// Connects a call to the engine.
    pub(crate) async fn serve(&self, mut chunks: Streaming<StoreBytes>) -> Result<Chunks, Status> {
        let permit = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many nodes read this node's store at once"))?;
        let first = tokio::time::timeout(HELLO_WITHIN, greeting(&mut chunks, &self.native))
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let port = self.native.borrow().port;
        let unavailable = |error: std::io::Error| Status::unavailable(format!("the store: {error}"));
        let mut engine = TcpStream::connect(("127.0.0.1", port)).await.map_err(unavailable)?;
        engine.write_all(&first).await.map_err(unavailable)?;
        let (reading, writing) = engine.into_split();
        let (answers, outgoing) = mpsc::channel(pump::CHUNKS_MAX);
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = pump::out(reading, answers, Ok) => ended,
                ended = pump::into(chunks, writing) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection of another node to the store ended");
            }
            drop(permit);
        });
        Ok(ReceiverStream::new(outgoing))
    }
}

/// The first bytes for the engine: the hello that came, as of the engine's reader.
async fn greeting(
    chunks: &mut Streaming<StoreBytes>,
    native: &watch::Receiver<Native>,
) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::new();
    loop {
        match hello::read(&bytes) {
            Read::Whole(hello) => {
                let Native { port: _, user, password } = native.borrow().clone();
                let mut first = hello.with(user, &password);
                first.extend_from_slice(&bytes[hello.length..]);
                return Ok(first);
            }
            Read::No => {
                return Err(Status::invalid_argument("it does not begin with a hello of ClickHouse's"));
            }
            Read::More => {}
        }
        let chunk = chunks.message().await?.ok_or_else(|| Status::invalid_argument("no hello came"))?;
        bytes.extend_from_slice(&chunk.bytes);
    }
}
