//! Ingester: takes batches from agents, makes them durable, and remembers each until its rows are stored.
//!
//! Role: check the envelope, know a batch that was seen before, log it, acknowledge it, hand it on; acknowledge again when it is stored.
//! Input: [`Msg::Batch`] from streams, outcomes from labeler and writer. Output: [`Accepted`] to the labeler, [`Ack`]s to streams. Bound:
//! a batch comes with its memory permit, and without room in the log it is not taken: the credit says so beforehand. The log may hold much
//! more than memory: see [`refill`]. On failure: what is not acknowledged is sent again by the agent; what is, is in the log and is
//! replayed after a start.

mod acks;
mod ledger;
pub mod metrics;
mod refill;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use metaflow_schema::{Column, Table as SchemaTable};
use metaflow_wire as wire;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, rpc::CallResult};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

use crate::{
    disk::{Disk, Family},
    memory::{Memory, Permit},
    rows::{Accepted, BatchId, Outcome, Report},
    wal::{Committed, Entry, Group, Left, Wal},
};
pub use acks::{Ack, Acks, Answers, Reply, Runs, acks};
pub use ledger::Found;
use ledger::{Decision, Ledger};
pub use metrics::Metrics;
use refill::{Handing, Queue};

/// What the smallest batch is accounted for: its envelope, and its places in queues. Bounds the number of batches in the process.
pub const COST_MIN: usize = 4096;
/// Time for the ingester to say what it knows; it never waits for anything itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Until a batch is in the log, its bytes lie in memory three times: as they came, as they are written, and in the write.
const INTAKE_OF_PAYLOAD_BYTE: usize = 3;
/// Streams that are remembered because the log had no room for their batches; the rest finds out by waiting.
const DENIED_MAX: usize = 1_024;
/// What a batch takes from when it is in the log until it is stored: its places in the ledger and in the queue, and who waits for it.
const PLACE_BYTES: usize = 256;

#[derive(Debug, Clone)]
pub struct Config {
    /// Bytes of the write-ahead log.
    pub wal_bytes_max: u64,
    /// What the log leaves free on its disk. An embedded engine on the same disk must be able to end what it has begun: it loses rows that
    /// it has acknowledged when the last page is taken from under it.
    pub keep_free: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { wal_bytes_max: 4 << 30, keep_free: 64 << 20 }
    }
}

#[derive(Debug)]
pub enum Msg {
    Batch {
        batch: wire::Batch,
        permit: Permit,
        reply: Reply,
    },
    Durable(Vec<BatchId>),
    Settled(Outcome),
    /// An entry of the log turned out to be unreadable.
    Lost(BatchId),
    /// Where a batch is.
    Find(BatchId, RpcReplyPort<Found>),
    /// The same of many that another node may have stored: those that are not here are in doubt if they come after all.
    Ask(Vec<BatchId>, RpcReplyPort<Vec<Found>>),
    /// How long the oldest batch has been waiting for the store.
    Oldest(RpcReplyPort<Option<Duration>>),
}

/// Front door of the running ingester; clones share it.
#[derive(Debug, Clone)]
pub struct Ingester {
    actor: ActorRef<Msg>,
    wal: Wal,
    memory: Memory,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
}

