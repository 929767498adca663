//! The tag dictionary of a node: names to ids, once and for ever.
//!
//! Role: gives every name a `u32` id within its kind. Input: names of a batch or of an agent's facts. Output: ids, and the rows of
//! `flow_tag.dictionary` through [`Dictionary::flush`]. Bound: [`Config::names_max`] for kinds whose names traffic or users choose, the
//! range of 22 bits for the rest; what exceeds it gets the id of [`OTHER`] and is counted. On failure of the disk nothing is handed out.
//!
//! An id is the node's id (10 bits) above a counter (22 bits), so nodes need no agreement. Id 0 is the empty name. Order of writing:
//! the node's own disk, synced; then the store (`flush`); then rows that use the id (the writer calls `flush` before each insert).
//! Counters come from ranges that no life of a node before had ([`ranges`]), so that neither a second node with this number nor an old copy
//! of the disk makes one id of two names. A node that is alone by construction (a test) counts on above all that disk and store know.
//!
//! In a cluster the nodes tell each other what they named ([`Dictionary::learn`]). A name that was given two ids (an alias, legal) has the
//! smallest as its canonical id, wherever both are known.
//!
//! Leaves out: which node allocates for a name, and the way to it: [`Owners`].

mod allocate;
mod confirm;
mod exchange;
mod learn;
mod load;
mod news;
mod ranges;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use metaflow_schema::enums::Kind;

use crate::{
    disk::{self, Disk, Family},
    labeler::Names,
    placement::{PartitionId, partition_of},
};
use allocate::Allocator;
pub use confirm::FlushError;
use confirm::Pending;
use exchange::Digests;
pub use exchange::{Comparison, Digest, Scope, comparisons, hand_over};
pub use learn::{Entry, Learned, NAMES_MAX, Unnamed};
use news::News;
pub use news::Silent;
use ranges::Claims;
pub use ranges::{Claimed, RANGE_IDS, Register, Wanted, claim};

/// Name of the entry that stands for all names beyond the limit of a kind.
pub const OTHER: &str = "(other)";

/// Longest name kept whole, in bytes: the agent's limit for texts that are keys.
pub const NAME_BYTES_MAX: usize = 256;

/// Bits of the counter in an id; the node's id stands above.
const COUNTER_BITS: u32 = 22;
const COUNTER_MAX: u32 = (1 << COUNTER_BITS) - 1;

/// A node's number, 1 to 1023: the upper ten bits of every id that it allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u16);

impl NodeId {
    pub const MAX: u16 = 1023;

    /// None when out of range.
    pub const fn new(number: u16) -> Option<Self> {
        if number >= 1 && number <= Self::MAX { Some(Self(number)) } else { None }
    }

    pub const fn get(self) -> u16 {
        self.0
    }

    /// The node that gave an id; none for an id that no node can have given.
    pub const fn of(id: u32) -> Option<Self> {
        Self::new((id >> COUNTER_BITS) as u16)
    }

    /// Every id that this node may give.
    pub const fn ids(self) -> std::ops::RangeInclusive<u32> {
        self.id(1)..=self.id(COUNTER_MAX)
    }

    const fn id(self, counter: u32) -> u32 {
        (self.0 as u32) << COUNTER_BITS | counter
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    pub node_id: NodeId,
    /// Names of a kind that traffic or users choose. A million names of 60 bytes hold about 150 MB.
    pub names_max: usize,
    /// All nodes write to one store. Where each has its own, what another node's store has must come to this one's all the same.
    pub is_store_shared: bool,
    pub ids: Ids,
    /// Ids of one range that is claimed. The same in all lives of a node.
    pub range_ids: u32,
}

impl Config {
    pub fn new(node_id: NodeId) -> Self {
        Self { node_id, names_max: 1_000_000, is_store_shared: true, ids: Ids::Whole, range_ids: RANGE_IDS }
    }
}

/// Which ids of its prefix a node may give out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// All above those that are known: nobody else can have this number.
    Whole,
    /// Those of ranges that it claims ([`Dictionary::claim`]). `is_drawn`: others with this number may note their claims elsewhere.
    Claimed { is_drawn: bool },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("dictionary cannot use the node's disk")]
    Disk(#[from] disk::Error),
    #[error("dictionary entry on the node's disk is damaged: key {0:?}")]
    Damaged(Vec<u8>),
    #[error("two live nodes have the node id {0}: no new names until one of them gets another")]
    Suspended(u16),
    #[error("new names wait until the store has noted another range of ids for this node")]
    NoRange,
}

/// The nodes that own names, as the dictionary sees them.
pub trait Owners: Send + Sync {
    /// The ids that the owners of these names give them, in their order; none where this node is the owner or the owner does not answer in
    /// time. Blocks.
    fn ask(&self, names: &[(Kind, &str)]) -> Vec<Option<u32>>;
}

