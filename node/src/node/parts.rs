//! What the HTTP server may ask of the node: its health, its state, its figures.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use metaflow_actors::{
    controller::{AgentSummary, Controller},
    dictionary::{Dictionary, KindStats},
    doubts::Doubts,
    ingester::Ingester,
    labeler,
    memory::Memory,
    querier::Querier,
    store::Store,
    writer,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    Guides,
    counts::Counts,
    drain::Standing,
    load::Work,
    witness::{Glance, WalState},
};
use crate::{
    config::Config,
    events::{self, Events},
    fleet::Fleet,
    grpc::{Sessions, Streams},
    membership::{Member, Membership},
    metrics::{Metrics, Read, Reading},
    peers::Peers,
};

/// The node as others see it, from the start on; clones share it.
#[derive(Clone)]
pub(crate) struct Parts {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    membership: Arc<Membership>,
    metrics: OnceLock<Arc<Metrics>>,
    events: Events,
    started: Instant,
    /// Somebody wants this node to be emptied and to end.
    drain: CancellationToken,
    /// What the start waits for.
    stage: Mutex<&'static str>,
    running: OnceLock<Running>,
    stopping: AtomicBool,
}

/// What there is once the start is done.
pub(crate) struct Running {
    pub(crate) querier: Querier<Store>,
    pub(crate) store: Store,
    pub(crate) store_is_embedded: bool,
    /// What the whole process may use.
    pub(crate) memory_bytes: usize,
    pub(crate) memory: Memory,
    pub(crate) controller: Controller,
    pub(crate) dictionary: Dictionary,
    pub(crate) ingester: Ingester,
    pub(crate) labeler: Arc<labeler::Counters>,
    pub(crate) writer: Arc<writer::Metrics>,
    /// Where each node has a store of its own.
    pub(crate) doubts: Option<Doubts>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) sessions: Sessions,
    pub(crate) guides: Guides,
    pub(crate) peers: Peers,
    pub(crate) fleet: Fleet,
}

/// Whether the node does its work.
#[derive(Debug)]
pub(crate) struct Health {
    /// Empty when all is well.
    pub(crate) problems: Vec<String>,
}

impl Health {
    pub(crate) fn is_ready(&self) -> bool {
        self.problems.is_empty()
    }
}

/// One line about an agent.
#[derive(Debug, Serialize)]
pub(crate) struct Agent {
    agent_id: u32,
    host: String,
    machine_id: String,
    version: String,
    /// Seconds since the node last heard of it; none when that was before the node's start.
    silent_seconds: Option<u64>,
    spool_bytes: u64,
    memory_bytes: u64,
    cpu_percent: f64,
    lost_rows: u64,
    processes: usize,
    listeners: usize,
    kernel: String,
}

impl From<AgentSummary> for Agent {
    fn from(summary: AgentSummary) -> Self {
        Self {
            agent_id: summary.agent_id,
            host: summary.host,
            machine_id: summary.machine_id,
            version: summary.version,
            silent_seconds: summary.silent_for.map(|silent| silent.as_secs()),
            spool_bytes: summary.spool_bytes,
            memory_bytes: summary.memory_bytes,
            cpu_percent: f64::from(summary.cpu_percent) / 100.0,
            lost_rows: summary.losses.iter().map(|(_, rows)| rows).sum(),
            processes: summary.processes,
            listeners: summary.listeners,
            kernel: summary.kernel_release,
        }
    }
}

/// One screen about the node.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    version: &'static str,
    node_id: u16,
    ready: bool,
    problems: Vec<String>,
    uptime_seconds: u64,
    memory_used_bytes: usize,
    memory_budget_bytes: usize,
    wal_bytes: u64,
    wal_batches: u64,
    rows_accepted: u64,
    agent_streams: u64,
    cluster: String,
    members_live: usize,
    members_dead: usize,
    #[serde(flatten)]
    counts: Counts,
}

