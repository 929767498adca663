//! Writer: from labelled batches to rows in the store, each exactly once.
//!
//! Role: one batcher a table collects rows into blocks of one partition and inserts them. Input: [`Labelled`] batches. Output: an
//! [`Outcome`] for each, after all its rows are stored. Bound: a batch holds its memory permit until then; queues have room for as many
//! batches as the budget lets in. On failure: the same block is tried again for ever, with growing pauses; when its fate is unknown, the
//! store is asked which batches it has. Only a block that the store refuses for its content is given up, down to the batch at fault.

mod batcher;
mod block;
mod insert;
pub mod metrics;
mod shelf;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use metaflow_schema::{TABLES, Table};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    doubts::Doubts,
    rows::{Labelled, Outcome, Report},
    store::Store,
};
use batcher::Batcher;
pub use block::Block;
use insert::Inserter;
pub use metrics::Metrics;
pub use shelf::Shelf;

/// Pauses between two tries.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(5);

/// When a block is full.
#[derive(Debug, Clone)]
pub struct Config {
    /// Rows of one block. A part of this size costs the engine little more to make than a small one.
    pub rows_max: usize,
    /// Bytes of one block in memory.
    pub bytes_max: usize,
    /// A row waits no longer for others.
    pub age_max: Duration,
    /// Batches that may wait for one table; at least as many as the memory budget can let in, or the labeler waits.
    pub queue_max: usize,
    /// Other nodes insert into the same tables, and may have the same batch in their logs.
    pub is_shared: bool,
    /// Where batches are noted that the store of another node may have, too; none where there is no other store.
    pub doubts: Option<Doubts>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rows_max: 65_536,
            bytes_max: 64 << 20,
            age_max: Duration::from_secs(1),
            queue_max: 65_536,
            is_shared: false,
            doubts: None,
        }
    }
}

/// Called before each insert: every dictionary row that the block may use must be stored when it is done.
pub type BeforeInsert =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// A [`BeforeInsert`] for rows without dictionary ids.
pub fn nothing_before_insert() -> BeforeInsert {
    Arc::new(|| Box::pin(std::future::ready(Ok(()))))
}

/// The batchers of all tables. Dropping it ends them at once; what they held is in the write-ahead log.
#[derive(Debug)]
pub struct Writer {
    /// None when it stops.
    handle: Option<Handle>,
    batchers: Vec<JoinHandle<()>>,
}

/// Takes batches for the writer; clones share it. When all are gone, the batchers store what they have and end.
#[derive(Debug, Clone)]
pub struct Handle {
    /// In the order of [`TABLES`].
    tables: Arc<[mpsc::Sender<Labelled>]>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Ends what a previous run of this node may still be inserting, then starts. Waits for the store for as long as it takes.
    pub async fn start(store: Store, config: Config, before_insert: BeforeInsert, report: Report) -> Self {
        let metrics = Arc::new(Metrics::default());
        let mut pause = Pause::default();
        while let Err(error) = store.kill_own_inserts().await {
            tracing::warn!(%error, "the writer waits for the store");
            tokio::time::sleep(pause.next()).await;
        }
        let mut tables = Vec::with_capacity(TABLES.len());
        let mut batchers = Vec::with_capacity(TABLES.len());
        for (index, table) in TABLES.into_iter().enumerate() {
            let (sender, receiver) = mpsc::channel(config.queue_max);
            tables.push(sender);
            let work = Work {
                config: config.clone(),
                table,
                index,
                before_insert: Arc::clone(&before_insert),
                metrics: Arc::clone(&metrics),
                report: Arc::clone(&report),
            };
            batchers.push(tokio::spawn(work.run(store.clone(), receiver)));
        }
        Self { handle: Some(Handle { tables: tables.into(), metrics }), batchers }
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone().expect("only stop() takes it, and that takes the writer")
    }

    /// A channel whose batches are handed over one after another; ends when all its senders are gone.
    pub fn input(&self, messages_max: usize) -> mpsc::Sender<Labelled> {
        let (sender, mut receiver) = mpsc::channel(messages_max);
        let handle = self.handle();
        tokio::spawn(async move {
            while let Some(labelled) = receiver.recv().await {
                if let Err(Labelled { id, .. }) = handle.write(labelled).await {
                    // Only a batcher that failed takes nothing; the batch stays in the log.
                    tracing::error!(agent_id = id.agent_id, seq = id.seq, "a batch has no batcher");
                }
            }
        });
        sender
    }

    /// Waits until everything is stored that was handed over; every other handle must be gone.
    pub async fn stop(mut self) {
        self.handle = None;
        for batcher in &mut self.batchers {
            if let Err(error) = batcher.await {
                tracing::error!(%error, "a batcher failed");
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for batcher in &self.batchers {
            batcher.abort();
        }
    }
}

impl Handle {
    /// Hands a batch over. Waits only when the table's queue is full.
    pub async fn write(&self, labelled: Labelled) -> Result<(), Labelled> {
        let table = labelled.rows.table();
        let queue = TABLES
            .iter()
            .position(|known| std::ptr::eq(*known, table))
            .and_then(|index| self.tables.get(index));
        match queue {
            Some(queue) => queue.send(labelled).await.map_err(|error| error.0),
            None => Err(labelled),
        }
    }

    /// Figures, for who must not keep the handle.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}

/// The work of the writer for one table.
pub struct Work {
    pub config: Config,
    pub table: &'static Table,
    /// Of the table, in [`TABLES`].
    pub index: usize,
    pub before_insert: BeforeInsert,
    pub metrics: Arc<Metrics>,
    pub report: Report,
}

impl Work {
    /// Takes batches until no more come and all are stored.
    pub async fn run<S: Shelf>(self, store: S, queue: mpsc::Receiver<Labelled>) {
        let Self { config, table, index, before_insert, metrics, report } = self;
        let is_shared = config.is_shared;
        let inserter = Inserter { store, table, before_insert, metrics, index, is_shared };
        Batcher::new(config, inserter, report).run(queue).await;
    }
}

/// Pauses that double.
#[derive(Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(AGAIN_AFTER)
    }
}

impl Pause {
    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(AGAIN_AFTER_MAX);
        pause
    }

    async fn wait(&mut self, time: &impl Shelf) {
        time.sleep_until(time.instant() + self.next()).await;
    }
}

/// What became of one batch in one block.
type Settled = (crate::rows::BatchId, Result<(), String>);

fn outcome((id, result): Settled) -> Outcome {
    match result {
        Ok(()) => Outcome::Committed(id),
        Err(reason) => Outcome::Rejected(id, reason),
    }
}
