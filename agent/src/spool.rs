//! The spool: sealed batches on disk until the store has them.
//!
//! Rules, each of which a test breaks on purpose:
//! * A batch gets its number once and is handed out only when its record is synced; a number is never used for another batch. Where a
//!   crash or damage leaves doubt about used numbers, they are skipped, or a new generation begins.
//! * A batch goes only when it is marked as committed or refused, or when the cap drops it (the oldest first, counted as `spool_full`).
//! * After a crash, a torn tail is cut, damaged records are passed over and counted, and all that has no mark is sent again (`resent`).
//! * What cannot be written (a full disk) waits in bounded memory; beyond that the oldest goes, counted as `disk_full`.
//!
//! Files: `SPOOL/<ordinal>.segment` (header, records), `SPOOL/<ordinal>.marks`, and beside the spool `generation` and `agent-id`.
//! Leaves out: threads, time and the network: the caller says when to flush, with [`Spool::begin_flush`] and [`Spool::end_flush`] apart,
//! so that it holds no lock while the disk syncs.

mod identity;
mod index;
mod record;
mod segment;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
};

use metaflow_wire::{Batch, Welcome, seq};

pub use identity::generation_at;

use crate::metrics::{Losses, reason};
use index::{Entry, Index};
use record::SegmentHeader;
use segment::Segment;

/// Most bytes written by one flush: bounds the copy that it makes.
const FLUSH_BYTES_MAX: usize = 8 << 20;
/// Where ids are kept that nodes do not know, and how many; should one be forgotten too early, a node says so again.
const VOID: &str = "agent-id-void";
const VOID_MAX: usize = 16;

#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `spool/`, `generation` and `agent-id`; made if missing.
    pub data_dir: PathBuf,
    /// Cap of the files.
    pub bytes_max: u64,
    /// Cap of the batches, which bounds the index in memory.
    pub batches_max: usize,
    /// Memory for batches that are not yet written.
    pub memory_bytes_max: usize,
}

impl Config {
    pub fn new(data_dir: PathBuf, bytes_max: u64) -> Self {
        Self { data_dir, bytes_max, batches_max: 500_000, memory_bytes_max: 32 << 20 }
    }

    /// An eighth of the cap, so that dropping the oldest segment drops little.
    fn segment_bytes(&self) -> u64 {
        (self.bytes_max / 8).clamp(4 << 10, 16 << 20)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("failed to open spool in {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("spool in {0} is used by another process")]
    Locked(PathBuf),
}

/// What the spool found when it was opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    pub batches: usize,
    pub corrupt_records: u64,
    pub torn_bytes: u64,
    /// A new generation began: no node may get batches of it before its second is over.
    pub created: bool,
}

/// Figures for status and heartbeats.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub disk_bytes: u64,
    pub batches: usize,
    pub waiting_batches: usize,
    pub committed_batches: u64,
    pub committed_rows: u64,
    pub corrupt_records: u64,
}

/// A flush under way: records are written, not yet synced.
#[derive(Debug)]
pub struct Flush {
    file: Arc<File>,
    ordinal: u32,
    batches: usize,
    bytes: u64,
}

impl Flush {
    /// Waits for the disk. Call without a lock.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[derive(Debug)]
pub struct Spool {
    config: Config,
    directory: PathBuf,
    /// Held while the spool is open.
    _lock: File,
    generation: u32,
    next_counter: u32,
    agent_id: u32,
    agent_id_proof: Vec<u8>,
    /// Ids of which nodes know nothing: batches under them go under the one that they gave.
    agent_ids_void: Vec<u32>,
    segments: BTreeMap<u32, Segment>,
    /// Segment that takes records; none after an error, until the next flush makes one.
    active: Option<u32>,
    next_ordinal: u32,
    index: Index,
    waiting: VecDeque<Batch>,
    waiting_bytes: usize,
    /// Waiting batches at the front that a flush is writing.
    flushing: usize,
    losses: Losses,
    stats: Stats,
}

impl Spool {
    /// Opens or creates the spool. `generation_now` is [`generation_at`] the present.
    pub fn open(config: Config, generation_now: u32) -> Result<(Self, Recovery), OpenError> {
        let path = config.data_dir.clone();
        let directory = path.join("spool");
        let io_error = |source| OpenError::Io { path: path.clone(), source };
        fs::create_dir_all(&directory).map_err(io_error)?;
        let lock = File::create(path.join("lock")).map_err(io_error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked(path)),
            Err(fs::TryLockError::Error(error)) => return Err(io_error(error)),
        }
        Self::recover(config, directory, lock, generation_now).map_err(io_error)
    }

