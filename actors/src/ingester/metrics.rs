//! What the ingester counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a batch was not taken; the agent sends it again.
pub const DROP_REASONS: [&str; 2] = ["wal_full", "stopped"];
pub(super) const WAL_FULL: usize = 0;
pub(super) const STOPPED: usize = 1;

#[derive(Debug, Default)]
pub struct Metrics {
    pub batches_accepted: AtomicU64,
    pub rows_accepted: AtomicU64,
    pub bytes_accepted: AtomicU64,
    /// Batches that were known when they came.
    pub known: AtomicU64,
    pub committed: AtomicU64,
    /// Batches with an envelope that cannot be right, and their rows.
    pub batches_rejected: AtomicU64,
    pub rows_rejected: AtomicU64,
    /// Batches that labeler or store refused.
    pub rejected_later: AtomicU64,
    /// By [`DROP_REASONS`].
    pub batches_dropped: [AtomicU64; DROP_REASONS.len()],
    /// Acks that no stream took.
    pub acks_unsent: AtomicU64,
}

impl Metrics {
    pub(super) fn accepted(&self, rows: u64, bytes: u64) {
        self.batches_accepted.fetch_add(1, Relaxed);
        self.rows_accepted.fetch_add(rows, Relaxed);
        self.bytes_accepted.fetch_add(bytes, Relaxed);
    }

    pub(super) fn rejected(&self, rows: u64) {
        self.batches_rejected.fetch_add(1, Relaxed);
        self.rows_rejected.fetch_add(rows, Relaxed);
    }

    pub(super) fn dropped(&self, reason: usize) {
        self.batches_dropped[reason].fetch_add(1, Relaxed);
    }
}
