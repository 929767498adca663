//! The way to the nodes: one connection with the control stream and the stream of batches.
//!
//! Sends what is durable in the spool in its order, within the credit that the node gives; after a broken connection, all that is not
//! committed again. Tries the servers in their order, with jittered pauses. Bound: one batch is read at a time, and what the transport
//! holds is bounded by the credit. On failure nothing is lost: the spool keeps it.
//!
//! Leaves out: what is sent (`spool`, `facts`), and when the process is over (`main`).

mod connect;
mod link;
#[cfg(test)]
pub(crate) mod peer;
mod servers;
mod session;
#[cfg(test)]
mod tests;
mod window;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metaflow_wire::Hello;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use servers::{Ended, Servers};
pub use session::{Broken, Session};

use crate::{control::Control, facts::Snapshot, metrics::Metrics, spool::Spool};

#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port`, the preferred first.
    pub servers: Vec<String>,
    /// Kept from connection to connection, so that sessions resume. Without it connections are plain text.
    pub tls: Option<metaflow_tls::Client>,
    /// Plain text may leave this host.
    pub insecure: bool,
    pub heartbeat: Duration,
    /// A node that says nothing for so long is given up.
    pub silence_max: Duration,
    pub connect_timeout: Duration,
    /// A batch that is not `received` for so long is sent over another connection.
    pub receive_timeout: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// An agent that belongs elsewhere goes there within this time, at a moment of its own, so that not all come at once.
    pub move_within: Duration,
}

impl Config {
    pub fn new(servers: Vec<String>) -> Self {
        Self {
            servers,
            tls: None,
            insecure: false,
            heartbeat: Duration::from_secs(1),
            silence_max: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            receive_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            move_within: Duration::from_secs(5),
        }
    }
}

/// The spool as threads share it, with a bell for new durable batches.
#[derive(Debug, Clone)]
pub struct SharedSpool {
    spool: Arc<Mutex<Spool>>,
    durable: Arc<Notify>,
}

impl SharedSpool {
    pub fn new(spool: Spool) -> Self {
        Self { spool: Arc::new(Mutex::new(spool)), durable: Arc::new(Notify::new()) }
    }

    pub fn lock(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what waits durable, without a lock while the disk syncs, and wakes the sender.
    pub fn flush(&self) -> std::io::Result<()> {
        loop {
            let Some(flush) = self.lock().begin_flush()? else { return Ok(()) };
            let synced = flush.sync();
            self.lock().end_flush(flush, synced)?;
            self.durable.notify_one();
        }
    }
}

/// State of the connection, for status and tests.
#[derive(Debug, Default)]
pub struct State {
    pub connected: AtomicBool,
    pub connections: AtomicU64,
    pub config_version: AtomicU64,
}

pub struct Sender {
    config: Config,
    hello: Hello,
    spool: SharedSpool,
    facts: watch::Receiver<Arc<Snapshot>>,
    control: Control,
    metrics: Arc<Metrics>,
    state: Arc<State>,
    facts_version: u64,
}

impl Sender {
    pub fn new(
        config: Config,
        hello: Hello,
        spool: SharedSpool,
        facts: watch::Receiver<Arc<Snapshot>>,
        control: Control,
        metrics: Arc<Metrics>,
    ) -> Self {
        let state = State { config_version: control.stand().version.into(), ..State::default() };
        Self { config, hello, spool, facts, control, metrics, state: Arc::new(state), facts_version: 0 }
    }

    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Keeps a connection until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut servers = Servers::new(self.config.servers.clone());
        while let Some(server) = servers.current() {
            let welcomed = AtomicBool::new(false);
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.connect_and_serve(&server, &mut servers, &welcomed) => ended,
            };
            self.state.connected.store(false, Ordering::Relaxed);
            let how = match (&ended, welcomed.into_inner()) {
                (Ok(End::Moves), _) => Ended::Moves,
                (_, true) => Ended::Lost,
                (Err(error), _) if error.is::<NoWelcome>() => Ended::Late,
                (_, false) => Ended::NotReached,
            };
            match ended {
                Ok(End::Moves) => tracing::info!(from = server, "moves to the node that it belongs to"),
                Ok(End::Closed) => tracing::info!(server, "node closed the connection"),
                Err(error) => tracing::info!(server, error = format!("{error:#}"), "no connection to node"),
            }
            let pause = servers.next(how, Instant::now(), &self.config, random());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        tracing::warn!("no servers are configured: rows stay in the spool");
    }
}

/// The server took the connection, and then said nothing for so long.
#[derive(Debug, thiserror::Error)]
#[error("no welcome within {0:?}")]
pub struct NoWelcome(pub Duration);

/// How a connection ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The node said so.
    Closed,
    /// The agent belongs to another node.
    Moves,
}

/// A number that differs between agents and calls; not for secrets.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