/// What runs until [`Running::stop`].
#[derive(Debug)]
pub struct Running {
    ingester: Ingester,
    actor: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl Ingester {
    /// Opens the log, starts to replay what is in it, and takes batches. `labeler` receives every accepted batch.
    pub async fn start(
        disk: Disk,
        config: Config,
        memory: Memory,
        labeler: mpsc::Sender<Accepted>,
    ) -> anyhow::Result<Running> {
        let (mut core, left) = tokio::task::spawn_blocking(move || Core::open(disk, &config)).await??;
        let queue = Arc::new(Queue::new(&left));
        core.ledger.place(places(&memory, left.len()));
        let (wal, metrics) = (core.wal.clone(), Arc::clone(&core.metrics));
        let (actor, actor_task) = Actor::spawn(None, IngesterActor, core).await?;
        let (durable, logged) = mpsc::channel(2);
        let handing = Handing {
            wal: wal.clone(),
            queue: Arc::clone(&queue),
            budget: memory.path.clone(),
            actor: actor.clone(),
            labeler,
        };
        let tasks = vec![
            tokio::spawn(wal.clone().run(durable)),
            tokio::spawn(handing.clone().forward(logged)),
            tokio::spawn(handing.refill()),
        ];
        let ingester = Self { actor, wal, memory, queue, metrics };
        Ok(Running { ingester, actor: actor_task, tasks })
    }

    /// Hands a batch over. `permit` was taken for [`intake`] bytes of [`Memory::intake`].
    pub fn submit(&self, batch: wire::Batch, permit: Permit, reply: Reply) {
        if self.actor.cast(Msg::Batch { batch, permit, reply }).is_err() {
            self.metrics.dropped(metrics::STOPPED);
        }
    }

    /// Payload bytes that agents may send now, all together.
    pub fn credit(&self) -> u64 {
        self.wal.room().min((self.memory.intake.available() / INTAKE_OF_PAYLOAD_BYTE) as u64)
    }

    /// Batches that are in the log and not in memory.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Where labeler and writer say what became of a batch.
    pub fn report(&self) -> Report {
        let actor = self.actor.clone();
        Arc::new(move |outcome| {
            // After the end nobody counts outcomes: the log brings the batch back, and the ledger says that it is stored.
            drop(actor.cast(Msg::Settled(outcome)));
        })
    }

    /// The same as a channel.
    pub fn outcomes(&self, messages_max: usize) -> mpsc::Sender<Outcome> {
        let (sender, mut receiver) = mpsc::channel(messages_max);
        let report = self.report();
        tokio::spawn(async move {
            while let Some(outcome) = receiver.recv().await {
                report(outcome);
            }
        });
        sender
    }

    /// Where a batch is; none when the node stops.
    pub async fn find(&self, id: BatchId) -> Option<Found> {
        self.ask(|reply| Msg::Find(id, reply)).await
    }

    /// Where batches are that another node may have stored; in their order. None when the node stops.
    pub async fn find_for_other(&self, ids: Vec<BatchId>) -> Option<Vec<Found>> {
        self.ask(|reply| Msg::Ask(ids, reply)).await
    }

    /// How long the oldest batch has been waiting for the store; none when none waits.
    pub async fn oldest(&self) -> Option<Duration> {
        self.ask(Msg::Oldest).await.flatten()
    }

    async fn ask<T: Send + 'static>(&self, message: impl FnOnce(RpcReplyPort<T>) -> Msg) -> Option<T> {
        match self.actor.call(message, Some(ANSWER_WITHIN)).await {
            Ok(CallResult::Success(answer)) => Some(answer),
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => None,
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn wal(&self) -> &Wal {
        &self.wal
    }
}

impl Running {
    pub fn ingester(&self) -> Ingester {
        self.ingester.clone()
    }

    /// Takes no more batches, writes what the log still has to write, ends. Batches that are not stored stay in the log.
    pub async fn stop(self) {
        let Self { ingester, actor, tasks } = self;
        if let Err(error) = ingester.actor.drain() {
            tracing::warn!(%error, "the ingester had stopped before");
        }
        if let Err(error) = actor.await {
            tracing::error!(%error, "the ingester failed");
        }
        ingester.wal.close();
        drop(ingester);
        let mut tasks = tasks.into_iter();
        let log = tasks.next();
        for task in tasks {
            // Forwarding and replay wait for others; what they hold is in the log.
            task.abort();
            drop(task.await);
        }
        if let Some(log) = log
            && let Err(error) = log.await
        {
            tracing::error!(%error, "the write-ahead log failed");
        }
    }
}

/// Memory that a batch takes until it is in the log, by the size of its message.
pub fn intake(message_bytes: usize) -> usize {
    (message_bytes * INTAKE_OF_PAYLOAD_BYTE).max(COST_MIN)
}

/// Memory for the places of so many batches that a previous run left. They found room then; with a smaller budget now, some go without.
fn places(memory: &Memory, batches: usize) -> Permit {
    memory.intake.try_acquire((batches * PLACE_BYTES).min(memory.intake.capacity())).unwrap_or_default()
}

/// Memory that a batch takes on its way to the store, at most: itself, its columns and what they list, and its rows with tags and texts,
/// twice while they are encoded.
pub fn cost(batch: &wire::Batch) -> usize {
    let row_bytes = schema_table(batch.table()).map_or(0, row_bytes);
    let rows = batch.rows.min(wire::BATCH_ROWS_MAX);
    let columns = batch.uncompressed_bytes.min(wire::COLUMNS_BYTES_MAX as u32);
    let lists = wire::list_bytes_max(rows, columns);
    // Never less than the columns.
    let texts = wire::text_bytes_max(rows, columns);
    (batch.payload.len() + 2 * texts + lists + 2 * rows as usize * row_bytes).max(COST_MIN)
}

fn schema_table(table: wire::Table) -> Option<&'static SchemaTable> {
    use metaflow_schema::tables;
    Some(match table {
        wire::Table::Unspecified => return None,
        wire::Table::L4FlowLog => &tables::L4_FLOW_LOG,
        wire::Table::L7FlowLog => &tables::L7_FLOW_LOG,
        wire::Table::Network1s => &tables::NETWORK_1S,
        wire::Table::Network1m => &tables::NETWORK_1M,
        wire::Table::NetworkMap1s => &tables::NETWORK_MAP_1S,
        wire::Table::NetworkMap1m => &tables::NETWORK_MAP_1M,
        wire::Table::Application1s => &tables::APPLICATION_1S,
        wire::Table::Application1m => &tables::APPLICATION_1M,
        wire::Table::ApplicationMap1s => &tables::APPLICATION_MAP_1S,
        wire::Table::ApplicationMap1m => &tables::APPLICATION_MAP_1M,
        wire::Table::InProcess => &tables::IN_PROCESS,
        wire::Table::FileEvent => &tables::FILE_EVENT,
        wire::Table::ProcessEvent => &tables::PROCESS_EVENT,
    })
}

/// Bytes of a row without its texts, which are a part of the batch's own size.
fn row_bytes(table: &'static SchemaTable) -> usize {
    static WIDTHS: std::sync::OnceLock<Vec<(&'static SchemaTable, usize)>> = std::sync::OnceLock::new();
    let width = |column: &Column| match column.clickhouse {
        "UInt8" => 1,
        "UInt16" => 2,
        "UInt32" | "Int32" | "DateTime('UTC')" => 4,
        "IPv6" => 16,
        _ => 8,
    };
    WIDTHS
        .get_or_init(|| {
            metaflow_schema::TABLES
                .into_iter()
                .map(|table| (table, (table.columns)().iter().map(width).sum()))
                .collect()
        })
        .iter()
        .find(|(known, _)| std::ptr::eq(*known, table))
        .map_or(0, |(_, width)| *width)
}

struct IngesterActor;

/// What the ingester decides, without tasks: the actor and the simulation perform it.
pub struct Core {
    ledger: Ledger,
    /// Streams whose batches the log had no room for.
    denied: Vec<Reply>,
    wal: Wal,
    metrics: Arc<Metrics>,
}

impl From<Entry> for Accepted {
    fn from(Entry { key, batch, uncertain, permit }: Entry) -> Self {
        Self { id: key.id(), batch, uncertain, permit }
    }
}

#[ractor::async_trait]
impl Actor for IngesterActor {
    type Msg = Msg;
    type State = Core;
    type Arguments = Core;

    async fn pre_start(&self, _: ActorRef<Msg>, core: Core) -> Result<Core, ActorProcessingErr> {
        Ok(core)
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, core: &mut Core) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Batch { batch, permit, reply } => core.batch(batch, permit, reply),
            Msg::Durable(ids) => core.durable(&ids),
            Msg::Settled(outcome) => core.settled(outcome),
            Msg::Lost(id) => core.lost(id),
            // Who asked may be gone: then nobody needs the answer.
            Msg::Find(id, reply) => drop(reply.send(core.ledger.find(id, Instant::now()))),
            Msg::Ask(ids, reply) => drop(reply.send(core.asked(&ids))),
            Msg::Oldest(reply) => drop(reply.send(core.ledger.oldest(Instant::now()))),
        }
        Ok(())
    }
}