/// Figures of one kind, for `/metrics` and `ctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindStats {
    pub kind: Kind,
    pub names: usize,
    /// Highest id that this node allocated; 0 is none.
    pub highest_id: u32,
    /// Lookups that were answered with the id of [`OTHER`] because the kind is full.
    pub overflowed: u64,
    /// Ids beside the canonical ones, since the start.
    pub aliases: u64,
}

impl KindStats {
    /// How much of its range of this kind the node has used up, 0 to 1. At half it is time to think of another node id.
    pub fn used_share(&self) -> f64 {
        f64::from(self.highest_id & COUNTER_MAX) / f64::from(COUNTER_MAX)
    }
}

/// Names of one kind. A batch is looked up under one read lock, so a hit costs its hash and its comparison.
#[derive(Default)]
struct Shard {
    ids: RwLock<HashMap<Arc<str>, u32>>,
    /// Highest counter whose entry is on disk or in the store, for this node's own prefix.
    highest: AtomicU64,
    /// Highest counter that this life gave out; the ids between it and the end of the ranges it holds do not exist.
    given: AtomicU64,
    overflowed: AtomicU64,
    aliases: AtomicU64,
}

struct Inner {
    disk: Disk,
    config: Config,
    /// By the number of the kind.
    shards: Box<[Shard]>,
    allocator: Mutex<Allocator>,
    claims: Claims,
    pending: Pending,
    digests: Digests,
    news: News,
    owners: OnceLock<Arc<dyn Owners>>,
    is_suspended: AtomicBool,
    conflicts: AtomicU64,
}

/// The dictionary; clones share it.
#[derive(Clone)]
pub struct Dictionary {
    inner: Arc<Inner>,
}

