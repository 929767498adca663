//! What nodes know of partitions, and how two of them come to know the same: a digest says in 12 bytes whether they do.
//!
//! Merging has no order, so any two nodes that have exchanged everything agree, whatever happened before. What two nodes compare is a
//! [`Scope`]: holders of a partition all of it; a node and the owner what that node named in it; and every two nodes the names that were
//! given several ids, so that all take the same one, whoever holds it. Pure but for reading the disk: who performs it brings requests and
//! answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metaflow_schema::enums::Kind;
use metaflow_wire::{CompareRequest, CompareResponse, DictionaryEntry, LearnRequest, PartitionDigest};

use super::{COUNTER_BITS, Dictionary, Entry, Error, Learned, NodeId, bounded, load};
use crate::{
    disk::Family,
    placement::{Owners, PARTITIONS, PartitionId, entry_hash, partition_of},
};

/// Entries of one answer: 256 bytes each at most, so they fit in one message.
pub(super) const ENTRIES_MAX: u32 = 10_000;

/// Which entries of a partition are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Those whose ids this node gave.
    Of(NodeId),
    /// Those whose names have several ids.
    Aliases,
}

/// What a node knows of a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    pub entries: u32,
    /// Exclusive or of the entries' hashes: the order in which they came does not count.
    pub hash: u64,
}

impl Digest {
    fn add(&mut self, kind: Kind, id: u32, name: &str) {
        self.entries += 1;
        self.hash ^= entry_hash(kind, id, name);
    }
}

/// The digests of all partitions.
#[derive(Default)]
pub(super) struct Digests(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// By partition, as the other lists.
    all: Vec<Digest>,
    /// By the number of the node that gave the ids: 16 KiB each.
    of: BTreeMap<u32, Vec<Digest>>,
    aliases: Vec<Digest>,
    /// The ids of names that have several. Two nodes give one name at a time only while they cannot hear each other, so these are few.
    aliased: BTreeMap<(PartitionId, Kind, Arc<str>), BTreeSet<u32>>,
}

impl Known {
    fn get(&self, scope: Scope, partition: PartitionId) -> Digest {
        let digest = match scope {
            Scope::All => self.all.get(partition.index()),
            Scope::Of(node) => self.of.get(&node.get().into()).and_then(|of| of.get(partition.index())),
            Scope::Aliases => self.aliases.get(partition.index()),
        };
        digest.copied().unwrap_or_default()
    }
}

/// The place of a partition in a list that has none until it is needed.
fn place(list: &mut Vec<Digest>, partition: PartitionId) -> &mut Digest {
    if list.is_empty() {
        list.resize(PARTITIONS.into(), Digest::default());
    }
    &mut list[partition.index()]
}

impl Digests {
    /// Counts an entry; each is counted once in the life of the process. `known` is an id that its name had before.
    pub(super) fn add(&self, kind: Kind, id: u32, name: &Arc<str>, known: Option<u32>) {
        let mut digests = self.lock();
        let partition = partition_of(kind, name);
        place(&mut digests.all, partition).add(kind, id, name);
        place(digests.of.entry(id >> COUNTER_BITS).or_default(), partition).add(kind, id, name);
        let Some(known) = known.filter(|known| *known != id) else { return };
        let Known { aliases, aliased, .. } = &mut *digests;
        let ids = aliased.entry((partition, kind, Arc::clone(name))).or_default();
        for id in [known, id] {
            if ids.insert(id) {
                place(aliases, partition).add(kind, id, name);
            }
        }
    }

    fn get(&self, scope: Scope, partition: PartitionId) -> Digest {
        self.lock().get(scope, partition)
    }

    fn several(&self, scope: Scope, partitions: &[PartitionId]) -> Vec<Digest> {
        let digests = self.lock();
        partitions.iter().map(|partition| digests.get(scope, *partition)).collect()
    }