    fn recover(config: Config, directory: PathBuf, lock: File, now: u32) -> io::Result<(Self, Recovery)> {
        let stored = identity::read_number(&config.data_dir.join("generation"))?;
        let agent_id = identity::read_number(&config.data_dir.join("agent-id"))?.unwrap_or(0);
        let mut spool = Self {
            directory,
            _lock: lock,
            generation: 0,
            next_counter: 0,
            agent_id,
            agent_id_proof: identity::read_proof(&config.data_dir.join("agent-id-proof"))?,
            agent_ids_void: identity::read_numbers(&config.data_dir.join(VOID))?,
            segments: BTreeMap::new(),
            active: None,
            next_ordinal: 0,
            index: Index::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flushing: 0,
            losses: Losses::default(),
            stats: Stats::default(),
            config,
        };
        let (next_seq, mut recovery) = spool.load_segments()?;
        let known = next_seq.map(|next| u32::try_from(next >> 32).unwrap_or(u32::MAX));
        match (stored, next_seq, known) {
            (Some(stored), Some(next), Some(known)) if stored == known => {
                spool.generation = stored;
                spool.next_counter = u32::try_from(next & u64::from(u32::MAX)).unwrap_or(0);
            }
            _ => {
                let highest = stored.max(known).unwrap_or(0);
                spool.begin_generation(now.max(highest.saturating_add(1)))?;
                recovery.created = true;
            }
        }
        if let Err(error) = spool.roll() {
            // A full disk: what is here can be sent, and the next flush tries again.
            tracing::warn!(%error, "failed to make a spool segment");
        }
        recovery.batches = spool.index.len();
        Ok((spool, recovery))
    }

    /// Reads all segments. Returns the lowest number that was surely never used; none when that is not known.
    fn load_segments(&mut self) -> io::Result<(Option<u64>, Recovery)> {
        let mut recovery = Recovery::default();
        let mut next_seq: Option<u64> = None;
        let mut is_known = true;
        for ordinal in segment::list(&self.directory)? {
            self.next_ordinal = ordinal.saturating_add(1);
            let (segment, scan, marks) = Segment::open(&self.directory, ordinal)?;
            self.segments.insert(ordinal, segment);
            recovery.corrupt_records += scan.corrupt_records;
            recovery.torn_bytes += scan.torn_bytes as u64;
            self.losses.add(reason::SPOOL_CORRUPT, scan.corrupt_rows);
            // Without its header a segment does not say where its numbers begin.
            is_known &= scan.header.is_some_and(|header| header.ordinal == ordinal);
            // A torn tail may hold whole records that were damaged: their numbers count as used.
            let torn_records = scan.torn_bytes.div_ceil(record::RECORD_HEADER) as u64;
            let last = scan.last_seq.map(|last| last + 1);
            let next = last.max(scan.header.map(|header| header.first_seq));
            next_seq = next_seq.max(next.map(|next| next.saturating_add(torn_records)));
            for (offset, header) in scan.records {
                let entry = Entry {
                    ordinal,
                    offset: offset as u64,
                    bytes: header.record_bytes(),
                    rows: header.rows,
                    resent: true,
                    received: false,
                };
                self.insert_entry(header.seq, entry);
            }
            for (first, count) in marks {
                let gone =
                    self.index.take_range(first, first.saturating_add(u64::from(count).saturating_sub(1)));
                for (_, entry) in gone {
                    self.forget(&entry);
                }
            }
        }
        self.stats.corrupt_records = recovery.corrupt_records;
        Ok((if is_known { next_seq } else { None }, recovery))
    }

    fn begin_generation(&mut self, generation: u32) -> io::Result<()> {
        identity::write_number(&self.config.data_dir.join("generation"), generation)?;
        self.generation = generation;
        self.next_counter = 0;
        Ok(())
    }

    /// The id that the nodes gave this agent; 0 while none did.
    pub fn agent_id(&self) -> u32 {
        self.agent_id
    }

    /// Remembers the agent's id. Batches sealed without one belong to the first id ever given.
    pub fn set_agent_id(&mut self, agent_id: u32) -> io::Result<()> {
        if self.agent_id != agent_id {
            let first = self.config.data_dir.join("agent-id-first");
            if identity::read_number(&first)?.is_none() {
                identity::write_number(&first, agent_id)?;
            }
            identity::write_number(&self.config.data_dir.join("agent-id"), agent_id)?;
            self.agent_id = agent_id;
        }
        Ok(())
    }

