//! What the writer counts, by table.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metaflow_schema::TABLES;

use crate::underway::Underway;

/// Why an insert did not succeed: indices of [`Table::failures`].
pub mod reason {
    pub(crate) const DICTIONARY: usize = 0;
    pub(crate) const REFUSED: usize = 1;
    pub(crate) const UNKNOWN: usize = 2;
    pub(crate) const TRANSIENT: usize = 3;
    pub(crate) const SETUP: usize = 4;
    pub(crate) const FENCED: usize = 5;
    /// Names of the reasons.
    pub const NAMES: [&str; 6] = ["dictionary", "refused", "no_answer", "store_busy", "setup", "fenced"];
}

/// Counters of one table.
#[derive(Debug, Default)]
pub struct Table {
    pub rows_stored: AtomicU64,
    pub bytes_inserted: AtomicU64,
    pub inserts: AtomicU64,
    pub rows_rejected: AtomicU64,
    pub batches_looked_up: AtomicU64,
    pub batches_found_stored: AtomicU64,
    /// By [`reason::NAMES`].
    pub failures: [AtomicU64; reason::NAMES.len()],
    /// Rows that wait for their insert.
    pub rows_waiting: AtomicU64,
}

/// Counters of all tables, in the order of [`TABLES`].
#[derive(Debug, Default)]
pub struct Metrics {
    pub tables: [Table; TABLES.len()],
    /// What is collected or being inserted.
    pub underway: Underway,
}

impl Metrics {
    pub(super) fn stored(&self, index: usize, rows: usize, bytes: usize) {
        self.tables[index].rows_stored.fetch_add(rows as u64, Relaxed);
        self.tables[index].bytes_inserted.fetch_add(bytes as u64, Relaxed);
        self.tables[index].inserts.fetch_add(1, Relaxed);
    }

    pub(super) fn failed(&self, index: usize, reason: usize) {
        self.tables[index].failures[reason].fetch_add(1, Relaxed);
    }

    pub(super) fn rejected(&self, index: usize, rows: usize) {
        self.tables[index].rows_rejected.fetch_add(rows as u64, Relaxed);
    }

    pub(super) fn looked_up(&self, index: usize, asked: usize, found: usize) {
        self.tables[index].batches_looked_up.fetch_add(asked as u64, Relaxed);
        self.tables[index].batches_found_stored.fetch_add(found as u64, Relaxed);
    }

    pub(super) fn waiting(&self, index: usize, rows: usize) {
        self.tables[index].rows_waiting.store(rows as u64, Relaxed);
    }
}
