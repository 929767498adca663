//! Batches that another node may have stored, too, where each node has a store of its own: copies are found afterwards, and all but
//! one are removed.
//!
//! Nothing fences such stores from one another. A node that stored a batch, and was stopped or cut off before the agent heard of it, goes
//! on later; meanwhile the agent has sent the batch to another node. That one knows that the batch came again, and so does a node
//! that found it in its log at a start: there it is in doubt, which is noted here before anybody hears that it is stored. Then every other
//! node is asked whether it has the batch, however long it takes to reach it.
//!
//! Who is told of another copy, which is in the other's store now, removes its own: one that nobody doubts stays, and of several in doubt that
//! of the smallest number. Each asks after its own rows are stored, so of two that store at a time at least one sees the other. What is still
//! in the log of the other is asked for again, and what comes there after the question is in doubt there (`ingester/ledger.rs`).
//!
//! One copy stays whatever happens. For a node decides on an answer only if it told nobody of its own copy since it asked, and once it has
//! decided it says that it has none. So if all who have copies had removed them, each because of the next, then each would have answered
//! before it asked and asked before the next one answered: all the way round, which cannot be.
//!
//! Bound: [`DOUBTS_MAX`] on the disk, [`ASKED_MAX`] of a question. Beyond it doubts are counted and forgotten: their batches may be in two
//! stores for good. Leaves out: the calls (`node/doubts.rs`).

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use metaflow_schema::{TABLES, Table};
use tokio::sync::Notify;

use crate::{
    dictionary::NodeId,
    disk::{Changes, Disk, Durability, Error, Family},
    rows::BatchId,
};

/// Doubts that are kept; 60 bytes each. A node has many only while another is away for long.
const DOUBTS_MAX: u64 = 500_000;
/// Batches of one question.
pub const ASKED_MAX: usize = 1_000;
/// A node that nobody has seen for so long is not waited for: rows of most tables have gone by then.
const AWAY_SECONDS_MAX: u64 = 7 * 86_400;

/// Keys of doubts, with the nodes as values that have said that they keep no copy, and [`REMOVES`].
const DOUBT_PREFIX: &[u8] = b"doubts/batch/";
/// No node's number: the own rows are to be removed.
const REMOVES: [u8; 2] = [0, 0];
/// Keys of the other nodes, with the second in which each was last seen.
const NODE_PREFIX: &[u8] = b"doubts/node/";

/// Rows of a batch in one partition of a table: they are inserted together.
#[derive(Debug, Clone, Copy)]
pub struct Doubt {
    pub table: &'static Table,
    pub partition: u32,
    pub id: BatchId,
}

/// What a node says of them to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// It has none, and what comes later will be in doubt there.
    Absent,
    /// On its way there.
    Waits,
    Stored {
        in_doubt: bool,
    },
}

/// What follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet.
    AskAgain,
    /// The other node has no copy, or removes it.
    Keep,
    /// The own rows go.
    Remove,
}

#[derive(Debug, Default)]
pub struct Metrics {
    /// Doubts that are open.
    pub open: AtomicU64,
    /// Batches whose rows were removed from the own store, since another has them.
    pub removed: AtomicU64,
    /// Doubts that found no room.
    pub forgotten: AtomicU64,
}

/// The doubts of a node; clones share them.
#[derive(Clone)]
pub struct Doubts {
    inner: Arc<Inner>,
}

struct Inner {
    own: NodeId,
    disk: Disk,
    metrics: Metrics,
    bell: Notify,
    /// What is read of a doubt holds until it is changed.
    round: Mutex<Round>,
}

/// From questions to what is decided on their answers.
#[derive(Default)]
struct Round {
    /// Of what others were told meanwhile that it is stored here. None: nothing is asked.
    told: Option<HashSet<Vec<u8>>>,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub struct Todo {
    /// Whom to ask about what.
    pub questions: BTreeMap<NodeId, Vec<Doubt>>,
    /// Whose rows are to be removed from the own store, and then to be [forgotten](Doubts::removed).
    pub removals: Vec<Doubt>,
}

impl std::fmt::Debug for Doubts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doubts").field("metrics", &self.inner.metrics).finish_non_exhaustive()
    }
}

impl Doubts {
    /// Counts what a former run left. Blocks for the disk.
    pub fn open(own: NodeId, disk: Disk) -> Result<Self, Error> {
        let metrics = Metrics::default();
        disk.scan(Family::Meta, DOUBT_PREFIX, |key, _| {
            let is_doubt = key.starts_with(DOUBT_PREFIX);
            metrics.open.fetch_add(u64::from(is_doubt), Relaxed);
            is_doubt
        })?;
        Ok(Self {
            inner: Arc::new(Inner { own, disk, metrics, bell: Notify::new(), round: Mutex::default() }),
        })
    }

    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub fn is_empty(&self) -> bool {
        self.inner.metrics.open.load(Relaxed) == 0
    }

    /// Waits until something is noted.
    pub async fn noted(&self) {
        self.inner.bell.notified().await;
    }

