//! The write-ahead log: batches that are acknowledged and not yet in the store.
//!
//! Role: makes batches durable, many with one sync, and forgets them when they are stored. Input: entries with their permits. Output:
//! entries that are on disk. Bound: bytes on disk (configured); entries that wait for a sync hold their permits. On failure (disk full): the
//! same entries are tried until the disk takes them; until then nothing is acknowledged and [`Wal::room`] is 0.

mod committed;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metaflow_wire as wire;
use prost::Message;
use tokio::sync::{Notify, mpsc};

use crate::{
    disk::{Changes, Disk, Durability, Error, Family},
    memory::Permit,
    rows::BatchId,
};
pub(crate) use committed::Committed;

/// Bytes of one synced write: enough that the sync is a small part of it. A write lies in memory twice more while it is made, and goes into
/// one buffer of the database whole.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Pause before a write that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Bytes of a batch's envelope and key, roughly; they count too.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// Place of an entry: order of arrival, and the batch, so that ids are known without reading batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    order: u64,
    id: BatchId,
}

impl Key {
    fn encode(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.order.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.id.agent_id.to_be_bytes());
        bytes[12..].copy_from_slice(&self.id.seq.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 20] = bytes.try_into().ok()?;
        let (order, rest) = bytes.split_first_chunk()?;
        let (agent_id, rest) = rest.split_first_chunk()?;
        let (seq, _) = rest.split_first_chunk()?;
        let id = BatchId { agent_id: u32::from_be_bytes(*agent_id), seq: u64::from_be_bytes(*seq) };
        Some(Self { order: u64::from_be_bytes(*order), id })
    }

    pub fn id(self) -> BatchId {
        self.id
    }
}

/// A batch on its way into the log.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) batch: wire::Batch,
    pub(crate) uncertain: bool,
    pub(crate) permit: Permit,
}

/// What one write brings to the disk: new entries, and what came to an end.
#[derive(Debug)]
pub struct Group {
    pub(crate) entries: Vec<Entry>,
    changes: Arc<Changes>,
}

impl Group {
    /// The batches that are new.
    pub fn ids(&self) -> Vec<BatchId> {
        self.entries.iter().map(|entry| entry.key.id()).collect()
    }

    fn durability(&self) -> Durability {
        if self.entries.is_empty() { Durability::Written } else { Durability::Synced }
    }
}

/// An entry that is on disk.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    pub(crate) key: Key,
    pub(crate) bytes: u64,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    changes: Changes,
}

/// Figures of the log.
#[derive(Debug, Default)]
pub struct Metrics {
    pub bytes: AtomicU64,
    pub batches: AtomicU64,
    pub syncs: AtomicU64,
    pub write_errors: AtomicU64,
    /// Entries that could not be read back: their rows are lost.
    pub damaged: AtomicU64,
}

/// The log. Clones share it.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Disk,
    bytes_max: u64,
    keep_free: u64,
    next: AtomicU64,
    failing: AtomicBool,
    closed: AtomicBool,
    queue: Mutex<Queue>,
    queued: Notify,
    emptied: Notify,
    metrics: Metrics,
}

impl Wal {
    /// Opens the log; the answer lists what a previous run left, in the order of arrival. Reads the whole log: call it where blocking is
    /// allowed.
    pub(crate) fn open(disk: Disk, bytes_max: u64, keep_free: u64) -> Result<(Self, Vec<Left>), Error> {
        let mut left = Vec::new();
        let mut damaged = Changes::default();
        disk.scan(Family::Wal, b"", |key, value| {
            match Key::decode(key) {
                Some(key) => left.push(Left { key, bytes: value.len() as u64 + ENTRY_OVERHEAD_BYTES }),
                None => damaged.delete(Family::Wal, key),
            }
            true
        })?;
        let metrics = Metrics::default();
        if !damaged.is_empty() {
            metrics.damaged.fetch_add(1, Relaxed);
            tracing::error!("entries of the write-ahead log have no readable key: their rows are lost");
            disk.write(damaged, Durability::Written)?;
        }
        metrics.bytes.store(left.iter().map(|left| left.bytes).sum(), Relaxed);
        metrics.batches.store(left.len() as u64, Relaxed);
        let next = left.last().map_or(0, |left| left.key.order + 1);
        let shared = Shared {
            disk,
            bytes_max,
            keep_free,
            next: AtomicU64::new(next),
            failing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            queue: Mutex::default(),
            queued: Notify::new(),
            emptied: Notify::new(),
            metrics,
        };
        Ok((Self { shared: Arc::new(shared) }, left))
    }

    /// Bytes that may still be added; 0 while the disk refuses writes or is nearly full.
    pub fn room(&self) -> u64 {
        if self.is_failing() || self.is_disk_nearly_full() {
            return 0;
        }
        self.shared.bytes_max.saturating_sub(self.shared.metrics.bytes.load(Relaxed))
    }

    /// Bytes that it may hold.
    pub fn bytes_max(&self) -> u64 {
        self.shared.bytes_max
    }

    /// True while less is free on the disk than others there may need.
    pub fn is_disk_nearly_full(&self) -> bool {
        self.shared.disk.is_nearly_full(self.shared.keep_free)
    }

