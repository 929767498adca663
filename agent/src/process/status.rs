//! What the agent did, as JSON: printed at the end and kept in a file while it runs.

use std::{collections::BTreeMap, fs, path::Path, sync::atomic::Ordering};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    guard::Level,
    metrics::{Losses, Metrics},
    sender::State,
    spool::Spool,
};

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    pub agent_id: u32,
    pub generation: u32,
    pub connected: bool,
    pub connections: u64,
    pub packets: u64,
    pub bytes: u64,
    pub skipped_frames: u64,
    pub kernel_drops: u64,
    /// Records of the eBPF programs.
    pub events: u64,
    /// Datagrams of Unix sockets, which are not looked at.
    pub unix_datagrams: u64,
    /// Rows of the flow log, and requests.
    pub flows: u64,
    pub sessions: u64,
    /// Rows sealed, by table.
    pub rows: BTreeMap<&'static str, u64>,
    /// Lost rows (packets for `kernel_drops` and `shed_packets`), by reason.
    pub losses: Losses,
    pub batches_sealed: u64,
    pub batches_committed: u64,
    pub rows_committed: u64,
    /// Batches that the store does not have yet.
    pub batches_pending: u64,
    pub spool_bytes: u64,
    pub spool_corrupt_records: u64,
    pub shedding: u8,
    pub cpu_percent: u32,
    pub memory_bytes: u64,
}

impl Status {
    pub fn new(metrics: &Metrics, spool: &Spool, state: &State, level: Level) -> Self {
        let stats = spool.stats();
        let mut losses = metrics.losses();
        losses.merge(spool.losses());
        Self {
            agent_id: spool.agent_id(),
            generation: spool.generation(),
            connected: state.connected.load(Ordering::Relaxed),
            connections: state.connections.load(Ordering::Relaxed),
            packets: metrics.packets.load(Ordering::Relaxed),
            bytes: metrics.bytes.load(Ordering::Relaxed),
            skipped_frames: metrics.skipped.load(Ordering::Relaxed),
            kernel_drops: metrics.kernel_drops.load(Ordering::Relaxed),
            events: metrics.events.load(Ordering::Relaxed),
            unix_datagrams: metrics.unix_datagrams.load(Ordering::Relaxed),
            flows: metrics.flows.load(Ordering::Relaxed),
            sessions: metrics.sessions.load(Ordering::Relaxed),
            rows: metrics.rows(),
            losses,
            batches_sealed: metrics.batches_sealed.load(Ordering::Relaxed),
            batches_committed: stats.committed_batches,
            rows_committed: stats.committed_rows,
            batches_pending: (stats.batches + stats.waiting_batches) as u64,
            spool_bytes: stats.disk_bytes,
            spool_corrupt_records: stats.corrupt_records,
            shedding: level as u8,
            cpu_percent: metrics.cpu_percent.load(Ordering::Relaxed),
            memory_bytes: metrics.memory_bytes.load(Ordering::Relaxed),
        }
    }

    pub fn to_json(&self) -> anyhow::Result<String> {
        serde_json::to_string(self).context("failed to write the status as JSON")
    }

    /// Replaces the file, so that a reader sees one status or the other.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let next = path.with_extension("next");
        fs::write(&next, self.to_json()?)
            .and_then(|()| fs::rename(&next, path))
            .with_context(|| format!("failed to write status {}", path.display()))
    }
}