    /// All ids of a name that has several; none otherwise.
    pub(super) fn ids_of(&self, kind: Kind, name: &Arc<str>) -> Vec<u32> {
        let key = (partition_of(kind, name), kind, Arc::clone(name));
        self.lock().aliased.get(&key).map_or_else(Vec::new, |ids| ids.iter().copied().collect())
    }

    fn aliased(&self, partitions: &HashSet<PartitionId>) -> Vec<Entry> {
        let digests = self.lock();
        let wanted = digests.aliased.iter().filter(|((partition, ..), _)| partitions.contains(partition));
        wanted
            .flat_map(|((_, kind, name), ids)| {
                ids.iter().map(|id| Entry { kind: *kind, id: *id, name: name.to_string() })
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this node compares with another one, now that partitions are held as `owners` says. `is_first` says that it has not done so since
/// it was started: what it named itself may be known there and not here, if its disk is an older one.
pub fn comparisons(
    own: NodeId,
    other: NodeId,
    owners: impl Fn(PartitionId) -> Owners,
    is_first: bool,
) -> Vec<Comparison> {
    let (mut both, mut its) = (Vec::new(), Vec::new());
    for partition in PartitionId::all() {
        let holders = owners(partition);
        if holders.holds(own) {
            if holders.holds(other) {
                both.push(partition);
            }
        } else if holders.owner() == Some(other) {
            its.push(partition);
        }
    }
    let everywhere: Vec<PartitionId> = PartitionId::all().collect();
    let comparison = |scope, left| Comparison { scope, left, only_learns: false };
    let mut comparisons = vec![
        comparison(Scope::All, both),
        comparison(Scope::Of(own), its),
        comparison(Scope::Aliases, everywhere.clone()),
    ];
    if is_first {
        comparisons.insert(0, Comparison { scope: Scope::Of(own), left: everywhere, only_learns: true });
    }
    comparisons
}

/// What a node that goes compares with another one: all of what that one holds now.
pub fn hand_over(other: NodeId, owners: impl Fn(PartitionId) -> Owners) -> Comparison {
    let left = PartitionId::all().filter(|partition| owners(*partition).holds(other)).collect();
    Comparison { scope: Scope::All, left, only_learns: false }
}

/// Makes both ends know what either knew in a scope of some partitions.
#[derive(Debug)]
pub struct Comparison {
    scope: Scope,
    left: Vec<PartitionId>,
    /// The other node need not know all that this one does.
    only_learns: bool,
}

impl Comparison {
    /// The next question; none when all is said.
    pub fn request(&self, dictionary: &Dictionary) -> Option<CompareRequest> {
        let digests = dictionary.inner.digests.several(self.scope, &self.left);
        let digests = self.left.iter().zip(digests).map(|(partition, Digest { entries, hash })| {
            PartitionDigest { partition: partition.get().into(), entries, hash }
        });
        // Few partitions have aliases, and many none of what a node named itself: those that are not told have none.
        let are_all_told = self.scope == Scope::All || self.only_learns;
        let request = CompareRequest {
            partitions: digests.filter(|digest| are_all_told || digest.entries > 0).collect(),
            of_node: if let Scope::Of(node) = self.scope { node.get().into() } else { 0 },
            aliases: self.scope == Scope::Aliases,
        };
        (!self.left.is_empty()).then_some(request)
    }

    /// Learns from an answer; the answer to it is what the other node lacks. Blocks for the disk.
    pub fn answered(
        &mut self,
        dictionary: &Dictionary,
        answer: CompareResponse,
    ) -> Result<Vec<LearnRequest>, Error> {
        let CompareResponse { partitions, entries } = answer;
        let some: Vec<PartitionId> = partitions.iter().filter_map(|number| partition(*number)).collect();
        let before = self.left.len();
        self.left.retain(|partition| !some.contains(partition));
        // Who names a partition that was not asked for would make this go on for ever.
        if some.is_empty() || self.left.len() == before {
            self.left.clear();
            return Ok(vec![]);
        }
        let theirs: HashSet<(u32, u32)> = entries.iter().map(|entry| (entry.kind, entry.id)).collect();
        dictionary.take(entries)?;
        if self.only_learns {
            return Ok(vec![]);
        }
        let ours = dictionary.entries(self.scope, &some)?.into_iter().map(to_wire);
        let lacking: Vec<_> = ours.filter(|entry| !theirs.contains(&(entry.kind, entry.id))).collect();
        Ok(lacking
            .chunks(ENTRIES_MAX as usize)
            .map(|entries| LearnRequest { entries: entries.to_vec() })
            .collect())
    }
}

/// An entry as nodes tell it.
pub(super) fn to_wire((entry, is_stored): (Entry, bool)) -> DictionaryEntry {
    let Entry { kind, id, name } = entry;
    DictionaryEntry { kind: kind as u32, id, name, is_stored }
}

fn partition(number: u32) -> Option<PartitionId> {
    PartitionId::new(u16::try_from(number).ok()?)
}

impl Dictionary {
    pub fn digest(&self, partition: PartitionId) -> Digest {
        self.digest_of(Scope::All, partition)
    }

    pub fn digest_of(&self, scope: Scope, partition: PartitionId) -> Digest {
        self.inner.digests.get(scope, partition)
    }

    /// Answers another node's question: of the partitions that differ, as many as fit in one answer.
    ///
    /// Blocks for the disk.
    pub fn compare(&self, request: &CompareRequest) -> Result<CompareResponse, Error> {
        let of = u16::try_from(request.of_node).ok().and_then(NodeId::new);
        let scope = match of {
            Some(node) => Scope::Of(node),
            None if request.aliases => Scope::Aliases,
            None => Scope::All,
        };
        let mut theirs: Vec<Option<Digest>> = vec![None; PARTITIONS.into()];
        if scope == Scope::Aliases {
            theirs.fill(Some(Digest::default()));
        }
        for PartitionDigest { partition: number, entries, hash } in &request.partitions {
            if let Some(partition) = partition(*number) {
                theirs[partition.index()] = Some(Digest { entries: *entries, hash: *hash });
            }
        }
        let told: Vec<_> = PartitionId::all().filter(|at| theirs[at.index()].is_some()).collect();
        let ours = self.inner.digests.several(scope, &told);
        let differing = told.into_iter().zip(ours).filter(|(at, ours)| theirs[at.index()] != Some(*ours));
        let some = self.some_of(scope, differing.map(|(partition, _)| partition), ENTRIES_MAX);
        if some.is_empty() {
            return Ok(CompareResponse::default());
        }
        let entries = self.entries(scope, &some)?;
        Ok(CompareResponse {
            partitions: some.iter().map(|partition| partition.get().into()).collect(),
            entries: entries.into_iter().map(to_wire).collect(),
        })
    }

    /// Takes entries that another node tells. A kind that this release does not know is left out. What is in its store is in this one's
    /// when it is the same.
    ///
    /// Blocks for the disk.
    pub fn take(&self, entries: Vec<DictionaryEntry>) -> Result<Learned, Error> {
        let has_it = |entry: &DictionaryEntry| entry.is_stored && self.inner.config.is_store_shared;
        let (stored, fresh): (Vec<_>, Vec<_>) = entries.into_iter().partition(has_it);
        let mut learned = Learned::default();
        for (entries, is_stored) in [(stored, true), (fresh, false)] {
            let kind = |number: u32| u8::try_from(number).ok().and_then(Kind::from_number);
            let known =
                entries.into_iter().filter_map(|DictionaryEntry { kind: number, id, name, .. }| {
                    Some(Entry { kind: kind(number)?, id, name })
                });
            let Learned { new, conflicts, malformed } = self.learn(&known.collect::<Vec<_>>(), is_stored)?;
            learned.new += new;
            learned.conflicts += conflicts;
            learned.malformed += malformed;
        }
        Ok(learned)
    }

    /// Of these partitions, as many as hold `entries_max` entries together here; one at least, so that all have their turn.
    pub(super) fn some_of(
        &self,
        scope: Scope,
        partitions: impl Iterator<Item = PartitionId>,
        entries_max: u32,
    ) -> Vec<PartitionId> {
        let mut entries = 0_u32;
        let mut some = Vec::new();
        for partition in partitions {
            entries = entries.saturating_add(self.digest_of(scope, partition).entries);
            if entries > entries_max && !some.is_empty() {
                break;
            }
            some.push(partition);
        }
        some
    }

    /// Every entry in a scope of some partitions, and whether the store has it for certain. Reads the whole dictionary from the disk, and
    /// blocks for it.
    pub(super) fn entries(
        &self,
        scope: Scope,
        partitions: &[PartitionId],
    ) -> Result<Vec<(Entry, bool)>, Error> {
        let wanted: HashSet<_> = partitions.iter().copied().collect();
        if scope == Scope::Aliases {
            return Ok(self.with_state(self.inner.digests.aliased(&wanted)));
        }
        let is_of = |id: u32| match scope {
            Scope::Of(node) => id >> COUNTER_BITS == u32::from(node.get()),
            Scope::All | Scope::Aliases => true,
        };
        let mut entries = Vec::new();
        let mut damaged = None;
        self.inner.disk.scan(Family::IdToName, b"", |key, name| {
            match load::entry(key, name) {
                Some((kind, id, name)) if is_of(id) && wanted.contains(&partition_of(kind, &name)) => {
                    entries.push(Entry { kind, id, name: name.to_string() });
                }
                Some(_) => {}
                None => damaged = Some(Error::Damaged(key.to_vec())),
            }
            damaged.is_none()
        })?;
        damaged.map_or_else(|| Ok(self.with_state(entries)), Err)
    }

    /// Whether the store has each of these for certain. They were read before: an entry that is made meanwhile would be on the disk, and
    /// not among those that were known to be on their way.
    fn with_state(&self, entries: Vec<Entry>) -> Vec<(Entry, bool)> {
        let unconfirmed = self.inner.unconfirmed();
        let is_stored = |entry: &Entry| !unconfirmed.contains(&(entry.kind, entry.id));
        entries
            .into_iter()
            .map(|entry| {
                let is_stored = is_stored(&entry);
                (entry, is_stored)
            })
            .collect()
    }

    /// Every id of a name, the canonical one first, and whether the store has it for certain. Reads all names of the kind from the disk,
    /// and blocks for it.
    pub fn ids_of(&self, kind: Kind, name: &str) -> Result<Vec<(u32, bool)>, Error> {
        let name = bounded(name);
        let mut entries = Vec::new();
        self.inner.disk.scan(Family::IdToName, &[kind as u8], |key, value| {
            let is_of_kind = key.first() == Some(&(kind as u8));
            if is_of_kind
                && value == name.as_bytes()
                && let Some((_, id, _)) = load::entry(key, value)
            {
                entries.push(Entry { kind, id, name: name.to_string() });
            }
            is_of_kind
        })?;
        Ok(self.with_state(entries).into_iter().map(|(entry, is_stored)| (entry.id, is_stored)).collect())
    }

    /// Up to `entries_max` entries that follow one in the order of kind and id, and whether the store has them for certain. Blocks for
    /// the disk.
    pub fn entries_after(
        &self,
        (kind, id): (u8, u32),
        entries_max: usize,
    ) -> Result<Vec<(Entry, bool)>, Error> {
        let start = [&[kind][..], &(u64::from(id) + 1).to_be_bytes()].concat();
        let mut entries = Vec::new();
        let mut damaged = None;
        self.inner.disk.scan(Family::IdToName, &start, |key, name| {
            match load::entry(key, name) {
                Some((kind, id, name)) => entries.push(Entry { kind, id, name: name.to_string() }),
                None => damaged = Some(Error::Damaged(key.to_vec())),
            }
            damaged.is_none() && entries.len() < entries_max
        })?;
        damaged.map_or_else(|| Ok(self.with_state(entries)), Err)
    }
}

#[cfg(test)]
mod tests;
