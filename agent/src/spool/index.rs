//! Which batches are in the spool, and what the sender does with them.

use std::{collections::BTreeMap, io, os::unix::fs::FileExt as _};

use bytes::Bytes;
use metaflow_wire::Batch;

use super::{Spool, Stats, identity, record};
use crate::metrics::{Losses, reason};

/// Where a durable batch is, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub ordinal: u32,
    pub offset: u64,
    pub bytes: usize,
    pub rows: u32,
    /// It may have reached a node.
    pub resent: bool,
    /// A node has it in its log.
    pub received: bool,
}

/// Batches by number.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<u64, Entry>,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&mut self, seq: u64, entry: Entry) -> Option<Entry> {
        self.entries.insert(seq, entry)
    }

    /// Removes what is in a range that came from outside: only numbers that exist are touched.
    pub(super) fn take_range(&mut self, first: u64, last: u64) -> Vec<(u64, Entry)> {
        if first > last {
            return Vec::new();
        }
        let seqs: Vec<u64> = self.entries.range(first..=last).map(|(seq, _)| *seq).collect();
        seqs.into_iter().filter_map(|seq| Some((seq, self.entries.remove(&seq)?))).collect()
    }

    pub(super) fn take_segment(&mut self, ordinal: u32) -> Vec<(u64, Entry)> {
        let seqs: Vec<u64> =
            self.entries.iter().filter(|(_, entry)| entry.ordinal == ordinal).map(|(seq, _)| *seq).collect();
        seqs.into_iter().filter_map(|seq| Some((seq, self.entries.remove(&seq)?))).collect()
    }
}

impl Spool {
    /// Number and size of the first durable batch behind `after`.
    pub fn next_after(&self, after: Option<u64>) -> Option<(u64, usize)> {
        let first = after.map_or(Some(0), |after| after.checked_add(1))?;
        self.index.entries.range(first..).next().map(|(seq, entry)| (*seq, entry.bytes))
    }

    /// Reads a batch for sending. None when it is gone, or damaged on disk (counted, and done with).
    pub fn read(&mut self, seq: u64) -> io::Result<Option<Batch>> {
        let Some(entry) = self.index.entries.get_mut(&seq) else { return Ok(None) };
        let resent = std::mem::replace(&mut entry.resent, true);
        let entry = *entry;
        let Some(segment) = self.segments.get(&entry.ordinal) else { return Ok(None) };
        let mut bytes = vec![0; entry.bytes];
        segment.file.read_exact_at(&mut bytes, entry.offset)?;
        let Some(mut batch) = record::decode_record(Bytes::from(bytes)).filter(|batch| batch.seq == seq)
        else {
            self.stats.corrupt_records += 1;
            self.losses.add(reason::SPOOL_CORRUPT, entry.rows.into());
            self.finish(seq, seq);
            return Ok(None);
        };
        if batch.agent_id == 0 {
            // Sealed before any node was reached.
            let first = identity::read_number(&self.config.data_dir.join("agent-id-first"))?;
            batch.agent_id = first.unwrap_or(self.agent_id);
        }
        if self.agent_ids_void.contains(&batch.agent_id) {
            // Of another cluster, or lost with a node: nobody could take it under that id.
            batch.agent_id = self.agent_id;
        }
        batch.resent = resent;
        Ok(Some(batch))
    }

    /// A node has these in its log.
    pub fn receive(&mut self, first: u64, last: u64) {
        if first <= last {
            self.index.entries.range_mut(first..=last).for_each(|(_, entry)| entry.received = true);
        }
    }

    /// The store has these: marks and forgets them.
    pub fn commit(&mut self, first: u64, last: u64) {
        let done = self.finish(first, last);
        self.stats.committed_batches += done.len() as u64;
        self.stats.committed_rows += done.iter().map(|(_, entry)| u64::from(entry.rows)).sum::<u64>();
    }

    /// A node refused it for good: marks and forgets it, and counts the loss under the node's reason.
    pub fn reject(&mut self, seq: u64, why: &str) {
        let why = crate::emit::truncate(why, 64);
        for (_, entry) in self.finish(seq, seq) {
            self.losses.add(&format!("{}: {why}", reason::REJECTED), entry.rows.into());
        }
    }

    fn finish(&mut self, first: u64, last: u64) -> Vec<(u64, Entry)> {
        let done = self.index.take_range(first, last);
        // One mark for each run of numbers in one segment.
        let runs =
            done.chunk_by(|(seq, entry), (next, other)| *next == seq + 1 && other.ordinal == entry.ordinal);
        for run in runs {
            let (seq, entry) = run[0];
            let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
            let Some(segment) = self.segments.get_mut(&entry.ordinal) else { continue };
            segment.live -= run.len();
            if let Err(error) = segment.mark(seq, count) {
                // Without the mark a restart sends it again, and the node finds it in the store.
                tracing::warn!(seq, count, %error, "failed to mark batches as done");
            }
        }
        self.delete_finished();
        done
    }

    pub fn is_empty(&self) -> bool {
        self.index.len() == 0 && self.waiting.is_empty()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            disk_bytes: self.disk_bytes(),
            batches: self.index.len(),
            waiting_batches: self.waiting.len(),
            ..self.stats
        }
    }

    pub fn losses(&self) -> &Losses {
        &self.losses
    }
}
