//! Counters of the whole process: what heartbeats report and what the status file shows.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use metaflow_wire::Loss;
use serde::Serialize;

/// Distinct reasons that are kept apart; nodes can name reasons, so there is a bound.
const REASONS_MAX: usize = 64;

/// Why rows (or packets) were lost. Names are part of the status output.
pub mod reason {
    /// The spool's cap was reached: the oldest batches made room.
    pub const SPOOL_FULL: &str = "spool_full";
    /// Nothing could be written and the memory for waiting batches was used up.
    pub const DISK_FULL: &str = "disk_full";
    /// A record of the spool was damaged.
    pub const SPOOL_CORRUPT: &str = "spool_corrupt";
    /// The sealing thread could not follow the capture.
    pub const EMIT_BACKLOG: &str = "emit_backlog";
    /// The node refused a batch for good; its reason follows a colon.
    pub const REJECTED: &str = "rejected";
    /// A batch was beyond the limits of the wire.
    pub const BATCH_TOO_LARGE: &str = "batch_too_large";
    /// Packets that were not looked at because the agent was over its ceilings, or switched off.
    pub const SHED_PACKETS: &str = "shed_packets";
    /// Packets that the kernel dropped before the agent read them.
    pub const KERNEL_DROPS: &str = "kernel_drops";
    /// Records of the eBPF programs that found no room in their ring.
    pub const EVENT_DROPS: &str = "event_drops";
    /// Transfers of sockets whose bytes could not be seen (sendfile, io_uring).
    pub const UNSEEN_TRANSFERS: &str = "unseen_transfers";
    /// Connections with TLS whose plain text was not seen: their program has no library, or no names of functions, that can be probed.
    pub const UNSEEN_TLS: &str = "unseen_tls";
    /// Operations handed to io_uring where the kernel does not tell which of them are transfers.
    pub const IO_URING_SUBMISSIONS: &str = "io_uring_submissions";
    /// Samples, file events and process events that the kernel had no room for, or that were more than the agent keeps.
    pub const HOST_EVENT_DROPS: &str = "host_event_drops";
    /// Requests beyond `guard.request_rows_max`: metrics count them, the log has no row.
    pub const REQUEST_ROWS: &str = "request_rows";
    /// Events of sockets beyond `ebpf.sockets_max`.
    pub const EXCESS_SOCKETS: &str = "excess_sockets";
}

/// Losses by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Losses(BTreeMap<String, u64>);

impl Losses {
    pub fn add(&mut self, reason: &str, rows: u64) {
        if rows == 0 {
            return;
        }
        if let Some(sum) = self.0.get_mut(reason) {
            *sum += rows;
        } else if self.0.len() < REASONS_MAX {
            self.0.insert(reason.to_owned(), rows);
        } else {
            *self.0.entry("other".to_owned()).or_default() += rows;
        }
    }

    pub fn get(&self, reason: &str) -> u64 {
        self.0.get(reason).copied().unwrap_or(0)
    }

    pub fn merge(&mut self, other: &Self) {
        for (reason, rows) in &other.0 {
            self.add(reason, *rows);
        }
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn to_wire(&self) -> Vec<Loss> {
        self.0.iter().map(|(reason, rows)| Loss { reason: reason.clone(), rows: *rows }).collect()
    }
}

/// Counters that several threads add to.
#[derive(Debug, Default)]
pub struct Metrics {
    pub packets: AtomicU64,
    pub bytes: AtomicU64,
    /// Frames that are no TCP or UDP packets.
    pub skipped: AtomicU64,
    pub kernel_drops: AtomicU64,
    /// Records of the eBPF programs.
    pub events: AtomicU64,
    /// Datagrams of Unix sockets, which are not looked at.
    pub unix_datagrams: AtomicU64,
    pub shed_packets: AtomicU64,
    pub flows: AtomicU64,
    pub sessions: AtomicU64,
    pub batches_sealed: AtomicU64,
    pub memory_bytes: AtomicU64,
    /// Hundredths of one CPU.
    pub cpu_percent: AtomicU32,
    /// How much the guard sheds, 0 to 3.
    pub shedding: AtomicU32,
    rows: Mutex<BTreeMap<&'static str, u64>>,
    losses: Mutex<Losses>,
    /// And whether it has to be told.
    last_error: Mutex<(String, bool)>,
}

/// Longest text of an error that nodes are told.
const ERROR_BYTES_MAX: usize = 200;

impl Metrics {
    /// Notes what went wrong last, for who looks at the agent from afar.
    pub fn fail(&self, error: &str) {
        let end = (0..=ERROR_BYTES_MAX.min(error.len())).rev().find(|end| error.is_char_boundary(*end));
        let text = error[..end.unwrap_or(0)].to_owned();
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = (text, true);
    }

    /// What went wrong last, if the node does not know it; empty otherwise.
    pub fn error_to_tell(&self) -> String {
        let mut error = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut error.1) { error.0.clone() } else { String::new() }
    }

    /// Another node has to be told.
    pub fn tell_error_again(&self) {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
    }

    pub fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    pub fn lose(&self, reason: &str, rows: u64) {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).add(reason, rows);
    }

    pub fn add_rows(&self, table: &'static str, rows: u64) {
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner).entry(table).or_default() += rows;
    }

    pub fn losses(&self) -> Losses {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn rows(&self) -> BTreeMap<&'static str, u64> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