    /// What a node said with the id; empty while none did.
    pub fn agent_id_proof(&self) -> &[u8] {
        &self.agent_id_proof
    }

    /// Remembers who the nodes say that this agent is.
    pub fn take_identity(&mut self, welcome: &Welcome) -> io::Result<()> {
        let Welcome { agent_id, agent_id_proof, agent_id_unknown, .. } = welcome;
        let before = self.agent_id;
        if *agent_id_unknown && before != *agent_id {
            // First, or the batches under it would wait for ever for a node that knows it.
            self.void(before)?;
        }
        self.set_agent_id(*agent_id)?;
        if self.agent_id_proof != *agent_id_proof {
            identity::write_proof(&self.config.data_dir.join("agent-id-proof"), agent_id_proof)?;
            self.agent_id_proof.clone_from(agent_id_proof);
        }
        Ok(())
    }

    /// A node knows no agent with this id: batches under it go under the one that the nodes gave since.
    pub fn forget_agent_id(&mut self, unknown: u32) -> io::Result<()> {
        if unknown == self.agent_id { Ok(()) } else { self.void(unknown) }
    }

    fn void(&mut self, agent_id: u32) -> io::Result<()> {
        let mut void = self.agent_ids_void.clone();
        void.retain(|known| *known != agent_id);
        void.push(agent_id);
        let forgotten = void.len().saturating_sub(VOID_MAX);
        void.drain(..forgotten);
        identity::write_numbers(&self.config.data_dir.join(VOID), &void)?;
        self.agent_ids_void = void;
        Ok(())
    }

    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Takes a sealed batch and numbers it. It is sent once a flush has made it durable. `generation_now` counts when the numbers of
    /// this generation are used up. None when there is no number to give: the batch is lost and counted.
    pub fn append(&mut self, mut batch: Batch, generation_now: u32) -> Option<u64> {
        if self.next_counter == u32::MAX
            && let Err(error) = self.begin_generation(generation_now.max(self.generation.saturating_add(1)))
        {
            tracing::warn!(%error, "failed to begin a generation of the spool");
            self.losses.add(reason::DISK_FULL, batch.rows.into());
            return None;
        }
        batch.seq = seq(self.generation, self.next_counter);
        batch.agent_id = self.agent_id;
        self.next_counter += 1;
        let number = batch.seq;
        self.waiting_bytes += record::record_bytes(&batch);
        self.waiting.push_back(batch);
        while self.waiting_bytes > self.config.memory_bytes_max && self.waiting.len() > self.flushing {
            if let Some(dropped) = self.waiting.remove(self.flushing) {
                self.waiting_bytes -= record::record_bytes(&dropped);
                self.losses.add(reason::DISK_FULL, dropped.rows.into());
            }
        }
        Some(number)
    }

    /// Writes what waits; none when nothing does. After an error all of it still waits.
    pub fn begin_flush(&mut self) -> io::Result<Option<Flush>> {
        if self.flushing > 0 || self.waiting.is_empty() {
            return Ok(None);
        }
        let flush_bytes_max =
            usize::try_from(self.config.segment_bytes()).unwrap_or(FLUSH_BYTES_MAX).min(FLUSH_BYTES_MAX);
        let mut buffer = Vec::new();
        let mut batches = 0;
        for batch in &self.waiting {
            if batches > 0 && buffer.len() + record::record_bytes(batch) > flush_bytes_max {
                break;
            }
            record::encode_record(batch, &mut buffer);
            batches += 1;
        }
        let bytes = buffer.len() as u64;
        self.make_room(bytes, batches);
        let ordinal = match self.active {
            Some(ordinal) if self.segment_bytes(ordinal) + bytes <= self.config.segment_bytes() => ordinal,
            _ => self.roll()?,
        };
        let Some(segment) = self.segments.get(&ordinal) else { return Ok(None) };
        let file = Arc::clone(&segment.file);
        if let Err(error) = file.write_all_at(&buffer, segment.bytes) {
            self.abandon_tail(ordinal);
            return Err(error);
        }
        self.flushing = batches;
        Ok(Some(Flush { file, ordinal, batches, bytes }))
    }

