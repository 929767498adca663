//! The write-ahead log of this node: what waits in it for the store, and what it may still take.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::json;

use super::Answer;
use crate::node::Parts;

pub(super) async fn status(parts: &Parts) -> Answer {
    let running = parts.started()?;
    let wal = running.ingester.wal();
    let metrics = wal.metrics();
    let oldest = running.ingester.oldest().await;
    let counters = running.ingester.metrics();
    let state = match () {
        () if wal.is_failing() => "failing",
        () if wal.is_disk_nearly_full() => "disk nearly full",
        () if wal.room() == 0 => "full",
        () => "open",
    };
    Ok(json!({
        "state": state,
        "batches": metrics.batches.load(Relaxed),
        "bytes": metrics.bytes.load(Relaxed),
        "bytes_max": wal.bytes_max(),
        "oldest_seconds": oldest.map(|age| age.as_secs_f64()),
        "credit_bytes": running.ingester.credit(),
        "memory_bytes": running.memory.used(),
        "memory_bytes_max": running.memory.capacity(),
        "labelling": running.labeler.underway.len(),
        "writing": running.writer.underway.len(),
        "accepted": counters.batches_accepted.load(Relaxed),
        "committed": counters.committed.load(Relaxed),
        "syncs": metrics.syncs.load(Relaxed),
        "write_errors": metrics.write_errors.load(Relaxed),
        "damaged": metrics.damaged.load(Relaxed),
    }))
}
