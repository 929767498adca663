//! Partitions as nodes compare them: a digest says in 12 bytes whether two nodes know the same entries.
//!
//! Two nodes that hold a partition compare digests; where they differ, each takes the other's entries. Merging has no order, so any two
//! nodes that have exchanged everything agree, whatever happened before.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use metaflow_schema::enums::Kind;

use super::{Dictionary, Entry, Error, bounded, load};
use crate::{
    disk::Family,
    placement::{PARTITIONS, PartitionId, entry_hash, partition_of},
};

/// What a node knows of a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    pub entries: u32,
    /// Exclusive or of the entries' hashes: the order in which they came does not count.
    pub hash: u64,
}

/// The digests of all partitions.
pub(super) struct Digests(Mutex<Box<[Digest]>>);

impl Default for Digests {
    fn default() -> Self {
        Self(Mutex::new(vec![Digest::default(); PARTITIONS.into()].into()))
    }
}

impl Digests {
    /// Counts an entry; each is counted once in the life of the process.
    pub(super) fn add(&self, kind: Kind, id: u32, name: &str) {
        let mut digests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = &mut digests[partition_of(kind, name).index()];
        digest.entries += 1;
        digest.hash ^= entry_hash(kind, id, name);
    }

    fn get(&self, partition: PartitionId) -> Digest {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[partition.index()]
    }
}

impl Dictionary {
    pub fn digest(&self, partition: PartitionId) -> Digest {
        self.inner.digests.get(partition)
    }

    /// Of these partitions, as many as hold `entries_max` entries together here; one at least, so that all have their turn.
    pub fn some_of(&self, partitions: &[PartitionId], entries_max: u32) -> Vec<PartitionId> {
        let mut entries = 0_u32;
        let mut some = Vec::new();
        for partition in partitions {
            entries = entries.saturating_add(self.digest(*partition).entries);
            if entries > entries_max && !some.is_empty() {
                break;
            }
            some.push(*partition);
        }
        some
    }

    /// Every entry of some partitions, and whether the store has it for certain. Reads the whole dictionary from the disk, and blocks for
    /// it.
    pub fn entries(&self, partitions: &[PartitionId]) -> Result<Vec<(Entry, bool)>, Error> {
        let wanted: HashSet<_> = partitions.iter().copied().collect();
        let unconfirmed = self.inner.pending.ids();
        let mut entries = Vec::new();
        let mut damaged = None;
        self.inner.disk.scan(Family::IdToName, b"", |key, name| {
            match load::entry(key, name) {
                Some((kind, id, name)) if wanted.contains(&partition_of(kind, &name)) => {
                    let is_stored = !unconfirmed.contains(&(kind, id));
                    entries.push((Entry { kind, id, name: name.to_string() }, is_stored));
                }
                Some(_) => {}
                None => damaged = Some(Error::Damaged(key.to_vec())),
            }
            damaged.is_none()
        })?;
        damaged.map_or(Ok(entries), Err)
    }

    /// Every id of a name, the canonical one first, and whether the store has it for certain. Reads all names of the kind from the disk,
    /// and blocks for it.
    pub fn ids_of(&self, kind: Kind, name: &str) -> Result<Vec<(u32, bool)>, Error> {
        let name = bounded(name);
        let unconfirmed = self.inner.pending.ids();
        let mut ids = Vec::new();
        self.inner.disk.scan(Family::IdToName, &[kind as u8], |key, value| {
            let is_of_kind = key.first() == Some(&(kind as u8));
            if is_of_kind
                && value == name.as_bytes()
                && let Some((_, id, _)) = load::entry(key, value)
            {
                ids.push((id, !unconfirmed.contains(&(kind, id))));
            }
            is_of_kind
        })?;
        Ok(ids)
    }

    /// Up to `entries_max` entries that follow one in the order of kind and id, and whether the store has them for certain. Blocks for
    /// the disk.
    pub fn entries_after(
        &self,
        (kind, id): (u8, u32),
        entries_max: usize,
    ) -> Result<Vec<(Entry, bool)>, Error> {
        let unconfirmed = self.inner.pending.ids();
        let start = [&[kind][..], &(u64::from(id) + 1).to_be_bytes()].concat();
        let mut entries = Vec::new();
        let mut damaged = None;
        self.inner.disk.scan(Family::IdToName, &start, |key, name| {
            match load::entry(key, name) {
                Some((kind, id, name)) => {
                    let is_stored = !unconfirmed.contains(&(kind, id));
                    entries.push((Entry { kind, id, name: name.to_string() }, is_stored));
                }
                None => damaged = Some(Error::Damaged(key.to_vec())),
            }
            damaged.is_none() && entries.len() < entries_max
        })?;
        damaged.map_or(Ok(entries), Err)
    }
}