    /// Ends a flush with the result of [`Flush::sync`]: its batches can be sent, or wait on.
    pub fn end_flush(&mut self, flush: Flush, synced: io::Result<()>) -> io::Result<()> {
        let Flush { file: _, ordinal, batches, bytes } = flush;
        self.flushing = 0;
        if let Err(error) = synced {
            self.abandon_tail(ordinal);
            return Err(error);
        }
        let Some(begin) = self.segments.get(&ordinal).map(|segment| segment.bytes) else { return Ok(()) };
        let mut offset = begin;
        for batch in self.waiting.drain(..batches).collect::<Vec<_>>() {
            let bytes = record::record_bytes(&batch);
            self.waiting_bytes -= bytes;
            let entry = Entry { ordinal, offset, bytes, rows: batch.rows, resent: false, received: false };
            self.insert_entry(batch.seq, entry);
            offset += bytes as u64;
        }
        if let Some(segment) = self.segments.get_mut(&ordinal) {
            segment.bytes = begin + bytes;
        }
        Ok(())
    }

    /// Both halves of a flush, for callers without a lock.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(flush) = self.begin_flush()? {
            let synced = flush.sync();
            self.end_flush(flush, synced)?;
        }
        Ok(())
    }

    /// After a failed write or sync nothing is known of the end of the file: it is cut where it was durable, and the same batches go,
    /// under the same numbers, to a new segment. Should the cut fail, both copies are the same batch.
    fn abandon_tail(&mut self, ordinal: u32) {
        if let Some(segment) = self.segments.get(&ordinal)
            && let Err(error) = segment.file.set_len(segment.bytes)
        {
            tracing::warn!(ordinal, %error, "failed to cut a spool segment");
        }
        self.active = None;
        self.delete_finished();
    }

    fn segment_bytes(&self, ordinal: u32) -> u64 {
        self.segments.get(&ordinal).map_or(0, |segment| segment.bytes)
    }

    /// Makes a new active segment.
    fn roll(&mut self) -> io::Result<u32> {
        let ordinal = self.next_ordinal;
        // Batches that wait have numbers below the next one.
        let first_seq =
            self.waiting.front().map_or_else(|| seq(self.generation, self.next_counter), |batch| batch.seq);
        let segment = Segment::create(&self.directory, SegmentHeader { ordinal, first_seq })?;
        self.next_ordinal = ordinal.saturating_add(1);
        self.segments.insert(ordinal, segment);
        self.active = Some(ordinal);
        self.delete_finished();
        Ok(ordinal)
    }

    /// Drops the oldest segments until so much more fits under the cap.
    fn make_room(&mut self, bytes: u64, batches: usize) {
        loop {
            let is_full = self.disk_bytes() + bytes > self.config.bytes_max
                || self.index.len() + batches > self.config.batches_max;
            let Some((&oldest, _)) = self.segments.first_key_value() else { return };
            if !is_full {
                return;
            }
            if self.active == Some(oldest) {
                // Its header says which numbers were used: a successor must exist before it may go.
                if self.segment_bytes(oldest) <= record::SEGMENT_HEADER as u64 || self.roll().is_err() {
                    return;
                }
                continue;
            }
            if self.segments.len() == 1 {
                return;
            }
            let mut rows = 0;
            for (_, entry) in self.index.take_segment(oldest) {
                // What a node has in its log is not lost.
                rows += if entry.received { 0 } else { u64::from(entry.rows) };
            }
            self.losses.add(reason::SPOOL_FULL, rows);
            self.delete_segment(oldest);
        }
    }

    fn delete_finished(&mut self) {
        // Without a successor the last segment stays: it says which numbers were used.
        let Some(active) = self.active else { return };
        let finished: Vec<u32> = self
            .segments
            .iter()
            .filter(|(ordinal, segment)| segment.live == 0 && **ordinal != active)
            .map(|(ordinal, _)| *ordinal)
            .collect();
        for ordinal in finished {
            self.delete_segment(ordinal);
        }
    }

    fn delete_segment(&mut self, ordinal: u32) {
        if let Some(segment) = self.segments.remove(&ordinal)
            && let Err(error) = segment.delete()
        {
            tracing::warn!(ordinal, %error, "failed to delete a spool segment");
        }
    }

    fn insert_entry(&mut self, seq: u64, entry: Entry) {
        if let Some(segment) = self.segments.get_mut(&entry.ordinal) {
            segment.live += 1;
        }
        // The same batch in two segments: the later one counts.
        if let Some(earlier) = self.index.insert(seq, entry) {
            self.forget(&earlier);
        }
    }

    fn forget(&mut self, entry: &Entry) {
        if let Some(segment) = self.segments.get_mut(&entry.ordinal) {
            segment.live -= 1;
        }
    }

    fn disk_bytes(&self) -> u64 {
        self.segments.values().map(Segment::disk_bytes).sum()
    }
}
