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

pub(crate) use connect::is_local;

use crate::{config::Remote, facts::Snapshot, metrics::Metrics, spool::Spool};

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
    remote: watch::Sender<Remote>,
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
        remote: watch::Sender<Remote>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { config, hello, spool, facts, remote, metrics, state: Arc::default(), facts_version: 0 }
    }

    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Keeps a connection until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut servers = Servers::new(self.config.servers.clone());
        let mut failures = 0;
        while let Some(server) = servers.current() {
            let welcomed = AtomicBool::new(false);
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.connect_and_serve(&server, &mut servers, &welcomed) => ended,
            };
            self.state.connected.store(false, Ordering::Relaxed);
            let was_welcome = welcomed.into_inner();
            failures = if was_welcome { 0 } else { failures + 1 };
            match ended {
                Ok(End::Moves) => {
                    tracing::info!(from = server, "moves to the node that it belongs to");
                    servers.at = 0;
                    continue;
                }
                Ok(End::Closed) => tracing::info!(server, "node closed the connection"),
                Err(error) => tracing::info!(server, error = format!("{error:#}"), "no connection to node"),
            }
            servers.fail(Instant::now(), was_welcome);
            let pause = backoff(failures, self.config.backoff_min, self.config.backoff_max, random());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        tracing::warn!("no servers are configured: rows stay in the spool");
    }
}

/// How a connection ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The node said so.
    Closed,
    /// The agent belongs to another node.
    Moves,
}

/// The servers in order of preference, and which one is in use.
#[derive(Debug)]
struct Servers {
    configured: Vec<String>,
    list: Vec<String>,
    at: usize,
    /// A node named the list; the order of the configuration's is no reason to move.
    is_named: bool,
    /// The first of the list, when it could not be reached from here: what it is, until when it is left alone, and how often it failed.
    avoided: Option<(String, Instant, u32)>,
}

/// A first server that cannot be reached is tried again after this, doubled up to [`AVOID_MAX`]: others may reach it, so they go on
/// telling the agent to go there.
const AVOID_MIN: Duration = Duration::from_secs(10);
const AVOID_MAX: Duration = Duration::from_secs(600);

/// Servers that a node may name.
const SERVERS_MAX: usize = 16;

impl Servers {
    fn new(configured: Vec<String>) -> Self {
        Self { list: configured.clone(), configured, at: 0, is_named: false, avoided: None }
    }

    fn current(&self) -> Option<String> {
        self.list.get(self.at).cloned()
    }

    /// Takes the list of a node: its order counts, the configured ones stay as the last resort.
    fn welcome(&mut self, current: &str, named: &[String]) {
        let mut list: Vec<String> = Vec::new();
        for server in named.iter().take(SERVERS_MAX).chain(&self.configured) {
            if !server.is_empty() && !list.contains(server) {
                list.push(server.clone());
            }
        }
        // Reached by another address than nodes know: it stays a last resort, too.
        self.at = list.iter().position(|server| server == current).unwrap_or_else(|| {
            list.push(current.to_owned());
            list.len() - 1
        });
        self.list = list;
        self.is_named = !named.is_empty();
    }

    /// Whether the agent belongs to another server than the one in use, and may try it.
    fn belongs_elsewhere(&self, now: Instant) -> bool {
        let is_avoided = |first: &String| {
            self.avoided.as_ref().is_some_and(|(server, until, _)| server == first && now < *until)
        };
        self.is_named && self.at != 0 && self.list.first().is_some_and(|first| !is_avoided(first))
    }

    /// The one in use failed: the next, and after the last the first again. `was_welcome` says that it had served.
    fn fail(&mut self, now: Instant, was_welcome: bool) {
        if self.at == 0
            && let Some(first) = self.list.first()
        {
            let times = match &self.avoided {
                Some((server, _, times)) if server == first && !was_welcome => times + 1,
                _ => 0,
            };
            let pause = AVOID_MIN.saturating_mul(1 << times.min(16)).min(AVOID_MAX);
            self.avoided = Some((first.clone(), now + pause, times));
        }
        self.at = (self.at + 1) % self.list.len().max(1);
    }
}

/// Pause before the next try: doubles from `min` to `max`, and is drawn from its upper half so that agents do not come all at once.
fn backoff(failures: u32, min: Duration, max: Duration, random: u64) -> Duration {
    let full = min.saturating_mul(1 << failures.min(16)).min(max);
    let half = full / 2;
    let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(random % spread)
}

/// A number that differs between agents and calls; not for secrets.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