impl Dictionary {
    /// Loads what the disk knows. `store_maxima` is the highest id of this node's prefix in the store, by kind: counters start
    /// above it, and where the store knows less than was confirmed (it was replaced), everything is sent to it again.
    ///
    /// Blocks.
    pub fn open(disk: Disk, config: Config, store_maxima: &HashMap<Kind, u64>) -> Result<Self, Error> {
        let loaded = load::load(&disk, config.node_id, store_maxima)?;
        let shards: Box<[Shard]> = loaded
            .kinds
            .into_iter()
            .map(|kind| Shard {
                ids: RwLock::new(kind.ids),
                highest: AtomicU64::new(kind.highest.into()),
                given: AtomicU64::new(if config.ids == Ids::Whole { kind.highest.into() } else { 0 }),
                overflowed: AtomicU64::new(0),
                aliases: AtomicU64::new(kind.aliases),
            })
            .collect();
        let allocator = Allocator::new(config.ids, &shards);
        let highest = shards.iter().map(|shard| shard.highest.load(Ordering::Acquire)).max().unwrap_or(0);
        let claims = Claims::new(&config, highest, loaded.range);
        let pending = Pending::new(loaded.pending);
        let inner = Inner {
            disk,
            config,
            shards,
            allocator: Mutex::new(allocator),
            claims,
            pending,
            digests: loaded.digests,
            news: News::default(),
            owners: OnceLock::new(),
            is_suspended: AtomicBool::new(false),
            conflicts: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The ids of names, allocated where they are new. New ids are on disk when this returns.
    ///
    /// Blocks for a disk sync when there is a new name.
    pub fn ids(&self, wanted: &[(Kind, &str)]) -> Result<Vec<u32>, Error> {
        let (mut ids, mut missing) = self.known(wanted);
        if !missing.is_empty() {
            self.ask_owners(wanted, &mut missing, &mut ids)?;
        }
        if !missing.is_empty() {
            self.inner.allocate(wanted, &missing, &mut ids)?;
        }
        Ok(ids)
    }

    /// The same without asking others: what an owner does for who asks it.
    pub fn own_ids(&self, wanted: &[(Kind, &str)]) -> Result<Vec<u32>, Error> {
        let (mut ids, missing) = self.known(wanted);
        if !missing.is_empty() {
            self.inner.allocate(wanted, &missing, &mut ids)?;
        }
        Ok(ids)
    }

    /// Ids of the names that are known, and where those stand that are not.
    fn known(&self, wanted: &[(Kind, &str)]) -> (Vec<u32>, Vec<usize>) {
        let mut ids = vec![0; wanted.len()];
        let mut missing = Vec::new();
        let mut at = 0;
        for run in wanted.chunk_by(|one, other| one.0 == other.0) {
            let shard = self.inner.shard(run[0].0);
            let known = shard.ids.read().unwrap_or_else(PoisonError::into_inner);
            for (_, name) in run {
                match known.get(bounded(name).as_ref()) {
                    _ if name.is_empty() => {}
                    Some(id) => ids[at] = *id,
                    None => missing.push(at),
                }
                at += 1;
            }
        }
        (ids, missing)
    }

    /// From now on new names are asked of their owners first.
    pub fn set_owners(&self, owners: Arc<dyn Owners>) {
        // A second one would be a defect of the start; the first stays.
        self.inner.owners.set(owners).ok();
    }

    /// Stops or resumes giving out ids: while two live nodes have one number, neither may.
    pub fn suspend(&self, is_suspended: bool) {
        self.inner.is_suspended.store(is_suspended, Ordering::Release);
    }

    /// Entries that others told and that contradict what is known: an id has two names. Not zero means that two nodes had one number.
    pub fn conflicts(&self) -> u64 {
        self.inner.conflicts.load(Ordering::Relaxed)
    }

    /// The id of one name, allocated if it is new. Blocks like [`Dictionary::ids`].
    pub fn id(&self, kind: Kind, name: &str) -> Result<u32, Error> {
        Ok(self.ids(&[(kind, name)])?.first().copied().unwrap_or(0))
    }

    /// The id of a name if there is one. Does not block.
    pub fn lookup(&self, kind: Kind, name: &str) -> Option<u32> {
        let known = self.inner.shard(kind).ids.read().unwrap_or_else(PoisonError::into_inner);
        known.get(bounded(name).as_ref()).copied()
    }

    /// The name of an id. Blocks for a disk read.
    pub fn resolve(&self, kind: Kind, id: u32) -> Result<Option<String>, Error> {
        let key = id_key(kind, id);
        let Some(name) = self.inner.disk.get(Family::IdToName, &key)? else { return Ok(None) };
        String::from_utf8(name).map(Some).map_err(|_| Error::Damaged(key))
    }

    /// The partition that a name belongs to.
    pub fn partition(kind: Kind, name: &str) -> PartitionId {
        partition_of(kind, bounded(name).as_ref())
    }

    /// Whether an id was ever given out: by this life of the node for certain, by any other as far as this one can tell. Does not block.
    pub fn may_exist(&self, kind: Kind, id: u32) -> bool {
        let (node, counter) = (id >> COUNTER_BITS, id & COUNTER_MAX);
        let is_own = node == u32::from(self.inner.config.node_id.0) && self.inner.holds(counter);
        let given = self.inner.shard(kind).given.load(Ordering::Acquire);
        node != 0 && counter != 0 && (!is_own || u64::from(counter) <= given)
    }

    /// Figures of all kinds that have names.
    pub fn stats(&self) -> Vec<KindStats> {
        let node_id = self.inner.config.node_id;
        let figures = Kind::ALL.iter().map(|&kind| {
            let shard = self.inner.shard(kind);
            let highest = shard.highest.load(Ordering::Acquire);
            KindStats {
                kind,
                names: shard.ids.read().unwrap_or_else(PoisonError::into_inner).len(),
                highest_id: u32::try_from(highest).map_or(0, |at| if at == 0 { 0 } else { node_id.id(at) }),
                overflowed: shard.overflowed.load(Ordering::Relaxed),
                aliases: shard.aliases.load(Ordering::Relaxed),
            }
        });
        figures.filter(|stats| stats.names > 0 || stats.highest_id > 0).collect()
    }
}

impl Names for Dictionary {
    type Error = Error;

    fn ids(&self, wanted: &[(Kind, &str)]) -> Result<Vec<u32>, Error> {
        Self::ids(self, wanted)
    }

    fn may_exist(&self, kind: Kind, id: u32) -> bool {
        Self::may_exist(self, kind, id)
    }
}

impl Inner {
    fn shard(&self, kind: Kind) -> &Shard {
        &self.shards[kind as usize]
    }
}

/// Kinds whose names traffic or users choose, so that only a limit bounds them. What identifies machines has the whole range.
fn is_limited(kind: Kind) -> bool {
    !matches!(kind, Kind::Agent | Kind::Host | Kind::Vpc | Kind::Region | Kind::Az)
}

/// A name as it is kept: a long one is cut at a character and ends with a hash of the whole, so that two stay two.
fn bounded(name: &str) -> Cow<'_, str> {
    if name.len() <= NAME_BYTES_MAX {
        return Cow::Borrowed(name);
    }
    // Stable for ever: the cut name is what identifies the entry. Two halves of the text, so that 64 bits stand in the suffix.
    let (first, second) = name.as_bytes().split_at(name.len() / 2);
    let suffix = format!("~{:08x}{:08x}", crc32fast::hash(first), crc32fast::hash(second));
    let mut end = NAME_BYTES_MAX - suffix.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}{suffix}", &name[..end]))
}

/// Key of [`Family::NameToId`].
fn name_key(kind: Kind, name: &str) -> Vec<u8> {
    [&[kind as u8], name.as_bytes()].concat()
}

/// Key of [`Family::IdToName`]: in the order of ids.
fn id_key(kind: Kind, id: u32) -> Vec<u8> {
    [&[kind as u8][..], &u64::from(id).to_be_bytes()].concat()
}

/// Key of an id in [`Family::Meta`], by kind and the number of the node whose prefix it has.
fn meta_key(prefix: &[u8], kind: Kind, node: u32) -> Vec<u8> {
    [prefix, &[kind as u8], &node.to_be_bytes()].concat()
}