impl Parts {
    pub(super) fn new(config: Config, membership: Arc<Membership>) -> Self {
        let shared = Shared {
            config,
            membership,
            metrics: OnceLock::new(),
            events: Events::default(),
            started: Instant::now(),
            drain: CancellationToken::new(),
            stage: Mutex::new("starting"),
            running: OnceLock::new(),
            stopping: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn stage(&self, stage: &'static str) {
        tracing::debug!(stage, "start");
        *self.shared.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    pub(super) fn running(&self, running: Running) {
        let first = self.shared.running.set(running).is_ok();
        debug_assert!(first, "a node starts once");
        self.happened("ready");
    }

    pub(super) fn stopping(&self, signal: &str) {
        self.shared.stopping.store(true, Ordering::Release);
        self.happened(format!("stopping: {signal}"));
    }

    /// Notes a change of the node itself.
    pub(super) fn happened(&self, text: impl Into<String>) {
        let view = self.membership().view().borrow().clone();
        let name = view.member(view.own).map_or("", |own| &own.facts.name);
        self.events().record(events::Kind::Node, name, text);
    }

    pub(super) fn metrics(&self, metrics: Arc<Metrics>) {
        let first = self.shared.metrics.set(metrics).is_ok();
        debug_assert!(first, "a node has one set of metrics");
    }

    /// What happened lately.
    pub(crate) fn events(&self) -> &Events {
        &self.shared.events
    }

    /// What the node runs with.
    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// What there is once the start is done; else what it waits for.
    pub(crate) fn started(&self) -> Result<&Running, String> {
        self.shared.running.get().ok_or_else(|| {
            let stage = *self.shared.stage.lock().unwrap_or_else(PoisonError::into_inner);
            format!("the start of the node is not done: {stage}")
        })
    }

    /// The node's figures, as text for Prometheus.
    pub(crate) fn metrics_text(&self) -> Result<String, String> {
        let metrics = self.shared.metrics.get().ok_or("the node has no metrics yet")?;
        metrics.encode().map_err(|error| error.to_string())
    }

    /// What there is to notice now.
    pub(super) async fn glance(&self) -> Glance {
        let mut glance = Glance::of_view(&self.membership().view().borrow());
        if let Some(metrics) = self.shared.metrics.get() {
            glance.refused = metrics.refusals().counts();
        }
        let Some(running) = self.shared.running.get() else { return glance };
        let wal = running.ingester.wal();
        glance.wal = match () {
            () if wal.is_failing() => WalState::Failing,
            () if wal.room() == 0 => WalState::Full,
            () => WalState::Open,
        };
        glance.moves = running.sessions.take_moves();
        let kinds = running.dictionary.stats().into_iter();
        let is_half = |stats: &KindStats| stats.used_share() >= 0.5;
        glance.half_used = kinds.filter(is_half).map(|stats| stats.kind.name()).collect();
        glance.store_answers = Some(running.store.ping().await);
        glance
    }

    pub(crate) fn querier(&self) -> Option<&Querier<Store>> {
        self.shared.running.get().map(|running| &running.querier)
    }

    /// All agents of the cluster; none before the start is done.
    pub(crate) fn fleet(&self) -> Option<&Fleet> {
        self.shared.running.get().map(|running| &running.fleet)
    }

    /// Empties this node and ends it, as a signal would.
    pub(crate) fn drain(&self) {
        self.shared.drain.cancel();
    }

    pub(super) async fn drain_is_wanted(&self) {
        self.shared.drain.cancelled().await;
    }

    /// What there is to hand over; none before the start is done.
    pub(crate) async fn standing(&self) -> Option<Standing> {
        let running = self.shared.running.get()?;
        let wal = running.ingester.wal().metrics();
        Some(Standing {
            agents: running.sessions.count(),
            wal_bytes: wal.bytes.load(Ordering::Relaxed),
            wal_batches: wal.batches.load(Ordering::Relaxed),
            store_answers: running.store.ping().await,
            store_is_embedded: running.store_is_embedded,
        })
    }

    pub(crate) async fn health(&self) -> Health {
        let mut problems = Vec::new();
        match self.shared.running.get() {
            None => {
                let stage = *self.shared.stage.lock().unwrap_or_else(PoisonError::into_inner);
                problems.push(format!("the start is not done: {stage}"));
            }
            Some(running) => {
                if !running.store.ping().await {
                    problems.push("the store does not answer".to_owned());
                }
                if running.ingester.wal().is_failing() {
                    problems.push(
                        "the write-ahead log cannot be written: no row is taken (is the disk full?)"
                            .to_owned(),
                    );
                } else if running.ingester.wal().is_disk_nearly_full() {
                    problems.push("the disk of data_dir is nearly full: no row is taken".to_owned());
                }
            }
        }
        if self.shared.stopping.load(Ordering::Acquire) {
            problems.push("the node is stopping".to_owned());
        }
        Health { problems }
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.shared.membership
    }

    /// What there is to do; none before the start is done.
    pub(super) fn work(&self) -> Option<Work> {
        let running = self.shared.running.get()?;
        let (accepted, wal) =
            (&running.ingester.metrics().batches_accepted, running.ingester.wal().metrics());
        Some(Work {
            agents: running.sessions.count(),
            wal_bytes: wal.bytes.load(Ordering::Relaxed),
            accepted: accepted.load(Ordering::Relaxed),
            waiting: wal.batches.load(Ordering::Relaxed),
        })
    }

    pub(crate) async fn status(&self) -> Status {
        let health = self.health().await;
        let view = Arc::clone(&self.membership().view().borrow());
        let dead: Vec<&Member> = view.members.iter().filter(|member| member.word() == "dead").collect();
        let ready = health.is_ready();
        let mut problems = health.problems;
        problems.extend(dead.iter().map(|member| {
            format!("node {} ({}, {}) is dead", member.node_id, member.facts.name, member.gossip)
        }));
        problems.extend(view.duplicates.iter().map(|duplicate| {
            format!("two running nodes use node_id {}: {:?}", duplicate.node_id, duplicate.addresses)
        }));
        let running = self.shared.running.get();
        let memory = running.map(|running| &running.memory);
        let wal = running.map(|running| running.ingester.wal().metrics());
        Status {
            version: env!("CARGO_PKG_VERSION"),
            node_id: self.shared.config.node_id,
            ready,
            problems,
            uptime_seconds: self.uptime().as_secs(),
            memory_used_bytes: memory.map_or(0, Memory::used),
            memory_budget_bytes: memory.map_or(0, Memory::capacity),
            wal_bytes: wal.map_or(0, |wal| wal.bytes.load(Ordering::Relaxed)),
            wal_batches: wal.map_or(0, |wal| wal.batches.load(Ordering::Relaxed)),
            rows_accepted: running
                .map_or(0, |running| running.ingester.metrics().rows_accepted.load(Ordering::Relaxed)),
            agent_streams: running.map_or(0, |running| running.streams.open()),
            cluster: view.cluster.clone(),
            members_live: view.live().count(),
            members_dead: dead.len(),
            counts: self.counts().await,
        }
    }

    /// The agents that are known; none before the start is done.
    pub(crate) async fn agents(&self) -> Result<Vec<Agent>, String> {
        let Some(running) = self.shared.running.get() else { return Err("the node is starting".to_owned()) };
        let agents = running.controller.agents().await.map_err(|error| error.to_string())?;
        Ok(agents.into_iter().map(Agent::from).collect())
    }

    fn uptime(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Reads every figure of the actors, as long as there is a node: the metrics are one of its parts, and do not keep it.
    pub(super) fn readings(&self) -> Read {
        let shared = Arc::downgrade(&self.shared);
        Box::new(move || shared.upgrade().map_or_else(Vec::new, |shared| Self { shared }.read()))
    }

    fn read(&self) -> Vec<Reading> {
        let mut readings =
            vec![Reading::gauge("uptime_seconds", "Time since the start", self.uptime().as_secs_f64())];
        if let Some(running) = self.shared.running.get() {
            running.read(&mut readings);
        }
        self.membership().readings(&mut readings);
        readings
    }
}
