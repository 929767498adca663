//! What was lost, refused or came twice, in a few figures that say whether somebody must look.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::{Parts, Running};

/// Since the start of the node; of agents, since theirs.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counts {
    /// Agents with a control stream.
    agents: u64,
    /// Rows that agents had to drop.
    rows_lost_by_agents: u64,
    /// Rows that were malformed, or that the store refused for their content.
    rows_refused: u64,
    /// Batches that came again, and were stored once.
    batches_repeated: u64,
    /// Batches that were not taken, because the log was full or failed, and had to be sent again.
    batches_put_off: u64,
    /// Inserts that failed and were tried again.
    inserts_failed: u64,
}

impl Parts {
    pub(super) async fn counts(&self) -> Counts {
        let Ok(running) = self.started() else { return Counts::default() };
        let agents = running.controller.agents().await.unwrap_or_default();
        let lost = agents.iter().flat_map(|agent| &agent.losses).map(|(_, rows)| rows).sum();
        Counts { agents: running.sessions.count(), rows_lost_by_agents: lost, ..of(running) }
    }
}

fn of(running: &Running) -> Counts {
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    let ingest = running.ingester.metrics();
    let tables = || running.writer.tables.iter();
    Counts {
        rows_refused: get(&ingest.rows_rejected)
            + get(&running.labeler.rejected_rows)
            + tables().map(|table| get(&table.rows_rejected)).sum::<u64>(),
        batches_repeated: get(&ingest.known)
            + tables().map(|table| get(&table.batches_found_stored)).sum::<u64>(),
        batches_put_off: ingest.batches_dropped.iter().map(get).sum(),
        inserts_failed: tables().flat_map(|table| &table.failures).map(get).sum(),
        ..Counts::default()
    }
}