    /// Notes batches whose rows are stored here, before anybody hears of that.
    pub(crate) async fn note(
        &self,
        table: &'static Table,
        partition: u32,
        ids: Vec<BatchId>,
    ) -> Result<(), String> {
        let doubts = self.clone();
        let noting = tokio::task::spawn_blocking(move || doubts.note_now(table, partition, &ids));
        match noting.await {
            Ok(noted) => noted.map_err(|error| format!("{:#}", anyhow::Error::new(error))),
            Err(error) => Err(error.to_string()),
        }
    }

    fn note_now(&self, table: &'static Table, partition: u32, ids: &[BatchId]) -> Result<(), Error> {
        let _round = self.lock();
        let Inner { disk, metrics, bell, .. } = &*self.inner;
        let mut changes = Changes::default();
        let (mut new, mut forgotten) = (0, 0);
        for id in ids {
            let key = key(Doubt { table, partition, id: *id });
            if disk.get(Family::Meta, &key)?.is_some() {
                continue;
            }
            if metrics.open.load(Relaxed) + new < DOUBTS_MAX {
                changes.put(Family::Meta, key, []);
                new += 1;
            } else {
                forgotten += 1;
            }
        }
        if new > 0 {
            disk.write(changes, Durability::Written)?;
        }
        metrics.open.fetch_add(new, Relaxed);
        if forgotten > 0 {
            metrics.forgotten.fetch_add(forgotten, Relaxed);
            tracing::warn!(batches = forgotten, "too many batches are in doubt: these may be stored twice");
        }
        bell.notify_one();
        Ok(())
    }

    /// Whether this node doubts that it is the only one with these rows. Blocks for the disk.
    pub fn contains(&self, doubt: Doubt) -> Result<bool, Error> {
        Ok(self.inner.disk.get(Family::Meta, &key(doubt))?.is_some())
    }

    /// What another node that asks is told of rows that the store had a moment ago; `was_in_doubt` is what they were before the store was
    /// asked. Blocks for the disk.
    pub fn tell(&self, doubt: Doubt, was_in_doubt: bool) -> Result<Elsewhere, Error> {
        let mut round = self.lock();
        let key = key(doubt);
        let noted = self.inner.disk.get(Family::Meta, &key)?;
        if noted.as_deref().is_some_and(is_to_be_removed) {
            return Ok(Elsewhere::Absent);
        }
        if noted.is_some() != was_in_doubt {
            // They may have been removed meanwhile.
            return Ok(Elsewhere::Waits);
        }
        if let Some(told) = &mut round.told {
            told.insert(key);
        }
        Ok(Elsewhere::Stored { in_doubt: noted.is_some() })
    }

    /// Remembers who is in the cluster; the answer is who may have copies, away or not. Blocks for the disk.
    pub fn meet(
        &self,
        seen: impl IntoIterator<Item = NodeId>,
        now_seconds: u64,
    ) -> Result<BTreeSet<NodeId>, Error> {
        let disk = &self.inner.disk;
        let mut known = BTreeMap::new();
        disk.scan(Family::Meta, NODE_PREFIX, |key, value| {
            let Some(number) = key.strip_prefix(NODE_PREFIX) else { return false };
            if let (Some(node), Ok(seconds)) = (node(number), value.try_into()) {
                known.insert(node, u64::from_be_bytes(seconds));
            }
            true
        })?;
        let mut changes = Changes::default();
        for node in seen.into_iter().filter(|node| *node != self.inner.own) {
            // Once an hour is enough for days.
            if known.get(&node).is_none_or(|seconds| seconds / 3_600 != now_seconds / 3_600) {
                changes.put(Family::Meta, node_key(node), now_seconds.to_be_bytes());
            }
            known.insert(node, now_seconds);
        }
        let is_gone = |seconds: u64| now_seconds.saturating_sub(seconds) > AWAY_SECONDS_MAX;
        for (node, _) in known.iter().filter(|(_, seconds)| is_gone(**seconds)) {
            changes.delete(Family::Meta, node_key(*node));
        }
        known.retain(|_, seconds| !is_gone(*seconds));
        if !changes.is_empty() {
            disk.write(changes, Durability::Written)?;
        }
        Ok(known.into_keys().collect())
    }