impl Core {
    /// Opens the log; the answer lists what a previous run left in it. Blocks for the disk.
    pub fn open(disk: Disk, config: &Config) -> anyhow::Result<(Self, Vec<Left>)> {
        let mut committed = Committed::default();
        disk.scan(Family::Committed, b"", |key, value| {
            committed.load(key, value);
            true
        })?;
        let (wal, left) = Wal::open(disk, config.wal_bytes_max, config.keep_free)?;
        let ledger = Ledger::new(committed, &left, Instant::now());
        Ok((Self { ledger, denied: Vec::new(), wal, metrics: Arc::default() }, left))
    }

    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// Brings what waits for the log to the disk, if it takes it: the answer is for [`Core::durable`] and the labeler. Blocks.
    pub fn log(&mut self, group: Group) -> Result<Vec<Accepted>, Group> {
        match self.wal.write(&group) {
            Ok(()) => Ok(group.entries.into_iter().map(Accepted::from).collect()),
            Err(_) => Err(group),
        }
    }

    /// Reads what a previous run left; none when it is damaged: then it is lost. Blocks.
    pub fn left(&mut self, left: Left, permit: Permit) -> Result<Option<Accepted>, crate::disk::Error> {
        let id = left.key.id();
        let Some(batch) = self.wal.read_now(left)? else {
            self.lost(id);
            return Ok(None);
        };
        Ok(Some(Accepted { id, batch, uncertain: true, permit }))
    }

