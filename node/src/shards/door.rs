//! A door: a listening socket on loopback through which the own engine reaches one store.
//!
//! It lets in whoever knows this process's password, so no other user of the machine reads through it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use metaflow_actors::store::embedded::Native;
use metaflow_wire::StoreBytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    USER,
    hello::{self, Hello, Read},
    pump,
};
use crate::{peers::Peers, secrets};

/// Connections of one door: an engine opens one for each query that runs, and keeps some.
const CONNECTIONS_MAX: usize = 64;
/// Time for the engine to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// After an error of `accept`, which does not go away by asking at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whose store is behind a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Own,
    /// The gRPC address of a node.
    Node(SocketAddr),
}

/// Closes when it is dropped; connections that are open go on.
pub(super) struct Door {
    target: Target,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

/// A new password for the doors of this process.
pub(super) fn password() -> anyhow::Result<Arc<str>> {
    Ok(secrets::generate().context("the system gives no random bytes")?.into())
}

impl Door {
    pub(super) async fn open(
        target: Target,
        password: Arc<str>,
        native: watch::Receiver<Native>,
        peers: Peers,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let way = Way { target, password, native, peers };
        let accepting = tokio::spawn(accept(listener, way));
        Ok(Self { target, address, accepting })
    }

    pub(super) fn leads_to(&self, target: &Target) -> bool {
        self.target == *target && !self.accepting.is_finished()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What a connection needs on its way.
#[derive(Clone)]
struct Way {
    target: Target,
    password: Arc<str>,
    native: watch::Receiver<Native>,
    peers: Peers,
}

async fn accept(listener: TcpListener, way: Way) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let way = way.clone();
        tokio::spawn(async move {
            let target = way.target;
            if let Err(error) = connect(stream, way).await {
                tracing::debug!(?target, error = %format!("{error:#}"), "a connection to a store ended");
            }
            drop(permit);
        });
    }
}

async fn connect(mut stream: TcpStream, way: Way) -> anyhow::Result<()> {
    let Way { target, password, native, peers } = way;
    let (hello, rest) = tokio::time::timeout(HELLO_WITHIN, greeted(&mut stream))
        .await
        .context("it did not say who it is in time")??;
    anyhow::ensure!(
        hello.user == USER
            && secrets::Digest::of(hello.password.as_bytes())
                .equals(&secrets::Digest::of(password.as_bytes())),
        "it is not the engine of this node"
    );
    match target {
        Target::Own => {
            let Native { port, user, password } = native.borrow().clone();
            let mut engine = TcpStream::connect(("127.0.0.1", port)).await?;
            engine.write_all(&[hello.with(user, &password), rest].concat()).await?;
            copy_bidirectional(&mut stream, &mut engine).await?;
        }
        Target::Node(address) => {
            let mut client = peers.client_of_its_own(address).context("no address")?;
            let (chunks, outgoing) = mpsc::channel(pump::CHUNKS_MAX);
            // Who reads there is for the other end to say.
            chunks.send(StoreBytes { bytes: [hello.with("", ""), rest].concat() }).await?;
            let incoming = client.store(ReceiverStream::new(outgoing)).await?.into_inner();
            let (reading, writing) = stream.into_split();
            tokio::select! {
                ended = pump::out(reading, chunks, |chunk| chunk) => ended?,
                ended = pump::into(incoming, writing) => ended?,
            }
        }
    }
    Ok(())
}

/// The hello of a connection, and what came behind it.
pub(super) async fn greeted(stream: &mut TcpStream) -> anyhow::Result<(Hello, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(512);
    loop {
        match hello::read(&bytes) {
            Read::Whole(hello) => {
                let rest = bytes.split_off(hello.length);
                return Ok((hello, rest));
            }
            Read::No => anyhow::bail!("it does not speak ClickHouse's native protocol"),
            Read::More => {}
        }
        anyhow::ensure!(stream.read_buf(&mut bytes).await? > 0, "it ended before it said who it is");
    }
}