    /// Begins a round: each node that can be reached is asked about what it has not answered yet, in one question at most. Doubts that all of
    /// `known` have answered are over. Blocks for the disk.
    pub fn begin(&self, known: &BTreeSet<NodeId>, reached: &BTreeSet<NodeId>) -> Result<Todo, Error> {
        let mut round = self.lock();
        round.told = Some(HashSet::new());
        let mut todo = Todo::default();
        let mut over = Changes::default();
        let mut count = 0;
        self.inner.disk.scan(Family::Meta, DOUBT_PREFIX, |key, value| {
            if !key.starts_with(DOUBT_PREFIX) {
                return false;
            }
            // A table that only a newer release knows: that one will ask.
            let Some(doubt) = doubt(key) else { return true };
            let answered = nodes(value);
            if is_to_be_removed(value) {
                if todo.removals.len() < ASKED_MAX {
                    todo.removals.push(doubt);
                }
            } else if !known.is_empty() && known.is_subset(&answered) {
                // Without others there is nobody who could have told: this node may not have found them yet.
                over.delete(Family::Meta, key);
                count += 1;
            } else {
                for node in known.intersection(reached).filter(|node| !answered.contains(node)) {
                    let asked = todo.questions.entry(*node).or_default();
                    if asked.len() < ASKED_MAX {
                        asked.push(doubt);
                    }
                }
            }
            true
        })?;
        if count > 0 {
            self.inner.disk.write(over, Durability::Written)?;
            self.inner.metrics.open.fetch_sub(count, Relaxed);
        }
        Ok(todo)
    }

    /// Takes the answers of a node in this round. Blocks for the disk.
    pub fn answered(&self, other: NodeId, answers: &[(Doubt, Elsewhere)]) -> Result<(), Error> {
        let round = self.lock();
        let mut changes = Changes::default();
        for (doubt, elsewhere) in answers {
            let key = key(*doubt);
            let added = match verdict(self.inner.own, other, *elsewhere) {
                Verdict::AskAgain => continue,
                Verdict::Keep => other.get().to_be_bytes(),
                // Who was told of the own copy may be about to remove the other one.
                Verdict::Remove if round.told.as_ref().is_none_or(|told| told.contains(&key)) => continue,
                Verdict::Remove => REMOVES,
            };
            if let Some(mut value) = self.inner.disk.get(Family::Meta, &key)? {
                value.extend(added);
                changes.put(Family::Meta, key, value);
            }
        }
        if !changes.is_empty() {
            // Others rely on it.
            self.inner.disk.write(changes, Durability::Synced)?;
        }
        Ok(())
    }

    /// Ends a round: what is answered now comes too late.
    pub fn end(&self) {
        self.lock().told = None;
    }

    /// The rows of these are gone. Blocks for the disk.
    pub fn removed(&self, doubts: &[Doubt]) -> Result<(), Error> {
        let _round = self.lock();
        let Inner { disk, metrics, .. } = &*self.inner;
        let mut changes = Changes::default();
        let mut count = 0;
        for doubt in doubts {
            let key = key(*doubt);
            if disk.get(Family::Meta, &key)?.is_some() {
                changes.delete(Family::Meta, key);
                count += 1;
            }
        }
        if count > 0 {
            disk.write(changes, Durability::Written)?;
        }
        metrics.open.fetch_sub(count, Relaxed);
        metrics.removed.fetch_add(count, Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.inner.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of the own copy, which is in doubt.
fn verdict(own: NodeId, other: NodeId, copy: Elsewhere) -> Verdict {
    match copy {
        Elsewhere::Waits => Verdict::AskAgain,
        Elsewhere::Absent => Verdict::Keep,
        // It may have asked here before there was a copy, and then it keeps its own.
        Elsewhere::Stored { in_doubt: true } if own < other => Verdict::AskAgain,
        Elsewhere::Stored { .. } => Verdict::Remove,
    }
}

/// The name of the table, which has no 0 in it, partition and batch.
fn key(Doubt { table, partition, id }: Doubt) -> Vec<u8> {
    let mut key = DOUBT_PREFIX.to_vec();
    key.extend(table.database.bytes().chain([b'.']).chain(table.name.bytes()).chain([0]));
    key.extend(partition.to_be_bytes());
    key.extend(id.agent_id.to_be_bytes());
    key.extend(id.seq.to_be_bytes());
    key
}

fn doubt(key: &[u8]) -> Option<Doubt> {
    let rest = key.strip_prefix(DOUBT_PREFIX)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    let table = table(std::str::from_utf8(&rest[..end]).ok()?)?;
    let (partition, rest) = rest[end + 1..].split_first_chunk()?;
    let (agent_id, rest) = rest.split_first_chunk()?;
    let id =
        BatchId { agent_id: u32::from_be_bytes(*agent_id), seq: u64::from_be_bytes(rest.try_into().ok()?) };
    Some(Doubt { table, partition: u32::from_be_bytes(*partition), id })
}

/// A table by `database.name`.
pub fn table(name: &str) -> Option<&'static Table> {
    let (database, name) = name.split_once('.')?;
    TABLES.into_iter().find(|table| table.database == database && table.name == name)
}

fn node_key(node: NodeId) -> Vec<u8> {
    [NODE_PREFIX, &node.get().to_be_bytes()].concat()
}

fn node(bytes: &[u8]) -> Option<NodeId> {
    NodeId::new(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn is_to_be_removed(value: &[u8]) -> bool {
    value.chunks_exact(2).any(|chunk| chunk == REMOVES)
}

fn nodes(value: &[u8]) -> BTreeSet<NodeId> {
    value.chunks_exact(2).filter_map(node).collect()
}