    /// Takes a batch, or says why not.
    pub fn batch(&mut self, batch: wire::Batch, mut permit: Permit, reply: Reply) {
        let id = BatchId { agent_id: batch.agent_id, seq: batch.seq };
        if let Err(reason) = check(&batch) {
            self.metrics.rejected(u64::from(batch.rows));
            self.ledger.refuse(id, &reason);
            self.ack(&reply, Ack::Rejected { seq: id.seq, reason });
            return;
        }
        let bytes = Wal::cost(&batch);
        let has_room = self.wal.room() >= bytes;
        match self.ledger.offer(id, &reply, has_room) {
            Decision::Committed => {
                self.metrics.known.fetch_add(1, Relaxed);
                self.ack(&reply, Ack::Committed(id.seq));
            }
            Decision::Logged => {
                self.metrics.known.fetch_add(1, Relaxed);
                self.ack(&reply, Ack::Received(id.seq));
            }
            Decision::Logging => {
                self.metrics.known.fetch_add(1, Relaxed);
            }
            Decision::NoRoom => {
                self.metrics.dropped(metrics::WAL_FULL);
                if self.denied.len() < DENIED_MAX
                    && !self.denied.iter().any(|other| other.is_same_stream(&reply))
                {
                    self.denied.push(reply);
                }
            }
            Decision::Accept => {
                self.metrics.accepted(u64::from(batch.rows), batch.payload.len() as u64);
                let key = self.wal.key(id);
                let place = permit.split(PLACE_BYTES);
                self.ledger.accept(Left { key, bytes }, place, reply, Instant::now());
                let uncertain = batch.resent || self.ledger.was_asked_for(id);
                self.wal.append(Entry { key, batch, uncertain, permit });
            }
        }
    }

    /// These are on the disk.
    pub fn durable(&mut self, ids: &[BatchId]) {
        for id in ids {
            for reply in self.ledger.logged(*id) {
                self.ack(&reply, Ack::Received(id.seq));
            }
        }
        self.invite();
    }

    /// Where batches are, for a node that may have stored them.
    pub fn asked(&mut self, ids: &[BatchId]) -> Vec<Found> {
        let now = Instant::now();
        ids.iter()
            .map(|id| {
                self.ledger.ask_for(*id);
                self.ledger.find(*id, now)
            })
            .collect()
    }

    /// Labeler or writer are done with a batch.
    pub fn settled(&mut self, outcome: Outcome) {
        let (id, ack) = match outcome {
            Outcome::Committed(id) => (id, Ack::Committed(id.seq)),
            Outcome::Rejected(id, reason) => (id, Ack::Rejected { seq: id.seq, reason }),
        };
        let Some((entry, replies)) = self.ledger.remove(id) else { return };
        let record = match &ack {
            Ack::Committed(_) => {
                self.metrics.committed.fetch_add(1, Relaxed);
                self.ledger.commit(id)
            }
            Ack::Rejected { reason, .. } => {
                self.metrics.rejected_later.fetch_add(1, Relaxed);
                self.ledger.refuse(id, reason);
                None
            }
            Ack::Received(_) => None,
        };
        self.wal.forget(entry, record);
        for reply in replies {
            self.ack(&reply, ack.clone());
        }
        self.invite();
    }

    /// Once there is room, streams that were denied it end, so that their agents send again now, and not when they have lost their patience.
    fn invite(&mut self) {
        let enough = (wire::BATCH_BYTES_MAX as u64).min(self.wal.bytes_max() / 2);
        if !self.denied.is_empty() && self.wal.room() >= enough {
            self.denied.drain(..).for_each(|reply| reply.ask_again());
        }
    }

    fn lost(&mut self, id: BatchId) {
        if let Some((entry, replies)) = self.ledger.remove(id) {
            self.wal.forget(entry, None);
            // Its agent has it still.
            for reply in replies {
                reply.ask_again();
            }
        }
    }

    fn ack(&self, reply: &Reply, ack: Ack) {
        if !reply.send(ack) {
            self.metrics.acks_unsent.fetch_add(1, Relaxed);
        }
    }
}

/// The checks that need no decompression; the labeler makes the others.
fn check(batch: &wire::Batch) -> Result<(), String> {
    if !wire::is_spoken(batch.protocol_version) {
        return Err(wire::MalformedBatch::Version(batch.protocol_version).to_string());
    }
    if batch.payload.len() > wire::BATCH_BYTES_MAX {
        return Err(wire::MalformedBatch::PayloadSize(batch.payload.len()).to_string());
    }
    if batch.rows > wire::BATCH_ROWS_MAX {
        return Err(wire::MalformedBatch::Rows(batch.rows).to_string());
    }
    if batch.uncompressed_bytes as usize > wire::COLUMNS_BYTES_MAX {
        return Err(wire::MalformedBatch::UncompressedSize(batch.uncompressed_bytes).to_string());
    }
    if schema_table(batch.table()).is_none() {
        return Err(wire::MalformedBatch::Table(batch.table().as_str_name().to_owned()).to_string());
    }
    Ok(())
}
