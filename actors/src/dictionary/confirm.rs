//! Confirmation: names that the store does not have yet, and how it gets them.
//!
//! What is not confirmed has a mark on the disk. A crash between the store and the mark sends rows twice, which the table's engine folds.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use metaflow_schema::{
    enums::Kind,
    tables::{Dictionary as Rows, DictionaryRow},
};

use super::{COUNTER_BITS, Dictionary, learn, meta_key};
use crate::disk::{self, Changes, Durability, Family};

/// Rows of one insert: bounds the memory of a start with a large dictionary.
const INSERT_ROWS_MAX: usize = 50_000;

/// Keys of the highest confirmed id of each kind, by the number of this node: a store that has less is not the one that confirmed it.
pub(super) const CONFIRMED_PREFIX: &[u8] = b"dictionary/confirmed/";

pub(super) type Entry = (Kind, u32, Arc<str>);

/// Entries on their way to the store, oldest first. Bounded by the names themselves, which are shared with the maps.
pub(super) struct Pending {
    queue: Mutex<VecDeque<Entry>>,
    /// Entries ever queued, and entries ever confirmed: equal when nothing is pending.
    queued: AtomicU64,
    confirmed: AtomicU64,
    /// One flush at a time; those who wait mostly find their work done.
    flushing: tokio::sync::Mutex<()>,
}

/// Why names did not reach the store.
#[derive(Debug, thiserror::Error)]
pub enum FlushError<E> {
    #[error("failed to insert names into the store's dictionary")]
    Store(#[source] E),
    #[error("failed to note which names the store has")]
    Disk(#[from] disk::Error),
}

impl Pending {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        let queued = entries.len() as u64;
        Self {
            queue: Mutex::new(entries.into()),
            queued: AtomicU64::new(queued),
            confirmed: AtomicU64::new(0),
            flushing: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn add(&self, entries: Vec<Entry>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.queued.fetch_add(entries.len() as u64, Ordering::AcqRel);
        queue.extend(entries);
    }

    /// Entries that the store may not have.
    pub(super) fn ids(&self) -> HashSet<(Kind, u32)> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.iter().map(|(kind, id, _)| (*kind, *id)).collect()
    }

    fn head(&self) -> Vec<Entry> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.iter().take(INSERT_ROWS_MAX).cloned().collect()
    }

    fn remove_head(&self, entries: usize) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = entries.min(queue.len());
        queue.drain(..entries);
        self.confirmed.fetch_add(entries as u64, Ordering::AcqRel);
    }
}

impl Dictionary {
    /// Names that the store does not have yet.
    pub fn pending(&self) -> usize {
        self.inner.pending.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Brings every name that was given out before this call into the store, through `insert`. Costs two loads when there is none.
    pub async fn flush<E, F>(&self, insert: impl Fn(Rows) -> F) -> Result<(), FlushError<E>>
    where
        F: Future<Output = Result<(), E>>,
    {
        let pending = &self.inner.pending;
        let wanted = pending.queued.load(Ordering::Acquire);
        let is_done = || pending.confirmed.load(Ordering::Acquire) >= wanted;
        if is_done() {
            return Ok(());
        }
        let _flushing = pending.flushing.lock().await;
        while !is_done() {
            let entries = pending.head();
            insert(rows(&entries)).await.map_err(FlushError::Store)?;
            self.inner.disk.write(self.confirmation(&entries)?, Durability::Written)?;
            pending.remove_head(entries.len());
        }
        Ok(())
    }

    fn confirmation(&self, entries: &[Entry]) -> Result<Changes, disk::Error> {
        let own = u32::from(self.inner.config.node_id.get());
        let mut highest: HashMap<Kind, u32> = HashMap::new();
        let mut changes = Changes::default();
        for (kind, id, _) in entries {
            changes.delete(Family::Meta, learn::unconfirmed_key(*kind, *id));
            if id >> COUNTER_BITS == own {
                let entry = highest.entry(*kind).or_default();
                *entry = (*entry).max(*id);
            }
        }
        for (kind, id) in highest {
            let key = meta_key(CONFIRMED_PREFIX, kind, own);
            let before = self.inner.disk.get(Family::Meta, &key)?;
            let before = before.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
            if before.is_none_or(|before| before < id) {
                changes.put(Family::Meta, key, id.to_be_bytes());
            }
        }
        Ok(changes)
    }
}

fn rows(entries: &[Entry]) -> Rows {
    use metaflow_schema::Group as _;
    let mut rows = Rows::default();
    for (kind, id, name) in entries {
        rows.push(&DictionaryRow { kind: *kind as u8, id: u64::from(*id), name: name.to_string() });
    }
    rows
}