    /// True while the disk refuses writes.
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Relaxed)
    }

    /// Waits until every batch in the log is stored or refused.
    pub async fn emptied(&self) {
        let emptied = self.shared.emptied.notified();
        tokio::pin!(emptied);
        emptied.as_mut().enable();
        if self.shared.metrics.batches.load(Relaxed) > 0 {
            emptied.await;
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Bytes that a batch takes.
    pub(crate) fn cost(batch: &wire::Batch) -> u64 {
        batch.payload.len() as u64 + ENTRY_OVERHEAD_BYTES
    }

    pub(crate) fn key(&self, id: BatchId) -> Key {
        Key { order: self.shared.next.fetch_add(1, Relaxed), id }
    }

    /// Queues an entry; [`Wal::run`] gives it back when it is on disk.
    pub(crate) fn append(&self, entry: Entry) {
        self.shared.metrics.bytes.fetch_add(Self::cost(&entry.batch), Relaxed);
        self.shared.metrics.batches.fetch_add(1, Relaxed);
        self.queue().entries.push_back(entry);
        self.shared.queued.notify_one();
    }

    /// Queues the removal of an entry together with what else changes then.
    pub(crate) fn forget(&self, left: Left, committed: Option<(Vec<u8>, Vec<u8>)>) {
        self.shared.metrics.bytes.fetch_sub(left.bytes, Relaxed);
        if self.shared.metrics.batches.fetch_sub(1, Relaxed) == 1 {
            self.shared.emptied.notify_waiters();
        }
        let mut queue = self.queue();
        queue.changes.delete(Family::Wal, left.key.encode());
        if let Some((key, value)) = committed {
            queue.changes.put(Family::Committed, key, value);
        }
        drop(queue);
        self.shared.queued.notify_one();
    }

    /// Reads an entry; none when it is damaged, and then it is forgotten.
    pub(crate) async fn read(&self, left: Left) -> Result<Option<wire::Batch>, Error> {
        let wal = self.clone();
        match tokio::task::spawn_blocking(move || wal.read_now(left)).await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "a read of the write-ahead log failed");
                self.shared.metrics.damaged.fetch_add(1, Relaxed);
                Ok(None)
            }
        }
    }

    /// The same. Blocks for the disk.
    pub(crate) fn read_now(&self, left: Left) -> Result<Option<wire::Batch>, Error> {
        let value = self.shared.disk.get(Family::Wal, &left.key.encode())?;
        let batch = value.and_then(|value| wire::Batch::decode(value.as_slice()).ok());
        if batch.is_none() {
            self.shared.metrics.damaged.fetch_add(1, Relaxed);
        }
        Ok(batch)
    }

    /// Writes what is queued until [`Wal::close`]. Whatever comes while one write is synced makes up the next, so that many share a sync and
    /// none waits for company.
    pub(crate) async fn run(self, durable: mpsc::Sender<Vec<Entry>>) {
        loop {
            let Some(group) = self.group() else {
                if self.shared.closed.load(Relaxed) {
                    return;
                }
                self.shared.queued.notified().await;
                continue;
            };
            let entries = self.persist(group).await;
            if !entries.is_empty() && durable.send(entries).await.is_err() {
                tracing::debug!("the node stops: entries of its log are for the next run");
            }
        }
    }

    /// Ends [`Wal::run`] when all is written.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Relaxed);
        self.shared.queued.notify_one();
    }

    /// Takes what is queued, as much as one write brings to the disk; none when nothing is.
    pub fn group(&self) -> Option<Group> {
        let mut queue = self.queue();
        let mut entries = Vec::new();
        let mut bytes = 0;
        while bytes < GROUP_BYTES_MAX
            && let Some(entry) = queue.entries.pop_front()
        {
            bytes += entry.batch.payload.len();
            entries.push(entry);
        }
        let mut changes = std::mem::take(&mut queue.changes);
        drop(queue);
        for entry in &entries {
            changes.put(Family::Wal, entry.key.encode(), entry.batch.encode_to_vec());
        }
        (!changes.is_empty()).then(|| Group { entries, changes: Arc::new(changes) })
    }

    /// One try at a write; without an error the disk has all of it. Blocks.
    pub(crate) fn write(&self, group: &Group) -> Result<(), Error> {
        let written = self.shared.disk.apply(&group.changes, group.durability());
        match &written {
            Ok(()) => {
                if self.shared.failing.swap(false, Relaxed) {
                    tracing::info!("the write-ahead log can be written again");
                }
                self.shared.metrics.syncs.fetch_add(u64::from(!group.entries.is_empty()), Relaxed);
            }
            Err(error) => self.failed(error),
        }
        written
    }

    /// Returns when the disk has all of it.
    async fn persist(&self, mut group: Group) -> Vec<Entry> {
        loop {
            let wal = self.clone();
            let attempt = tokio::task::spawn_blocking(move || (wal.write(&group).is_ok(), group)).await;
            match attempt {
                Ok((true, written)) => return written.entries,
                Ok((false, unwritten)) => group = unwritten,
                Err(error) => {
                    self.failed(&error);
                    return Vec::new();
                }
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) {
        self.shared.metrics.write_errors.fetch_add(1, Relaxed);
        if !self.shared.failing.swap(true, Relaxed) {
            tracing::error!(
                error,
                "the write-ahead log cannot be written: nothing is taken from agents until it can (is the disk full?)"
            );
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("metrics", &self.shared.metrics).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
