//! The labeler: puts the tags of both ends on every row.
//!
//! Role: opens batches, checks them, fills every column of their table. Input: [`Accepted`] from a bounded channel. Output:
//! [`Labelled`] to the writer's channel; what is malformed goes back as [`Outcome::Rejected`] with the reason. Bound: at most
//! [`Config::workers`] batches at a time, each with its memory permit. On failure: a batch that meets a broken disk is tried again
//! until the disk works, and the channel fills up behind it; nothing is dropped. Order of batches is not kept.
//!
//! Rows are labelled with what is known when they come: agents send the facts of a process at once and its rows a second later, and
//! facts of processes that ended are kept for rows that are still on their way, so nothing waits here. A row whose process is not
//! known falls back to the listener or the host of its address. The rules are in [`tags`]; all logic is pure, this file performs it.

mod cells;
mod ends;
mod l4;
mod l7;
mod label;
mod names;
mod process;
mod snapshot;
mod tags;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinSet, spawn_blocking},
};
use tracing::{error, warn};

use crate::{
    dictionary::{self, Dictionary},
    rows::{Accepted, Labelled, Outcome, Rows},
    tap::Tap,
    underway::{Stage, Underway},
};
pub use label::{Error, Input, Malformed, Names};
pub use snapshot::{AgentView, HostTags, Listening, ProcessTags, Snapshot, Subnet};
pub use tags::names_service;

/// A snapshot that the controller replaces and labelling reads.
pub type Published = Arc<ArcSwap<Snapshot>>;

/// How long a batch waits for a disk that failed, or for ids.
const RETRY_AFTER: Duration = Duration::from_millis(250);

#[derive(Debug, Clone)]
pub struct Config {
    /// Batches labelled at a time, each on a thread for blocking work.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { workers: std::thread::available_parallelism().map_or(2, usize::from) }
    }
}

/// What the labeler did since its start.
#[derive(Debug, Default)]
pub struct Counters {
    pub rows: AtomicU64,
    pub batches: AtomicU64,
    pub rejected_rows: AtomicU64,
    pub rejected_batches: AtomicU64,
    /// Attempts that failed because the dictionary could not use its disk, or had no ids.
    pub retries: AtomicU64,
    /// What is being labelled.
    pub underway: Underway,
}

/// Labels batches until its input ends.
#[derive(Clone)]
pub struct Labeler {
    config: Config,
    dictionary: Dictionary,
    snapshot: Published,
    counters: Arc<Counters>,
    tap: Arc<Tap>,
}

impl Labeler {
    pub fn new(config: Config, dictionary: Dictionary, snapshot: Published) -> Self {
        Self { config, dictionary, snapshot, counters: Arc::default(), tap: Arc::default() }
    }

    /// Where operators watch what passes.
    pub fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.tap)
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Runs until `input` is closed and every batch of it is handed on.
    pub async fn run(
        self,
        mut input: mpsc::Receiver<Accepted>,
        output: mpsc::Sender<Labelled>,
        outcomes: mpsc::Sender<Outcome>,
    ) {
        let slots = Arc::new(Semaphore::new(self.config.workers.max(1)));
        let mut jobs = JoinSet::new();
        while let Some(accepted) = input.recv().await {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            // Finished jobs are forgotten, so that the set stays as small as the number of workers.
            while jobs.try_join_next().is_some() {}
            let (labeler, output, outcomes) = (self.clone(), output.clone(), outcomes.clone());
            jobs.spawn(async move {
                let id = accepted.id;
                labeler.counters.underway.enter(id, Stage::Labelling);
                labeler.perform(accepted, &output, &outcomes).await;
                labeler.counters.underway.leave(id);
                drop(slot);
            });
        }
        while jobs.join_next().await.is_some() {}
    }

    /// Labels one batch and hands it on. Who no longer listens is stopping: the batch is in the write-ahead log.
    async fn perform(
        &self,
        accepted: Accepted,
        output: &mpsc::Sender<Labelled>,
        outcomes: &mpsc::Sender<Outcome>,
    ) {
        let Accepted { id, batch, uncertain, permit } = accepted;
        let rows = u64::from(batch.rows);
        let batch = Arc::new(batch);
        while !output.is_closed() {
            let (labeler, batch) = (self.clone(), Arc::clone(&batch));
            let reason = match spawn_blocking(move || labeler.label(id, &batch)).await {
                Ok(Ok(labelled)) => {
                    self.counters.rows.fetch_add(rows, Ordering::Relaxed);
                    self.counters.batches.fetch_add(1, Ordering::Relaxed);
                    output.send(Labelled { id, rows: labelled, uncertain, permit }).await.ok();
                    return;
                }
                Ok(Err(Error::Names(error))) => {
                    self.counters.retries.fetch_add(1, Ordering::Relaxed);
                    warn!(error = &error as &dyn std::error::Error, "batch waits for the dictionary");
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
                Ok(Err(Error::Malformed(malformed))) => malformed.to_string(),
                Err(failure) => {
                    error!(%failure, agent_id = id.agent_id, seq = id.seq, "labelling ended with a defect");
                    "the node could not label the batch".to_owned()
                }
            };
            self.counters.rejected_rows.fetch_add(rows, Ordering::Relaxed);
            self.counters.rejected_batches.fetch_add(1, Ordering::Relaxed);
            outcomes.send(Outcome::Rejected(id, reason)).await.ok();
            return;
        }
    }

    fn label(
        &self,
        id: crate::rows::BatchId,
        batch: &metaflow_wire::Batch,
    ) -> Result<Rows, Error<dictionary::Error>> {
        let snapshot = self.snapshot.load_full();
        let rows = Input { snapshot: &snapshot, names: &self.dictionary, id }.label(batch)?;
        if self.tap.is_open() {
            self.tap.show(id.agent_id, &rows);
        }
        Ok(rows)
    }
}
