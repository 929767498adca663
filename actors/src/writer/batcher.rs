//! The batcher of one table: collects blocks by partition, hands full or old ones to the inserter, and reports whole batches.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use tokio::sync::mpsc;

use super::{
    Config, Pause, Settled, Shelf,
    block::{self, Block},
    insert::Inserter,
    outcome,
};
use crate::{
    memory::Permit,
    rows::{BatchId, Labelled, Report},
    underway::Stage,
};

pub(super) struct Batcher<S> {
    config: Config,
    inserter: Inserter<S>,
    report: Report,
    /// One open block a partition; batches are rarely of more than two.
    open: BTreeMap<u32, Open>,
    pending: HashMap<BatchId, Pending>,
}

struct Open {
    block: Block,
    since: Instant,
}

/// A batch some of whose rows are not stored yet.
struct Pending {
    blocks: usize,
    failure: Option<String>,
    /// Given back when it is dropped: then the rows are stored.
    permit: Permit,
}

impl<S: Shelf> Batcher<S> {
    pub(super) fn new(config: Config, inserter: Inserter<S>, report: Report) -> Self {
        Self { config, inserter, report, open: BTreeMap::new(), pending: HashMap::new() }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Labelled>) {
        loop {
            if self.is_due() {
                self.flush_due().await;
                continue;
            }
            let oldest = self.open.values().map(|open| open.since + self.config.age_max).min();
            let time = &self.inserter.store;
            tokio::select! {
                // In this order, so that a run can be repeated; what is due was looked at above.
                biased;
                received = queue.recv() => match received {
                    Some(labelled) => self.add(labelled),
                    None => break,
                },
                () = time.sleep_until(oldest.unwrap_or_else(|| time.instant())), if oldest.is_some() => {}
            }
        }
        let partitions: Vec<_> = self.open.keys().copied().collect();
        for partition in partitions {
            self.flush(partition).await;
        }
    }

    fn add(&mut self, labelled: Labelled) {
        let Labelled { id, rows, uncertain, permit } = labelled;
        if let Err(error) = rows.check() {
            self.inserter.metrics.rejected(self.inserter.index, rows.len());
            tracing::error!(
                agent_id = id.agent_id,
                seq = id.seq,
                %error,
                "rows are lost: the labeler filled them wrongly"
            );
            (self.report)(outcome((id, Err(error.to_string()))));
            return;
        }
        if self.pending.contains_key(&id) {
            // The ingester lets no batch in twice; the first one's report serves both.
            tracing::error!(agent_id = id.agent_id, seq = id.seq, "a batch came twice and is taken once");
            return;
        }
        let blocks = block::split(id, uncertain, rows);
        if blocks.is_empty() {
            (self.report)(outcome((id, Ok(()))));
            return;
        }
        self.inserter.metrics.underway.enter(id, Stage::Collecting(self.inserter.table));
        self.pending.insert(id, Pending { blocks: blocks.len(), failure: None, permit });
        for block in blocks {
            match self.open.get_mut(&block.partition) {
                Some(open) => {
                    // Each batcher has one table.
                    if let Err(error) = open.block.append(block) {
                        tracing::error!(%error, "rows came to the wrong batcher");
                        self.settle((id, Err(error.to_string())));
                    }
                }
                None => {
                    self.open.insert(block.partition, Open { block, since: self.inserter.store.instant() });
                }
            }
        }
        self.count_waiting();
    }

    fn is_full(&self, open: &Open) -> bool {
        open.block.rows.len() >= self.config.rows_max || open.block.rows.bytes() >= self.config.bytes_max
    }

    fn is_due(&self) -> bool {
        self.due().next().is_some()
    }

    /// Partitions whose block is full or old.
    fn due(&self) -> impl Iterator<Item = u32> {
        let now = self.inserter.store.instant();
        let is_old = move |open: &Open| now.saturating_duration_since(open.since) >= self.config.age_max;
        let due = self.open.iter().filter(move |(_, open)| self.is_full(open) || is_old(open));
        due.map(|(partition, _)| *partition)
    }

    async fn flush_due(&mut self) {
        let due: Vec<_> = self.due().collect();
        for partition in due {
            self.flush(partition).await;
        }
    }

    async fn flush(&mut self, partition: u32) {
        let Some(open) = self.open.remove(&partition) else { return };
        for piece in &open.block.pieces {
            self.inserter.metrics.underway.enter(piece.id, Stage::Inserting(self.inserter.table));
        }
        let uncertain = if self.config.doubts.is_some() { open.block.uncertain() } else { vec![] };
        let settled = self.inserter.store(open.block).await;
        self.doubt(partition, uncertain).await;
        for settled in settled {
            self.settle(settled);
        }
        self.count_waiting();
    }

    /// Notes what the store of another node may have, too.
    async fn doubt(&self, partition: u32, ids: Vec<BatchId>) {
        let Some(doubts) = self.config.doubts.as_ref().filter(|_| !ids.is_empty()) else { return };
        let mut pause = Pause::default();
        while let Err(error) = doubts.note(self.inserter.table, partition, ids.clone()).await {
            tracing::warn!(error, "batches that another node may have could not be noted, trying again");
            pause.wait(&self.inserter.store).await;
        }
    }

    fn settle(&mut self, (id, result): Settled) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        pending.blocks -= 1;
        if let Err(reason) = result {
            pending.failure = Some(reason);
        }
        if pending.blocks == 0
            && let Some(Pending { failure, permit, .. }) = self.pending.remove(&id)
        {
            self.inserter.metrics.underway.leave(id);
            // Before anybody hears of it, so that who heard finds the room.
            drop(permit);
            (self.report)(outcome((id, failure.map_or(Ok(()), Err))));
        }
    }

    fn count_waiting(&self) {
        let rows = self.open.values().map(|open| open.block.rows.len()).sum();
        self.inserter.metrics.waiting(self.inserter.index, rows);
    }
}
