//! From the log to the labeler: at once while there is memory for the rows, by way of the disk when there is not.
//!
//! A batch that is in the log needs no memory until its turn comes. So what a slow or dead store leaves waiting is bounded by the log's
//! size, not by memory: beyond the budget for rows, batches are forgotten and read again from the log, in the order in which they came.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ractor::ActorRef;
use tokio::sync::{Notify, mpsc};

use super::{Msg, cost};
use crate::{
    memory::Budget,
    rows::Accepted,
    wal::{Entry, Left, Wal},
};

/// Pause before an entry that could not be read is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A batch that is in the log and not in memory.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    left: Left,
    uncertain: bool,
}

/// What waits in the log for its turn. Each has its place in the ledger, which is paid for, so this needs no bound of its own.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Waiting>>,
    came: Notify,
}

/// Hands on what is in the log.
#[derive(Clone)]
pub(super) struct Handing {
    pub(super) wal: Wal,
    pub(super) queue: Arc<Queue>,
    /// For rows on their way to the store.
    pub(super) budget: Budget,
    pub(super) actor: ActorRef<Msg>,
    pub(super) labeler: mpsc::Sender<Accepted>,
}

impl Queue {
    /// Begins with what a previous run left: it may be stored already.
    pub(super) fn new(left: &[Left]) -> Self {
        let waiting = left.iter().map(|left| Waiting { left: *left, uncertain: true }).collect();
        Self { waiting: Mutex::new(waiting), came: Notify::new() }
    }

    /// Batches that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn push(&self, waiting: Waiting) {
        self.lock().push_back(waiting);
        self.came.notify_one();
    }

    async fn next(&self) -> Waiting {
        loop {
            let next = self.lock().pop_front();
            match next {
                Some(next) => return next,
                None => self.came.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handing {
    /// What is on disk is acknowledged first and handed on then; a labeler that is behind makes the next sync wait.
    pub(super) async fn forward(self, mut logged: mpsc::Receiver<Vec<Entry>>) {
        while let Some(entries) = logged.recv().await {
            if self.actor.cast(Msg::Durable(entries.iter().map(|entry| entry.key.id()).collect())).is_err() {
                return;
            }
            for Entry { key, batch, uncertain, permit } in entries {
                // Who waits came earlier.
                let room = if self.queue.len() == 0 { self.budget.try_acquire(cost(&batch)) } else { None };
                let Some(room) = room else {
                    let bytes = Wal::cost(&batch);
                    self.queue.push(Waiting { left: Left { key, bytes }, uncertain });
                    continue;
                };
                drop(permit);
                let accepted = Accepted { id: key.id(), batch, uncertain, permit: room };
                if self.labeler.send(accepted).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Reads what waits, one batch after another, as the budget has room.
    pub(super) async fn refill(self) {
        if self.queue.len() > 0 {
            tracing::info!(batches = self.queue.len(), "replaying the write-ahead log");
        }
        loop {
            let Waiting { left, uncertain } = self.queue.next().await;
            let id = left.key.id();
            let batch = loop {
                match self.wal.read(left).await {
                    Ok(batch) => break batch,
                    Err(error) => {
                        tracing::error!(%error, "an entry of the write-ahead log cannot be read, trying again");
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                }
            };
            let Some(batch) = batch else {
                tracing::error!(
                    agent_id = id.agent_id,
                    seq = id.seq,
                    "an entry of the write-ahead log is damaged: its rows are lost"
                );
                if self.actor.cast(Msg::Lost(id)).is_err() {
                    return;
                }
                continue;
            };
            let permit = self.budget.acquire(cost(&batch)).await;
            if self.labeler.send(Accepted { id, batch, uncertain, permit }).await.is_err() {
                return;
            }
        }
    }
}
